//! The warm tier: after the commit of a pause, its execution may stay frozen in memory for a while,
//! and the next connect thaws it instead of reading the image.
//!
//! Nothing depends on it. The journal says `Paused` and names the committed image; a warm execution
//! is in no record, so a server that starts again destroys it like any stray. Whoever wants to do
//! anything else with a paused sandbox than to thaw it calls [`Warm::drop_of`] first: its disk must
//! not have two users.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use engine::{Engine, ExecutionId};
use snapshot::ImageId;

use super::SandboxId;
use super::memory::is_memory_available;
use super::transition::until_done;

/// How often ages and the host's memory are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The tier gives way when less than this part of the host's memory is available.
const LEAST_AVAILABLE: u64 = 16;

/// Bounds of the warm tier.
#[derive(Clone, Copy, Debug)]
pub struct WarmSettings {
    /// Memory that frozen executions may hold together; 0 turns the tier off.
    pub memory_bytes: u64,
    /// How long one is kept.
    pub keep: Duration,
}

impl WarmSettings {
    /// No tier.
    pub const OFF: Self = Self {
        memory_bytes: 0,
        keep: Duration::ZERO,
    };
}

/// The frozen executions of paused sandboxes.
pub(super) struct Warm {
    engine: Arc<dyn Engine>,
    settings: WarmSettings,
    kept: Mutex<Entries>,
}

struct Entries {
    /// Whether further ones are taken.
    open: bool,
    by_sandbox: HashMap<SandboxId, Arc<Kept>>,
}

struct Kept {
    image: ImageId,
    bytes: u64,
    since: Instant,
    /// `None` once it is taken or destroyed. Locked while it is being destroyed, so that nobody uses
    /// its disk meanwhile.
    execution: tokio::sync::Mutex<Option<ExecutionId>>,
}

impl Warm {
    pub(super) fn new(engine: Arc<dyn Engine>, settings: WarmSettings) -> Arc<Self> {
        let warm = Arc::new(Self {
            engine,
            settings,
            kept: Mutex::new(Entries {
                open: settings.memory_bytes > 0,
                by_sandbox: HashMap::new(),
            }),
        });
        if settings.memory_bytes > 0 {
            tokio::spawn(watch(Arc::downgrade(&warm)));
        }
        warm
    }

    /// Takes a frozen execution whose image is committed; false when there is no room for it, and
    /// the caller has to destroy it. Older ones make room, which nobody waits for.
    pub(super) async fn keep(
        self: &Arc<Self>,
        sandbox: &SandboxId,
        execution: &ExecutionId,
        image: &ImageId,
    ) -> bool {
        let most = self.settings.memory_bytes;
        if most == 0 || !is_memory_available(LEAST_AVAILABLE) {
            return false;
        }
        let bytes = match self.engine.resident_bytes(execution).await {
            Ok(bytes) if bytes <= most => bytes,
            Ok(_) | Err(_) => return false,
        };
        {
            let mut kept = self.kept();
            if !kept.open {
                return false;
            }
            let entry = Kept {
                image: image.clone(),
                bytes,
                since: Instant::now(),
                execution: tokio::sync::Mutex::new(Some(execution.clone())),
            };
            kept.by_sandbox.insert(sandbox.clone(), Arc::new(entry));
        }
        if self.held() > most {
            let warm = Arc::clone(self);
            tokio::spawn(async move { while warm.held() > most && warm.drop_oldest().await {} });
        }
        true
    }

    /// The frozen execution of a sandbox that was paused into this image, for its driver to thaw.
    pub(super) async fn take(&self, sandbox: &SandboxId, image: &ImageId) -> Option<ExecutionId> {
        let entry = self.find(sandbox)?;
        if entry.image != *image {
            self.drop_of(sandbox).await;
            return None;
        }
        let execution = entry.execution.lock().await.take();
        self.forget(sandbox, &entry);
        execution
    }

    /// Destroys what there is of a sandbox; when this returns nobody uses its disk.
    pub(super) async fn drop_of(&self, sandbox: &SandboxId) {
        let Some(entry) = self.find(sandbox) else {
            return;
        };
        let mut execution = entry.execution.lock().await;
        if let Some(execution) = execution.take() {
            let step = format!("destroy the frozen {execution}");
            until_done(&step, || self.engine.destroy(&execution)).await;
        }
        self.forget(sandbox, &entry);
    }

    /// Destroys all of them and keeps none any more.
    pub(super) async fn close(&self) {
        self.kept().open = false;
        while self.drop_oldest().await {}
    }

    fn kept(&self) -> MutexGuard<'_, Entries> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, sandbox: &SandboxId) -> Option<Arc<Kept>> {
        self.kept().by_sandbox.get(sandbox).cloned()
    }

    fn forget(&self, sandbox: &SandboxId, entry: &Arc<Kept>) {
        let kept = &mut self.kept().by_sandbox;
        if kept
            .get(sandbox)
            .is_some_and(|found| Arc::ptr_eq(found, entry))
        {
            kept.remove(sandbox);
        }
    }

    fn held(&self) -> u64 {
        let kept = self.kept();
        kept.by_sandbox.values().map(|entry| entry.bytes).sum()
    }

    /// False when there is none.
    async fn drop_oldest(&self) -> bool {
        let oldest = {
            let kept = self.kept();
            let entries = kept.by_sandbox.iter();
            let oldest = entries.min_by_key(|(_, entry)| entry.since);
            oldest.map(|(sandbox, _)| sandbox.clone())
        };
        match oldest {
            Some(sandbox) => self.drop_of(&sandbox).await,
            None => return false,
        }
        true
    }

    fn has_expired(&self) -> bool {
        let kept = self.kept();
        let mut entries = kept.by_sandbox.values();
        entries.any(|entry| entry.since.elapsed() >= self.settings.keep)
    }

    fn is_empty(&self) -> bool {
        self.kept().by_sandbox.is_empty()
    }
}

/// Destroys what has been kept long enough, and the oldest when the host runs short of memory.
async fn watch(warm: Weak<Warm>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(warm) = warm.upgrade() else { return };
        while warm.has_expired() || !(warm.is_empty() || is_memory_available(LEAST_AVAILABLE)) {
            warm.drop_oldest().await;
        }
    }
}
