//! What is kept of which sandbox.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use engine::ExecutionId;
use snapshot::ImageId;

use super::NextStart;
use crate::sandbox::SandboxId;

pub(super) struct Entries {
    /// Whether further ones are kept, or prepared.
    pub(super) open: bool,
    /// Exactly those of whose disks somebody in here is or may become a user.
    pub(super) by_sandbox: HashMap<SandboxId, Kept>,
}

pub(super) struct Kept {
    /// What the sandbox was paused into, if memory was saved.
    pub(super) image: Option<ImageId>,
    /// When it was paused.
    pub(super) since: Instant,
    /// What is to be prepared when the last execution is gone; taken when that begins.
    pub(super) next: Option<NextStart>,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// As the pause left it.
    Frozen { execution: ExecutionId, bytes: u64 },
    /// A task destroys it.
    Ending {
        /// Why the last try failed.
        problem: Option<String>,
    },
    /// There is nothing, and the next execution may be prepared.
    Wanted,
    /// That is being done.
    Preparing,
    /// It waits for its memory.
    Prepared { execution: ExecutionId },
}

impl Entries {
    pub(super) fn new() -> Self {
        Self {
            open: true,
            by_sandbox: HashMap::new(),
        }
    }

    /// Memory that frozen ones hold together.
    pub(super) fn frozen_bytes(&self) -> u64 {
        let bytes = |entry: &Kept| match entry.stage {
            Stage::Frozen { bytes, .. } => bytes,
            Stage::Ending { .. } | Stage::Wanted | Stage::Preparing | Stage::Prepared { .. } => 0,
        };
        self.by_sandbox.values().map(bytes).sum()
    }

    /// Those of a kind, the one paused last first.
    pub(super) fn latest_first(
        &self,
        kind: impl Fn(&Stage) -> bool,
    ) -> impl Iterator<Item = &SandboxId> {
        let entries = self.by_sandbox.iter();
        let mut found: Vec<_> = entries.filter(|(_, entry)| kind(&entry.stage)).collect();
        found.sort_by_key(|(_, entry)| Reverse(entry.since));
        found.into_iter().map(|(sandbox, _)| sandbox)
    }

    /// Those of a kind that were paused so long ago.
    pub(super) fn older_than(
        &self,
        age: Duration,
        kind: impl Fn(&Stage) -> bool,
    ) -> impl Iterator<Item = &SandboxId> {
        let old = move |entry: &Kept| kind(&entry.stage) && entry.since.elapsed() >= age;
        let entries = self.by_sandbox.iter();
        let found = entries.filter(move |(_, entry)| old(entry));
        found.map(|(sandbox, _)| sandbox)
    }

    pub(super) fn is_frozen(stage: &Stage) -> bool {
        matches!(stage, Stage::Frozen { .. })
    }

    pub(super) fn is_prepared(stage: &Stage) -> bool {
        matches!(stage, Stage::Prepared { .. })
    }

    pub(super) fn is_wanted(stage: &Stage) -> bool {
        matches!(stage, Stage::Wanted)
    }

    /// Prepared or to be.
    pub(super) fn is_next(stage: &Stage) -> bool {
        match stage {
            Stage::Wanted | Stage::Preparing | Stage::Prepared { .. } => true,
            Stage::Frozen { .. } | Stage::Ending { .. } => false,
        }
    }
}
