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
//!   Resuming, Restarting ─▶ Keeping ─▶ Paused: its guest lives, has written, and cannot be reached
//!
//!   kill: from Running and Paused at once, from the others when their transition has ended
//!
//!   Running ─▶ Snapshotting(saving ─▶ sealing) ─▶ Restarting ─▶ Running
//!   Paused  ─▶ Snapshotting(sealing) ─▶ Paused
//!   Running, Paused ─▶ RollingBack(staging ─▶ replacing) ─▶ Restarting or Paused
//! ```
//!
//! A snapshot of a running sandbox is a pause and a resume with the seal of its disk in between.
//! Callers see it running all the time; whatever fails on the way, it ends as running or, if it
//! cannot be started again, as paused.
//!
//! [`decide`] answers a command, [`begin`] gives the transient state to journal before a side
//! effect, [`after`] the state its outcome leads to, and [`recover`] what to do with a state found
//! in the journal after a crash. Every match names every variant: a new state does not compile
//! until all four have an answer for it.

mod decide;
mod progress;
mod recover;

use engine::{ExecutionId, ExitReason};
use serde::{Deserialize, Serialize};
use snapshot::ImageId;

use super::SnapshotId;

pub use decide::{Command, Decision, Refusal, RollbackTarget, Transition, decide};
pub use progress::{FreshNames, Next, Outcome, after, begin};
pub use recover::{Recovery, recover};

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
        /// Why it boots although there is an image, when that was nobody's wish. The image is given
        /// up only when the boot has succeeded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unusable: Option<String>,
    },
    /// A start has failed, but its guest lives and has written to the disk, so that what was saved does
    /// not fit any more. It is frozen, and is being saved as for a pause.
    Keeping {
        /// The execution being saved.
        execution: ExecutionId,
        /// What was saved before, for the case that the guest dies.
        saved: Saved,
        /// Name under which its image will be committed.
        image: ImageId,
    },
    /// A snapshot is being made of it.
    Snapshotting {
        /// Name of the snapshot.
        snapshot: SnapshotId,
        /// How far it is.
        step: SnapshotStep,
    },
    /// It is being put back to what a snapshot holds.
    RollingBack {
        /// Name of the snapshot.
        snapshot: SnapshotId,
        /// How far it is.
        step: RollbackStep,
    },
    /// It is started again after it was stopped for a snapshot or a rollback. To callers it runs.
    Restarting {
        /// The execution being started.
        execution: ExecutionId,
        /// What it is started from.
        saved: Saved,
        /// As in [`Resuming`](State::Resuming).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unusable: Option<String>,
    },
    /// Everything it has is being deleted. It never comes back.
    Killing {
        /// An execution that has to be destroyed first.
        execution: Option<ExecutionId>,
    },
}

/// How far a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum SnapshotStep {
    /// The running sandbox is being saved, as for a pause.
    Saving {
        /// The execution being saved.
        execution: ExecutionId,
        /// Name under which its image will be committed.
        image: ImageId,
        /// The execution that will go on from it.
        restart: ExecutionId,
    },
    /// No execution exists; its disk is being sealed. The commit of the snapshot ends this step.
    Sealing {
        /// What was saved.
        saved: Saved,
        /// The execution that will go on from it; `None` for a sandbox that was paused.
        restart: Option<ExecutionId>,
    },
}

/// How far a rollback is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum RollbackStep {
    /// The files of the snapshot are being put beside the sandbox's own. It goes on as it is.
    Staging {
        /// What the sandbox is until the rollback is committed.
        before: Before,
        /// What it will be started from.
        saved: Saved,
        /// The execution that will go on from it; `None` for a sandbox that was paused.
        restart: Option<ExecutionId>,
    },
    /// Committed: what it was before is being removed.
    Replacing {
        /// The execution of before, to be destroyed.
        execution: Option<ExecutionId>,
        /// What it is started from.
        saved: Saved,
        /// The execution that will go on from it; `None` for a sandbox that was paused.
        restart: Option<ExecutionId>,
    },
}

/// What a sandbox was before a rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "before", rename_all = "snake_case")]
pub enum Before {
    /// Running.
    Running {
        /// Its execution.
        execution: ExecutionId,
    },
    /// Paused.
    Paused {
        /// What was saved.
        saved: Saved,
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

impl DiskReason {
    /// For people; `None` when it was asked for.
    pub fn memory_lost(&self) -> Option<String> {
        let text = match self {
            DiskReason::Asked => return None,
            DiskReason::ExecutionLost(ExitReason::OutOfMemory) => {
                "the sandbox was killed for want of memory"
            }
            DiskReason::ExecutionLost(ExitReason::Exited) => {
                "its execution ended by itself or with the host"
            }
            DiskReason::MemoryStale => {
                "a resume failed after the guest had begun to write to its disk"
            }
        };
        Some(text.to_owned())
    }
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

impl State {
    /// What a start that is under way uses.
    pub fn start_point(&self) -> StartPoint {
        match self {
            State::Resuming { from, .. } => *from,
            State::Restarting {
                unusable: Some(_), ..
            } => StartPoint::Disk,
            State::Restarting { unusable: None, .. }
            | State::Creating { .. }
            | State::Running { .. }
            | State::Pausing { .. }
            | State::Paused { .. }
            | State::Keeping { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Killing { .. } => StartPoint::Memory,
        }
    }

    /// Why the memory of the last run is not there, or will not be, if that was nobody's wish.
    pub fn memory_lost(&self) -> Option<String> {
        match self {
            State::Resuming {
                unusable: Some(why),
                ..
            }
            | State::Restarting {
                unusable: Some(why),
                ..
            } => Some(why.clone()),
            State::Paused { saved }
            | State::Resuming { saved, .. }
            | State::Restarting { saved, .. } => match saved {
                Saved::Disk { reason } => reason.memory_lost(),
                Saved::Memory { .. } => None,
            },
            State::Creating { .. }
            | State::Running { .. }
            | State::Pausing { .. }
            | State::Keeping { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Killing { .. } => None,
        }
    }

    /// The execution that may exist in this state.
    pub fn execution(&self) -> Option<&ExecutionId> {
        match self {
            State::Creating { execution }
            | State::Running { execution }
            | State::Pausing { execution, .. }
            | State::Resuming { execution, .. }
            | State::Keeping { execution, .. }
            | State::Restarting { execution, .. } => Some(execution),
            State::Snapshotting { step, .. } => match step {
                SnapshotStep::Saving { execution, .. } => Some(execution),
                SnapshotStep::Sealing { .. } => None,
            },
            State::RollingBack { step, .. } => match step {
                RollbackStep::Staging { before, .. } => match before {
                    Before::Running { execution } => Some(execution),
                    Before::Paused { .. } => None,
                },
                RollbackStep::Replacing { execution, .. } => execution.as_ref(),
            },
            State::Killing { execution } => execution.as_ref(),
            State::Paused { .. } => None,
        }
    }

    /// Whether callers see a sandbox in this state as one whose run has not ended.
    pub fn counts_as_running(&self) -> bool {
        match self {
            State::Running { .. } | State::Pausing { .. } | State::Restarting { .. } => true,
            State::Snapshotting { .. } | State::RollingBack { .. } => {
                self.saved_at_rest().is_none()
            }
            State::Creating { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Keeping { .. }
            | State::Killing { .. } => false,
        }
    }

    /// What is saved of a sandbox that callers see as paused while it is snapshotted or rolled back.
    /// `None` for one that ran before and will again.
    pub fn saved_at_rest(&self) -> Option<&Saved> {
        match self {
            State::Snapshotting { step, .. } => match step {
                SnapshotStep::Sealing {
                    saved,
                    restart: None,
                } => Some(saved),
                SnapshotStep::Sealing { .. } | SnapshotStep::Saving { .. } => None,
            },
            State::RollingBack { step, .. } => match step {
                RollbackStep::Staging { before, .. } => match before {
                    Before::Paused { saved } => Some(saved),
                    Before::Running { .. } => None,
                },
                RollbackStep::Replacing {
                    saved,
                    restart: None,
                    ..
                } => Some(saved),
                RollbackStep::Replacing { .. } => None,
            },
            State::Paused { saved } => Some(saved),
            State::Creating { .. }
            | State::Running { .. }
            | State::Pausing { .. }
            | State::Resuming { .. }
            | State::Keeping { .. }
            | State::Restarting { .. }
            | State::Killing { .. } => None,
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
            State::Keeping { .. } => "keeping",
            State::Snapshotting { .. } => "snapshotting",
            State::RollingBack { .. } => "rolling back",
            State::Restarting { .. } => "restarting",
            State::Killing { .. } => "killing",
        }
    }
}

#[cfg(test)]
mod tests;
