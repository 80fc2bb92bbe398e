//! Which states a sandbox can be in and what may happen in each: no I/O, no clock, no lock.
//!
//! ```text
//!            create            pause             commit
//!   (none) ─────────▶ Creating ──▶ Running ─────────▶ Pausing ─────────▶ Paused
//!                        │ failed     ▲  │  ▲           │ failed            │
//!                        ▼            │  │  └───────────┘                   │ connect
//!                      (gone)         │  └─ execution lost ──▶ Paused       ▼
//!                                     │                       (disk)     Resuming
//!                                     └──────────────────────────────────── │ │
//!                                                  Paused ◀──── failed ──────┘
//!   kill: from Running and Paused at once, from the others when their transition has ended
//! ```
//!
//! [`decide`] answers a command, [`begin`] gives the transient state to journal before a side
//! effect, [`after`] the state its outcome leads to, and [`recover`] what to do with a state found
//! in the journal after a crash. Every match names every variant: a new state does not compile
//! until all four have an answer for it.

use engine::{ExecutionId, ExecutionStatus, ExitReason};
use serde::{Deserialize, Serialize};
use snapshot::ImageId;

use super::{PauseMode, PauseRequest};

/// Where a sandbox is. Exactly this is in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Its first execution is being started; the caller has not been told of it.
    Creating {
        /// The execution being started.
        execution: ExecutionId,
    },
    /// It executes.
    Running {
        /// Its one live execution.
        execution: ExecutionId,
    },
    /// What it is is being saved; until the commit it can go back to running.
    Pausing {
        /// The execution being saved.
        execution: ExecutionId,
        /// What will be kept.
        target: PauseTarget,
    },
    /// Saved; no execution exists.
    Paused {
        /// What a resume starts from.
        saved: Saved,
    },
    /// A new execution is being started from what was saved.
    Resuming {
        /// The execution being started.
        execution: ExecutionId,
        /// What was saved, and still is.
        saved: Saved,
        /// What this start uses of it.
        from: StartPoint,
    },
    /// Everything it has is being deleted. It never comes back.
    Killing {
        /// An execution that has to be destroyed first.
        execution: Option<ExecutionId>,
    },
}

/// What a pause in flight will leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "target", rename_all = "snake_case")]
pub enum PauseTarget {
    /// Disk and this memory image.
    Memory {
        /// Name under which the image will be committed.
        image: ImageId,
    },
    /// Only the disk.
    Disk,
}

/// What a paused sandbox can be resumed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "saved", rename_all = "snake_case")]
pub enum Saved {
    /// A memory image and exactly the disk it was taken with.
    Memory {
        /// The committed image.
        image: ImageId,
    },
    /// The disk alone: a resume boots.
    Disk {
        /// Why there is no memory.
        reason: DiskReason,
    },
}

/// Why a paused sandbox has no memory image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskReason {
    /// The caller asked for a filesystem-only pause.
    Asked,
    /// The execution ended by itself or with the host.
    ExecutionLost(ExitReason),
    /// A resume failed after the guest had begun to write, so the image no longer fits the disk.
    MemoryStale,
}

/// What a start uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartPoint {
    /// The memory image.
    Memory,
    /// The disk.
    Disk,
}

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
    /// The engine reports that this execution is no longer alive.
    Lost(ExecutionId, ExitReason),
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

        (State::Pausing { .. }, Command::Pause(_)) => Join,
        (State::Pausing { .. }, Command::Resume | Command::Connect | Command::Kill) => Wait,
        (State::Pausing { .. }, Command::SetDeadline) => Refuse(Refusal::Busy),

        (State::Paused { .. }, Command::Pause(_)) => Refuse(Refusal::AlreadyPaused),
        (State::Paused { .. }, Command::Resume | Command::Connect) => Begin(Transition::Resume),
        (State::Paused { .. }, Command::Kill) => Begin(Transition::Kill),
        (State::Paused { .. }, Command::SetDeadline) => Refuse(Refusal::NotRunning),

        (State::Resuming { .. }, Command::Pause(_) | Command::Kill) => Wait,
        (State::Resuming { .. }, Command::Resume | Command::Connect) => Join,
        (State::Resuming { .. }, Command::SetDeadline) => Refuse(Refusal::NotRunning),

        (State::Killing { .. }, Command::Kill) => Join,
        (State::Killing { .. }, Command::Connect) => Refuse(Refusal::BeingKilled),
        (State::Killing { .. }, Command::Pause(_) | Command::Resume | Command::SetDeadline) => {
            Refuse(Refusal::NotFound)
        }
    }
}

/// Names for what a transition is about to make.
#[derive(Clone, Debug)]
pub struct FreshNames {
    /// For a new execution.
    pub execution: ExecutionId,
    /// For a new image.
    pub image: ImageId,
}

/// The transient state to journal before a transition's first side effect. `None` when the
/// transition does not begin in this state (which [`decide`] never asks for).
pub fn begin(
    state: &State,
    transition: &Transition,
    from: StartPoint,
    fresh: FreshNames,
) -> Option<State> {
    match (state, transition) {
        (State::Running { execution }, Transition::Pause(request)) => Some(State::Pausing {
            execution: execution.clone(),
            target: match request.mode {
                PauseMode::Full => PauseTarget::Memory { image: fresh.image },
                PauseMode::Filesystem => PauseTarget::Disk,
            },
        }),
        (State::Paused { saved }, Transition::Resume) => Some(State::Resuming {
            execution: fresh.execution,
            saved: saved.clone(),
            from: match saved {
                Saved::Memory { .. } => from,
                Saved::Disk { .. } => StartPoint::Disk,
            },
        }),
        (State::Running { execution }, Transition::Kill) => Some(State::Killing {
            execution: Some(execution.clone()),
        }),
        (State::Paused { .. }, Transition::Kill) => Some(State::Killing { execution: None }),
        // Losing an execution has no commit of its own: the state stays as it is until cleaned up.
        (State::Running { execution }, Transition::Lose(_)) => Some(State::Running {
            execution: execution.clone(),
        }),
        (
            State::Creating { .. }
            | State::Running { .. }
            | State::Pausing { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Killing { .. },
            Transition::Pause(_) | Transition::Resume | Transition::Kill | Transition::Lose(_),
        ) => None,
    }
}

/// How a transition's work ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The goal is reached: running, paused (committed) or deleted.
    Done,
    /// Nothing changed: a failed pause goes on running, a failed resume is paused as before, a
    /// failed create is gone.
    Undone,
    /// The execution is dead.
    ExecutionLost(ExitReason),
    /// A resume failed after its guest had written to the disk: the memory image is worthless.
    MemoryStale,
}

/// What comes after a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This state.
    State(State),
    /// Nothing: the sandbox is gone.
    Gone,
}

/// The state a transient state leads to.
pub fn after(state: &State, outcome: &Outcome) -> Next {
    let lost = |reason: &ExitReason| {
        let reason = DiskReason::ExecutionLost(reason.clone());
        Next::State(State::Paused {
            saved: Saved::Disk { reason },
        })
    };
    match (state, outcome) {
        (State::Creating { execution }, Outcome::Done) => Next::State(State::Running {
            execution: execution.clone(),
        }),
        (
            State::Creating { .. },
            Outcome::Undone | Outcome::ExecutionLost(_) | Outcome::MemoryStale,
        ) => Next::Gone,

        (State::Running { .. }, Outcome::ExecutionLost(reason)) => lost(reason),
        (State::Running { .. }, Outcome::Done | Outcome::Undone | Outcome::MemoryStale) => {
            Next::State(state.clone())
        }

        (State::Pausing { target, .. }, Outcome::Done) => Next::State(State::Paused {
            saved: target_reached(target),
        }),
        (State::Pausing { execution, .. }, Outcome::Undone | Outcome::MemoryStale) => {
            Next::State(State::Running {
                execution: execution.clone(),
            })
        }
        (State::Pausing { .. }, Outcome::ExecutionLost(reason)) => lost(reason),

        (State::Paused { .. }, _) => Next::State(state.clone()),

        (State::Resuming { execution, .. }, Outcome::Done) => Next::State(State::Running {
            execution: execution.clone(),
        }),
        (State::Resuming { saved, .. }, Outcome::Undone | Outcome::ExecutionLost(_)) => {
            Next::State(State::Paused {
                saved: saved.clone(),
            })
        }
        (State::Resuming { saved, .. }, Outcome::MemoryStale) => {
            let saved = match saved {
                Saved::Memory { .. } => Saved::Disk {
                    reason: DiskReason::MemoryStale,
                },
                Saved::Disk { reason } => Saved::Disk {
                    reason: reason.clone(),
                },
            };
            Next::State(State::Paused { saved })
        }

        (State::Killing { .. }, Outcome::Done) => Next::Gone,
        (
            State::Killing { .. },
            Outcome::Undone | Outcome::ExecutionLost(_) | Outcome::MemoryStale,
        ) => Next::State(state.clone()),
    }
}

fn target_reached(target: &PauseTarget) -> Saved {
    match target {
        PauseTarget::Memory { image } => Saved::Memory {
            image: image.clone(),
        },
        PauseTarget::Disk => Saved::Disk {
            reason: DiskReason::Asked,
        },
    }
}

/// What to do with a journaled state after a crash of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing was under way and nothing exists on the host.
    Rest,
    /// Take over the live execution, thawing it if it is frozen. If that works, the transition
    /// that was under way ends with this outcome.
    Adopt(ExecutionId, Outcome),
    /// Take over an execution that was being started. It is running if its agent answers; else the
    /// start is undone.
    FinishStart(ExecutionId),
    /// Destroy what is left of a start, then look at the disk to see whether the memory image
    /// still fits it.
    UndoStart(ExecutionId),
    /// Destroy what is left of the execution; the transition then has this outcome.
    CleanUp(ExecutionId, Outcome),
    /// Delete everything and forget the sandbox.
    Delete,
}

/// Decides what becomes of a journaled state, given what was `found` of its execution on the host
/// and whether the image of a pause in flight was `committed`.
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
            // Only a pause destroys an execution that is not lost, and it syncs the disk first.
            (PauseTarget::Disk, _, false) => Recovery::CleanUp(execution.clone(), Outcome::Done),
            (PauseTarget::Memory { .. }, false, true) | (PauseTarget::Disk, _, true) => {
                Recovery::Adopt(execution.clone(), Outcome::Undone)
            }
            (PauseTarget::Memory { .. }, false, false) => {
                Recovery::CleanUp(execution.clone(), lost)
            }
        },
        State::Paused { .. } => Recovery::Rest,
        State::Resuming { execution, .. } if alive => Recovery::FinishStart(execution.clone()),
        State::Resuming { execution, .. } => Recovery::UndoStart(execution.clone()),
    }
}

impl State {
    /// The execution that may exist in this state.
    pub fn execution(&self) -> Option<&ExecutionId> {
        match self {
            State::Creating { execution }
            | State::Running { execution }
            | State::Pausing { execution, .. }
            | State::Resuming { execution, .. } => Some(execution),
            State::Killing { execution } => execution.as_ref(),
            State::Paused { .. } => None,
        }
    }

    /// Short name for logs.
    pub fn name(&self) -> &'static str {
        match self {
            State::Creating { .. } => "creating",
            State::Running { .. } => "running",
            State::Pausing { .. } => "pausing",
            State::Paused { .. } => "paused",
            State::Resuming { .. } => "resuming",
            State::Killing { .. } => "killing",
        }
    }
}

#[cfg(test)]
mod tests;
