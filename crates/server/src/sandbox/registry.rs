//! All sandboxes by id, and the calls that others make about them.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use engine::{Engine, ExecutionId};
use futures_util::StreamExt;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

use super::context::Context;
use super::create::Origin;
use super::driver::{Driver, Message, Published, Request, Work};
use super::files::SandboxFiles;
use super::state::State;
use super::{
    CreateRequest, Disks, Faults, PauseRequest, PublicState, Record, ResumeFrom, Route, Run,
    SandboxError, SandboxId, SandboxSpec, SandboxView, Settings, SnapshotRequest, Storage, create,
    rollback,
};
use crate::db::{Db, DbError};
use crate::snapshots::{Snapshot, SnapshotFiles, SnapshotUse, Snapshots};
use crate::template::Templates;
use crate::transfer::{Exported, TransferError, Transfers, sweep_layers};

/// After an auto-resume a sandbox runs at least this long.
const AUTO_RESUME_AT_LEAST: Duration = Duration::from_secs(300);
/// Pauses at once when all are paused: they share one disk.
const PAUSES_AT_ONCE: usize = 4;
/// How long traffic waits for a sandbox that is being snapshotted or rolled back.
const BUSY_LIMIT: Duration = Duration::from_secs(60);
/// Forks started at once: each is a restore, and more than the host has processors gain nothing.
const FORKS_AT_ONCE: usize = 4;
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
}

/// The drivers by sandbox.
#[derive(Clone, Default)]
pub(super) struct Live {
    drivers: Arc<RwLock<HashMap<SandboxId, Handle>>>,
    /// Executions that were admitted and are in no published record yet.
    admitted: Arc<AtomicUsize>,
}

/// A place among the running sandboxes, kept until this is dropped; by then the record that has the
/// execution must be published.
pub(super) struct Admission(Arc<AtomicUsize>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct Handle {
    inbox: mpsc::Sender<Message>,
    published: watch::Receiver<Published>,
}

impl Live {
    pub(super) fn remove(&self, id: &SandboxId) {
        self.drivers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    fn insert(&self, id: SandboxId, handle: Handle) {
        self.drivers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, handle);
    }

    fn find(&self, id: &SandboxId) -> Option<Handle> {
        self.drivers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    fn all(&self) -> Vec<Handle> {
        let drivers = self.drivers.read().unwrap_or_else(PoisonError::into_inner);
        drivers.values().cloned().collect()
    }

    /// Refuses when `most` sandboxes have or are about to have an execution.
    pub(super) fn admit(&self, most: usize) -> Result<Admission, SandboxError> {
        // For writing: two at once must not both take the last place.
        let drivers = self.drivers.write().unwrap_or_else(PoisonError::into_inner);
        let running = drivers.values().filter(|handle| {
            let state = &handle.published.borrow().record.state;
            state.execution().is_some() || state.counts_as_running()
        });
        if running.count() + self.admitted.load(Ordering::SeqCst) >= most {
            return Err(SandboxError::TooMany(most));
        }
        self.admitted.fetch_add(1, Ordering::SeqCst);
        Ok(Admission(Arc::clone(&self.admitted)))
    }
}

/// What a new sandbox has from its template or snapshot.
struct Base {
    template_id: String,
    alias: String,
    layers: Vec<PathBuf>,
    build: engine::BuildId,
    limits: engine::Limits,
}

impl Sandboxes {
    /// Takes over everything the journal and the host hold, then serves. Sandboxes whose
    /// transition a crash interrupted finish it in the background; requests about them wait.
    pub async fn open(parts: Parts) -> Result<Self, OpenError> {
        let snapshots = Snapshots::open(parts.db.clone(), &parts.data_dir).await?;
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
        };
        let context = Arc::new(Context {
            engine: parts.engine,
            db: parts.db,
            data_dir: parts.data_dir,
            snapshots,
            settings: parts.settings,
            faults: parts.faults,
            tasks: parts.tasks,
            changes: watch::Sender::new(()),
        });
        let sandboxes = Self {
            context,
            templates: parts.templates,
            transfers,
            live: Live::default(),
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

    /// Makes a sandbox and returns when its agent answers.
    pub async fn create(&self, request: CreateRequest) -> Result<SandboxView, SandboxError> {
        let origin = self.origin(&request.template)?;
        let base = match &origin {
            Origin::Template(template) => Base {
                template_id: template.id.clone(),
                alias: template.alias.clone(),
                layers: template.layers.clone(),
                build: engine::BuildId(template.manifest.engine.build.clone()),
                limits: template.limits,
            },
            Origin::Snapshot(snapshot) => Base {
                template_id: snapshot.id.to_string(),
                alias: snapshot
                    .name
                    .as_ref()
                    .map_or_else(String::new, |name| name.without_tag()),
                layers: snapshot.layers.clone(),
                build: snapshot.build.clone(),
                limits: snapshot.limits,
            },
        };
        let spec = SandboxSpec {
            template_id: base.template_id,
            alias: base.alias,
            layers: base.layers,
            build: base.build,
            limits: base.limits,
            metadata: request.metadata,
            env_vars: request.env_vars,
            access_token: crate::random::hex(32),
            allow_internet_access: request.allow_internet_access,
            lifecycle: request.lifecycle,
            create_timeout: request.timeout,
        };
        self.create_from(origin, spec).await
    }

    async fn create_from(
        &self,
        origin: Origin,
        spec: SandboxSpec,
    ) -> Result<SandboxView, SandboxError> {
        self.check_timeout(spec.create_timeout)?;
        let admitted = self.live.admit(self.context.settings.max_running)?;
        let id = SandboxId::random();
        let execution = ExecutionId::random();
        let record = Record {
            id,
            generation: 1,
            state: State::Creating {
                execution: execution.clone(),
            },
            disks: match &origin {
                Origin::Template(_) => Disks::copied(),
                Origin::Snapshot(snapshot) => rollback::disks_on(snapshot),
            },
            run: Run::starting_now(spec.create_timeout, self.context.settings.max_run),
            spec,
        };
        self.context
            .db
            .insert(record.clone())
            .await
            .map_err(|error| SandboxError::Failed {
                action: "create",
                left_as: "gone",
                cause: format!("the journal cannot be written: {error:?}"),
            })?;
        let context = Arc::clone(&self.context);
        let work = create::create(context, record.clone(), origin, execution);
        let (reply, answer) = oneshot::channel();
        let message = Message {
            request: Request::Created,
            reply,
        };
        self.drive(record, Some(Box::pin(work)), Some(message));
        drop(admitted);
        let answered = answer.await.map_err(|_| SandboxError::ShuttingDown)??;
        answered.view.ok_or(SandboxError::ShuttingDown)
    }

    fn origin(&self, reference: &str) -> Result<Origin, SandboxError> {
        if let Some(template) = self.templates.find(reference) {
            return Ok(Origin::Template(template));
        }
        let snapshot = self.context.snapshots.find(reference);
        snapshot
            .map(Origin::Snapshot)
            .ok_or_else(|| SandboxError::TemplateNotFound(reference.to_owned()))
    }

    /// Exports and imports.
    pub fn transfers(&self) -> &Transfers {
        &self.transfers
    }

    /// Opens a sandbox as it is now for an export, by way of a snapshot that nobody sees. A running
    /// one stands still meanwhile, as for any snapshot. Without memory, a memory image that cannot be
    /// read any more is no obstacle.
    pub async fn export(&self, id: &SandboxId, memory: bool) -> Result<Exported, ExportError> {
        let request = SnapshotRequest {
            name: None,
            usage: SnapshotUse::Fork,
            memory,
        };
        let snapshot = self.snapshot(id, request).await?;
        let exported = self.transfers.export(Arc::clone(&snapshot), memory).await;
        // What is exported is open, and needs its names no more.
        if let Err(error) = self.context.snapshots.delete(&snapshot.id).await {
            tracing::warn!(snapshot.id = %snapshot.id, %error, "the snapshot of an export is left for the next start");
        }
        Ok(exported?)
    }

    /// The snapshots of this server.
    pub fn snapshots(&self) -> &Snapshots {
        &self.context.snapshots
    }

    /// Makes a snapshot of a running or paused sandbox. A running one stands still meanwhile and its
    /// connections are cut, as by a pause.
    pub async fn snapshot(
        &self,
        id: &SandboxId,
        request: SnapshotRequest,
    ) -> Result<Arc<Snapshot>, SandboxError> {
        let answered = self.ask(id, Request::Snapshot(request)).await?;
        answered
            .snapshot
            .ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// Puts a sandbox back to one of its own snapshots, keeping its id, token and deadline. One that
    /// was running runs again when this returns.
    pub async fn rollback(
        &self,
        id: &SandboxId,
        reference: &str,
    ) -> Result<SandboxView, SandboxError> {
        let record = Arc::clone(&self.find(id)?.published.borrow().record);
        let named = self.context.snapshots.named(reference);
        // An imported one may claim any source: it must at least stand on the same ground.
        let own = |snapshot: &&Arc<Snapshot>| {
            snapshot.source == *id
                && snapshot.layers == record.spec.layers
                && snapshot.limits == record.spec.limits
        };
        let snapshot = named
            .iter()
            .filter(own)
            .max_by_key(|snapshot| snapshot.created_at);
        let Some(snapshot) = snapshot else {
            return Err(match named.is_empty() {
                true => SandboxError::SnapshotNotFound(reference.to_owned()),
                false => SandboxError::SnapshotOfAnother(reference.to_owned()),
            });
        };
        let request = Request::Rollback(Arc::clone(snapshot));
        let answered = self.ask(id, request).await?;
        answered
            .view
            .ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// Starts `count` copies of a running sandbox, which goes on running. Each copy has an answer of
    /// its own.
    pub async fn fork(
        &self,
        id: &SandboxId,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<SandboxView, SandboxError>>, SandboxError> {
        self.check_timeout(timeout)?;
        let record = Arc::clone(&self.find(id)?.published.borrow().record);
        match &record.state {
            State::Creating { .. } | State::Killing { .. } => {
                return Err(SandboxError::NotFound(id.clone()));
            }
            state if state.counts_as_running() => {}
            _ => return Err(SandboxError::ForkOfPaused(id.clone())),
        }
        let request = SnapshotRequest {
            name: None,
            usage: SnapshotUse::Fork,
            memory: true,
        };
        let snapshot = self.snapshot(id, request).await?;
        let spec = SandboxSpec {
            create_timeout: timeout,
            ..record.spec.clone()
        };
        let copies = futures_util::stream::iter(0..count).map(|_| {
            let spec = SandboxSpec {
                access_token: crate::random::hex(32),
                ..spec.clone()
            };
            self.create_from(Origin::Snapshot(Arc::clone(&snapshot)), spec)
        });
        let forks = copies.buffered(FORKS_AT_ONCE).collect().await;
        // The copies have names of their own for all they need.
        if let Err(error) = self.context.snapshots.delete(&snapshot.id).await {
            tracing::warn!(snapshot.id = %snapshot.id, %error, "the snapshot of a fork is left for the next start");
        }
        Ok(forks)
    }

    /// What a sandbox takes on the host's disk.
    pub async fn storage(&self, id: &SandboxId) -> Result<Storage, SandboxError> {
        // For callers one that is being made or killed is not there.
        self.get(id)?;
        let directory = SandboxFiles::new(&self.context.data_dir, id)
            .root()
            .to_owned();
        added_up(directory).await
    }

    /// What a snapshot takes on the host's disk.
    pub async fn snapshot_storage(&self, reference: &str) -> Result<Storage, SandboxError> {
        let snapshot = self.context.snapshots.find(reference);
        let unknown = || SandboxError::SnapshotNotFound(reference.to_owned());
        let files = self
            .context
            .snapshots
            .files(&snapshot.ok_or_else(unknown)?.id);
        added_up(files.root().to_owned()).await
    }

    /// Deletes the snapshots that a reference names: all tags of a name. Refused as long as a
    /// sandbox exists that was made from one of them.
    pub async fn delete_snapshot(&self, reference: &str) -> Result<(), SandboxError> {
        let doomed = self.context.snapshots.all_tags(reference);
        if doomed.is_empty() {
            return Err(SandboxError::SnapshotNotFound(reference.to_owned()));
        }
        let used = self.live.all().into_iter().find_map(|handle| {
            let record = Arc::clone(&handle.published.borrow().record);
            let of = |snapshot: &Arc<Snapshot>| snapshot.id.as_str() == record.spec.template_id;
            doomed.iter().any(of).then(|| record.id.clone())
        });
        if let Some(user) = used {
            return Err(SandboxError::SnapshotInUse {
                snapshot: reference.to_owned(),
                sandbox: user,
            });
        }
        for snapshot in doomed {
            let deleted = self.context.snapshots.delete(&snapshot.id).await;
            deleted.map_err(|error| SandboxError::Failed {
                action: "deletion of a snapshot",
                left_as: "to be deleted at the next start at the latest",
                cause: format!("{error:?}"),
            })?;
        }
        Ok(())
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

    /// Pauses every running sandbox. One whose pause fails goes on running, which is logged.
    pub async fn pause_all(&self) {
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

    /// The way to a running sandbox. `NotFound` for unknown ones, `Paused` for paused ones; waits
    /// for nothing.
    pub fn route(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        let handle = self.find(id)?;
        let published = handle.published.borrow();
        match &published.record.state {
            State::Running { execution } if !published.ended.is_cancelled() => Ok(Route {
                guest: self.context.guest(execution),
                ended: published.ended.clone(),
            }),
            State::Running { .. }
            | State::Pausing { .. }
            | State::Paused { .. }
            | State::Resuming { .. } => Err(SandboxError::Paused(id.clone())),
            state @ (State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. }) => Err(if state.counts_as_running() {
                SandboxError::Busy(id.clone())
            } else {
                SandboxError::Paused(id.clone())
            }),
            State::Creating { .. } | State::Killing { .. } => {
                Err(SandboxError::NotFound(id.clone()))
            }
        }
    }

    /// Like [`route`](Self::route), but waits for a sandbox that is being snapshotted or rolled back
    /// and runs again in a moment.
    async fn route_when_settled(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        let mut published = match self.route(id) {
            Err(SandboxError::Busy(_)) => self.find(id)?.published,
            other => return other,
        };
        let settled = published.wait_for(|now| match now.record.state {
            State::Snapshotting { .. } | State::RollingBack { .. } | State::Restarting { .. } => {
                false
            }
            State::Creating { .. }
            | State::Running { .. }
            | State::Pausing { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Killing { .. } => true,
        });
        // Too late, or the sandbox is gone: either way the route now says what is so.
        let _ = tokio::time::timeout(BUSY_LIMIT, settled).await;
        self.route(id)
    }

    /// Like [`route`](Self::route), but resumes a paused sandbox that has auto-resume on and waits
    /// for a transition in flight. `Paused` when it is paused and may not be resumed by traffic.
    pub async fn route_or_resume(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        let paused = match self.route_when_settled(id).await {
            Err(paused @ SandboxError::Paused(_)) => paused,
            other => return other,
        };
        let record = Arc::clone(&self.find(id)?.published.borrow().record);
        // Traffic may wake a sandbox, not reboot it.
        let keeps_memory = record.view().is_some_and(|view| {
            view.state == PublicState::Paused && view.pause_mode == Some(super::PauseMode::Full)
        });
        if !(record.spec.lifecycle.auto_resume && keeps_memory) {
            return Err(paused);
        }
        let timeout = record.spec.create_timeout.max(AUTO_RESUME_AT_LEAST);
        let timeout = timeout.min(self.context.settings.max_run);
        self.ask(
            id,
            Request::Connect {
                timeout,
                from: ResumeFrom::Saved,
            },
        )
        .await?;
        self.route(id)
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

/// Why a sandbox was not exported; it is as before.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It could not be snapshotted.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The snapshot could not be read.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

async fn added_up(directory: PathBuf) -> Result<Storage, SandboxError> {
    let storage = crate::blocking::run(move || Storage::of(&directory)).await;
    storage.map_err(|error| SandboxError::Failed {
        action: "adding up of files",
        left_as: "as it was",
        cause: error.to_string(),
    })
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
