//! What becomes of a journaled state after a crash of the server.

use engine::{ExecutionId, ExecutionStatus, ExitReason};

use snapshot::ImageId;

use super::{Before, Outcome, PauseTarget, RollbackStep, SnapshotStep, State};
use crate::snapshots::SnapshotId;

/// What to do with a journaled state after a crash of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was under way and nothing exists on the host.
    Rest,
    /// What was under way did nothing that has to be undone.
    Undo,
    /// Take over the live execution, thawing it if it is frozen. If that works, the transition
    /// that was under way ends with this outcome.
    Adopt(ExecutionId, Outcome),
    /// Take over an execution that was being started. It is running if its agent answers; else the
    /// start is undone.
    FinishStart(ExecutionId),
    /// Go on saving the execution, under this name, that a failed start left.
    Keep(ExecutionId, ImageId),
    /// Destroy what is left of a start, then look at the disk to see whether the memory image
    /// still fits it.
    UndoStart(ExecutionId),
    /// The transition has this outcome; what is left of the execution is to be destroyed.
    CleanUp(ExecutionId, Outcome),
    /// Remove what there is of a snapshot that was not committed; nobody waits for it any more.
    AbandonSnapshot(SnapshotId),
    /// Finish a committed rollback.
    FinishRollback,
    /// Destroy what is left of a start, and start again: to its callers it ran all the time.
    StartAgain(ExecutionId),
    /// Delete everything and forget the sandbox.
    Delete,
}

/// Decides what becomes of a journaled state, given what was `found` of its execution on the host
/// and whether the image that was being written was `committed`.
pub fn recover(state: &State, found: Option<ExecutionStatus>, committed: bool) -> Recovery {
    let alive = match found {
        Some(ExecutionStatus::Running | ExecutionStatus::Frozen) => true,
        Some(ExecutionStatus::Dead) | None => false,
    };
    let lost = Outcome::ExecutionLost(ExitReason::Exited);
    match state {
        // The caller never got an answer: it is as if it had not been asked for.
        State::Creating { .. } | State::Killing { .. } => Recovery::Delete,
        State::Running { execution } if alive => Recovery::Adopt(execution.clone(), Outcome::Done),
        State::Running { execution } => Recovery::CleanUp(execution.clone(), lost),
        State::Pausing { execution, target } => match (target, committed, alive) {
            (PauseTarget::Memory { .. }, true, _) => {
                Recovery::CleanUp(execution.clone(), Outcome::Done)
            }
            (PauseTarget::Memory { .. }, false, true) | (PauseTarget::Disk, _, true) => {
                Recovery::Adopt(execution.clone(), Outcome::Undone)
            }
            // Without memory a pause is committed by its end in the journal, before which it destroys
            // nothing: this one ended by itself or with the host, and not all of its disk may be there.
            (PauseTarget::Memory { .. }, false, false) | (PauseTarget::Disk, _, false) => {
                Recovery::CleanUp(execution.clone(), lost)
            }
        },
        State::Paused { .. } => Recovery::Rest,
        State::Resuming { execution, .. } if alive => Recovery::FinishStart(execution.clone()),
        State::Resuming { execution, .. } => Recovery::UndoStart(execution.clone()),
        State::Keeping {
            execution, image, ..
        } => match (committed, alive) {
            (true, _) => Recovery::CleanUp(execution.clone(), Outcome::Done),
            (false, true) => Recovery::Keep(execution.clone(), image.clone()),
            (false, false) => Recovery::UndoStart(execution.clone()),
        },
        State::Snapshotting { snapshot, step } => match step {
            SnapshotStep::Saving { execution, .. } => match (committed, alive) {
                (true, _) => Recovery::CleanUp(execution.clone(), Outcome::Done),
                (false, true) => Recovery::Adopt(execution.clone(), Outcome::Undone),
                (false, false) => Recovery::CleanUp(execution.clone(), lost),
            },
            SnapshotStep::Sealing { .. } => Recovery::AbandonSnapshot(snapshot.clone()),
        },
        State::RollingBack { step, .. } => match step {
            RollbackStep::Staging { before, .. } => match before {
                Before::Running { execution } if alive => {
                    Recovery::Adopt(execution.clone(), Outcome::Undone)
                }
                Before::Running { execution } => Recovery::CleanUp(execution.clone(), lost),
                Before::Paused { .. } => Recovery::Undo,
            },
            RollbackStep::Replacing { .. } => Recovery::FinishRollback,
        },
        State::Restarting { execution, .. } if alive => Recovery::FinishStart(execution.clone()),
        State::Restarting { execution, .. } => Recovery::StartAgain(execution.clone()),
    }
}
