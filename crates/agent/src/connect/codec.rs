//! The two encodings of a message: JSON, which every SDK uses, and binary protobuf.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::RpcError;

/// Bit 0 of an envelope's flags: the payload is compressed.
const COMPRESSED: u8 = 0b01;
/// Bit 1 of an envelope's flags: the last envelope of a stream.
const END_OF_STREAM: u8 = 0b10;
/// Bytes before an envelope's payload.
const HEADER: usize = 5;
/// Longest message a client may send. Input for a process comes in one message, so it is generous.
pub(crate) const MESSAGE_LIMIT: usize = 32 * 1024 * 1024;

/// How the messages of one call are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Json,
    Proto,
}

/// The content type of a call: its codec and whether messages come in envelopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) codec: Codec,
    pub(crate) enveloped: bool,
}

impl Format {
    /// What an error takes when the request's own format is unknown.
    pub(crate) const PLAIN_JSON: Self = Self {
        codec: Codec::Json,
        enveloped: false,
    };

    /// Reads a content type, ignoring parameters; `None` for those the agent does not speak.
    pub(crate) fn from_content_type(value: &str) -> Option<Self> {
        let essence = value.split(';').next().unwrap_or_default().trim();
        let known = [
            ("application/json", Codec::Json, false),
            ("application/proto", Codec::Proto, false),
            ("application/connect+json", Codec::Json, true),
            ("application/connect+proto", Codec::Proto, true),
        ];
        known
            .into_iter()
            .find(|(name, ..)| essence.eq_ignore_ascii_case(name))
            .map(|(_, codec, enveloped)| Self { codec, enveloped })
    }

    /// The content type of the answer. Python compares it byte for byte, so it has no parameters.
    pub(crate) fn content_type(self) -> &'static str {
        match (self.codec, self.enveloped) {
            (Codec::Json, false) => "application/json",
            (Codec::Proto, false) => "application/proto",
            (Codec::Json, true) => "application/connect+json",
            (Codec::Proto, true) => "application/connect+proto",
        }
    }
}

impl Codec {
    /// Decodes a request.
    pub(crate) fn decode<M>(self, payload: &[u8]) -> Result<M, RpcError>
    where
        M: Message + Default + DeserializeOwned,
    {
        match self {
            Self::Json if payload.is_empty() => Ok(M::default()),
            // Serde would read an array as the fields in order.
            Self::Json if payload.trim_ascii_start().first() != Some(&b'{') => {
                Err(RpcError::invalid("unmarshal message: not a JSON object"))
            }
            Self::Json => serde_json::from_slice(payload)
                .map_err(|error| RpcError::invalid(format!("unmarshal message: {error}"))),
            Self::Proto => M::decode(payload)
                .map_err(|error| RpcError::invalid(format!("unmarshal message: {error}"))),
        }
    }

    /// Encodes an answer.
    pub(crate) fn encode<M: Message + Serialize>(self, message: &M) -> Bytes {
        match self {
            Self::Json => json(message).into(),
            Self::Proto => message.encode_to_vec().into(),
        }
    }

    /// Encodes one event of a stream, header and payload in one piece: Python 1.x reads the header
    /// and then waits for more bytes.
    pub(crate) fn envelope<M: Message + Serialize>(self, message: &M) -> Bytes {
        envelope(0, &self.encode(message))
    }
}

/// The mandatory last envelope of a stream. Its payload is JSON in every codec.
pub(crate) fn end_of_stream(error: Option<&RpcError>) -> Bytes {
    #[derive(Serialize)]
    struct End<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a RpcError>,
    }
    envelope(END_OF_STREAM, &json(&End { error }))
}

fn json<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages hold only strings, numbers and string-keyed maps")
}

fn envelope(flags: u8, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).expect("messages are made of bounded pieces");
    let mut bytes = BytesMut::with_capacity(HEADER + payload.len());
    bytes.put_u8(flags);
    bytes.put_u32(length);
    bytes.put_slice(payload);
    bytes.freeze()
}

/// Takes the first complete envelope off `buffer`; `None` when more bytes are needed.
pub(crate) fn take_envelope(buffer: &mut BytesMut) -> Result<Option<Bytes>, RpcError> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [flags, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if flags & COMPRESSED != 0 {
        return Err(RpcError::invalid(
            "protocol error: sent compressed message without compression support",
        ));
    }
    if flags & END_OF_STREAM != 0 {
        return Err(RpcError::invalid(
            "protocol error: clients send no end of stream",
        ));
    }
    if length > MESSAGE_LIMIT {
        return Err(RpcError::invalid(format!(
            "message size {length} is larger than configured max {MESSAGE_LIMIT}"
        )));
    }
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    let mut whole = buffer.split_to(HEADER + length);
    Ok(Some(whole.split_off(HEADER).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminator_has_the_exact_bytes_clients_expect() {
        assert_eq!(&end_of_stream(None)[..], b"\x02\x00\x00\x00\x02{}");
        let error = RpcError::not_found("gone");
        let bytes = end_of_stream(Some(&error));
        assert_eq!(
            &bytes[HEADER..],
            br#"{"error":{"code":"not_found","message":"gone"}}"#
        );
    }

    #[test]
    fn envelopes_are_taken_only_when_complete() {
        let mut buffer = BytesMut::from(&b"\0\0\0\0\x02{"[..]);
        assert_eq!(take_envelope(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(b"}\0\0\0");
        assert_eq!(take_envelope(&mut buffer).unwrap().unwrap(), "{}");
        assert_eq!(take_envelope(&mut buffer).unwrap(), None);
        assert_eq!(&buffer[..], b"\0\0\0");
    }

    #[test]
    fn oversized_compressed_and_final_envelopes_are_refused() {
        for header in [b"\0\xff\xff\xff\xff", b"\x01\0\0\0\0", b"\x02\0\0\0\0"] {
            assert!(take_envelope(&mut BytesMut::from(&header[..])).is_err());
        }
    }

    #[test]
    fn content_types_are_matched_without_parameters() {
        let format = Format::from_content_type("application/json; charset=utf-8").unwrap();
        assert_eq!(
            format,
            Format {
                codec: Codec::Json,
                enveloped: false
            }
        );
        assert!(Format::from_content_type("text/plain").is_none());
    }
}
