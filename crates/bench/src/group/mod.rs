//! Groups of rows that are measured together. Each makes the sandboxes it needs; what is left of
//! them is removed after it.

mod command;
mod create;
mod files;
mod idle;
mod pause;
mod storage;
mod throughput;
mod transfer;

use e2b_client::Problem;

use crate::report::Board;
use crate::run::Bench;

/// Names of all groups, in the order they are measured.
pub const GROUPS: &[&str] = &[
    "create",
    "pause",
    "throughput",
    "command",
    "transfer",
    "idle",
    "storage",
    "files",
];

/// Measures one group. The rows that have no value when it fails get the problem as their reason.
pub(crate) async fn run(name: &str, bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    match name {
        "create" => create::run(bench, board).await,
        "pause" => pause::run(bench, board).await,
        "throughput" => throughput::run(bench, board).await,
        "command" => command::run(bench, board).await,
        "transfer" => transfer::run(bench, board).await,
        "idle" => idle::run(bench, board).await,
        "storage" => storage::run(bench, board).await,
        "files" => files::run(bench, board).await,
        other => unreachable!("'{other}' is no group"),
    }
}
