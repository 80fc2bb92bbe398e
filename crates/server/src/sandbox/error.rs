//! Why a request about a sandbox was refused or failed.

use std::time::Duration;

use super::SandboxId;

/// A refused or failed request. `api::error` maps each variant to one status.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Unknown, killed, or being killed.
    #[error("Sandbox \"{0}\" doesn't exist or you don't have access to it")]
    NotFound(SandboxId),
    /// Pause of a paused one.
    #[error("Sandbox \"{0}\" is already paused")]
    AlreadyPaused(SandboxId),
    /// Resume (not connect) of a running one.
    #[error("Sandbox \"{0}\" is already running")]
    AlreadyRunning(SandboxId),
    /// Needs a running sandbox; this one is paused.
    #[error("Sandbox \"{0}\" is paused; connect to it first")]
    Paused(SandboxId),
    /// Refused while a transition is under way.
    #[error("Sandbox \"{0}\" is changing its state; try again in a moment")]
    Busy(SandboxId),
    /// Connect to one that is being killed.
    #[error("Sandbox \"{0}\" is being killed")]
    BeingKilled(SandboxId),
    /// No template of that name.
    #[error("template '{0}' was not found")]
    TemplateNotFound(String),
    /// No snapshot of that name.
    #[error("snapshot '{0}' was not found")]
    SnapshotNotFound(String),
    /// A rollback to what another sandbox was.
    #[error("snapshot '{0}' was made of another sandbox; create a new sandbox from it instead")]
    SnapshotOfAnother(String),
    /// A snapshot that sandboxes were made from.
    #[error(
        "snapshot '{snapshot}' cannot be deleted: sandbox \"{sandbox}\" was created from it; kill it first"
    )]
    SnapshotInUse {
        /// The snapshot.
        snapshot: String,
        /// One of the sandboxes.
        sandbox: SandboxId,
    },
    /// A name for a snapshot that means something else already.
    #[error("'{0}' is the name of a template or the id of a snapshot; choose another")]
    NameTaken(String),
    /// Deletion of a snapshot at the moment in which something is made from it.
    #[error("snapshot '{0}' is being used at this moment; try again when that is done")]
    SnapshotBusy(String),
    /// Reading the files of a sandbox that may write to them.
    #[error("Sandbox \"{0}\" is running; pause it first")]
    NotPaused(SandboxId),
    /// Fork of a paused one.
    #[error("Sandbox \"{0}\" is paused; resume it before forking it")]
    ForkOfPaused(SandboxId),
    /// The requested time is longer than the maximum run length.
    #[error("timeout of {asked} s is longer than the maximum of {most} s")]
    TimeoutTooLong {
        /// Seconds asked for.
        asked: u64,
        /// Seconds allowed.
        most: u64,
    },
    /// No room for another sandbox (concurrency limit).
    #[error("{0} sandboxes are running, which is the configured maximum")]
    TooMany(usize),
    /// Free disk space is too low to do this safely; nothing was changed.
    #[error("not enough free disk space on the host: {0}")]
    NoSpace(String),
    /// The last execution of a paused sandbox does not end, and has its disk; nothing was changed.
    #[error(
        "the last execution of sandbox \"{id}\" still uses its disk after {waited:?} ({}); nothing was \
         changed, try again later",
        .problem.as_deref().unwrap_or("it is being destroyed")
    )]
    DiskInUse {
        /// Which sandbox.
        id: SandboxId,
        /// How long the request waited.
        waited: Duration,
        /// What the engine says about it.
        problem: Option<String>,
    },
    /// The agent did not answer and the pause depends on it; nothing was changed.
    #[error("the agent inside sandbox \"{0}\" does not answer; it was not paused")]
    GuestUnresponsive(SandboxId),
    /// The transition failed and the sandbox is in the state it had before.
    #[error("{action} failed, the sandbox is {left_as}: {cause}")]
    Failed {
        /// What was asked for.
        action: &'static str,
        /// The state it is left in.
        left_as: &'static str,
        /// The cause, for people.
        cause: String,
    },
    /// The server is going down.
    #[error("the server is shutting down")]
    ShuttingDown,
}
