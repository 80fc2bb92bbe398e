//! Layers as lists of entries, and the hash of all that is in one.
//!
//! A memory image is only right over exactly the files it was taken with, so the hash covers all
//! that a guest can see of them: names, types, owners, modes, modification times, attributes and
//! content. Two builds of one recipe may differ in it, and then they are two layers.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};

/// Attributes that belong to the content. Others are the host's own (labels of SELinux).
const ATTRIBUTES: [&str; 4] = [
    "user.",
    "trusted.",
    "security.capability",
    "system.posix_acl_",
];
const LARGEST_ATTRIBUTE: usize = 64 << 10;

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Relative to the layer; empty for its root.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// Permission bits, with set-user-id and the like.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Instant,
    /// Extended attributes by name.
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A modification time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Instant {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File {
        size_bytes: u64,
    },
    /// What it points to has no meaning on the host.
    SymbolicLink {
        target: Vec<u8>,
    },
    /// A further name of a file that came before.
    HardLink {
        first: PathBuf,
    },
    CharacterDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// Numbers of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// A layer as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Measure {
    /// See the module.
    pub(super) hash: String,
    pub(super) entries: u64,
    pub(super) size_bytes: u64,
}

/// Whether an attribute of this name belongs to a layer's content.
pub(super) fn is_content(attribute: &[u8]) -> bool {
    ATTRIBUTES
        .iter()
        .any(|prefix| attribute.starts_with(prefix.as_bytes()))
}

/// Every entry below `root`, the root itself first, parents before their children.
pub(super) fn list(root: &Path) -> io::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    let mut first_names = HashMap::new();
    let mut pending = vec![PathBuf::new()];
    let mut paths = Vec::new();
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let metadata = full.symlink_metadata()?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&full)? {
                pending.push(path.join(entry?.file_name()));
            }
        }
        paths.push((path, metadata));
    }
    // By bytes: a folder's own path is the beginning of those below it.
    paths.sort_by(|(a, _), (b, _)| a.as_os_str().cmp(b.as_os_str()));
    for (path, metadata) in paths {
        let full = root.join(&path);
        nodes.push(Node {
            kind: kind(&full, &path, &metadata, &mut first_names)?,
            path,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: Instant {
                seconds: metadata.mtime(),
                nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            },
            attributes: attributes(&full)?,
        });
    }
    Ok(nodes)
}

pub(super) fn kind(
    full: &Path,
    path: &Path,
    metadata: &Metadata,
    first_names: &mut HashMap<(u64, u64), PathBuf>,
) -> io::Result<Kind> {
    let file_type = metadata.file_type();
    let device = || Device {
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
    };
    Ok(if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        let target = fs::read_link(full)?;
        Kind::SymbolicLink {
            target: target.into_os_string().into_encoded_bytes(),
        }
    } else if file_type.is_file() {
        let inode = (metadata.dev(), metadata.ino());
        match first_names.get(&inode) {
            Some(first) => Kind::HardLink {
                first: first.clone(),
            },
            None => {
                if metadata.nlink() > 1 {
                    first_names.insert(inode, path.to_owned());
                }
                Kind::File {
                    size_bytes: metadata.len(),
                }
            }
        }
    } else if file_type.is_char_device() {
        Kind::CharacterDevice(device())
    } else if file_type.is_block_device() {
        Kind::BlockDevice(device())
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else {
        let problem = format!("{} is a socket, which no layer may hold", full.display());
        return Err(io::Error::other(problem));
    })
}

pub(super) fn attributes(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; LARGEST_ATTRIBUTE];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        // A file system without attributes.
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if !is_content(name) {
            continue;
        }
        let mut value = vec![0; LARGEST_ATTRIBUTE];
        let length = lgetxattr(path, CString::new(name)?, &mut value[..])?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}

/// Hashes entries in the order of [`list`].
#[derive(Default)]
pub(super) struct TreeHash {
    hasher: blake3::Hasher,
    entries: u64,
    size_bytes: u64,
}

impl TreeHash {
    /// Adds an entry; `content` is the hash of a file's content.
    pub(super) fn add(&mut self, node: &Node, content: Option<&blake3::Hash>) {
        self.entries += 1;
        self.bytes(node.path.as_os_str().as_bytes());
        for number in [node.mode, node.uid, node.gid] {
            self.hasher.update(&number.to_le_bytes());
        }
        self.hasher.update(&node.modified.seconds.to_le_bytes());
        self.hasher.update(&node.modified.nanoseconds.to_le_bytes());
        self.bytes(&node.attributes.len().to_le_bytes());
        for (name, value) in &node.attributes {
            self.bytes(name);
            self.bytes(value);
        }
        match &node.kind {
            Kind::Directory => self.bytes(b"directory"),
            Kind::File { size_bytes } => {
                self.size_bytes += size_bytes;
                self.bytes(b"file");
                self.hasher.update(&size_bytes.to_le_bytes());
                self.bytes(content.map_or(&[][..], |hash| hash.as_bytes()));
            }
            Kind::SymbolicLink { target } => {
                self.bytes(b"symbolic link");
                self.bytes(target);
            }
            Kind::HardLink { first } => {
                self.bytes(b"hard link");
                self.bytes(first.as_os_str().as_bytes());
            }
            Kind::CharacterDevice(device) => self.device(b"character device", *device),
            Kind::BlockDevice(device) => self.device(b"block device", *device),
            Kind::Fifo => self.bytes(b"fifo"),
        }
    }

    /// Lengths separate the parts, so that no two trees look the same.
    fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(&bytes.len().to_le_bytes());
        self.hasher.update(bytes);
    }

    fn device(&mut self, kind: &[u8], device: Device) {
        self.bytes(kind);
        self.hasher.update(&device.major.to_le_bytes());
        self.hasher.update(&device.minor.to_le_bytes());
    }

    /// The whole.
    pub(super) fn finish(self) -> Measure {
        Measure {
            hash: self.hasher.finalize().to_hex().to_string(),
            entries: self.entries,
            size_bytes: self.size_bytes,
        }
    }
}

/// Hashes the tree at `root` as it is on disk.
pub(super) fn measure(root: &Path) -> io::Result<Measure> {
    measure_listed(root, &list(root)?)
}

/// The same for one that was just listed.
pub(super) fn measure_listed(root: &Path, nodes: &[Node]) -> io::Result<Measure> {
    let mut hash = TreeHash::default();
    for node in nodes {
        let content = match node.kind {
            Kind::File { .. } => {
                let file = File::open(root.join(&node.path))?;
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(file)?;
                Some(hasher.finalize())
            }
            Kind::Directory
            | Kind::SymbolicLink { .. }
            | Kind::HardLink { .. }
            | Kind::CharacterDevice(_)
            | Kind::BlockDevice(_)
            | Kind::Fifo => None,
        };
        hash.add(node, content.as_ref());
    }
    Ok(hash.finish())
}

/// A path from bytes of an archive.
pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sample(root: &Path) {
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), b"content").unwrap();
        fs::write(root.join("a-b"), b"").unwrap();
        fs::hard_link(root.join("a/file"), root.join("z")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("a/link")).unwrap();
    }

    #[test]
    fn entries_are_listed_parents_first_and_links_named() {
        let folder = tempfile::tempdir().unwrap();
        sample(folder.path());
        let nodes = list(folder.path()).unwrap();
        let paths: Vec<_> = nodes
            .iter()
            .map(|node| node.path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["", "a", "a-b", "a/b", "a/file", "a/link", "z"]);
        assert_eq!(nodes[4].kind, Kind::File { size_bytes: 7 });
        let target = b"/etc/passwd".to_vec();
        assert_eq!(nodes[5].kind, Kind::SymbolicLink { target });
        let first = PathBuf::from("a/file");
        assert_eq!(nodes[6].kind, Kind::HardLink { first });
    }

    #[test]
    fn anything_a_guest_could_see_changes_the_hash() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        sample(root);
        let mut seen = vec![measure(root).unwrap().hash];
        assert_eq!(measure(root).unwrap().hash, seen[0], "it is repeatable");
        let file = root.join("a/file");
        let changes: [(&str, &dyn Fn()); 6] = [
            ("content", &|| {
                let modified = fs::metadata(&file).unwrap().modified().unwrap();
                fs::write(&file, b"Content").unwrap();
                File::open(&file).unwrap().set_modified(modified).unwrap();
            }),
            ("mode", &|| {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            }),
            ("time", &|| {
                let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(5, 1);
                File::open(&file).unwrap().set_modified(time).unwrap();
            }),
            ("attribute", &|| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(&file, "user.x", b"1", flags).unwrap();
            }),
            ("link", &|| {
                fs::remove_file(root.join("a/link")).unwrap();
                std::os::unix::fs::symlink("/etc/shadow", root.join("a/link")).unwrap();
            }),
            ("no hard link", &|| {
                fs::remove_file(root.join("z")).unwrap();
                fs::copy(&file, root.join("z")).unwrap();
            }),
        ];
        for (what, change) in changes {
            change();
            let hash = measure(root).unwrap().hash;
            assert!(!seen.contains(&hash), "{what}");
            seen.push(hash);
        }
    }
}
