//! In-process tests of the server on the fake engine: no root, parallel, failures at every step.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]

mod api;
mod crash;
mod edge;
mod export;
mod history;
mod ladder;
mod lifecycle;
mod pool;
mod served;
mod snapshots;
mod soak;
mod support;
mod warm;
