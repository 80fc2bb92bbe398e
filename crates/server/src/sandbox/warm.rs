//! Executions of paused sandboxes: what is left of the last one, and what is prepared of the next.
//!
//! The warm tier: after the commit of a pause, its execution may stay frozen in memory for a while,
//! and the next connect thaws it instead of reading the image. One that is not kept, or not any more,
//! is destroyed here too, in the background. Then the next one may be prepared (see
//! [`Engine::prepare`]), so that a connect only has to read the image. What is left of an execution that
//! died, too, is destroyed here.
//!
//! ```text
//! leave ──▶ Frozen ──▶ Ending ──▶ Wanted ──▶ Preparing ──▶ Prepared ──▶ Ending ──▶ (forgotten)
//!   └────────────────────┘ └──▶ (forgotten)
//! ```
//!
//! Nothing depends on it. The journal says `Paused` and names the committed image; an execution in
//! here is in no record, so a server that starts again destroys it like any stray. Whoever wants to do
//! anything else with a paused sandbox than to go on with what [`Warm::take`] answers calls
//! [`Warm::drop_of`] first: its disk must not have two users. Both wait for an end or a preparation
//! under way, and change nothing when that wait is given up. Nobody else waits, and nothing in here
//! lets a guest run.

mod entries;
mod prepare;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use engine::{Engine, ExecutionId};
use snapshot::ImageId;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use super::SandboxId;
use super::memory::is_memory_available;
use super::transition::until_done;
use entries::{Entries, Kept, Stage};
pub(super) use prepare::NextStart;

/// How often ages and the host's memory are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The tier gives way when less than this part of the host's memory is available.
const LEAST_AVAILABLE: u64 = 16;

/// Executions that are destroyed at the same time.
const ENDS_AT_ONCE: usize = 8;

/// Bounds of what is kept of paused sandboxes.
#[derive(Clone, Copy, Debug)]
pub struct WarmSettings {
    /// Memory that frozen executions may hold together; 0 turns the tier off.
    pub memory_bytes: u64,
    /// How long one is kept.
    pub keep: Duration,
    /// For how many of the sandboxes paused last the next execution is prepared; 0 for none.
    pub prepared: usize,
    /// How long after its pause.
    pub prepared_keep: Duration,
}

impl WarmSettings {
    /// Nothing is kept, nothing prepared.
    pub const OFF: Self = Self {
        memory_bytes: 0,
        keep: Duration::ZERO,
        prepared: 0,
        prepared_keep: Duration::ZERO,
    };
}

/// The executions of paused sandboxes.
pub(super) struct Warm {
    engine: Arc<dyn Engine>,
    settings: WarmSettings,
    kept: Mutex<Entries>,
    /// Somebody may be waiting for what has just changed.
    changed: Notify,
    /// Something may be there to be prepared.
    wanted: Arc<Notify>,
    /// Creates and resumes under way.
    starting: Arc<AtomicUsize>,
    /// Turns for destructions.
    ends: Semaphore,
}

/// What a pause leaves.
pub(super) struct Left {
    /// Its frozen execution.
    pub(super) execution: ExecutionId,
    /// The image, which is committed.
    pub(super) image: ImageId,
    /// How the sandbox will be started from that image; `None` if this is not to be prepared.
    pub(super) next: Option<NextStart>,
}

/// What a connect goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The execution of before, frozen since the pause.
    Frozen(ExecutionId),
    /// A new one, which needs nothing but its memory.
    Prepared(ExecutionId),
}

impl Warm {
    /// `starting` counts the creates and resumes under way, before which no preparation comes.
    pub(super) fn new(
        engine: Arc<dyn Engine>,
        settings: WarmSettings,
        starting: Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let wanted = Arc::new(Notify::new());
        let warm = Arc::new(Self {
            engine,
            settings,
            kept: Mutex::new(Entries::new()),
            changed: Notify::new(),
            wanted: Arc::clone(&wanted),
            starting,
            ends: Semaphore::new(ENDS_AT_ONCE),
        });
        if settings.memory_bytes > 0 || settings.prepared > 0 {
            tokio::spawn(watch(Arc::downgrade(&warm), wanted));
        }
        warm
    }

    /// Takes a frozen execution whose image is committed. It is kept if that is wanted and there is
    /// room, for which older ones are destroyed; else it is destroyed. Nobody waits for either.
    pub(super) async fn leave(self: &Arc<Self>, sandbox: &SandboxId, left: Left, keep: bool) {
        let Left {
            execution,
            image,
            next,
        } = left;
        let room = if keep {
            self.room_for(&execution).await
        } else {
            None
        };
        let mut kept = self.kept();
        let ends = room.is_none() || !kept.open;
        let entry = Kept {
            image: Some(image),
            since: Instant::now(),
            next: next.filter(|_| self.settings.prepared > 0),
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
            let oldest = kept.latest_first(Entries::is_frozen).last().cloned();
            let Some(oldest) = oldest else { return };
            self.end(&mut kept, &oldest);
        }
    }

    /// Destroys an execution that its sandbox has left without an image to go on from. Nobody waits
    /// for that.
    pub(super) fn bury(self: &Arc<Self>, sandbox: &SandboxId, execution: ExecutionId) {
        let entry = Kept {
            image: None,
            since: Instant::now(),
            next: None,
            stage: Stage::Frozen {
                execution,
                bytes: 0,
            },
        };
        let mut kept = self.kept();
        kept.by_sandbox.insert(sandbox.clone(), entry);
        self.end(&mut kept, sandbox);
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

    /// What there is for a start of a sandbox from this image, for its driver to go on with. With or
    /// without, nobody else uses the disk when this returns.
    pub(super) async fn take(
        self: &Arc<Self>,
        sandbox: &SandboxId,
        image: &ImageId,
    ) -> Option<Taken> {
        let look = |kept: &mut Entries| {
            let Some(entry) = kept.by_sandbox.get_mut(sandbox) else {
                return Some(None);
            };
            let taken = match &entry.stage {
                Stage::Frozen { execution, .. } => Taken::Frozen(execution.clone()),
                Stage::Prepared { execution } => Taken::Prepared(execution.clone()),
                Stage::Preparing => return None,
                Stage::Ending { .. } | Stage::Wanted => {
                    self.release(kept, sandbox);
                    return None;
                }
            };
            if entry.image.as_ref() != Some(image) {
                self.release(kept, sandbox);
                return None;
            }
            kept.by_sandbox.remove(sandbox);
            Some(Some(taken))
        };
        self.once(look).await
    }

    /// Destroys what there is of a sandbox; when this returns nobody uses its disk.
    pub(super) async fn drop_of(self: &Arc<Self>, sandbox: &SandboxId) {
        let gone = |kept: &mut Entries| {
            self.release(kept, sandbox);
            (!kept.by_sandbox.contains_key(sandbox)).then_some(())
        };
        self.once(gone).await;
    }

    /// What keeps the disk of a sandbox in use, if that is known.
    pub(super) fn problem_of(&self, sandbox: &SandboxId) -> Option<String> {
        match &self.kept().by_sandbox.get(sandbox)?.stage {
            Stage::Ending { problem } => problem.clone(),
            Stage::Preparing => Some("its next start is being prepared".to_owned()),
            Stage::Frozen { .. } | Stage::Wanted | Stage::Prepared { .. } => None,
        }
    }

    /// Destroys all of them and keeps none any more.
    pub(super) async fn close(self: &Arc<Self>) {
        self.kept().open = false;
        let gone = |kept: &mut Entries| {
            let all: Vec<SandboxId> = kept.by_sandbox.keys().cloned().collect();
            for sandbox in &all {
                self.release(kept, sandbox);
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

    /// [Ends](Self::end) what there is of a sandbox, and nothing more is prepared for it.
    fn release(self: &Arc<Self>, kept: &mut Entries, sandbox: &SandboxId) {
        if let Some(entry) = kept.by_sandbox.get_mut(sandbox) {
            entry.next = None;
            self.end(kept, sandbox);
        }
    }

    /// Begins the end of what there is of a sandbox, if it has not begun. What is being prepared ends
    /// when somebody asks again.
    fn end(self: &Arc<Self>, kept: &mut Entries, sandbox: &SandboxId) {
        let Some(entry) = kept.by_sandbox.get_mut(sandbox) else {
            return;
        };
        let execution = match &entry.stage {
            Stage::Frozen { execution, .. } | Stage::Prepared { execution } => execution.clone(),
            Stage::Wanted => {
                kept.by_sandbox.remove(sandbox);
                self.changed.notify_waiters();
                return;
            }
            Stage::Ending { .. } | Stage::Preparing => return,
        };
        entry.stage = Stage::Ending { problem: None };
        let (warm, sandbox) = (Arc::clone(self), sandbox.clone());
        tokio::spawn(async move {
            let step = format!("destroy {execution} of a paused sandbox");
            let destroy = async || {
                // For each try: one that cannot be destroyed must not keep the others.
                let _turn = warm.ends.acquire().await;
                let destroyed = warm.engine.destroy(&execution).await;
                if let Err(error) = &destroyed {
                    warm.note(&sandbox, error.to_string());
                }
                destroyed
            };
            until_done(&step, destroy).await;
            warm.ended(&sandbox);
        });
    }

    /// Why the execution of a sandbox has not ended yet.
    fn note(&self, sandbox: &SandboxId, why: String) {
        let mut kept = self.kept();
        let entry = kept.by_sandbox.get_mut(sandbox);
        if let Some(Stage::Ending { problem }) = entry.map(|entry| &mut entry.stage) {
            *problem = Some(why);
        }
    }

    /// Nobody uses the disk of a sandbox any more.
    fn ended(&self, sandbox: &SandboxId) {
        let mut kept = self.kept();
        let open = kept.open;
        match kept.by_sandbox.get_mut(sandbox) {
            Some(entry) if open && entry.next.is_some() => {
                entry.stage = Stage::Wanted;
                self.wanted.notify_one();
            }
            Some(_) | None => {
                kept.by_sandbox.remove(sandbox);
            }
        }
        self.changed.notify_waiters();
    }

    /// Ends what has been kept long enough, and what was prepared for too many.
    fn end_surplus(self: &Arc<Self>) {
        let mut kept = self.kept();
        let WarmSettings {
            keep,
            prepared,
            prepared_keep,
            ..
        } = self.settings;
        let surplus: Vec<SandboxId> = kept
            .older_than(keep, Entries::is_frozen)
            .chain(kept.older_than(prepared_keep, Entries::is_next))
            .chain(kept.latest_first(Entries::is_next).skip(prepared))
            .cloned()
            .collect();
        for sandbox in &surplus {
            self.end(&mut kept, sandbox);
        }
    }

    /// Ends the oldest of what is prepared, or else of what is frozen, which is faster; false when
    /// there is neither.
    async fn give_way(self: &Arc<Self>) -> bool {
        let oldest = {
            let kept = self.kept();
            let prepared = kept.latest_first(Entries::is_prepared).last();
            let oldest = prepared.or_else(|| kept.latest_first(Entries::is_frozen).last());
            oldest.cloned()
        };
        let Some(oldest) = oldest else { return false };
        // What cannot be destroyed at the moment must not keep the others.
        let _ = tokio::time::timeout(LOOK_EVERY, self.drop_of(&oldest)).await;
        true
    }
}

/// Destroys what has been kept long enough, and the oldest when the host runs short of memory; prepares
/// what is wanted.
async fn watch(warm: Weak<Warm>, wanted: Arc<Notify>) {
    let mut preparing: Option<JoinHandle<()>> = None;
    loop {
        // Whichever comes first.
        let _ = tokio::time::timeout(LOOK_EVERY, wanted.notified()).await;
        let Some(warm) = warm.upgrade() else { return };
        warm.end_surplus();
        while !is_memory_available(LEAST_AVAILABLE) && warm.give_way().await {}
        // Aside: a preparation that takes long must not keep memory from being given back.
        if preparing.as_ref().is_none_or(JoinHandle::is_finished) {
            preparing = Some(tokio::spawn(
                async move { while warm.prepare_one().await {} },
            ));
        }
    }
}
