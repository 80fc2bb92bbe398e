//! The container of an export: a tar archive that any `tar` can list and unpack, with an end mark
//! that holds the hash of everything before it.
//!
//! POSIX headers, with PAX records for what they cannot hold. Files with holes are in GNU tar's
//! sparse format 1.0. Reading trusts nothing: it is bounded in memory, and every byte counts, the
//! padding too.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use tar::{Builder, EntryType, Header};

use super::TransferError;
use super::error::damaged;
use super::tree::{Device, Instant};

/// Name of the last entry.
const END: &str = "end";
/// Hex digits of a BLAKE3 hash.
const HASH_LENGTH: usize = 64;
const BLOCK: usize = 512;
/// Longest name that a plain header holds.
const SHORT: usize = 100;
/// Most bytes of PAX records for one entry; attributes are the longest part.
const PAX_LIMIT: u64 = 1 << 20;
/// Longest reason of the tar reader that is passed on.
const REASON: usize = 80;
/// What a tar writer puts behind the last entry.
const TRAILER: usize = 2 * BLOCK;

const PATH: &str = "path";
const LINK: &str = "linkpath";
const MODIFIED: &str = "mtime";
const ATTRIBUTE: &str = "SCHILY.xattr.";
const SPARSE_MAJOR: &str = "GNU.sparse.major";
const SPARSE_MINOR: &str = "GNU.sparse.minor";
const SPARSE_NAME: &str = "GNU.sparse.name";
const SPARSE_SIZE: &str = "GNU.sparse.realsize";

/// One entry, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    pub(super) kind: MemberKind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Instant,
    /// Extended attributes by name.
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    Directory,
    /// Its data are `stored_bytes` long; with holes they begin with the map of them.
    File {
        stored_bytes: u64,
        /// The length of the file, when it has holes.
        sparse: Option<u64>,
    },
    SymbolicLink {
        target: Vec<u8>,
    },
    HardLink {
        first: Vec<u8>,
    },
    CharacterDevice(Device),
    BlockDevice(Device),
    Fifo,
}

impl Member {
    /// A file of ours, of which only name and content matter.
    pub(super) fn plain(path: &str, mode: u32, stored_bytes: u64, sparse: Option<u64>) -> Self {
        Self {
            path: path.as_bytes().to_vec(),
            kind: MemberKind::File {
                stored_bytes,
                sparse,
            },
            mode,
            uid: 0,
            gid: 0,
            modified: Instant::default(),
            attributes: Vec::new(),
        }
    }

    /// The path, for people.
    pub(super) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Passes bytes on and hashes them.
struct Hashed<T> {
    inner: T,
    hasher: Rc<RefCell<blake3::Hasher>>,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> (Self, Rc<RefCell<blake3::Hasher>>) {
        let hasher = Rc::<RefCell<blake3::Hasher>>::default();
        let hashed = Self {
            inner,
            hasher: Rc::clone(&hasher),
        };
        (hashed, hasher)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.borrow_mut().update(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.borrow_mut().update(&buffer[..read]);
        Ok(read)
    }
}

/// Writes an archive.
pub(super) struct Writer<W: Write> {
    builder: Builder<Hashed<W>>,
    hasher: Rc<RefCell<blake3::Hasher>>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(output: W) -> Self {
        let (output, hasher) = Hashed::new(output);
        Self {
            builder: Builder::new(output),
            hasher,
        }
    }

    /// Adds an entry. `data` must be exactly as long as the entry says.
    pub(super) fn append(&mut self, member: &Member, data: impl Read) -> io::Result<()> {
        let records = records(member);
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_path("pax")?;
            header.set_mode(0o644);
            header.set_size(records.len() as u64);
            header.set_cksum();
            self.builder.append(&header, &records[..])?;
        }
        let header = header(member)?;
        let expected = header.size()?;
        let mut data = Counted {
            inner: data.take(expected),
            bytes: 0,
        };
        self.builder.append(&header, &mut data)?;
        if data.bytes == expected {
            return Ok(());
        }
        let problem = format!("{} became shorter while it was read", member.shown());
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem))
    }

    /// Ends the archive without an end mark: it is for people, and no import reads it.
    pub(super) fn finish_unmarked(self) -> io::Result<W> {
        Ok(self.builder.into_inner()?.inner)
    }

    /// Writes the end mark and gives the output back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let mark = Member::plain(END, 0o644, HASH_LENGTH as u64, None);
        let header = header(&mark)?;
        // The mark's own header is known and hashed, too.
        let mut hasher = self.hasher.borrow().clone();
        hasher.update(header.as_bytes());
        let hash = hasher.finalize().to_hex();
        self.builder.append(&header, hash.as_bytes())?;
        Ok(self.builder.into_inner()?.inner)
    }
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

fn header(member: &Member) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    // A name that does not fit is in a PAX record; this one is for programs that do not know them.
    if is_short(&member.path) {
        let name = &mut header.as_old_mut().name;
        name[..member.path.len()].copy_from_slice(&member.path);
    } else {
        header.set_path("long-name")?;
    }
    let (kind, size) = match &member.kind {
        MemberKind::Directory => (EntryType::Directory, 0),
        MemberKind::File { stored_bytes, .. } => (EntryType::Regular, *stored_bytes),
        MemberKind::SymbolicLink { .. } => (EntryType::Symlink, 0),
        MemberKind::HardLink { .. } => (EntryType::Link, 0),
        MemberKind::CharacterDevice(_) => (EntryType::Char, 0),
        MemberKind::BlockDevice(_) => (EntryType::Block, 0),
        MemberKind::Fifo => (EntryType::Fifo, 0),
    };
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(member.mode);
    header.set_uid(member.uid.into());
    header.set_gid(member.gid.into());
    header.set_mtime(u64::try_from(member.modified.seconds).unwrap_or(0));
    match &member.kind {
        MemberKind::SymbolicLink { target: link } | MemberKind::HardLink { first: link }
            if is_short(link) =>
        {
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        }
        MemberKind::CharacterDevice(device) | MemberKind::BlockDevice(device) => {
            header.set_device_major(device.major)?;
            header.set_device_minor(device.minor)?;
        }
        MemberKind::Directory
        | MemberKind::File { .. }
        | MemberKind::SymbolicLink { .. }
        | MemberKind::HardLink { .. }
        | MemberKind::Fifo => {}
    }
    header.set_cksum();
    Ok(header)
}

fn is_short(name: &[u8]) -> bool {
    name.len() <= SHORT && !name.is_empty()
}

/// The PAX records that an entry needs; none for most.
fn records(member: &Member) -> Vec<u8> {
    let mut records = Vec::new();
    if !is_short(&member.path) {
        record(&mut records, PATH.as_bytes(), &member.path);
    }
    let Instant {
        seconds,
        nanoseconds,
    } = member.modified;
    if nanoseconds != 0 || seconds < 0 {
        // Before 1970 the fraction counts backwards; our own pair counts it forwards.
        let text = format!("{seconds}.{nanoseconds:09}");
        record(&mut records, MODIFIED.as_bytes(), text.as_bytes());
    }
    match &member.kind {
        MemberKind::SymbolicLink { target: link } | MemberKind::HardLink { first: link }
            if !is_short(link) =>
        {
            record(&mut records, LINK.as_bytes(), link);
        }
        MemberKind::File {
            sparse: Some(size_bytes),
            ..
        } => {
            record(&mut records, SPARSE_MAJOR.as_bytes(), b"1");
            record(&mut records, SPARSE_MINOR.as_bytes(), b"0");
            record(&mut records, SPARSE_NAME.as_bytes(), &member.path);
            let size = size_bytes.to_string();
            record(&mut records, SPARSE_SIZE.as_bytes(), size.as_bytes());
        }
        MemberKind::Directory
        | MemberKind::File { .. }
        | MemberKind::SymbolicLink { .. }
        | MemberKind::HardLink { .. }
        | MemberKind::CharacterDevice(_)
        | MemberKind::BlockDevice(_)
        | MemberKind::Fifo => {}
    }
    for (name, value) in &member.attributes {
        let key = [ATTRIBUTE.as_bytes(), name].concat();
        record(&mut records, &key, value);
    }
    records
}

/// Adds `<length> <key>=<value>\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Takes the records apart again; `None` when they are malformed.
fn parse_records(mut records: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let whole = records.get(space + 1..length)?;
        let (b'\n', pair) = whole.split_last()? else {
            return None;
        };
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        found.push((&pair[..equals], &pair[equals + 1..]));
        records = &records[length..];
    }
    Some(found)
}

/// Reads an archive and gives each entry to `each`, with its data. Returns when the end mark was
/// right and nothing follows it. The end mark comes last: until then nothing that was read is known
/// to be whole.
pub(super) fn read(
    input: impl Read,
    mut each: impl FnMut(Member, &mut dyn Read) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let (input, hasher) = Hashed::new(input);
    let mut archive = tar::Archive::new(input);
    let mut records = Vec::new();
    let mut ended = false;
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        let so_far = hasher.borrow().finalize();
        let header = entry.header().clone();
        if header.entry_type() == EntryType::XHeader {
            if entry.size() > PAX_LIMIT || !records.is_empty() {
                return Err(damaged("its PAX records are too long, or repeated"));
            }
            read_exactly(&mut entry, header.size().map_err(unreadable)?, &mut records)?;
            continue;
        }
        let member = member(&header, &records)?;
        records.clear();
        if member.path != END.as_bytes() {
            each(member, &mut entry)?;
            continue;
        }
        let mut mark = Vec::new();
        if entry.size() != HASH_LENGTH as u64 {
            return Err(damaged("its end mark is malformed"));
        }
        read_exactly(&mut entry, HASH_LENGTH as u64, &mut mark)?;
        if mark != so_far.to_hex().as_bytes() {
            return Err(damaged("its content does not fit the hash in its end mark"));
        }
        ended = true;
        break;
    }
    if !ended {
        return Err(damaged("it ends before its end mark"));
    }
    check_trailer(archive.into_inner().inner)
}

/// Behind the end mark there is padding, then the archive's end, and nothing else.
fn check_trailer(input: impl Read) -> Result<(), TransferError> {
    let expected = BLOCK - HASH_LENGTH + TRAILER;
    let mut rest = Vec::new();
    let read = input.take(expected as u64 + 1).read_to_end(&mut rest);
    read.map_err(unreadable)?;
    if rest.len() == expected && rest.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(damaged("it does not stop where its end mark says"))
}

/// Reads all of an entry's data.
pub(super) fn read_exactly(
    data: &mut dyn Read,
    length: u64,
    into: &mut Vec<u8>,
) -> Result<(), TransferError> {
    data.take(length).read_to_end(into).map_err(unreadable)?;
    if into.len() as u64 == length {
        Ok(())
    } else {
        Err(cut_short())
    }
}

/// An error of the reader below.
pub(super) fn unreadable(error: io::Error) -> TransferError {
    // The tar reader quotes what it could not read, which may be anything.
    let text = error.to_string();
    let text: String = text.chars().filter(char::is_ascii).collect();
    let text = text.replace(|c: char| c.is_ascii_control(), "");
    let shown = text.get(..REASON).unwrap_or(&text);
    damaged(format!("it cannot be read on ({shown})"))
}

/// The data of an entry ended too early.
pub(super) fn cut_short() -> TransferError {
    damaged("it ends in the middle of a file")
}

fn member(header: &Header, records: &[u8]) -> Result<Member, TransferError> {
    let records = parse_records(records).ok_or_else(|| damaged("its PAX records are malformed"))?;
    let number = |value: io::Result<u64>| value.map_err(unreadable);
    let mut path = name_in(&header.as_old().name);
    let mut link = name_in(&header.as_old().linkname);
    let mut modified = Instant {
        seconds: i64::try_from(number(header.mtime())?).unwrap_or(i64::MAX),
        nanoseconds: 0,
    };
    let mut attributes = Vec::new();
    let mut sparse = None;
    for (key, value) in records {
        let text = std::str::from_utf8(value).unwrap_or_default();
        let unknown = || {
            damaged(format!(
                "{:?} in it is unknown",
                String::from_utf8_lossy(key)
            ))
        };
        match std::str::from_utf8(key).map_err(|_| unknown())? {
            PATH => path = value.to_vec(),
            LINK => link = value.to_vec(),
            MODIFIED => modified = instant(text).ok_or_else(unknown)?,
            SPARSE_SIZE => sparse = Some(text.parse().map_err(|_| unknown())?),
            SPARSE_MAJOR if text == "1" => {}
            SPARSE_MINOR if text == "0" => {}
            SPARSE_NAME => {}
            key => match key.strip_prefix(ATTRIBUTE) {
                Some(name) => attributes.push((name.as_bytes().to_vec(), value.to_vec())),
                None => return Err(unknown()),
            },
        }
    }
    let stored_bytes = number(header.size())?;
    let device = || -> Result<Device, TransferError> {
        Ok(Device {
            major: header.device_major().map_err(unreadable)?.unwrap_or(0),
            minor: header.device_minor().map_err(unreadable)?.unwrap_or(0),
        })
    };
    let kind = match header.entry_type() {
        EntryType::Regular => MemberKind::File {
            stored_bytes,
            sparse,
        },
        _ if stored_bytes != 0 || sparse.is_some() => {
            return Err(damaged("an entry in it has data and is no file"));
        }
        EntryType::Directory => MemberKind::Directory,
        EntryType::Symlink => MemberKind::SymbolicLink { target: link },
        EntryType::Link => MemberKind::HardLink { first: link },
        EntryType::Char => MemberKind::CharacterDevice(device()?),
        EntryType::Block => MemberKind::BlockDevice(device()?),
        EntryType::Fifo => MemberKind::Fifo,
        _ => return Err(damaged("an entry in it is of an unknown type")),
    };
    let small = |value: io::Result<u64>| {
        u32::try_from(number(value)?).map_err(|_| damaged("an owner in it is out of range"))
    };
    Ok(Member {
        path,
        kind,
        mode: header.mode().map_err(unreadable)? & 0o7777,
        uid: small(header.uid())?,
        gid: small(header.gid())?,
        modified,
        attributes,
    })
}

/// A name in a header, which ends at the first zero.
fn name_in(field: &[u8]) -> Vec<u8> {
    let name = field.split(|byte| *byte == 0).next();
    name.unwrap_or_default().to_vec()
}

fn instant(text: &str) -> Option<Instant> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    // Writers may leave out zeros at the end.
    let digits = format!("{fraction:0<9}");
    let valid = digits.len() == 9 && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some(Instant {
        seconds: seconds.parse().ok()?,
        nanoseconds: digits.parse().ok().filter(|_| valid)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<(Member, Vec<u8>)> {
        let other = |path: &[u8], kind| Member {
            path: path.to_vec(),
            kind,
            mode: 0o4755,
            uid: 70_000,
            gid: 5,
            modified: Instant {
                seconds: 1_700_000_000,
                nanoseconds: 120,
            },
            attributes: vec![(b"user.x".to_vec(), b"a\nb=\0".to_vec())],
        };
        let long = [b'x'; 300];
        let device = Device { major: 1, minor: 3 };
        let target = b"/etc/passwd".to_vec();
        let first = long.to_vec();
        vec![
            (Member::plain("a", 0o600, 3, None), b"abc".to_vec()),
            (Member::plain("s", 0o600, 600, Some(1 << 40)), vec![7; 600]),
            (other(b"dir", MemberKind::Directory), vec![]),
            (other(&long, MemberKind::HardLink { first }), vec![]),
            (other(b"l\xff", MemberKind::SymbolicLink { target }), vec![]),
            (other(b"null", MemberKind::CharacterDevice(device)), vec![]),
            (other(b"disk", MemberKind::BlockDevice(device)), vec![]),
            (other(b"fifo", MemberKind::Fifo), vec![]),
        ]
    }

    fn written() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (member, data) in sample() {
            writer.append(&member, &data[..]).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_all(archive: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TransferError> {
        let mut found = Vec::new();
        read(archive, |member, data| {
            let mut content = Vec::new();
            data.read_to_end(&mut content).map_err(unreadable)?;
            found.push((member, content));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(read_all(&written()).unwrap(), sample());
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let archive = written();
        for position in 0..archive.len() {
            let mut altered = archive.clone();
            altered[position] ^= 1 << (position % 8);
            assert!(read_all(&altered).is_err(), "byte {position}");
        }
    }

    #[test]
    fn cut_short_or_made_longer_it_is_refused() {
        let archive = written();
        for length in 0..archive.len() {
            assert!(read_all(&archive[..length]).is_err(), "{length} bytes");
        }
        let mut longer = archive.clone();
        longer.push(0);
        assert!(read_all(&longer).is_err());
    }

    #[test]
    fn records_too_long_for_memory_are_refused_unread() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_path("pax").unwrap();
        header.set_size(1 << 40);
        header.set_cksum();
        let endless = io::Read::chain(&header.as_bytes()[..], io::repeat(b'x'));
        let refused = read(endless, |_, _| Ok(()));
        assert!(matches!(refused, Err(TransferError::Damaged(_))));
    }

    #[test]
    fn a_file_that_shrinks_under_the_writer_is_an_error() {
        let mut writer = Writer::new(Vec::new());
        let member = Member::plain("a", 0o600, 4, None);
        let error = writer.append(&member, &b"abc"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
