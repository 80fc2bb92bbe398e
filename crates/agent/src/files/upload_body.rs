//! The body of an upload: decompressed, and given up when the client falls silent.

use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use bytes::{Buf, Bytes};
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use crate::server::Failed;

/// Longest silence within an upload.
const IDLE_LIMIT: Duration = Duration::from_secs(100);
/// Time for the rest of a refused upload.
const DISCARD_LIMIT: Duration = Duration::from_secs(10);
/// Compressed bytes taken at once: a thousand times as many may come out.
const COMPRESSED_STEP: usize = 4 * 1024;

/// Plain bytes of a request.
pub(crate) struct UploadBody<'a, B = Incoming> {
    incoming: &'a mut B,
    decoder: Option<MultiGzDecoder<Vec<u8>>>,
    compressed: Bytes,
}

impl<'a, B> UploadBody<'a, B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Display,
{
    /// Takes the body of a request with these headers.
    pub(crate) fn new(headers: &HeaderMap, incoming: &'a mut B) -> Result<Self, Failed> {
        let encoding = headers.get(header::CONTENT_ENCODING);
        let encoding = encoding.map_or(&b""[..], |value| value.as_bytes().trim_ascii());
        let decoder = match encoding.to_ascii_lowercase().as_slice() {
            b"" | b"identity" => None,
            b"gzip" => Some(MultiGzDecoder::new(Vec::new())),
            _ => {
                return Err(Failed::bad_request(format!(
                    "error decompressing request body: unsupported Content-Encoding: {}",
                    String::from_utf8_lossy(encoding)
                )));
            }
        };
        Ok(Self {
            incoming,
            decoder,
            compressed: Bytes::new(),
        })
    }

    /// The next bytes, never empty; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            if !self.compressed.is_empty()
                && let Some(decoder) = &mut self.decoder
            {
                let step = self.compressed.len().min(COMPRESSED_STEP);
                let plain = decode(decoder, &self.compressed[..step]);
                self.compressed.advance(step);
                let plain = plain.map_err(|error| bad_gzip(&error))?;
                if !plain.is_empty() {
                    return Ok(Some(plain));
                }
                continue;
            }
            let Some(data) = self.receive().await? else {
                return self.finish();
            };
            if self.decoder.is_some() {
                self.compressed = data;
            } else if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Failed> {
        let frame = tokio::time::timeout(IDLE_LIMIT, self.incoming.frame()).await;
        match frame {
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(error))) => Err(Failed::internal(format!("error reading body: {error}"))),
            Err(_) => Err(Failed::internal(
                "error reading body: the client fell silent",
            )),
        }
    }

    fn finish(&mut self) -> Result<Option<Bytes>, Failed> {
        let Some(mut decoder) = self.decoder.take() else {
            return Ok(None);
        };
        decoder.try_finish().map_err(|error| bad_gzip(&error))?;
        let plain = std::mem::take(decoder.get_mut());
        Ok((!plain.is_empty()).then(|| plain.into()))
    }
}

/// Reads and drops what is left of a refused upload.
///
/// Closing with bytes unread resets the connection, and the client may never see why. What takes
/// too long is cut all the same.
pub(crate) async fn discard(incoming: &mut Incoming) {
    let all = async { while let Some(Ok(_)) = incoming.frame().await {} };
    let _cut = tokio::time::timeout(DISCARD_LIMIT, all).await;
}

fn decode(decoder: &mut MultiGzDecoder<Vec<u8>>, compressed: &[u8]) -> io::Result<Bytes> {
    decoder.write_all(compressed)?;
    decoder.flush()?;
    Ok(std::mem::take(decoder.get_mut()).into())
}

fn bad_gzip(error: &io::Error) -> Failed {
    Failed::bad_request(format!("error decompressing request body: {error}"))
}
