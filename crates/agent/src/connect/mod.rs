//! The Connect protocol over HTTP/1.1 (contract §2.2 to §2.9): unary calls and server streams.
//!
//! ```text
//! envelope := flags:u8  length:u32 big-endian  payload[length]
//! ```
//!
//! A stream always answers 200; failures travel in its last envelope. Services live elsewhere: they
//! get a decoded message and a [`Caller`], and return a message or [`Frames`].

mod call;
mod codec;
mod error;
pub(crate) mod json;

pub(crate) use call::{
    Caller, Frames, Messages, blocking, client_stream, refuse, server_stream, unary, unary_body,
};
#[cfg(test)]
pub(crate) use codec::take_envelope;
pub(crate) use codec::{Codec, Format, end_of_stream};
pub(crate) use error::{Code, RpcError};
