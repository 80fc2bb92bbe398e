//! Connect's streaming frames: a flag byte, a big-endian length, a payload.

use bytes::{Buf, Bytes, BytesMut};

use crate::problem::Problem;

/// The frame that ends a stream, with its outcome.
const END_OF_STREAM: u8 = 0b10;
/// Not asked for by us.
const COMPRESSED: u8 = 0b01;
const HEAD: usize = 5;
/// Longest payload that is believed.
const PAYLOAD_LIMIT: usize = 16 << 20;

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    /// It says how the stream ended; none follows.
    pub(super) last: bool,
    pub(super) payload: Bytes,
}

/// A frame around a message that is sent.
pub(super) fn enclose(payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(HEAD + payload.len());
    frame.push(0);
    let length = u32::try_from(payload.len()).expect("requests are short");
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.into()
}

/// Takes one frame off the front of what was received; `None` until all of it is there.
pub(super) fn take(received: &mut BytesMut) -> Result<Option<Envelope>, Problem> {
    if received.len() < HEAD {
        return Ok(None);
    }
    let flags = received[0];
    let length = u32::from_be_bytes([received[1], received[2], received[3], received[4]]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if flags & COMPRESSED != 0 || length > PAYLOAD_LIMIT {
        return Err(Problem::Broken(format!(
            "the stream carries no frame of the contract (flags {flags}, {length} bytes)"
        )));
    }
    if received.len() < HEAD + length {
        return Ok(None);
    }
    received.advance(HEAD);
    Ok(Some(Envelope {
        last: flags & END_OF_STREAM != 0,
        payload: received.split_to(length).freeze(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_wherever_the_bytes_are_cut() {
        let mut sent = BytesMut::from(&enclose(b"{\"a\":1}")[..]);
        sent.extend_from_slice(&[2, 0, 0, 0, 2, b'{', b'}']);
        for cut in 0..sent.len() {
            let mut received = BytesMut::from(&sent[..cut]);
            let mut frames = Vec::new();
            for rest in [&sent[cut..], &[]] {
                while let Some(frame) = take(&mut received).unwrap() {
                    frames.push((frame.last, frame.payload));
                }
                received.extend_from_slice(rest);
            }
            while let Some(frame) = take(&mut received).unwrap() {
                frames.push((frame.last, frame.payload));
            }
            assert_eq!(
                frames,
                [
                    (false, Bytes::from_static(b"{\"a\":1}")),
                    (true, Bytes::from_static(b"{}"))
                ],
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_compressed_or_endless_frame_is_refused() {
        assert!(take(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
        assert!(take(&mut BytesMut::from(&[0, 0xff, 0xff, 0xff, 0xff][..])).is_err());
    }
}
