//! What every driver and transition shares.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use engine::{Engine, ExecutionId, ExecutionSpec};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use super::event::Events;
use super::files::SandboxFiles;
use super::warm::Warm;
use super::{Faults, HookSettings, Record, SandboxError, SandboxId, WarmSettings};
use crate::db::Db;
use crate::guest::Guest;
use crate::snapshots::Snapshots;

/// Bounds of the lifecycle, from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Longest time a sandbox may run without a pause.
    pub max_run: Duration,
    /// Most sandboxes running at once.
    pub max_running: usize,
    /// How long an agent may take to answer after a start.
    pub agent_start_timeout: Duration,
    /// How long an agent may take to prepare for a pause.
    pub agent_prepare_timeout: Duration,
    /// How long whoever needs the disk of a paused sandbox waits for the end of its last execution.
    pub disk_wait: Duration,
    /// Bounds of hooks.
    pub hooks: HookSettings,
    /// Whether a sandbox whose memory image cannot be used is booted from its disk, or stays paused.
    pub boot_without_memory: bool,
    /// Most sandboxes of a template that are started ahead of time; 0 for none.
    pub pool: usize,
    /// The image of a sandbox that has been paused for this long is packed; never if `None`.
    pub pack_after: Option<Duration>,
    /// Bounds of what is kept of paused sandboxes.
    pub warm: WarmSettings,
    /// Bytes that stay free on the data directory's file system.
    pub free_space_reserve: u64,
}

/// See the module.
pub(super) struct Context {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) db: Db,
    pub(super) data_dir: PathBuf,
    pub(super) settings: Settings,
    pub(super) snapshots: Snapshots,
    pub(super) warm: Arc<Warm>,
    pub(super) faults: Faults,
    pub(super) tasks: TaskTracker,
    /// Whoever packs an image.
    pub(super) packing: Semaphore,
    /// Whoever unpacks one.
    pub(super) unpacking: Semaphore,
    /// Creates and resumes under way.
    pub(super) starting: Arc<AtomicUsize>,
    /// Told whenever a sandbox changes or goes.
    pub(super) changes: watch::Sender<()>,
    /// Told what happened, for the history.
    pub(super) events: Events,
    /// The server is going down: who pauses sandboxes now is the server.
    pub(super) stopping: AtomicBool,
}

/// A create or resume under way, until this is dropped.
pub(super) struct Starting(Arc<AtomicUsize>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Context {
    /// Somebody waits for a start.
    pub(super) fn starting(&self) -> Starting {
        self.starting.fetch_add(1, Ordering::Relaxed);
        Starting(Arc::clone(&self.starting))
    }

    /// Whether anybody waits for a start.
    pub(super) fn is_starting(&self) -> bool {
        self.starting.load(Ordering::Relaxed) > 0
    }

    pub(super) fn files(&self, record: &Record) -> SandboxFiles {
        SandboxFiles::new(&self.data_dir, &record.id)
    }

    /// The disk that a sandbox writes to.
    pub(super) fn own_disk(&self, record: &Record) -> PathBuf {
        self.files(record).own_disk(&record.disks)
    }

    pub(super) fn guest(&self, execution: &ExecutionId) -> Guest {
        Guest::new(Arc::clone(&self.engine), execution.clone())
    }

    /// What the engine is told about an execution of this sandbox.
    pub(super) fn execution_spec(
        &self,
        record: &Record,
        execution: &ExecutionId,
        build: engine::BuildId,
    ) -> ExecutionSpec {
        ExecutionSpec {
            id: execution.clone(),
            build,
            // Joining an absolute path gives that path: layers outside the data directory work.
            layers: record
                .spec
                .layers
                .iter()
                .map(|layer| self.data_dir.join(layer))
                .collect(),
            sealed: record
                .disks
                .sealed
                .iter()
                .map(|id| self.files(record).disks().path(id))
                .collect(),
            disk: self.own_disk(record),
            hostname: record.id.to_string(),
            limits: record.spec.limits,
            network: record.spec.network(),
        }
    }

    /// What is told whoever has waited long enough for the disk of a paused sandbox.
    pub(super) fn disk_in_use(&self, id: &SandboxId) -> SandboxError {
        SandboxError::DiskInUse {
            id: id.clone(),
            waited: self.settings.disk_wait,
            problem: self.warm.problem_of(id),
        }
    }

    /// Refuses when the data directory's file system would have less than the reserve left after
    /// writing `bytes`.
    pub(super) fn check_free_space(&self, bytes: u64) -> Result<(), String> {
        check_free_space(&self.data_dir, self.settings.free_space_reserve, bytes)
    }
}

/// See [`Context::check_free_space`].
pub(crate) fn check_free_space(data_dir: &Path, reserve: u64, bytes: u64) -> Result<(), String> {
    let found = rustix::fs::statvfs(data_dir).map_err(|error| error.to_string())?;
    let free = found.f_bavail * found.f_frsize;
    let needed = bytes.saturating_add(reserve);
    if free >= needed {
        return Ok(());
    }
    Err(format!(
        "{} MiB are free in {}, {} MiB are needed; free some space or move the data directory",
        free >> 20,
        data_dir.display(),
        needed.div_ceil(1 << 20)
    ))
}
