//! From a state into a transition, and from the outcome of its work to the next state.

use engine::{ExecutionId, ExitReason};
use snapshot::ImageId;

use super::{
    Before, DiskReason, PauseTarget, RollbackStep, Saved, SnapshotStep, StartPoint, State,
    Transition,
};
use crate::sandbox::PauseMode;
use crate::snapshots::SnapshotId;

/// Names for what a transition is about to make.
#[derive(Clone, Debug)]
pub struct FreshNames {
    /// For a new execution.
    pub execution: ExecutionId,
    /// For a new image.
    pub image: ImageId,
    /// For a new snapshot.
    pub snapshot: SnapshotId,
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
            unusable: None,
        }),
        (State::Running { execution }, Transition::Kill) => Some(State::Killing {
            execution: Some(execution.clone()),
        }),
        (State::Paused { .. }, Transition::Kill) => Some(State::Killing { execution: None }),
        (State::Running { execution }, Transition::Snapshot) => Some(State::Snapshotting {
            snapshot: fresh.snapshot,
            step: SnapshotStep::Saving {
                execution: execution.clone(),
                image: fresh.image,
                restart: fresh.execution,
            },
        }),
        (State::Paused { saved }, Transition::Snapshot) => Some(State::Snapshotting {
            snapshot: fresh.snapshot,
            step: SnapshotStep::Sealing {
                saved: saved.clone(),
                restart: None,
            },
        }),
        (State::Running { execution }, Transition::Rollback(target)) => Some(State::RollingBack {
            snapshot: target.snapshot.clone(),
            step: RollbackStep::Staging {
                before: Before::Running {
                    execution: execution.clone(),
                },
                saved: target.saved.clone(),
                restart: Some(fresh.execution),
            },
        }),
        (State::Paused { saved }, Transition::Rollback(target)) => Some(State::RollingBack {
            snapshot: target.snapshot.clone(),
            step: RollbackStep::Staging {
                before: Before::Paused {
                    saved: saved.clone(),
                },
                saved: target.saved.clone(),
                restart: None,
            },
        }),
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
            | State::Keeping { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. }
            | State::Killing { .. },
            Transition::Pause(_)
            | Transition::Resume
            | Transition::Kill
            | Transition::Snapshot
            | Transition::Rollback(_)
            | Transition::Lose(_),
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
    /// The memory image cannot be restored, and the guest did not run: its disk is all there is.
    MemoryUnusable(String),
    /// A start failed, but its guest lives and has written to the disk. It stands still, and is to be
    /// saved in an image of this name.
    Unreached(ImageId),
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
            Outcome::Undone
            | Outcome::ExecutionLost(_)
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => Next::Gone,

        (State::Running { .. }, Outcome::ExecutionLost(reason)) => lost(reason),
        (
            State::Running { .. },
            Outcome::Done
            | Outcome::Undone
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => Next::State(state.clone()),

        (State::Pausing { target, .. }, Outcome::Done) => Next::State(State::Paused {
            saved: target_reached(target),
        }),
        (
            State::Pausing { execution, .. },
            Outcome::Undone
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => Next::State(State::Running {
            execution: execution.clone(),
        }),
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
        (
            State::Resuming { saved, .. }
            | State::Keeping { saved, .. }
            | State::Restarting { saved, .. },
            Outcome::MemoryStale,
        ) => Next::State(State::Paused {
            saved: without_memory(saved),
        }),

        (
            State::Resuming {
                execution, saved, ..
            }
            | State::Restarting {
                execution, saved, ..
            },
            Outcome::Unreached(image),
        ) => Next::State(State::Keeping {
            execution: execution.clone(),
            saved: saved.clone(),
            image: image.clone(),
        }),
        (State::Keeping { image, .. }, Outcome::Done) => Next::State(State::Paused {
            saved: Saved::Memory {
                image: image.clone(),
            },
        }),
        // It is still being saved.
        (State::Keeping { .. }, Outcome::Unreached(_)) => Next::State(state.clone()),
        (
            State::Keeping { saved, .. },
            Outcome::Undone | Outcome::ExecutionLost(_) | Outcome::MemoryUnusable(_),
        ) => Next::State(State::Paused {
            saved: saved.clone(),
        }),

        // Its disk is tried; what is saved stays until that has worked.
        (
            State::Resuming {
                execution,
                saved,
                from: StartPoint::Memory,
                ..
            },
            Outcome::MemoryUnusable(why),
        ) => Next::State(State::Resuming {
            execution: execution.clone(),
            saved: saved.clone(),
            from: StartPoint::Disk,
            unusable: Some(why.clone()),
        }),
        (
            State::Restarting {
                execution,
                saved,
                unusable: None,
            },
            Outcome::MemoryUnusable(why),
        ) => Next::State(State::Restarting {
            execution: execution.clone(),
            saved: saved.clone(),
            unusable: Some(why.clone()),
        }),
        (
            State::Resuming { saved, .. } | State::Restarting { saved, .. },
            Outcome::MemoryUnusable(_),
        ) => Next::State(State::Paused {
            saved: saved.clone(),
        }),

        (State::Snapshotting { snapshot, step }, outcome) => {
            Next::State(after_snapshot_step(snapshot, step, outcome))
        }
        (State::RollingBack { snapshot, step }, outcome) => {
            Next::State(after_rollback_step(snapshot, step, outcome))
        }
        (State::Restarting { execution, .. }, Outcome::Done) => Next::State(State::Running {
            execution: execution.clone(),
        }),
        (State::Restarting { saved, .. }, Outcome::Undone | Outcome::ExecutionLost(_)) => {
            Next::State(State::Paused {
                saved: saved.clone(),
            })
        }

        (State::Killing { .. }, Outcome::Done) => Next::Gone,
        (
            State::Killing { .. },
            Outcome::Undone
            | Outcome::ExecutionLost(_)
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => Next::State(state.clone()),
    }
}

fn after_snapshot_step(snapshot: &SnapshotId, step: &SnapshotStep, outcome: &Outcome) -> State {
    match (step, outcome) {
        (SnapshotStep::Saving { image, restart, .. }, Outcome::Done) => State::Snapshotting {
            snapshot: snapshot.clone(),
            step: SnapshotStep::Sealing {
                saved: Saved::Memory {
                    image: image.clone(),
                },
                restart: Some(restart.clone()),
            },
        },
        (
            SnapshotStep::Saving { execution, .. },
            Outcome::Undone
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => State::Running {
            execution: execution.clone(),
        },
        (SnapshotStep::Saving { .. }, Outcome::ExecutionLost(reason)) => State::Paused {
            saved: Saved::Disk {
                reason: DiskReason::ExecutionLost(reason.clone()),
            },
        },
        // With or without the snapshot: the sandbox goes on as what it was.
        (
            SnapshotStep::Sealing { saved, restart },
            Outcome::Done
            | Outcome::Undone
            | Outcome::ExecutionLost(_)
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => go_on(saved, restart.as_ref()),
    }
}

fn after_rollback_step(snapshot: &SnapshotId, step: &RollbackStep, outcome: &Outcome) -> State {
    match (step, outcome) {
        (
            RollbackStep::Staging {
                before,
                saved,
                restart,
            },
            Outcome::Done,
        ) => State::RollingBack {
            snapshot: snapshot.clone(),
            step: RollbackStep::Replacing {
                execution: match before {
                    Before::Running { execution } => Some(execution.clone()),
                    Before::Paused { .. } => None,
                },
                saved: saved.clone(),
                restart: restart.clone(),
            },
        },
        (
            RollbackStep::Staging { before, .. },
            Outcome::Undone
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => match before {
            Before::Running { execution } => State::Running {
                execution: execution.clone(),
            },
            Before::Paused { saved } => State::Paused {
                saved: saved.clone(),
            },
        },
        (RollbackStep::Staging { before, .. }, Outcome::ExecutionLost(reason)) => State::Paused {
            saved: match before {
                Before::Running { .. } => Saved::Disk {
                    reason: DiskReason::ExecutionLost(reason.clone()),
                },
                Before::Paused { saved } => saved.clone(),
            },
        },
        (
            RollbackStep::Replacing { saved, restart, .. },
            Outcome::Done
            | Outcome::Undone
            | Outcome::ExecutionLost(_)
            | Outcome::MemoryStale
            | Outcome::MemoryUnusable(_)
            | Outcome::Unreached(_),
        ) => go_on(saved, restart.as_ref()),
    }
}

/// Started again from what is saved if it ran before.
fn go_on(saved: &Saved, restart: Option<&ExecutionId>) -> State {
    match restart {
        Some(execution) => State::Restarting {
            execution: execution.clone(),
            saved: saved.clone(),
            unusable: None,
        },
        None => State::Paused {
            saved: saved.clone(),
        },
    }
}

fn without_memory(saved: &Saved) -> Saved {
    match saved {
        Saved::Memory { .. } => Saved::Disk {
            reason: DiskReason::MemoryStale,
        },
        Saved::Disk { reason } => Saved::Disk {
            reason: reason.clone(),
        },
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
