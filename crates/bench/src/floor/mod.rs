//! The same work without the server: by bare `runsc`, or in a chroot.

mod chroot;
mod container;
mod overlay;

use std::path::PathBuf;
use std::process::Stdio;

use e2b_client::Problem;
use tokio::process::Command;

pub(crate) use chroot::Chroot;
pub(crate) use container::{Container, Program};

/// What floors are made of.
#[derive(Clone, Debug)]
pub struct FloorOptions {
    /// The runsc of the server.
    pub runsc: PathBuf,
    /// The root file system of the server's template.
    pub rootfs: PathBuf,
    /// The in-sandbox agent, which is then PID 1 of an idle container, as in a sandbox. Without it
    /// an idle Python is.
    pub agent: Option<PathBuf>,
    /// Where they work: a directory on the file system of the server's data directory.
    pub scratch: PathBuf,
}

/// Runs a command to its end, which must be a good one.
async fn run(what: &str, command: &mut Command) -> Result<(), Problem> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    finish(what, command).await
}

/// The same with the streams that it has.
async fn finish(what: &str, command: &mut Command) -> Result<(), Problem> {
    let failed = |text: String| Problem::Broken(format!("floor: {what}: {text}"));
    let status = command.kill_on_drop(true).status().await;
    let status = status.map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(status.to_string()))
}

fn failed(what: &str, error: &std::io::Error) -> Problem {
    Problem::Broken(format!("floor: {what}: {error}"))
}
