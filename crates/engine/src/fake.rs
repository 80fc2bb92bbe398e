//! An engine without a guest, for injecting failures. It never stands in for a claim that
//! something works: only for "what does the server do when this step fails".
//!
//! A fake guest is a counter in memory and a file on its disk, behind a tiny HTTP server that
//! answers like the agent's host channel. The fake keeps the rules of the real engine: an image
//! fits exactly one state of the disk, and restoring it over another one is recorded as a
//! violation. The [`FakeHost`] outlives the server that uses it, as a real host does.

mod guest;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::{
    BuildId, Engine, EngineBuild, EngineError, ExecutionId, ExecutionSpec, ExecutionStatus,
    ExitReason, Found, KeptBuild, OpenFiles, StartError, StartFrom, Usage,
};
pub use guest::DISK_FILE;
use guest::FakeGuest;

/// An engine call at which a failure can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// `keep_build`.
    KeepBuild,
    /// `create_disk` and `copy_disk`.
    MakeDisk,
    /// `check_given_disk` finds a disk that asks too much of its host.
    CheckGivenDisk,
    /// `start`, before the guest ran.
    Start,
    /// `start`, after the guest ran and wrote to its disk.
    StartLate,
    /// `start` from an image, which the engine refuses.
    Restore,
    /// `start` without an image.
    Boot,
    /// The agent does not answer after a start.
    Agent,
    /// The agent's `prepare` fails.
    Prepare,
    /// The engine's own `prepare`.
    PrepareStart,
    /// The same, and what it made cannot be taken away at once.
    PrepareStartLate,
    /// `freeze`.
    Freeze,
    /// `checkpoint`, leaving half an image behind.
    Checkpoint,
    /// `checkpoint`, because the disk is full.
    CheckpointNoSpace,
    /// The execution dies during `checkpoint`.
    DieInCheckpoint,
    /// `sync_disk` of a guest that runs.
    WriteBack,
    /// `sync_disk` of a frozen guest.
    SyncDisk,
    /// `thaw`.
    Thaw,
    /// `destroy`, once per injection.
    Destroy,
}

/// Everything that would survive a crash of the server on a real host.
#[derive(Default)]
pub struct FakeHost {
    executions: Mutex<BTreeMap<ExecutionId, FakeGuest>>,
    prepared: Mutex<BTreeMap<ExecutionId, PreparedStart>>,
    failures: Mutex<Vec<Call>>,
    used_images: Mutex<HashSet<Vec<u8>>>,
    violations: Mutex<Vec<String>>,
    services: Mutex<BTreeMap<u16, SocketAddr>>,
    build: Mutex<Option<BuildId>>,
    kept_builds: Mutex<BTreeMap<BuildId, PathBuf>>,
}

/// An execution without a guest yet.
struct PreparedStart {
    disk: PathBuf,
    dead: bool,
}

impl FakeHost {
    /// A host with nothing on it.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes the next such call fail. May be repeated for the calls after it.
    pub fn fail(&self, call: Call) {
        lock(&self.failures).push(call);
    }

    /// No such call fails any more.
    pub fn mend(&self, call: Call) {
        lock(&self.failures).retain(|waiting| *waiting != call);
    }

    /// Injected failures that no call has met yet.
    pub fn pending_failures(&self) -> Vec<Call> {
        lock(&self.failures).clone()
    }

    /// Kills an execution as a crash of the real engine would.
    pub fn kill(&self, id: &ExecutionId, reason: ExitReason) {
        if let Some(guest) = lock(&self.executions).get_mut(id) {
            guest.die(reason);
        }
        if let Some(prepared) = lock(&self.prepared).get_mut(id) {
            prepared.dead = true;
        }
    }

    /// Names of everything that is left on the host.
    pub fn executions(&self) -> Vec<ExecutionId> {
        let started = lock(&self.executions).keys().cloned().collect();
        [started, self.prepared()].concat()
    }

    /// Names of those that were prepared and not started.
    pub fn prepared(&self) -> Vec<ExecutionId> {
        lock(&self.prepared).keys().cloned().collect()
    }

    /// Rules that the server broke; a correct one leaves this empty.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// What the guest has in memory.
    pub fn memory(&self, id: &ExecutionId) -> Option<u64> {
        lock(&self.executions).get(id).map(FakeGuest::memory)
    }

    /// Lets the guest count on: in memory and on its disk. False when it cannot execute.
    pub fn step(&self, id: &ExecutionId) -> bool {
        lock(&self.executions)
            .get_mut(id)
            .is_some_and(FakeGuest::step)
    }

    /// From now on `port` of every guest leads to `address` instead of the guest's own server.
    pub fn serve(&self, port: u16, address: SocketAddr) {
        lock(&self.services).insert(port, address);
    }

    /// Engines opened on this host from now on are of this build, whose files are at `files`.
    pub fn install(&self, build: &str, files: &Path) {
        let build = BuildId(build.to_owned());
        lock(&self.kept_builds).insert(build.clone(), files.to_owned());
        *lock(&self.build) = Some(build);
    }

    /// Builds that are kept beside those of [`install`](Self::install).
    pub fn kept_builds(&self) -> Vec<BuildId> {
        lock(&self.kept_builds).keys().cloned().collect()
    }

    /// Undoes [`serve`](Self::serve).
    pub fn unserve(&self, port: u16) {
        lock(&self.services).remove(&port);
    }

    fn meet(&self, call: Call) -> bool {
        let mut failures = lock(&self.failures);
        match failures.iter().position(|waiting| *waiting == call) {
            Some(at) => {
                failures.remove(at);
                true
            }
            None => false,
        }
    }

    fn in_use(&self, disk: &Path) -> bool {
        let prepared = lock(&self.prepared);
        let executions = lock(&self.executions);
        prepared.values().any(|it| it.disk == disk) || executions.values().any(|it| it.uses(disk))
    }

    fn violated(&self, rule: String) {
        lock(&self.violations).push(rule);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn injected(step: &str) -> EngineError {
    EngineError::Failed {
        step: step.to_owned(),
        detail: "injected failure".to_owned(),
    }
}

fn failed(step: &str) -> impl Fn(io::Error) -> EngineError {
    let step = step.to_owned();
    move |error| EngineError::Failed {
        step: step.clone(),
        detail: error.to_string(),
    }
}

fn written_since(disk: &Path, instant: SystemTime) -> Result<bool, EngineError> {
    let metadata = fs::metadata(disk.join(DISK_FILE)).map_err(failed("look at disk"))?;
    Ok(metadata.modified().map_err(failed("look at disk"))? > instant)
}

/// A copied disk is as old as what is on it, as a real one is.
fn keep_times(from: &Path, to: &Path) -> io::Result<()> {
    let modified = fs::metadata(from.join(DISK_FILE))?.modified()?;
    let copy = fs::File::options().write(true).open(to.join(DISK_FILE))?;
    copy.set_modified(modified)
}

/// The engine of one server on a [`FakeHost`].
pub struct Fake {
    host: Arc<FakeHost>,
    build: EngineBuild,
    /// What this server prepared; no later one can go on with it.
    prepared: Mutex<BTreeMap<ExecutionId, ExecutionSpec>>,
}

impl Fake {
    /// A server's engine on `host`.
    pub fn new(host: Arc<FakeHost>) -> Self {
        let build = EngineBuild {
            engine: "fake".to_owned(),
            version: "1".to_owned(),
            id: lock(&host.build)
                .clone()
                .unwrap_or_else(|| BuildId("fake-build".to_owned())),
        };
        Self {
            host,
            build,
            prepared: Mutex::default(),
        }
    }

    fn with<T>(
        &self,
        id: &ExecutionId,
        use_guest: impl FnOnce(&mut FakeGuest) -> T,
    ) -> Result<T, EngineError> {
        let mut executions = lock(&self.host.executions);
        let guest = executions
            .get_mut(id)
            .ok_or_else(|| EngineError::Unknown(id.clone()))?;
        Ok(use_guest(guest))
    }

    /// What only a disk that no execution uses may be asked for.
    fn needs_alone(&self, disk: &Path, what: &str) {
        if self.host.in_use(disk) {
            let disk = disk.display();
            self.host
                .violated(format!("{what} of {disk}, which is in use"));
        }
    }

    /// Whether exactly this start was prepared; it is not any more.
    fn take_prepared(&self, spec: &ExecutionSpec, from: StartFrom<'_>) -> Option<PreparedStart> {
        let left = lock(&self.host.prepared).remove(&spec.id)?;
        let prepared = lock(&self.prepared).remove(&spec.id)?;
        (prepared == *spec && matches!(from, StartFrom::Image(_))).then_some(left)
    }

    fn watch_end(&self, id: &ExecutionId) -> Option<watch::Receiver<Option<ExitReason>>> {
        lock(&self.host.executions).get(id).map(FakeGuest::end)
    }
}

#[async_trait]
impl Engine for Fake {
    fn build(&self) -> &EngineBuild {
        &self.build
    }

    fn build_of(&self, id: &ExecutionId) -> Result<EngineBuild, EngineError> {
        self.with(id, |_| self.build.clone())
    }

    fn has_build(&self, build: &BuildId) -> bool {
        *build == self.build.id || lock(&self.host.kept_builds).contains_key(build)
    }

    fn kept_build(&self, build: &BuildId) -> Option<KeptBuild> {
        self.has_build(build).then(|| KeptBuild {
            build: EngineBuild {
                id: build.clone(),
                ..self.build.clone()
            },
            files: lock(&self.host.kept_builds).get(build).cloned(),
        })
    }

    /// Remembers only the name: nothing reads the files again.
    async fn keep_build(&self, build: &BuildId, from: &Path) -> Result<(), EngineError> {
        if self.host.meet(Call::KeepBuild) || !from.is_dir() {
            return Err(injected("keep build"));
        }
        lock(&self.host.kept_builds).insert(build.clone(), from.to_owned());
        Ok(())
    }

    async fn create_disk(&self, disk: &Path, _size_bytes: u64) -> Result<(), EngineError> {
        if self.host.meet(Call::MakeDisk) {
            return Err(injected("create disk"));
        }
        fs::create_dir(disk).map_err(failed("create disk"))?;
        fs::write(disk.join(DISK_FILE), b"").map_err(failed("create disk"))
    }

    async fn copy_disk(&self, from: &Path, to: &Path) -> Result<(), EngineError> {
        if self.host.meet(Call::MakeDisk) {
            return Err(injected("copy disk"));
        }
        self.needs_alone(from, "copy");
        let copied = crate::disk_copy::copy(from, to).and_then(|()| keep_times(from, to));
        copied.map_err(failed("copy disk"))
    }

    async fn share_disk(&self, from: &Path, to: &Path) -> Result<(), EngineError> {
        self.needs_alone(from, "sharing");
        crate::disk_copy::share(from, to).map_err(failed("share disk"))
    }

    async fn settle_disk(&self, disk: &Path) -> Result<(), EngineError> {
        self.needs_alone(disk, "settling");
        Ok(())
    }

    async fn check_given_disk(&self, disk: &Path) -> Result<(), EngineError> {
        self.needs_alone(disk, "check");
        if self.host.meet(Call::CheckGivenDisk) {
            let detail = "injected: it asks the host for something".to_owned();
            return Err(EngineError::DiskDamaged { detail });
        }
        Ok(())
    }

    async fn remove_disk(&self, disk: &Path) -> Result<(), EngineError> {
        self.needs_alone(disk, "removal");
        match fs::remove_dir_all(disk) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove disk")(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn disk_changed_since(
        &self,
        disk: &Path,
        instant: SystemTime,
    ) -> Result<bool, EngineError> {
        self.needs_alone(disk, "comparison");
        written_since(disk, instant)
    }

    async fn has_written_since(
        &self,
        id: &ExecutionId,
        instant: SystemTime,
    ) -> Result<bool, EngineError> {
        let (frozen, disk) = self.with(id, |guest| (guest.is_frozen(), guest.disk()))?;
        if !frozen {
            self.host
                .violated(format!("a look at the disk of {id}, which is not frozen"));
        }
        written_since(&disk, instant)
    }

    /// What lies in the directory of the topmost disk.
    async fn open_files(
        &self,
        _layers: &[PathBuf],
        disks: &[PathBuf],
    ) -> Result<OpenFiles, EngineError> {
        for disk in disks {
            self.needs_alone(disk, "reading");
        }
        match disks.first().filter(|disk| disk.is_dir()) {
            Some(disk) => Ok(OpenFiles::new(disk.clone(), Vec::new(), ())),
            None => Err(injected("open files")),
        }
    }

    async fn prepare(&self, spec: &ExecutionSpec, image: &Path) -> Result<(), EngineError> {
        self.needs_alone(&spec.disk, "preparing");
        if self.host.meet(Call::PrepareStart) || !image.is_dir() {
            return Err(injected("prepare a start"));
        }
        let prepared = PreparedStart {
            disk: spec.disk.clone(),
            dead: false,
        };
        lock(&self.host.prepared).insert(spec.id.clone(), prepared);
        if self.host.meet(Call::PrepareStartLate) {
            return Err(injected("prepare a start, leaving it behind"));
        }
        lock(&self.prepared).insert(spec.id.clone(), spec.clone());
        Ok(())
    }

    async fn start(&self, spec: &ExecutionSpec, from: StartFrom<'_>) -> Result<(), StartError> {
        let failure = |source, guest_may_have_run| StartError {
            guest_may_have_run,
            source,
        };
        let prepared = self.take_prepared(spec, from);
        if prepared.is_some_and(|prepared| prepared.dead) {
            return Err(failure(injected("restore into a dead one"), true));
        }
        if self.host.meet(Call::Start) {
            return Err(failure(injected("start"), false));
        }
        let refused = match from {
            StartFrom::Image(_) => self.host.meet(Call::Restore),
            StartFrom::Boot => self.host.meet(Call::Boot),
        };
        if refused {
            return Err(failure(injected("restore or boot"), true));
        }
        self.needs_alone(&spec.disk, "another execution");
        let links = fs::metadata(spec.disk.join(DISK_FILE)).map(|metadata| metadata.nlink());
        if links.is_ok_and(|links| links > 1) {
            self.host
                .violated(format!("{} writes to a shared disk", spec.id));
        }
        let mut disks: Vec<_> = spec.sealed.iter().rev().cloned().collect();
        disks.push(spec.disk.clone());
        let silent = self.host.meet(Call::Agent);
        let prepare_fails = self.host.meet(Call::Prepare);
        let mut guest = match from {
            StartFrom::Boot => FakeGuest::boot(disks, silent, prepare_fails),
            StartFrom::Image(image) => {
                FakeGuest::restore(disks, image, silent, prepare_fails).map(|(guest, fits)| {
                    if !fits {
                        self.host
                            .violated(format!("{} restored over another disk", spec.id));
                    }
                    guest
                })
            }
        }
        .map_err(|error| failure(failed("start")(error), false))?;
        if self.host.meet(Call::StartLate) {
            guest.step();
            guest.die(ExitReason::Exited);
            return Err(failure(injected("start, late"), true));
        }
        lock(&self.host.executions).insert(spec.id.clone(), guest);
        Ok(())
    }

    async fn image_released(&self, _id: &ExecutionId) -> Result<(), EngineError> {
        Ok(())
    }

    async fn freeze(&self, id: &ExecutionId) -> Result<(), EngineError> {
        if self.host.meet(Call::Freeze) {
            return Err(injected("freeze"));
        }
        self.with(id, FakeGuest::freeze)
    }

    async fn thaw(&self, id: &ExecutionId) -> Result<(), EngineError> {
        if self.host.meet(Call::Thaw) {
            return Err(injected("thaw"));
        }
        self.with(id, FakeGuest::thaw)
    }

    async fn resident_bytes(&self, id: &ExecutionId) -> Result<u64, EngineError> {
        self.with(id, |_| 4096)
    }

    async fn usage(&self, id: &ExecutionId) -> Result<Usage, EngineError> {
        self.with(id, |guest| Usage {
            cpu_time: Duration::from_millis(50 + guest.memory()),
            memory_bytes: (32 << 20) + guest.memory(),
            cache_bytes: 16 << 20,
            disk_used_bytes: 8 << 20,
            disk_total_bytes: 1 << 30,
        })
    }

    fn memory_in_use(&self, id: &ExecutionId) -> Result<u64, EngineError> {
        self.with(id, |guest| (32 << 20) + guest.memory())
    }

    async fn checkpoint(&self, id: &ExecutionId, image: &Path) -> Result<(), EngineError> {
        if self.host.meet(Call::DieInCheckpoint) {
            self.host.kill(id, ExitReason::Exited);
            return Err(injected("checkpoint"));
        }
        if self.host.meet(Call::Checkpoint) {
            fs::write(image.join("checkpoint.img"), b"half").map_err(failed("checkpoint"))?;
            return Err(injected("checkpoint"));
        }
        if self.host.meet(Call::CheckpointNoSpace) {
            fs::write(image.join("checkpoint.img"), b"half").map_err(failed("checkpoint"))?;
            return Err(EngineError::NoSpace {
                step: "checkpoint".to_owned(),
            });
        }
        let (frozen, written) =
            self.with(id, |guest| (guest.is_frozen(), guest.checkpoint(image)))?;
        if !frozen {
            self.host
                .violated(format!("checkpoint of {id}, which is not frozen"));
        }
        let content = written.map_err(failed("checkpoint"))?;
        if !lock(&self.host.used_images).insert(content) {
            self.host
                .violated(format!("{id} wrote an image that was written before"));
        }
        Ok(())
    }

    async fn sync_disk(&self, id: &ExecutionId) -> Result<(), EngineError> {
        let call = match self.with(id, |guest| guest.is_frozen())? {
            true => Call::SyncDisk,
            false => Call::WriteBack,
        };
        if self.host.meet(call) {
            return Err(injected("sync disk"));
        }
        Ok(())
    }

    async fn destroy(&self, id: &ExecutionId) -> Result<(), EngineError> {
        if self.host.meet(Call::Destroy) {
            return Err(injected("destroy"));
        }
        lock(&self.prepared).remove(id);
        lock(&self.host.prepared).remove(id);
        if let Some(mut guest) = lock(&self.host.executions).remove(id) {
            guest.die(ExitReason::Exited);
        }
        Ok(())
    }

    async fn find(&self) -> Result<Vec<Found>, EngineError> {
        let prepared = self.host.prepared();
        let executions = lock(&self.host.executions);
        let found = executions.iter().map(|(id, guest)| Found {
            id: id.clone(),
            status: match (guest.is_dead(), guest.is_frozen()) {
                (true, _) => ExecutionStatus::Dead,
                (false, true) => ExecutionStatus::Frozen,
                (false, false) => ExecutionStatus::Running,
            },
        });
        let prepared = prepared.into_iter().map(|id| Found {
            id,
            status: ExecutionStatus::Dead,
        });
        Ok(found.chain(prepared).collect())
    }

    async fn adopt(&self, id: &ExecutionId) -> Result<(), EngineError> {
        self.with(id, |_| ())
    }

    async fn exited(&self, id: &ExecutionId) -> ExitReason {
        let Some(mut end) = self.watch_end(id) else {
            return ExitReason::Exited;
        };
        let ended = end.wait_for(Option::is_some).await;
        ended
            .ok()
            .and_then(|reason| reason.clone())
            .unwrap_or(ExitReason::Exited)
    }

    async fn dial(&self, id: &ExecutionId, port: u16) -> io::Result<TcpStream> {
        let address = self
            .with(id, |guest| guest.address(port))
            .map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))??;
        let address = lock(&self.host.services)
            .get(&port)
            .copied()
            .unwrap_or(address);
        tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await?
    }

    async fn close(&self) {
        for id in std::mem::take(&mut *lock(&self.prepared)).keys() {
            lock(&self.host.prepared).remove(id);
        }
    }
}
