//! All sandboxes by id, and the calls that others make about them.

mod create;
mod live;
mod routes;
mod snapshots;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::Engine;
use futures_util::StreamExt;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use super::context::Context;
use super::driver::{Driver, Message, Request, Work};
use super::files::SandboxFiles;
use super::pool::Pool;
use super::state::State;
use super::warm::Warm;
use super::{
    Events, Faults, PauseRequest, PublicState, Record, ResumeFrom, SandboxError, SandboxId,
    SandboxView, Settings, Timings,
};
use crate::db::{Db, DbError};
use crate::snapshots::{SnapshotFiles, Snapshots};
use crate::template::Templates;
use crate::transfer::{MOST_IMPORTS, Transfers, sweep_layers};
use live::Handle;
pub(super) use live::Live;
pub use snapshots::ExportError;

/// Pauses at once when all are paused: they share one disk.
const PAUSES_AT_ONCE: usize = 4;
/// Messages that may wait for a driver; more make the callers wait.
const INBOX: usize = 64;

/// How a connect was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    /// It was running; its deadline may have been extended.
    AlreadyRunning,
    /// It was paused and runs again.
    Resumed,
}

/// What a registry is made of.
pub struct Parts {
    /// Runs executions.
    pub engine: Arc<dyn Engine>,
    /// The journal.
    pub db: Db,
    /// Where sandboxes keep their files.
    pub data_dir: PathBuf,
    /// Bounds.
    pub settings: Settings,
    /// What sandboxes are made from.
    pub templates: Templates,
    /// What is told of sandboxes.
    pub events: Events,
    /// For tests; `Faults::default()` otherwise.
    pub faults: Faults,
    /// Owns all tasks.
    pub tasks: TaskTracker,
}

/// Every sandbox of this server.
pub struct Sandboxes {
    context: Arc<Context>,
    templates: Templates,
    transfers: Transfers,
    live: Live,
    pools: Vec<Arc<Pool>>,
}

impl Sandboxes {
    /// Takes over everything the journal and the host hold, then serves. Sandboxes whose
    /// transition a crash interrupted finish it in the background; requests about them wait.
    pub async fn open(parts: Parts) -> Result<Self, OpenError> {
        let snapshots =
            Snapshots::open(parts.db.clone(), &parts.data_dir, parts.tasks.clone()).await?;
        let layers = parts.templates.layers();
        let transfers = Transfers {
            engine: Arc::clone(&parts.engine),
            db: parts.db.clone(),
            data_dir: parts.data_dir.clone(),
            snapshots: snapshots.clone(),
            template_layers: layers.clone(),
            free_space_reserve: parts.settings.free_space_reserve,
            tasks: parts.tasks.clone(),
            publishing: Arc::default(),
            imports: Arc::new(Semaphore::new(MOST_IMPORTS)),
            faults: parts.faults.clone(),
        };
        let starting = Arc::default();
        let engine = Arc::clone(&parts.engine);
        let context = Arc::new(Context {
            warm: Warm::new(engine, parts.settings.warm, Arc::clone(&starting)),
            engine: parts.engine,
            db: parts.db,
            data_dir: parts.data_dir,
            snapshots,
            settings: parts.settings,
            faults: parts.faults,
            tasks: parts.tasks,
            packing: Semaphore::new(1),
            unpacking: Semaphore::new(2),
            starting,
            changes: watch::Sender::new(()),
            events: parts.events,
            stopping: AtomicBool::new(false),
        });
        let mut sandboxes = Self {
            context,
            templates: parts.templates,
            transfers,
            live: Live::default(),
            pools: Vec::new(),
        };
        let mut used: BTreeSet<PathBuf> = layers.into_iter().collect();
        let mut known = BTreeSet::new();
        for snapshot in sandboxes.snapshots().listed() {
            used.extend(snapshot.layers.iter().cloned());
            known.insert(snapshot.id.to_string());
        }
        for (record, work) in super::recovery::recover(&sandboxes.context).await? {
            used.extend(record.spec.layers.iter().cloned());
            known.insert(record.id.to_string());
            sandboxes.drive(record, work, None);
        }
        let data_dir = &sandboxes.context.data_dir;
        let folders = [SandboxFiles::all(data_dir), SnapshotFiles::all(data_dir)];
        // What the database does not know may stand on any layer.
        if !folders.iter().any(|folder| has_strangers(folder, &known)) {
            sweep_layers(data_dir, &used);
        }
        let templates = sandboxes.templates.all().iter();
        sandboxes.pools = templates
            .map(|template| {
                let context = Arc::clone(&sandboxes.context);
                let most = context.settings.pool;
                Pool::open(context, Arc::clone(template), most)
            })
            .collect();
        Ok(sandboxes)
    }

    fn drive(&self, record: Record, work: Option<Work>, first: Option<Message>) {
        let id = record.id.clone();
        let (inbox, messages) = mpsc::channel(INBOX);
        let (mut driver, published) = Driver::new(
            Arc::clone(&self.context),
            self.live.clone(),
            record,
            work,
            messages,
        );
        match first {
            Some(message) => driver.join(message),
            None => driver.recovering(),
        }
        self.live.insert(id, Handle { inbox, published });
        self.context.tasks.spawn(driver.run());
    }

    /// Exports and imports.
    pub fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    /// Makes sure it runs for at least `timeout` from now, resuming it if it is paused.
    pub async fn connect(
        &self,
        id: &SandboxId,
        timeout: Duration,
        from: ResumeFrom,
    ) -> Result<(SandboxView, Connected), SandboxError> {
        self.check_timeout(timeout)?;
        let answered = self.ask(id, Request::Connect { timeout, from }).await?;
        let gone = || SandboxError::NotFound(id.clone());
        Ok((answered.view.ok_or_else(gone)?, answered.connected))
    }

    /// Resumes a paused one; refused when it runs.
    pub async fn resume(
        &self,
        id: &SandboxId,
        timeout: Duration,
        from: ResumeFrom,
    ) -> Result<SandboxView, SandboxError> {
        self.check_timeout(timeout)?;
        let answered = self.ask(id, Request::Resume { timeout, from }).await?;
        answered
            .view
            .ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// Pauses it and returns when the saved state is durable.
    pub async fn pause(&self, id: &SandboxId, request: PauseRequest) -> Result<(), SandboxError> {
        self.ask(id, Request::Pause(request)).await.map(drop)
    }

    /// Pauses every running sandbox before the server goes down. One whose pause fails goes on
    /// running, which is logged.
    pub async fn pause_all(&self) {
        self.context.stopping.store(true, Ordering::Relaxed);
        let running = self.list().into_iter();
        let running = running.filter(|view| view.state == PublicState::Running);
        let request = PauseRequest {
            mode: super::PauseMode::Full,
            require_healthy_guest: false,
        };
        futures_util::stream::iter(running)
            .for_each_concurrent(PAUSES_AT_ONCE, async |view| {
                if let Err(error) = self.pause(&view.id, request).await {
                    tracing::warn!(sandbox.id = %view.id, %error, "a sandbox was not paused");
                }
            })
            .await;
    }

    /// Ends it and deletes all it has, from any state.
    pub async fn kill(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.ask(id, Request::Kill).await.map(drop)
    }

    /// Sets the deadline of a running one to `timeout` from now; zero expires it at once.
    pub async fn set_timeout(&self, id: &SandboxId, timeout: Duration) -> Result<(), SandboxError> {
        self.ask(id, Request::SetTimeout(timeout)).await.map(drop)
    }

    /// Moves the deadline of a running one to `duration` from now if that is later.
    pub async fn extend(&self, id: &SandboxId, duration: Duration) -> Result<(), SandboxError> {
        self.ask(id, Request::Extend(duration)).await.map(drop)
    }

    /// One sandbox.
    pub fn get(&self, id: &SandboxId) -> Result<SandboxView, SandboxError> {
        let handle = self.find(id)?;
        let view = handle.published.borrow().record.view();
        view.ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// How long the parts of a sandbox's last transition took. Nothing for one that is not there.
    pub fn timings(&self, id: &SandboxId) -> Timings {
        let handle = self.live.find(id);
        handle.map_or_else(Timings::default, |handle| {
            handle.published.borrow().timings.clone()
        })
    }

    /// All sandboxes, in no order.
    pub fn list(&self) -> Vec<SandboxView> {
        let all = self.live.all();
        all.iter()
            .filter_map(|handle| handle.published.borrow().record.view())
            .collect()
    }

    /// Changes whenever a sandbox changed its state or is gone.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.context.changes.subscribe()
    }

    /// Lets go of what is held only to be fast, before the server stops.
    pub async fn close(&self) {
        let pools = async {
            for pool in &self.pools {
                pool.close().await;
            }
        };
        tokio::join!(pools, self.context.warm.close());
    }

    /// Waits until no transition is in flight, at most until the deadline of the caller.
    pub async fn settle(&self) {
        for handle in self.live.all() {
            let mut published = handle.published;
            // An error means that the sandbox is gone, which is settled too.
            let _ = published
                .wait_for(|now| match now.record.state {
                    State::Running { .. } | State::Paused { .. } => true,
                    State::Creating { .. }
                    | State::Pausing { .. }
                    | State::Resuming { .. }
                    | State::Keeping { .. }
                    | State::Snapshotting { .. }
                    | State::RollingBack { .. }
                    | State::Restarting { .. }
                    | State::Killing { .. } => false,
                })
                .await;
        }
    }

    fn find(&self, id: &SandboxId) -> Result<Handle, SandboxError> {
        self.live
            .find(id)
            .ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    async fn ask(&self, id: &SandboxId, request: Request) -> super::driver::Answer {
        let handle = self.find(id)?;
        let (reply, answer) = oneshot::channel();
        let gone = || SandboxError::NotFound(id.clone());
        handle
            .inbox
            .send(Message { request, reply })
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| SandboxError::ShuttingDown)?
    }

    fn check_timeout(&self, timeout: Duration) -> Result<(), SandboxError> {
        let most = self.context.settings.max_run;
        if timeout <= most {
            return Ok(());
        }
        Err(SandboxError::TimeoutTooLong {
            asked: timeout.as_secs(),
            most: most.as_secs(),
        })
    }

    /// When the current run of a sandbox ends, for tests of deadlines.
    pub fn deadline(&self, id: &SandboxId) -> Result<OffsetDateTime, SandboxError> {
        Ok(self.get(id)?.end_at)
    }
}

/// Whether a folder has anything whose name is none of these.
fn has_strangers(folder: &Path, known: &BTreeSet<String>) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.any(|name| name.to_str().is_none_or(|name| !known.contains(name)))
}

/// Why the sandboxes could not be taken over at start. Nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal cannot be read.
    #[error("read the journal of sandboxes")]
    Journal(#[from] DbError),
    /// The engine cannot tell what is on the host.
    #[error("look for executions on this host")]
    Engine(#[from] engine::EngineError),
}
