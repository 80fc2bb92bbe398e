//! Preparing the next execution of a paused sandbox, one at a time and after whoever waits for a start.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use engine::ExecutionSpec;

use super::entries::{Entries, Stage};
use super::{LOOK_EVERY, Warm};
use crate::sandbox::SandboxId;
use crate::sandbox::memory::is_memory_available;

/// Nothing is prepared when less than this part of the host's memory is available.
const LEAST_AVAILABLE: u64 = 8;
/// While others start sandboxes, preparing waits.
const CALM_CHECK: Duration = Duration::from_millis(20);

/// How a sandbox will be started from the image it was paused into.
pub(in crate::sandbox) struct NextStart {
    /// Exactly as the resume will say it: the engine goes on from nothing else.
    pub(in crate::sandbox) spec: ExecutionSpec,
    /// Directory of the image.
    pub(in crate::sandbox) image: PathBuf,
}

impl Warm {
    /// Prepares for the sandbox that was paused last; false when nothing can be done now.
    pub(super) async fn prepare_one(self: &Arc<Self>) -> bool {
        // While the last one was prepared, more may have been paused than are prepared for.
        self.end_surplus();
        let wanted = self.kept().latest_first(Entries::is_wanted).next().cloned();
        let Some(sandbox) = wanted else { return false };
        if !is_memory_available(LEAST_AVAILABLE) || !self.is_calm().await {
            return false;
        }
        let Some(NextStart { spec, image }) = self.begin(&sandbox) else {
            // Somebody was faster.
            return true;
        };
        let execution = spec.id.clone();
        let engine = Arc::clone(&self.engine);
        // A panic must leave no sandbox that waits for this for ever.
        let prepared = tokio::spawn(async move { engine.prepare(&spec, &image).await });
        let problem = match prepared.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic.to_string()),
        };
        let mut kept = self.kept();
        // Nobody removes an entry while its start is being prepared.
        if let Some(entry) = kept.by_sandbox.get_mut(&sandbox) {
            entry.stage = Stage::Prepared { execution };
        }
        if let Some(problem) = problem {
            tracing::warn!(sandbox.id = %sandbox, problem, "a start could not be prepared");
            // The engine takes away what it made, unless that fails as well: then the disk is still
            // in use, and whoever needs it has to wait until it is not.
            self.end(&mut kept, &sandbox);
        }
        drop(kept);
        self.changed.notify_waiters();
        true
    }

    fn begin(&self, sandbox: &SandboxId) -> Option<NextStart> {
        let mut kept = self.kept();
        let entry = kept.by_sandbox.get_mut(sandbox)?;
        if !matches!(entry.stage, Stage::Wanted) {
            return None;
        }
        let next = entry.next.take()?;
        entry.stage = Stage::Preparing;
        Some(next)
    }

    /// Waits until nobody waits for a start; false when that takes long.
    async fn is_calm(&self) -> bool {
        let begun = Instant::now();
        while self.starting.load(Ordering::Relaxed) > 0 {
            if begun.elapsed() > LOOK_EVERY {
                return false;
            }
            tokio::time::sleep(CALM_CHECK).await;
        }
        true
    }
}
