//! ListDir (contract §5.5), sent while the tree is walked: a directory may hold a million files, and
//! the answer must not take the memory of the sandbox.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::messages::{EntryInfo, ListDirRequest};
use super::service::is_missing;
use crate::agent::Agent;
use crate::connect::{Caller, Code, Codec, RpcError};
use crate::server::{Body, BoxError, full};
use crate::users::Names;

/// Bytes of an answer that are sent together.
const PIECE: usize = 64 * 1024;
/// Pieces that wait for a slow client before the walk does.
const PIECES: usize = 16;

/// Answers with all entries. What fails before the first piece is full is a proper error; later ones
/// can only break the connection off.
pub(crate) async fn list_dir(
    agent: Arc<Agent>,
    caller: Caller,
    codec: Codec,
    request: ListDirRequest,
) -> Result<Body, RpcError> {
    let user = agent.acting_user(&caller)?;
    let path = agent.resolve(&request.path, &user)?;
    let depth = request.depth.max(1);
    let (sender, mut pieces) = mpsc::channel(PIECES);
    let walking = tokio::task::spawn_blocking(move || {
        let mut answer = Answer {
            sender,
            buffer: BytesMut::new(),
            codec,
            legacy: caller.legacy,
            entries: 0,
            sent: false,
        };
        let walked = list(&path, depth, &mut answer);
        answer.finish(walked)
    });
    let first = pieces.recv().await;
    let rest = match first {
        Some(Ok(first)) => first,
        // The walk is over: by an error, or with an answer of one piece.
        Some(Err(_)) | None => match walking.await {
            Ok(whole) => return whole.map(full),
            Err(error) => return Err(RpcError::internal(error.to_string())),
        },
    };
    let pieces = futures_util::stream::unfold(pieces, |mut pieces| async move {
        Some((pieces.recv().await?, pieces))
    });
    let pieces = futures_util::stream::iter([Ok(rest)]).chain(pieces);
    let frames = pieces.map(|piece: Piece| piece.map(Frame::data));
    Ok(BodyExt::boxed_unsync(StreamBody::new(frames)))
}

type Piece = Result<Bytes, BoxError>;

/// The encoded answer while it grows.
struct Answer {
    sender: mpsc::Sender<Piece>,
    buffer: BytesMut,
    codec: Codec,
    legacy: bool,
    entries: u64,
    sent: bool,
}

impl Answer {
    fn add(&mut self, entry: EntryInfo) -> io::Result<()> {
        let entry = if self.legacy {
            entry.for_legacy()
        } else {
            entry
        };
        match self.codec {
            Codec::Json => {
                let start: &[u8] = if self.entries == 0 {
                    br#"{"entries":["#
                } else {
                    b","
                };
                self.buffer.put_slice(start);
                self.buffer.put_slice(&self.codec.encode(&entry));
            }
            Codec::Proto => prost::encoding::message::encode(1, &entry, &mut self.buffer),
        }
        self.entries += 1;
        if self.buffer.len() < PIECE {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.sent = true;
        let sent = self.sender.blocking_send(Ok(piece));
        sent.map_err(|_client_left| io::ErrorKind::BrokenPipe.into())
    }

    /// What has not been sent yet, which is everything if nothing was.
    fn finish(mut self, walked: Result<(), RpcError>) -> Result<Bytes, RpcError> {
        if self.codec == Codec::Json {
            let end: &[u8] = if self.entries == 0 { b"{}" } else { b"]}" };
            self.buffer.put_slice(end);
        }
        let last = self.buffer.freeze();
        if self.sent {
            let last = walked.clone().map(|()| last).map_err(BoxError::from);
            let _client_left = self.sender.blocking_send(last);
            return walked.map(|()| Bytes::new());
        }
        walked.map(|()| last)
    }
}

fn list(path: &str, depth: u32, answer: &mut Answer) -> Result<(), RpcError> {
    let directory = fs::metadata(path).map_err(|error| open_error(path, &error))?;
    if !directory.is_dir() {
        return Err(RpcError::invalid(format!(
            "path is not a directory: {path}"
        )));
    }
    let walked = walk(Path::new(path), path, depth, &Names::load(), answer);
    walked.map_err(|error| RpcError::internal(format!("error reading directory {path}: {error}")))
}

/// Pre-order, by byte within each directory; links are listed and not entered. `shown` is the path
/// for the client, which differs from the real one where that is not UTF-8.
fn walk(
    directory: &Path,
    shown: &str,
    depth: u32,
    names: &Names,
    answer: &mut Answer,
) -> io::Result<()> {
    let prefix = shown.trim_end_matches('/');
    for name in Children::read(directory)?.sorted() {
        let path = directory.join(std::ffi::OsStr::from_bytes(name));
        let shown = format!("{prefix}/{}", String::from_utf8_lossy(name));
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            // Gone since the directory was read.
            Err(error) if is_missing(&error) => continue,
            Err(error) => return Err(error),
        };
        answer.add(EntryInfo::describe(&path, &shown, &metadata, names))?;
        if depth > 1 && metadata.is_dir() {
            match walk(&path, &shown, depth - 1, names, answer) {
                Err(error) if !is_missing(&error) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The names in a directory, packed: there may be a million of them.
#[derive(Default)]
struct Children {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Children {
    fn read(directory: &Path) -> io::Result<Self> {
        let mut children = Self::default();
        for child in fs::read_dir(directory)? {
            let name = child?.file_name().into_vec();
            children.text.extend_from_slice(&name);
            children.ends.push(children.text.len());
        }
        Ok(children)
    }

    fn sorted(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let mut ranges: Vec<_> = starts.zip(self.ends.iter().copied()).collect();
        let name = |(start, end): (usize, usize)| &self.text[start..end];
        ranges.sort_unstable_by(|a, b| name(*a).cmp(name(*b)));
        ranges.into_iter().map(name)
    }
}

fn open_error(path: &str, error: &io::Error) -> RpcError {
    if is_missing(error) {
        return RpcError::not_found(format!("path not found: {path}: {error}"));
    }
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        let message = format!("cyclic symlink or chain >255 links at \"{path}\"");
        return RpcError::new(Code::FailedPrecondition, message);
    }
    RpcError::internal(format!("error reading directory {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_by_byte() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a.b", "a", "ä", "B"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let children = Children::read(folder.path()).unwrap();
        let names: Vec<_> = children.sorted().collect();
        assert_eq!(names, [&b"B"[..], b"a", b"a.b", b"b", "ä".as_bytes()]);
    }
}
