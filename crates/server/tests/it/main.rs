//! In-process tests of the server on the fake engine: no root, parallel, failures at every step.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails where it stands"
)]

mod api;
mod crash;
mod edge;
mod ending;
mod events;
mod export;
mod history;
mod hostile_import;
mod import_steps;
mod ingress;
mod kept;
mod ladder;
mod lifecycle;
mod matrix;
mod pool;
mod prepared;
mod readable;
mod served;
mod snapshot_use;
mod snapshots;
mod soak;
mod support;
mod warm;
