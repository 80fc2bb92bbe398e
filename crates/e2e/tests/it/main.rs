//! The real server on the real engine, used through the published, unmodified E2B SDKs.
//!
//! Needs root and what `./test` installs; what is missing fails, nothing is skipped.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]

mod bench;
mod conformance;
mod crash;
mod damaged;
mod export;
mod faults;
mod http;
mod sdk;
mod support;
