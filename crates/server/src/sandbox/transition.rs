//! How the work of a transition ends, and the parts that several share.

use std::time::{Duration, Instant};

use engine::{EngineError, ExecutionId};
use snapshot::ImageError;

use super::context::Context;
use super::faults::{Fault, InjectedFault};
use super::state::Outcome;
use super::{Disks, Timings};
use crate::snapshots::Snapshot;

/// Result of a transition's work: where it leads, and why if that is not its goal.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    pub(super) cause: Option<Cause>,
    /// The agent did not answer at a pause, which was done without it.
    pub(super) agent_silent: bool,
    /// Why a create booted its sandbox although there is a memory image.
    pub(super) memory_lost: Option<String>,
    /// Disks that the sandbox stands on from now on, if they are others than before.
    pub(super) disks: Option<Disks>,
    /// A snapshot that is complete but for its commit, which the driver makes.
    pub(super) snapshot: Option<Snapshot>,
    /// An execution that the sandbox does not have any more. Its end begins when the outcome is
    /// journaled, and whoever needs the disk waits for it.
    pub(super) left: Option<ExecutionId>,
    /// How long its parts took.
    pub(super) timings: Timings,
    /// Since when the guest stands still, if it does.
    pub(super) still_since: Option<Instant>,
}

impl Ended {
    pub(super) fn done() -> Self {
        Self::with(Outcome::Done)
    }

    pub(super) fn with(outcome: Outcome) -> Self {
        Self {
            outcome,
            cause: None,
            agent_silent: false,
            memory_lost: None,
            disks: None,
            snapshot: None,
            left: None,
            timings: Timings::default(),
            still_since: None,
        }
    }

    pub(super) fn failed(outcome: Outcome, cause: Cause) -> Self {
        Self {
            cause: Some(cause),
            ..Self::with(outcome)
        }
    }
}

/// Why the work of a transition failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    /// The host's disk is full, or would be.
    #[error("not enough disk space: {0}")]
    NoSpace(String),
    /// The agent did not answer.
    #[error("the agent does not answer: {0}")]
    AgentSilent(String),
    /// A hook of the sandbox's owner failed, and that was to be fatal.
    #[error("{0}")]
    Hook(String),
    /// The execution ended by itself.
    #[error("the execution ended while it was being started")]
    Exited,
    /// The image cannot be used.
    #[error(transparent)]
    Image(ImageError),
    /// The engine build that wrote the image is gone.
    #[error("the engine build {0}, which wrote the image, is not kept on this host any more")]
    BuildGone(String),
    /// The engine failed.
    #[error(transparent)]
    Engine(EngineError),
    /// The file system failed.
    #[error("{step}: {source}")]
    Io {
        step: &'static str,
        source: std::io::Error,
    },
    /// A test wanted it.
    #[error(transparent)]
    Injected(InjectedFault),
}

impl Cause {
    /// A failure of the file system, which may be that it is full.
    pub(super) fn io(step: &'static str, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::StorageFull => Self::NoSpace(format!("{step}: {source}")),
            _ => Self::Io { step, source },
        }
    }
}

impl From<InjectedFault> for Cause {
    /// As the real failure that it stands for would be told.
    fn from(injected: InjectedFault) -> Self {
        match injected.fault {
            Fault::NoSpace => Self::NoSpace(injected.to_string()),
            Fault::Io => Self::Io {
                step: "an injected failure",
                source: rustix::io::Errno::IO.into(),
            },
            Fault::Fail | Fault::Stop | Fault::None => Self::Injected(injected),
        }
    }
}

impl From<EngineError> for Cause {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NoSpace { .. } => Self::NoSpace(error.to_string()),
            EngineError::Unknown(_)
            | EngineError::Timeout { .. }
            | EngineError::DiskDamaged { .. }
            | EngineError::Failed { .. } => Self::Engine(error),
        }
    }
}

impl From<ImageError> for Cause {
    fn from(error: ImageError) -> Self {
        if error.is_no_space() {
            Self::NoSpace(error.to_string())
        } else {
            Self::Image(error)
        }
    }
}

/// Runs blocking file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    crate::blocking::run(work).await
}

/// Destroys an execution, trying again until it works: going on without would let two executions
/// share a disk.
pub(super) async fn destroy(context: &Context, execution: &ExecutionId) {
    let step = format!("destroy {execution}");
    until_done(&step, || context.engine.destroy(execution)).await;
}

/// Tries again until it works: for steps without which no honest answer is possible.
pub(super) async fn until_done<T, E, F>(step: &str, mut work: impl FnMut() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut wait = Duration::from_millis(50);
    loop {
        match work().await {
            Ok(value) => return value,
            Err(error) => tracing::error!(step, %error, "failed, trying again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

/// Whether an execution is dead, and of what.
pub(super) async fn dead(context: &Context, execution: &ExecutionId) -> Option<engine::ExitReason> {
    // A dead one answers at once; the limit only bounds the wait for one that is alive.
    let limit = Duration::from_millis(20);
    tokio::time::timeout(limit, context.engine.exited(execution))
        .await
        .ok()
}
