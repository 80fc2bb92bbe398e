//! Between blocking work and an asynchronous stream of bytes. Either side notices when the other
//! one is gone: nobody waits for ever, and nothing is kept in memory but a few chunks.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, stream};
use tokio::sync::mpsc;

/// Chunks under way.
const CHUNKS: usize = 4;
const CHUNK: usize = 256 << 10;

/// The blocking end of a stream that is read asynchronously.
pub(super) struct PipeWriter {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

/// A writer and the stream of what is written to it.
pub(super) fn outgoing() -> (
    PipeWriter,
    impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let stream = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    let writer = PipeWriter {
        chunks: sender,
        buffer: BytesMut::new(),
    };
    (writer, stream)
}

impl PipeWriter {
    /// Makes the stream end with an error: without it the reader would take what came so far for all
    /// there is.
    pub(super) fn fail(self, error: io::Error) {
        // A reader that has gone does not mind.
        let _ = self.chunks.blocking_send(Err(error));
    }
}

impl Write for PipeWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader has gone");
        self.chunks.blocking_send(Ok(chunk)).map_err(gone)
    }
}

/// The asynchronous end of what is read by blocking work.
pub(super) struct PipeSender {
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl PipeSender {
    /// Passes a chunk on; false when nobody reads any more.
    pub(super) async fn send(&self, chunk: io::Result<Bytes>) -> bool {
        self.chunks.send(chunk).await.is_ok()
    }
}

/// The blocking end of it.
pub(super) struct PipeReader {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

/// A sender and the reader of what is sent.
pub(super) fn incoming() -> (PipeSender, PipeReader) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let reader = PipeReader {
        chunks: receiver,
        chunk: Bytes::new(),
    };
    (PipeSender { chunks: sender }, reader)
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
