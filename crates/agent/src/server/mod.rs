//! HTTP/1.1 listeners, and the connections they accepted.
//!
//! Every connection is registered with a [`Hangup`], by which it can be cut from outside: by an
//! init that starts a new execution, or for a subscriber that has stopped reading.

mod body;
mod connections;
mod listener;

pub(crate) use body::{Body, BoxError, Failed, empty, fail, full, json};
pub(crate) use connections::{Connections, Hangup};
pub(crate) use listener::{Handler, serve};
