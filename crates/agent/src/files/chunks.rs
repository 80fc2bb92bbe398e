//! Bodies read from files on helper threads, chunk by chunk, one chunk ahead of the client.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::task::JoinHandle;

use super::buffers::Buffers;
use super::range::ByteRange;
use crate::server::{Body, BoxError};

/// Bytes read at once. A read costs the guest twice as much with a quarter of it.
const CHUNK: usize = 1024 * 1024;
/// The same of what is compressed, which takes far longer than reading it.
const COMPRESSED_CHUNK: usize = 256 * 1024;
/// Between the parts of an answer to several ranges; random enough not to occur in a file.
pub(super) const BOUNDARY: &str = "sandbase-7b1f0c55d2a94e6c8f3a";

/// A body of chunks.
pub(super) fn streaming(
    chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> Body {
    let frames = chunks.map(|chunk| chunk.map(Frame::data));
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// A chunk and where the next one comes from.
type Pulled<S> = std::io::Result<(Option<Bytes>, S)>;

/// A blocking source between two chunks.
enum Source<S> {
    Idle(std::io::Result<S>),
    /// A helper thread pulls.
    Pulling(JoinHandle<Pulled<S>>),
}

/// Pulls chunks out of a blocking source, one helper call per chunk. While one is sent, the next is
/// pulled already.
fn blocking_stream<S: Send + 'static>(
    source: std::io::Result<S>,
    pull: fn(&mut S) -> std::io::Result<Option<Bytes>>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send {
    let start = move |mut source: S| {
        tokio::task::spawn_blocking(move || pull(&mut source).map(|chunk| (chunk, source)))
    };
    futures_util::stream::try_unfold(Source::Idle(source), move |source| async move {
        let pulling = match source {
            Source::Idle(source) => start(source?),
            Source::Pulling(pulling) => pulling,
        };
        let (chunk, source) = pulling.await??;
        Ok::<_, BoxError>(chunk.map(|chunk| (chunk, Source::Pulling(start(source)))))
    })
}

/// At most `length` bytes from where the file stands.
pub(super) fn plain_stream(
    file: std::io::Result<File>,
    length: u64,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + use<> {
    // Most files are small.
    let size = CHUNK.min(usize::try_from(length).unwrap_or(CHUNK));
    let source = file.map(|file| (file.take(length), Buffers::new(size)));
    blocking_stream(source, |(file, buffers)| {
        let chunk = buffers.fill(CHUNK, |buffer| file.read(buffer))?;
        Ok((!chunk.is_empty()).then_some(chunk))
    })
}

/// The rest of the file, compressed.
pub(super) fn gzip_stream(
    file: std::io::Result<File>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + use<> {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    blocking_stream(file.map(|file| (file, Some(encoder))), |(file, encoder)| {
        let mut chunk = vec![0; COMPRESSED_CHUNK];
        loop {
            let Some(open) = encoder.as_mut() else {
                return Ok(None);
            };
            let length = file.read(&mut chunk)?;
            if length == 0 {
                let rest = encoder.take().map(GzEncoder::finish).transpose()?;
                return Ok(rest.map(Bytes::from));
            }
            open.write_all(&chunk[..length])?;
            let compressed = std::mem::take(open.get_mut());
            if !compressed.is_empty() {
                return Ok(Some(compressed.into()));
            }
        }
    })
}

/// Several ranges in one answer. They are no longer than the file altogether.
pub(super) fn parts_stream(
    file: std::io::Result<File>,
    size: u64,
    kind: &str,
    parts: &[ByteRange],
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + use<> {
    let mut pieces: Vec<(Bytes, u64, u64)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let start = if index == 0 { "" } else { "\r\n" };
        let range = part.content_range(size);
        let head = format!(
            "{start}--{BOUNDARY}\r\nContent-Range: {range}\r\nContent-Type: {kind}\r\n\r\n"
        );
        pieces.push((head.into(), part.start, part.length()));
    }
    pieces.push((format!("\r\n--{BOUNDARY}--\r\n").into(), 0, 0));
    pieces.reverse();
    blocking_stream(file.map(|file| (file, pieces)), |(file, pieces)| {
        let Some((head, offset, left)) = pieces.last_mut() else {
            return Ok(None);
        };
        if !head.is_empty() {
            let head = std::mem::take(head);
            if *left == 0 {
                pieces.pop();
            }
            return Ok(Some(head));
        }
        let mut chunk = vec![0; CHUNK.min(usize::try_from(*left).unwrap_or(CHUNK))];
        let length = file.read_at(&mut chunk, *offset)?;
        if length == 0 {
            // The file became shorter: what is missing cannot be made up.
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(length);
        *offset += length as u64;
        *left -= length as u64;
        if *left == 0 {
            pieces.pop();
        }
        Ok(Some(chunk.into()))
    })
}
