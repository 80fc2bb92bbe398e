//! Files with holes: a 10 GiB disk with 2 MiB of data takes 2 MiB in an export, and after an import.
//!
//! The layout is GNU tar's sparse format 1.0: a map of the pieces that have data, as decimal lines
//! padded to a block, then those pieces.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};

use super::TransferError;
use super::archive::{cut_short, unreadable};
use super::error::damaged;

const BLOCK: usize = 512;
/// Most pieces of a file. One needs 4 KiB on disk at least, so this is more than any disk here has.
const MOST_PIECES: u64 = 1 << 22;
/// Longest decimal number of 64 bits.
const LONGEST_NUMBER: usize = 20;
const BUFFER: usize = 256 << 10;
/// What cannot be read is counted in blocks of this size, the disks' own.
const DISK_BLOCK: u64 = 4096;

/// A run of data within a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// An open file and how it is laid out in an archive.
pub(super) struct Layout {
    file: File,
    size_bytes: u64,
    /// `None` for a file without holes, which is stored as it is.
    map: Option<Map>,
}

struct Map {
    pieces: Vec<Piece>,
    text: Vec<u8>,
}

impl Layout {
    /// Looks where the data of a file are.
    pub(super) fn of(file: File) -> io::Result<Self> {
        let size_bytes = file.metadata()?.len();
        let pieces = pieces(&file, size_bytes)?;
        let whole = Piece {
            offset: 0,
            length: size_bytes,
        };
        let map = (size_bytes > 0 && pieces != [whole]).then(|| Map {
            text: encode(&pieces, size_bytes),
            pieces,
        });
        Ok(Self {
            file,
            size_bytes,
            map,
        })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Length of the file, when it has holes.
    pub(super) fn sparse(&self) -> Option<u64> {
        self.map.as_ref().map(|_| self.size_bytes)
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        match &self.map {
            None => self.size_bytes,
            Some(map) => {
                let data: u64 = map.pieces.iter().map(|piece| piece.length).sum();
                map.text.len() as u64 + data
            }
        }
    }

    /// A file of which it cannot be told where its data are: all of it.
    pub(super) fn whole(file: File, size_bytes: u64) -> Self {
        Self {
            file,
            size_bytes,
            map: None,
        }
    }

    /// Like [`stored`](Self::stored), but reads on behind what cannot be read: that is zeros, and
    /// added to `lost`.
    pub(super) fn readable<'a>(&'a self, lost: &'a mut Lost) -> impl Read + 'a {
        self.read_with(Some(lost))
    }

    /// The bytes as they are stored. May be asked for again.
    pub(super) fn stored(&self) -> impl Read + '_ {
        self.read_with(None)
    }

    fn read_with<'a>(&'a self, lost: Option<&'a mut Lost>) -> impl Read + 'a {
        let text = self.map.as_ref().map_or(&[][..], |map| &map.text);
        let whole = Piece {
            offset: 0,
            length: self.size_bytes,
        };
        let pieces = match &self.map {
            None => vec![whole],
            Some(map) => map.pieces.clone(),
        };
        text.chain(Pieces {
            file: &self.file,
            left: pieces.into_iter(),
            now: Piece {
                offset: 0,
                length: 0,
            },
            lost,
        })
    }
}

/// Where the data of a file could not be read, in order, and why first.
#[derive(Debug, Default)]
pub(super) struct Lost {
    pub(super) ranges: Vec<Piece>,
    pub(super) problem: Option<String>,
}

impl Lost {
    fn add(&mut self, offset: u64, length: u64, problem: &io::Error) {
        self.problem.get_or_insert_with(|| problem.to_string());
        match self.ranges.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length += length,
            Some(_) | None => self.ranges.push(Piece { offset, length }),
        }
    }
}

struct Pieces<'a> {
    file: &'a File,
    left: std::vec::IntoIter<Piece>,
    now: Piece,
    lost: Option<&'a mut Lost>,
}

impl Pieces<'_> {
    /// Reads at `offset`, or gives zeros in place of a block that cannot be read.
    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_at(buffer, offset);
        let Some(lost) = &mut self.lost else {
            return read;
        };
        let error = match read {
            Ok(0) if !buffer.is_empty() => io::Error::from(io::ErrorKind::UnexpectedEof),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => error,
            read => return read,
        };
        // Of a longer piece the part before what is broken may be readable.
        let to_boundary = DISK_BLOCK - offset % DISK_BLOCK;
        let block = buffer
            .len()
            .min(usize::try_from(to_boundary).unwrap_or(usize::MAX));
        if block < buffer.len() {
            match self.file.read_at(&mut buffer[..block], offset) {
                Ok(0) | Err(_) => {}
                read => return read,
            }
        }
        buffer[..block].fill(0);
        lost.add(offset, block as u64, &error);
        Ok(block)
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.length == 0 {
            match self.left.next() {
                Some(piece) => self.now = piece,
                None => return Ok(0),
            }
        }
        let most = usize::try_from(self.now.length).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let read = self.read_at(&mut buffer[..most], self.now.offset)?;
        self.now.offset += read as u64;
        self.now.length -= read as u64;
        Ok(read)
    }
}

fn pieces(file: &File, size_bytes: u64) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut position = 0;
    while position < size_bytes {
        let offset = match seek(file, SeekFrom::Data(position)) {
            Ok(offset) => offset,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(offset))?.min(size_bytes);
        pieces.push(Piece {
            offset,
            length: end - offset,
        });
        position = end;
    }
    Ok(pieces)
}

/// The map as text. GNU tar marks a hole at the end by an empty piece there.
fn encode(pieces: &[Piece], size_bytes: u64) -> Vec<u8> {
    let end = pieces.last().map_or(0, |last| last.offset + last.length);
    let mark = (end < size_bytes).then_some(Piece {
        offset: size_bytes,
        length: 0,
    });
    let count = pieces.len() + mark.iter().len();
    let mut text = format!("{count}\n");
    for piece in pieces.iter().chain(&mark) {
        text.push_str(&format!("{}\n{}\n", piece.offset, piece.length));
    }
    let mut text = text.into_bytes();
    text.resize(text.len().next_multiple_of(BLOCK), 0);
    text
}

/// Writes stored data into the new file `target`, holes and all. `stored_bytes` and `sparse` are what
/// the archive says of it. Answers the length of the file. `failed` makes errors of the target.
pub(super) fn restore(
    data: &mut dyn Read,
    stored_bytes: u64,
    sparse: Option<u64>,
    target: &File,
    failed: impl Fn(io::Error) -> TransferError,
) -> Result<u64, TransferError> {
    let Some(size_bytes) = sparse else {
        let whole = Piece {
            offset: 0,
            length: stored_bytes,
        };
        copy_piece(data, whole, target, &failed)?;
        return Ok(stored_bytes);
    };
    let pieces = decode(data, stored_bytes, size_bytes)?;
    target.set_len(size_bytes).map_err(&failed)?;
    for piece in pieces {
        copy_piece(data, piece, target, &failed)?;
    }
    Ok(size_bytes)
}

/// Reads a map and checks that its pieces are in order, in the file, and all of the data.
fn decode(
    data: &mut dyn Read,
    stored_bytes: u64,
    size_bytes: u64,
) -> Result<Vec<Piece>, TransferError> {
    let malformed = || damaged("a map of holes in it is malformed");
    let mut map = MapReader {
        data,
        block: [0; BLOCK],
        at: BLOCK,
        blocks: 0,
    };
    let count = map.number()?.ok_or_else(malformed)?;
    if count > MOST_PIECES {
        return Err(malformed());
    }
    let mut pieces = Vec::new();
    let (mut end, mut total) = (0_u64, 0_u64);
    for _ in 0..count {
        let offset = map.number()?.ok_or_else(malformed)?;
        let length = map.number()?.ok_or_else(malformed)?;
        let next = offset
            .checked_add(length)
            .filter(|next| *next <= size_bytes);
        if offset < end {
            return Err(malformed());
        }
        end = next.ok_or_else(malformed)?;
        total += length;
        pieces.push(Piece { offset, length });
    }
    let stored = total.checked_add(map.blocks * BLOCK as u64);
    if !map.is_padded() || stored != Some(stored_bytes) {
        return Err(malformed());
    }
    Ok(pieces)
}

/// Reads a map block by block: nothing behind it is touched.
struct MapReader<'a> {
    data: &'a mut dyn Read,
    block: [u8; BLOCK],
    at: usize,
    blocks: u64,
}

impl MapReader<'_> {
    /// The next line's number; `None` when it is none.
    fn number(&mut self) -> Result<Option<u64>, TransferError> {
        let mut digits = String::new();
        loop {
            if self.at == BLOCK {
                self.data.read_exact(&mut self.block).map_err(unreadable)?;
                self.at = 0;
                self.blocks += 1;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return Ok(digits.parse().ok()),
                b'0'..=b'9' if digits.len() < LONGEST_NUMBER => digits.push(char::from(byte)),
                _ => return Ok(None),
            }
        }
    }

    fn is_padded(&self) -> bool {
        self.block[self.at..].iter().all(|byte| *byte == 0)
    }
}

fn copy_piece(
    data: &mut dyn Read,
    piece: Piece,
    target: &File,
    failed: &impl Fn(io::Error) -> TransferError,
) -> Result<(), TransferError> {
    let mut buffer = vec![0; BUFFER];
    let (mut offset, mut left) = (piece.offset, piece.length);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        let read = data.read(&mut buffer[..most]).map_err(unreadable)?;
        if read == 0 {
            return Err(cut_short());
        }
        target
            .write_all_at(&buffer[..read], offset)
            .map_err(failed)?;
        offset += read as u64;
        left -= read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn failed(error: io::Error) -> TransferError {
        damaged(error.to_string())
    }

    fn file_with(size_bytes: u64, pieces: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size_bytes).unwrap();
        for (offset, content) in pieces {
            file.write_all_at(content, *offset).unwrap();
        }
        file
    }

    fn stored(layout: &Layout) -> Vec<u8> {
        let mut bytes = Vec::new();
        layout.stored().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, layout.stored_bytes());
        bytes
    }

    fn restored(layout: &Layout) -> File {
        let (bytes, target) = (stored(layout), tempfile::tempfile().unwrap());
        let length = bytes.len() as u64;
        let size = restore(&mut &bytes[..], length, layout.sparse(), &target, failed);
        assert_eq!(size.unwrap(), layout.size_bytes());
        target
    }

    #[test]
    fn what_cannot_be_read_is_zeros_and_named() {
        let file = file_with(10_000, &[(0, &[7; 10_000])]);
        // As if it went on behind what is there.
        let layout = Layout::whole(file, 20_000);
        layout.stored().read_to_end(&mut Vec::new()).unwrap();
        let (mut lost, mut bytes) = (Lost::default(), Vec::new());
        layout.readable(&mut lost).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[..10_000], [7; 10_000]);
        assert_eq!(bytes[10_000..], [0; 10_000]);
        let (offset, length) = (10_000, 10_000);
        assert_eq!(lost.ranges, [Piece { offset, length }]);
        assert!(lost.problem.is_some());
    }

    #[test]
    fn holes_are_neither_stored_nor_written() {
        const SIZE: u64 = 10 << 30;
        let data = vec![7; 1 << 20];
        let last = SIZE - data.len() as u64;
        for pieces in [
            vec![],
            vec![(5 << 30, &data[..])],
            vec![(0, &data[..]), (last, &data[..])],
        ] {
            let layout = Layout::of(file_with(SIZE, &pieces)).unwrap();
            let most = (pieces.len() as u64 + 1) * (1 << 20);
            assert!(layout.stored_bytes() < most, "{}", layout.stored_bytes());
            let target = restored(&layout);
            let metadata = target.metadata().unwrap();
            assert_eq!(metadata.len(), SIZE);
            assert!(metadata.blocks() * 512 < most, "{}", metadata.blocks());
            for (offset, content) in pieces {
                let mut found = vec![0; content.len()];
                target.read_exact_at(&mut found, offset).unwrap();
                assert_eq!(found, content);
            }
        }
    }

    #[test]
    fn a_file_without_holes_is_stored_as_it_is() {
        for content in [&b""[..], b"some bytes"] {
            let layout = Layout::of(file_with(0, &[(0, content)])).unwrap();
            assert_eq!(layout.sparse(), None);
            assert_eq!(stored(&layout), content);
            assert_eq!(
                restored(&layout).metadata().unwrap().len(),
                content.len() as u64
            );
        }
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let padded = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            bytes.extend_from_slice(&[1; 8]);
            bytes
        };
        let good = padded("1\n0\n8\n");
        let target = tempfile::tempfile().unwrap();
        restore(&mut &good[..], 520, Some(16), &target, failed).unwrap();
        for map in [
            "",
            "x\n",
            "1\n0\n",
            "1\n0\n8\nmore\n",
            "1\n0\n7\n",
            "1\n9\n8\n",
            "1\n18446744073709551615\n8\n",
            "1\n-1\n8\n",
            "2\n4\n4\n0\n4\n",
            "2\n0\n4\n2\n4\n",
            "99999999999999999999999\n",
            "9999999999\n0\n8\n",
        ] {
            let bytes = padded(map);
            let target = tempfile::tempfile().unwrap();
            let length = bytes.len() as u64;
            let refused = restore(&mut &bytes[..], length, Some(16), &target, failed);
            assert!(refused.is_err(), "{map:?}");
        }
    }
}
