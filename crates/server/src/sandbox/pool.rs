//! Sandboxes of a template that are started before anybody asks for them, so that a create only has to
//! greet one.
//!
//! Each is journaled as `Creating` like any create whose caller has no answer yet: a server that
//! starts again deletes it. What tells sandboxes apart (token, names, entropy, environment) comes with
//! the greeting, which no prepared one has had.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use engine::ExecutionId;
use tokio::sync::Notify;

use super::context::Context;
use super::create;
use super::memory::is_memory_available;
use super::state::State;
use super::{Disks, Ingress, Lifecycle, OnTimeout, Record, Run, SandboxId, SandboxSpec, kill};
use crate::template::Template;

/// The creates of this time before now say how many are kept ready.
const DEMAND_WINDOW: Duration = Duration::from_secs(120);
/// How often demand is looked at when nobody takes any.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// While others start sandboxes, preparing waits.
const CALM_CHECK: Duration = Duration::from_millis(20);
/// Nothing is prepared when less than this part of the host's memory is available.
const LEAST_AVAILABLE: u64 = 8;
/// After a failure the next try waits.
const FAILURE_WAIT: Duration = Duration::from_secs(10);

/// Prepared sandboxes of one template.
pub(super) struct Pool {
    context: Arc<Context>,
    template: Arc<Template>,
    most: usize,
    shelf: Mutex<Shelf>,
    taken: Notify,
    /// Held while one is being prepared or removed.
    working: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Shelf {
    closed: bool,
    ready: VecDeque<Prepared>,
    /// When creates came, the latest last.
    demand: VecDeque<Instant>,
}

/// A started sandbox that nobody knows.
pub(super) struct Prepared {
    pub(super) record: Record,
    pub(super) execution: ExecutionId,
}

impl Pool {
    /// Begins to prepare up to `most`.
    pub(super) fn open(context: Arc<Context>, template: Arc<Template>, most: usize) -> Arc<Self> {
        let pool = Arc::new(Self {
            context,
            template,
            most,
            shelf: Mutex::default(),
            taken: Notify::new(),
            working: tokio::sync::Mutex::default(),
        });
        if most > 0 {
            tokio::spawn(keep_filled(Arc::downgrade(&pool)));
        }
        pool
    }

    /// One that is ready, for a sandbox of this template that keeps the template's network.
    pub(super) fn take(&self) -> Option<Prepared> {
        if self.most == 0 {
            return None;
        }
        let mut shelf = self.shelf();
        shelf.demand.push_back(Instant::now());
        let taken = shelf.ready.pop_front();
        self.taken.notify_one();
        taken
    }

    /// The id of the template.
    pub(super) fn template_id(&self) -> &str {
        &self.template.id
    }

    /// Deletes all and prepares none any more.
    pub(super) async fn close(&self) {
        self.shelf().closed = true;
        let _working = self.working.lock().await;
        loop {
            let Some(prepared) = self.shelf().ready.pop_front() else {
                return;
            };
            self.discard(prepared).await;
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many should be ready: as many as were asked for lately, one at least.
    fn wanted(&self) -> usize {
        let mut shelf = self.shelf();
        if shelf.closed {
            return 0;
        }
        let old = |at: &Instant| at.elapsed() > DEMAND_WINDOW;
        while shelf.demand.len() > self.most || shelf.demand.front().is_some_and(old) {
            shelf.demand.pop_front();
        }
        shelf.demand.len().clamp(1, self.most)
    }

    /// Prepares one, or removes one too many; false when all is as wanted.
    async fn adjust(&self) -> Result<bool, ()> {
        let _working = self.working.lock().await;
        let (wanted, ready) = (self.wanted(), self.shelf().ready.len());
        if ready > wanted {
            let surplus = self.shelf().ready.pop_front();
            if let Some(prepared) = surplus {
                self.discard(prepared).await;
            }
            return Ok(true);
        }
        if ready == wanted || !is_memory_available(LEAST_AVAILABLE) {
            return Ok(false);
        }
        while self.context.is_starting() {
            tokio::time::sleep(CALM_CHECK).await;
            if self.shelf().closed {
                return Ok(false);
            }
        }
        let prepared = self.prepare().await?;
        // Closing waits for the lock that is held here.
        self.shelf().ready.push_back(prepared);
        Ok(true)
    }

    async fn prepare(&self) -> Result<Prepared, ()> {
        let execution = ExecutionId::random();
        let record = Record {
            id: SandboxId::random(),
            generation: 1,
            state: State::Creating {
                execution: execution.clone(),
            },
            spec: self.spec(),
            disks: Disks::copied(),
            run: Run::starting_now(Duration::ZERO, Duration::ZERO),
        };
        let context = &self.context;
        if let Err(error) = context.db.insert(record.clone()).await {
            tracing::warn!(%error, "no sandbox is prepared: the journal cannot be written");
            return Err(());
        }
        match create::start(context, &record, &self.template, &execution).await {
            Ok(_) => Ok(Prepared { record, execution }),
            Err(error) => {
                tracing::warn!(%error, "a sandbox could not be prepared");
                kill::delete(context, &record, Some(&execution)).await;
                Err(())
            }
        }
    }

    /// Until somebody takes it, it is nobody's.
    fn spec(&self) -> SandboxSpec {
        let template = &self.template;
        SandboxSpec {
            template_id: template.id.clone(),
            alias: template.alias.clone(),
            layers: template.layers.clone(),
            build: engine::BuildId(template.manifest.engine.build.clone()),
            limits: template.limits,
            metadata: Default::default(),
            env_vars: Default::default(),
            access_token: crate::random::hex(32),
            allow_internet_access: None,
            ingress: Ingress::default(),
            lifecycle: Lifecycle {
                on_timeout: OnTimeout::Kill,
                auto_resume: false,
            },
            create_timeout: Duration::ZERO,
        }
    }

    async fn discard(&self, prepared: Prepared) {
        let Prepared { record, execution } = prepared;
        kill::delete(&self.context, &record, Some(&execution)).await;
    }
}

async fn keep_filled(pool: Weak<Pool>) {
    loop {
        let Some(open) = pool.upgrade() else { return };
        let wait = match open.adjust().await {
            Ok(true) => continue,
            Ok(false) if open.shelf().closed => return,
            Ok(false) => LOOK_EVERY,
            Err(()) => FAILURE_WAIT,
        };
        // A server that is dropped, not closed, is let go of within this time.
        let _ = tokio::time::timeout(wait, open.taken.notified()).await;
    }
}
