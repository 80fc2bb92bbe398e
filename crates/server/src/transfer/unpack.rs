//! Makes a layer of the entries of an archive, inside one directory whatever the archive says.
//!
//! An entry is only made in a directory that this very unpacking made, hard links only to files that
//! it made, and nothing is made twice. So no link of the archive is ever followed on the host; what
//! symbolic links point to is for guests, which have a root of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::TransferError;
use super::archive::{Member, MemberKind, cut_short, unreadable};
use super::error::{damaged, io_error};
use super::format::LayerEntry;
use super::tree::{Device, Instant, is_content, path_of};

/// Most bytes of attributes of one entry, names and values: what the kernel takes of one attribute, and
/// more than any file system here keeps of all.
const MOST_ATTRIBUTES: usize = 64 << 10;

/// Memory that a kept path counts for, beside its length.
const PATH_OVERHEAD: usize = 128;
const ACCESS_LISTS: &[u8] = b"system.posix_acl_";

/// Properties of a directory that are set when all that is in it was made.
struct Later {
    mode: u32,
    modified: Instant,
    /// Access lists: what is made in the directory would inherit them.
    lists: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A layer that is being made.
pub(super) struct Unpacking {
    root: PathBuf,
    promised: LayerEntry,
    entries: u64,
    size_bytes: u64,
    /// With what they are to be at the end: making an entry changes the time of its directory, and
    /// a mode may forbid it. Nothing more is kept: there may be very many.
    directories: BTreeMap<PathBuf, Later>,
    files: BTreeSet<PathBuf>,
    /// About what both take in memory.
    kept_bytes: usize,
}

impl Unpacking {
    /// Starts a layer at `root`, which must not exist and whose parent must.
    pub(super) fn new(root: PathBuf, promised: LayerEntry) -> Self {
        Self {
            root,
            promised,
            entries: 0,
            size_bytes: 0,
            directories: BTreeMap::new(),
            files: BTreeSet::new(),
            kept_bytes: 0,
        }
    }

    /// About what is kept in memory of what was made.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Makes one entry; `path` is the member's within the layer, empty for the root.
    pub(super) fn add(
        &mut self,
        path: &[u8],
        member: Member,
        data: &mut dyn Read,
    ) -> Result<(), TransferError> {
        let path = self.checked(path)?;
        let lengths = member.attributes.iter();
        let attributes: usize = lengths.map(|(name, value)| name.len() + value.len()).sum();
        if attributes > MOST_ATTRIBUTES {
            let problem =
                format!("{path:?} in it has more than {MOST_ATTRIBUTES} bytes of attributes");
            return Err(damaged(problem));
        }
        self.entries += 1;
        self.kept_bytes += path.as_os_str().len() + PATH_OVERHEAD;
        if let MemberKind::File { stored_bytes, .. } = member.kind {
            self.size_bytes = self.size_bytes.saturating_add(stored_bytes);
        }
        if self.entries > self.promised.entries || self.size_bytes > self.promised.size_bytes {
            return Err(damaged("a layer in it is larger than its manifest says"));
        }
        let target = self.target(&path);
        let made = match &member.kind {
            MemberKind::Directory => {
                let mut builder = fs::DirBuilder::new();
                let made = builder.mode(0o700).create(&target);
                made.map_err(self.io("create", &target))?;
                // The others at once: they may be long, and making entries does not change them.
                let (lists, others): (Vec<_>, Vec<_>) = member
                    .attributes
                    .into_iter()
                    .partition(|(name, _)| name.starts_with(ACCESS_LISTS));
                lchown(&target, Some(member.uid), Some(member.gid))
                    .and_then(|()| add_attributes(&target, &others))
                    .map_err(self.io("set the attributes of", &target))?;
                self.kept_bytes += lists.iter().map(|(_, list)| list.len()).sum::<usize>();
                let later = Later {
                    mode: member.mode,
                    modified: member.modified,
                    lists,
                };
                self.directories.insert(path, later);
                return Ok(());
            }
            MemberKind::File {
                stored_bytes,
                sparse,
            } => {
                if sparse.is_some() {
                    return Err(damaged("a file of a layer in it has holes"));
                }
                self.file(&target, *stored_bytes, data)?;
                self.files.insert(path);
                Ok(())
            }
            MemberKind::HardLink { first } => {
                let first = path_of(first);
                if !self.files.contains(&first) {
                    let problem = format!("{first:?} in it is linked to and no file before it");
                    return Err(damaged(problem));
                }
                // Everything but the name is that of the first.
                let linked = fs::hard_link(self.target(&first), &target);
                return linked.map_err(self.io("link", &target));
            }
            MemberKind::SymbolicLink { target: link } => {
                std::os::unix::fs::symlink(OsStr::from_bytes(link), &target)
            }
            MemberKind::CharacterDevice(device) => {
                node(&target, FileType::CharacterDevice, Some(*device))
            }
            MemberKind::BlockDevice(device) => node(&target, FileType::BlockDevice, Some(*device)),
            MemberKind::Fifo => node(&target, FileType::Fifo, None),
        };
        made.map_err(self.io("create", &target))?;
        dress(&target, &member).map_err(self.io("set the attributes of", &target))
    }

    /// Gives the directories their modes and times, deepest first, and checks that all is there.
    pub(super) fn finish(self) -> Result<PathBuf, TransferError> {
        for (path, later) in self.directories.iter().rev() {
            let target = self.target(path);
            let mode = fs::Permissions::from_mode(later.mode);
            fs::set_permissions(&target, mode)
                .and_then(|()| add_attributes(&target, &later.lists))
                .and_then(|()| set_time(&target, later.modified))
                .map_err(self.io("set the attributes of", &target))?;
        }
        let whole = self.entries == self.promised.entries;
        if !whole || self.size_bytes != self.promised.size_bytes || self.directories.is_empty() {
            return Err(damaged("a layer in it is not complete"));
        }
        Ok(self.root)
    }

    /// The path, if something may be made there.
    fn checked(&self, bytes: &[u8]) -> Result<PathBuf, TransferError> {
        let path = path_of(bytes);
        let refused = || damaged(format!("{path:?} in it has no place in a layer"));
        if bytes.is_empty() {
            let first = self.directories.is_empty();
            return if first { Ok(path) } else { Err(refused()) };
        }
        let plain =
            |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0);
        if !bytes.split(|byte| *byte == b'/').all(plain) {
            return Err(refused());
        }
        let parent = path.parent().ok_or_else(refused)?;
        if !self.directories.contains_key(parent) {
            return Err(refused());
        }
        Ok(path)
    }

    fn target(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() {
            self.root.clone()
        } else {
            self.root.join(path)
        }
    }

    /// What exists already was in the archive before.
    fn io(&self, step: &'static str, path: &Path) -> impl Fn(io::Error) -> TransferError {
        let path = path.to_owned();
        move |error| match error.kind() {
            io::ErrorKind::AlreadyExists => damaged(format!("{path:?} is in it twice")),
            io::ErrorKind::InvalidFilename => damaged("a name in it is too long"),
            _ => io_error(step, &path)(error),
        }
    }

    fn file(&self, target: &Path, length: u64, data: &mut dyn Read) -> Result<(), TransferError> {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(target).map_err(self.io("create", target))?;
        let failed = self.io("write", target);
        let written = super::sparse::restore(data, length, None, &file, failed)?;
        if written == length {
            Ok(())
        } else {
            Err(cut_short())
        }
    }
}

fn node(path: &Path, kind: FileType, device: Option<Device>) -> io::Result<()> {
    let device = device.map_or(0, |it| rustix::fs::makedev(it.major, it.minor));
    Ok(rustix::fs::mknodat(CWD, path, kind, Mode::RUSR, device)?)
}

/// Owner, mode, attributes and time, in this order: each one resets some of the next.
fn dress(path: &Path, member: &Member) -> io::Result<()> {
    lchown(path, Some(member.uid), Some(member.gid))?;
    if !matches!(member.kind, MemberKind::SymbolicLink { .. }) {
        fs::set_permissions(path, fs::Permissions::from_mode(member.mode))?;
    }
    add_attributes(path, &member.attributes)?;
    set_time(path, member.modified)
}

fn add_attributes(path: &Path, attributes: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in attributes {
        if !is_content(name) {
            return Err(io::Error::other("an attribute that no layer may have"));
        }
        let name = CString::new(name.clone())?;
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())?;
    }
    Ok(())
}

fn set_time(path: &Path, modified: Instant) -> io::Result<()> {
    let time = Timespec {
        tv_sec: modified.seconds,
        tv_nsec: modified.nanoseconds.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Reads an entry's data to its end without keeping them.
pub(super) fn skip(data: &mut dyn Read, length: u64) -> Result<(), TransferError> {
    let read = io::copy(&mut data.take(length), &mut io::sink()).map_err(unreadable)?;
    if read == length {
        Ok(())
    } else {
        Err(cut_short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: u64 = 1 << 20;

    struct Layer {
        folder: tempfile::TempDir,
        unpacking: Unpacking,
    }

    fn layer() -> Layer {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        let promised = LayerEntry {
            hash: String::new(),
            entries: ANY,
            size_bytes: ANY,
        };
        let mut unpacking = Unpacking::new(folder.path().join("layer"), promised);
        add(&mut unpacking, "", MemberKind::Directory).unwrap();
        Layer { folder, unpacking }
    }

    fn add(to: &mut Unpacking, path: &str, kind: MemberKind) -> Result<(), TransferError> {
        let owner = rustix::process::getuid().as_raw();
        let group = rustix::process::getgid().as_raw();
        let member = Member {
            path: Vec::new(),
            kind,
            mode: 0o755,
            uid: owner,
            gid: group,
            modified: Instant {
                seconds: 5,
                nanoseconds: 7,
            },
            attributes: Vec::new(),
        };
        to.add(path.as_bytes(), member, &mut &b"abc"[..])
    }

    const FILE: MemberKind = MemberKind::File {
        stored_bytes: 3,
        sparse: None,
    };

    fn link_to(target: &Path) -> MemberKind {
        MemberKind::SymbolicLink {
            target: target.as_os_str().as_bytes().to_vec(),
        }
    }

    fn hard_link_to(first: &str) -> MemberKind {
        MemberKind::HardLink {
            first: first.as_bytes().to_vec(),
        }
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        let Layer {
            folder,
            mut unpacking,
        } = layer();
        add(&mut unpacking, "dir", MemberKind::Directory).unwrap();
        let absolute = folder.path().join("outside/x");
        for path in [
            "../outside/x",
            "dir/../../outside/x",
            "..",
            ".",
            "dir/./x",
            "/x",
            "dir//x",
            "dir/",
            "nowhere/x",
            "a\0b",
            absolute.to_str().unwrap(),
        ] {
            for kind in [FILE, MemberKind::Directory, link_to(Path::new("x"))] {
                let refused = add(&mut unpacking, path, kind);
                assert!(
                    matches!(refused, Err(TransferError::Damaged(_))),
                    "{path:?}"
                );
            }
        }
        assert_eq!(
            fs::read_dir(folder.path().join("outside")).unwrap().count(),
            0
        );
    }

    #[test]
    fn nothing_is_made_or_linked_through_a_link() {
        let Layer {
            folder,
            mut unpacking,
        } = layer();
        let outside = folder.path().join("outside");
        fs::write(outside.join("secret"), b"secret").unwrap();
        // The link itself is content; whoever goes through it on the host is refused.
        add(&mut unpacking, "out", link_to(&outside)).unwrap();
        add(&mut unpacking, "secret", link_to(&outside.join("secret"))).unwrap();
        for (path, kind) in [
            ("out/x", FILE),
            ("out/x", MemberKind::Directory),
            ("out", MemberKind::Directory),
            ("secret", FILE),
            ("out", hard_link_to("secret")),
            ("a", hard_link_to("secret")),
            ("b", hard_link_to("out/secret")),
            ("c", hard_link_to("../outside/secret")),
            ("d", hard_link_to(outside.join("secret").to_str().unwrap())),
        ] {
            let refused = add(&mut unpacking, path, kind);
            assert!(
                matches!(refused, Err(TransferError::Damaged(_))),
                "{path:?}"
            );
        }
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
    }

    #[test]
    fn more_than_was_promised_is_refused() {
        let Layer {
            folder: _folder,
            mut unpacking,
        } = layer();
        unpacking.promised.size_bytes = 5;
        add(&mut unpacking, "a", FILE).unwrap();
        assert!(add(&mut unpacking, "b", FILE).is_err());
        unpacking.promised.size_bytes = ANY;
        unpacking.promised.entries = unpacking.entries;
        assert!(add(&mut unpacking, "c", MemberKind::Directory).is_err());
    }

    #[test]
    fn an_entry_with_very_long_attributes_is_refused() {
        let Layer {
            folder: _folder,
            mut unpacking,
        } = layer();
        let mut member = Member::plain("d", 0o755, 0, None);
        member.kind = MemberKind::Directory;
        member.attributes = vec![(b"user.a".to_vec(), vec![b'x'; MOST_ATTRIBUTES])];
        let refused = unpacking.add(b"d", member, &mut io::empty());
        assert!(
            matches!(refused, Err(TransferError::Damaged(text)) if text.contains("attributes"))
        );
    }

    #[test]
    fn a_layer_gets_the_times_of_its_directories_at_the_end() {
        let Layer {
            folder: _folder,
            mut unpacking,
        } = layer();
        add(&mut unpacking, "dir", MemberKind::Directory).unwrap();
        add(&mut unpacking, "dir/file", FILE).unwrap();
        add(&mut unpacking, "dir/again", hard_link_to("dir/file")).unwrap();
        (unpacking.promised.entries, unpacking.promised.size_bytes) = (4, 3);
        let root = unpacking.finish().unwrap();
        for node in super::super::tree::list(&root).unwrap() {
            let time = (node.modified.seconds, node.modified.nanoseconds);
            assert_eq!((time, node.mode), ((5, 7), 0o755), "{:?}", node.path);
        }
    }
}
