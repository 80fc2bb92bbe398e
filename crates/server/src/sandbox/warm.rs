//! What there still is of the executions of paused sandboxes.
//!
//! The warm tier: after the commit of a pause, its execution may stay frozen in memory for a while,
//! and the next connect thaws it instead of reading the image. One that is not kept, or not any more,
//! is destroyed here too, in the background.
//!
//! ```text
//! leave ──▶ Frozen ──▶ Ending ──▶ (forgotten)
//!   └────────────────────┘
//! ```
//!
//! Nothing depends on it. The journal says `Paused` and names the committed image; an execution in
//! here is in no record, so a server that starts again destroys it like any stray. Whoever wants to do
//! anything else with a paused sandbox than to go on with what [`Warm::take`] answers calls
//! [`Warm::drop_of`] first: its disk must not have two users. Both wait for an end under way. Nobody
//! else does, and nothing in here thaws.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use engine::{Engine, ExecutionId};
use snapshot::ImageId;
use tokio::sync::Notify;

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

/// The executions of paused sandboxes.
pub(super) struct Warm {
    engine: Arc<dyn Engine>,
    settings: WarmSettings,
    kept: Mutex<Entries>,
    /// Somebody may be waiting for what has just changed.
    changed: Notify,
}

struct Entries {
    /// Whether further ones are kept.
    open: bool,
    by_sandbox: HashMap<SandboxId, Kept>,
}

struct Kept {
    image: ImageId,
    /// When the sandbox was paused.
    since: Instant,
    stage: Stage,
}

enum Stage {
    /// As the pause left it.
    Frozen { execution: ExecutionId, bytes: u64 },
    /// A task destroys it, and forgets it when nobody uses the disk any more.
    Ending,
}

impl Warm {
    pub(super) fn new(engine: Arc<dyn Engine>, settings: WarmSettings) -> Arc<Self> {
        let warm = Arc::new(Self {
            engine,
            settings,
            kept: Mutex::new(Entries {
                open: true,
                by_sandbox: HashMap::new(),
            }),
            changed: Notify::new(),
        });
        if settings.memory_bytes > 0 {
            tokio::spawn(watch(Arc::downgrade(&warm)));
        }
        warm
    }

    /// Takes a frozen execution whose image is committed. It is kept if that is wanted and there is
    /// room, for which older ones are destroyed; else it is destroyed. Nobody waits for either.
    pub(super) async fn leave(
        self: &Arc<Self>,
        sandbox: &SandboxId,
        execution: ExecutionId,
        image: ImageId,
        keep: bool,
    ) {
        let room = if keep {
            self.room_for(&execution).await
        } else {
            None
        };
        let mut kept = self.kept();
        let ends = room.is_none() || !kept.open;
        let entry = Kept {
            image,
            since: Instant::now(),
            stage: Stage::Frozen {
                execution,
                bytes: room.unwrap_or(0),
            },
        };
        kept.by_sandbox.insert(sandbox.clone(), entry);
        if ends {
            self.end(&mut kept, sandbox);
        }
        while kept.frozen_bytes() > self.settings.memory_bytes {
            let Some(oldest) = kept.oldest_frozen() else {
                return;
            };
            self.end(&mut kept, &oldest);
        }
    }

    /// The bytes that it holds, if they may be held.
    async fn room_for(&self, execution: &ExecutionId) -> Option<u64> {
        let most = self.settings.memory_bytes;
        if most == 0 || !is_memory_available(LEAST_AVAILABLE) {
            return None;
        }
        let bytes = self.engine.resident_bytes(execution).await.ok();
        bytes.filter(|bytes| *bytes <= most)
    }

    /// The frozen execution of a sandbox that was paused into this image, for its driver to thaw. With
    /// or without one, nobody else uses the disk when this returns.
    pub(super) async fn take(
        self: &Arc<Self>,
        sandbox: &SandboxId,
        image: &ImageId,
    ) -> Option<ExecutionId> {
        let look = |kept: &mut Entries| {
            let Some(entry) = kept.by_sandbox.get(sandbox) else {
                return Some(None);
            };
            match &entry.stage {
                Stage::Frozen { execution, .. } if entry.image == *image => {
                    let execution = execution.clone();
                    kept.by_sandbox.remove(sandbox);
                    return Some(Some(execution));
                }
                Stage::Frozen { .. } => self.end(kept, sandbox),
                Stage::Ending => {}
            }
            None
        };
        self.once(look).await
    }

    /// Destroys what there is of a sandbox; when this returns nobody uses its disk.
    pub(super) async fn drop_of(self: &Arc<Self>, sandbox: &SandboxId) {
        let gone = |kept: &mut Entries| {
            self.end(kept, sandbox);
            (!kept.by_sandbox.contains_key(sandbox)).then_some(())
        };
        self.once(gone).await;
    }

    /// Destroys all of them and keeps none any more.
    pub(super) async fn close(self: &Arc<Self>) {
        self.kept().open = false;
        let gone = |kept: &mut Entries| {
            let all: Vec<SandboxId> = kept.by_sandbox.keys().cloned().collect();
            for sandbox in &all {
                self.end(kept, sandbox);
            }
            kept.by_sandbox.is_empty().then_some(())
        };
        self.once(gone).await;
    }

    fn kept(&self) -> MutexGuard<'_, Entries> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whenever something has changed, until there is an answer.
    async fn once<T>(&self, mut look: impl FnMut(&mut Entries) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // A change from here on is heard.
            changed.as_mut().enable();
            let answer = look(&mut self.kept());
            if let Some(answer) = answer {
                return answer;
            }
            changed.await;
        }
    }

    /// Begins the end of what there is of a sandbox, if it has not begun.
    fn end(self: &Arc<Self>, kept: &mut Entries, sandbox: &SandboxId) {
        let Some(entry) = kept.by_sandbox.get_mut(sandbox) else {
            return;
        };
        let execution = match std::mem::replace(&mut entry.stage, Stage::Ending) {
            Stage::Frozen { execution, .. } => execution,
            Stage::Ending => return,
        };
        let (warm, sandbox) = (Arc::clone(self), sandbox.clone());
        tokio::spawn(async move {
            let step = format!("destroy the frozen {execution}");
            until_done(&step, || warm.engine.destroy(&execution)).await;
            warm.kept().by_sandbox.remove(&sandbox);
            warm.changed.notify_waiters();
        });
    }

    /// Ends what has been kept long enough.
    fn end_expired(self: &Arc<Self>) {
        let mut kept = self.kept();
        while let Some(oldest) = kept.oldest_frozen()
            && kept.by_sandbox[&oldest].since.elapsed() >= self.settings.keep
        {
            self.end(&mut kept, &oldest);
        }
    }

    /// Ends the oldest; false when none is left.
    async fn give_way(self: &Arc<Self>) -> bool {
        let oldest = self.kept().oldest_frozen();
        let Some(oldest) = oldest else { return false };
        // What cannot be destroyed at the moment must not keep the others.
        let _ = tokio::time::timeout(LOOK_EVERY, self.drop_of(&oldest)).await;
        true
    }
}

impl Entries {
    fn frozen_bytes(&self) -> u64 {
        let bytes = |entry: &Kept| match entry.stage {
            Stage::Frozen { bytes, .. } => bytes,
            Stage::Ending => 0,
        };
        self.by_sandbox.values().map(bytes).sum()
    }

    fn oldest_frozen(&self) -> Option<SandboxId> {
        let entries = self.by_sandbox.iter();
        let frozen = entries.filter(|(_, entry)| matches!(entry.stage, Stage::Frozen { .. }));
        let oldest = frozen.min_by_key(|(_, entry)| entry.since);
        oldest.map(|(sandbox, _)| sandbox.clone())
    }
}

/// Destroys what has been kept long enough, and the oldest when the host runs short of memory.
async fn watch(warm: Weak<Warm>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(warm) = warm.upgrade() else { return };
        warm.end_expired();
        while !is_memory_available(LEAST_AVAILABLE) && warm.give_way().await {}
    }
}
