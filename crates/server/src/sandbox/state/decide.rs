//! What a command leads to in a state.

use engine::{ExecutionId, ExitReason};

use super::{Saved, State};
use crate::sandbox::PauseRequest;
use crate::snapshots::SnapshotId;

/// What somebody wants of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Save and stop it.
    Pause(PauseRequest),
    /// Run it again; refused when it runs.
    Resume,
    /// Run it again unless it already does.
    Connect,
    /// Delete it.
    Kill,
    /// Change the deadline of a running one.
    SetDeadline,
    /// Make a snapshot of a running or paused one.
    Snapshot,
    /// Put a running or paused one back to a snapshot.
    Rollback(RollbackTarget),
    /// The engine reports that this execution is no longer alive.
    Lost(ExecutionId, ExitReason),
}

/// What a rollback goes back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollbackTarget {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// What it holds, as the sandbox will have it.
    pub saved: Saved,
}

/// Answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Journal the transient state and do the work.
    Begin(Transition),
    /// The transition in flight has the same goal: share its result.
    Join,
    /// Decide again when the transition in flight has ended.
    Wait,
    /// Nothing has to be done: it is so already.
    AlreadySo,
    /// Not possible in this state.
    Refuse(Refusal),
    /// A report about an execution that is not the live one: dropped.
    Stale,
}

/// Work to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Save and stop.
    Pause(PauseRequest),
    /// Start from what was saved.
    Resume,
    /// Delete all.
    Kill,
    /// Make a snapshot.
    Snapshot,
    /// Go back to a snapshot.
    Rollback(RollbackTarget),
    /// Clean up after an execution that died.
    Lose(ExitReason),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// For callers it does not exist.
    NotFound,
    /// Pause of a paused one.
    AlreadyPaused,
    /// Resume of a running one.
    AlreadyRunning,
    /// Needs a running one.
    NotRunning,
    /// A transition is in flight.
    Busy,
    /// Connect to one that is being killed.
    BeingKilled,
}

/// What a command leads to in a state.
pub fn decide(state: &State, command: &Command) -> Decision {
    use Decision::{AlreadySo, Begin, Join, Refuse, Stale, Wait};
    if let Command::Lost(execution, reason) = command {
        return match state {
            State::Running { execution: live } if live == execution => {
                Begin(Transition::Lose(reason.clone()))
            }
            // A transition in flight meets the dead execution itself and reports it as its outcome.
            State::Running { .. }
            | State::Creating { .. }
            | State::Pausing { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Keeping { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. }
            | State::Killing { .. } => Stale,
        };
    }
    match (state, command) {
        (_, Command::Lost(..)) => Stale,

        // Nobody but the creating call knows the id yet.
        (State::Creating { .. }, _) => Refuse(Refusal::NotFound),

        (State::Running { .. }, Command::Pause(request)) => Begin(Transition::Pause(*request)),
        (State::Running { .. }, Command::Resume) => Refuse(Refusal::AlreadyRunning),
        (State::Running { .. }, Command::Connect | Command::SetDeadline) => AlreadySo,
        (State::Running { .. }, Command::Kill) => Begin(Transition::Kill),

        (State::Running { .. } | State::Paused { .. }, Command::Snapshot) => {
            Begin(Transition::Snapshot)
        }
        (State::Running { .. } | State::Paused { .. }, Command::Rollback(target)) => {
            Begin(Transition::Rollback(target.clone()))
        }

        (State::Pausing { .. }, Command::Pause(_)) => Join,
        (State::Pausing { .. }, Command::Resume | Command::Connect | Command::Kill) => Wait,
        (
            State::Pausing { .. },
            Command::SetDeadline | Command::Snapshot | Command::Rollback(_),
        ) => Refuse(Refusal::Busy),

        (State::Paused { .. }, Command::Pause(_)) => Refuse(Refusal::AlreadyPaused),
        (State::Paused { .. }, Command::Resume | Command::Connect) => Begin(Transition::Resume),
        (State::Paused { .. }, Command::Kill) => Begin(Transition::Kill),
        (State::Paused { .. }, Command::SetDeadline) => Refuse(Refusal::NotRunning),

        (State::Resuming { .. }, Command::Pause(_) | Command::Kill) => Wait,
        (State::Resuming { .. }, Command::Resume | Command::Connect) => Join,
        // Who comes now did not ask for the start that failed.
        (
            State::Keeping { .. },
            Command::Pause(_) | Command::Resume | Command::Connect | Command::Kill,
        ) => Wait,
        (
            State::Resuming { .. } | State::Keeping { .. },
            Command::SetDeadline | Command::Snapshot,
        ) => Refuse(Refusal::NotRunning),
        (State::Resuming { .. } | State::Keeping { .. }, Command::Rollback(_)) => {
            Refuse(Refusal::Busy)
        }

        (
            State::Snapshotting { .. } | State::RollingBack { .. } | State::Restarting { .. },
            Command::Pause(_) | Command::Connect | Command::Kill,
        ) => Wait,
        (
            State::Snapshotting { .. } | State::RollingBack { .. } | State::Restarting { .. },
            Command::Resume | Command::SetDeadline | Command::Snapshot | Command::Rollback(_),
        ) => Refuse(Refusal::Busy),

        (State::Killing { .. }, Command::Kill) => Join,
        (State::Killing { .. }, Command::Connect) => Refuse(Refusal::BeingKilled),
        (
            State::Killing { .. },
            Command::Pause(_)
            | Command::Resume
            | Command::SetDeadline
            | Command::Snapshot
            | Command::Rollback(_),
        ) => Refuse(Refusal::NotFound),
    }
}
