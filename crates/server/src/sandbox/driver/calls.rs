//! What callers ask of a driver, and what they are answered.

use std::sync::Arc;
use std::time::Duration;

use engine::EngineError;
use tokio::sync::oneshot;

use super::Driver;
use crate::sandbox::registry::Connected;
use crate::sandbox::state::{Outcome, Refusal, StartPoint, State};
use crate::sandbox::transition::Cause;
use crate::sandbox::{
    PauseRequest, PublicState, ResumeFrom, SandboxError, SandboxView, SnapshotRequest,
};
use crate::snapshots::{Lease, Snapshot};

/// What a caller asks the driver for.
#[derive(Clone, Debug)]
pub(in crate::sandbox) enum Request {
    Pause(PauseRequest),
    Resume {
        timeout: Duration,
        from: ResumeFrom,
    },
    Connect {
        timeout: Duration,
        from: ResumeFrom,
    },
    Kill,
    SetTimeout(Duration),
    Extend(Duration),
    Snapshot(SnapshotRequest),
    /// The lease keeps what it goes back to until it has ended.
    Rollback(Lease),
    /// The answer to a create; never sent, only joined.
    Created,
}

/// What the driver answers.
pub(in crate::sandbox) type Answer = Result<Answered, SandboxError>;

/// What became of a request.
#[derive(Clone, Debug)]
pub(in crate::sandbox) struct Answered {
    /// The sandbox now; `None` when it is gone.
    pub(in crate::sandbox) view: Option<SandboxView>,
    pub(in crate::sandbox) connected: Connected,
    /// The snapshot that was asked for.
    pub(in crate::sandbox) snapshot: Option<Arc<Snapshot>>,
}

impl Answered {
    pub(in crate::sandbox) fn new(view: Option<SandboxView>, connected: Connected) -> Self {
        Self {
            view,
            connected,
            snapshot: None,
        }
    }
}

/// A request with the way back to its caller, who may have left.
pub(in crate::sandbox) struct Message {
    pub(in crate::sandbox) request: Request,
    pub(in crate::sandbox) reply: oneshot::Sender<Answer>,
}

impl Driver {
    pub(super) fn answer_to(
        &self,
        request: &Request,
        outcome: &Outcome,
        cause: Option<&Cause>,
        made: Option<&Arc<Snapshot>>,
    ) -> Answer {
        let view = self.record.view();
        let id = || self.record.id.clone();
        let reached = match request {
            Request::Pause(_) => matches!(self.record.state, State::Paused { .. }),
            Request::Resume { .. } | Request::Connect { .. } | Request::Created => {
                matches!(self.record.state, State::Running { .. })
            }
            Request::Snapshot(_) => made.is_some(),
            Request::Rollback(_) => cause.is_none(),
            Request::Kill | Request::SetTimeout(_) | Request::Extend(_) => true,
        };
        // A committed snapshot is there, whatever became of its source afterwards.
        if reached && (made.is_some() || *outcome == Outcome::Done) {
            return Ok(Answered {
                view,
                connected: Connected::Resumed,
                snapshot: made.cloned(),
            });
        }
        let left_as = match view.map(|view| view.state) {
            // Only one that was kept: a start that is done leaves it running.
            Some(PublicState::Paused)
                if *outcome == Outcome::Done
                    && matches!(request, Request::Resume { .. } | Request::Connect { .. }) =>
            {
                "paused again with all that it did meanwhile, nothing is lost"
            }
            Some(PublicState::Running) => "running as before",
            Some(PublicState::Paused) => "paused",
            None => "gone",
        };
        let action = match request {
            Request::Pause(_) => "pause",
            Request::Resume { .. } | Request::Connect { .. } => "resume",
            Request::Created => "create",
            Request::Snapshot(_) => "snapshot",
            Request::Rollback(_) => "rollback",
            Request::Kill => "kill",
            Request::SetTimeout(_) | Request::Extend(_) => "change of the deadline",
        };
        Err(match (cause, request) {
            (Some(Cause::NoSpace(text)), _) => SandboxError::NoSpace(text.clone()),
            (Some(Cause::AgentSilent(_)), Request::Pause(_)) => {
                SandboxError::GuestUnresponsive(id())
            }
            (cause, _) => {
                let cause = match cause {
                    None => "the execution ended by itself".to_owned(),
                    Some(cause @ Cause::Engine(EngineError::DiskDamaged { .. })) => format!(
                        "{cause}; `sandbase sandbox export --readable-files {}` saves the files \
                         that can be read",
                        id()
                    ),
                    Some(cause) => cause.to_string(),
                };
                SandboxError::Failed {
                    action,
                    left_as,
                    cause,
                }
            }
        })
    }

    /// Whether a start in flight restores the memory that this request wants to discard.
    pub(super) fn starts_otherwise(&self, request: &Request) -> bool {
        let (Request::Resume { from, .. } | Request::Connect { from, .. }) = request else {
            return false;
        };
        let restores = matches!(
            self.record.state,
            State::Resuming {
                from: StartPoint::Memory,
                ..
            }
        );
        *from == ResumeFrom::Disk && restores
    }

    pub(super) fn refused(&self, refusal: Refusal) -> SandboxError {
        let id = self.record.id.clone();
        match refusal {
            Refusal::NotFound => SandboxError::NotFound(id),
            Refusal::AlreadyPaused => SandboxError::AlreadyPaused(id),
            Refusal::AlreadyRunning => SandboxError::AlreadyRunning(id),
            Refusal::NotRunning => SandboxError::Paused(id),
            Refusal::Busy => SandboxError::Busy(id),
            Refusal::BeingKilled => SandboxError::BeingKilled(id),
        }
    }

    /// The caller may have left; what was done for it stays done.
    pub(super) fn answer(&self, message: Message, answer: Answer) {
        let _ = message.reply.send(answer);
    }
}
