//! The gVisor engine: `runsc` on a host overlay, in network namespaces and cgroups of our own.
//!
//! ```text
//! data_dir/engines/<build>/runsc              kept builds, one per image generation still alive
//! run_dir/runsc/                              runsc's own state (`--root`)
//! run_dir/executions/<id>/                    everything of one execution, see `paths`
//!        ├── disk    ext4 of disk.img, through a loop device: upper/ and work/
//!        ├── sealed-N  the same of a sealed disk, read-only
//!        ├── rootfs  overlay of the layers, the sealed disks and the disk: the guest's root
//!        └── bundle/config.json, spec.json, slot, pid
//! /run/netns/sb-<tag>-<slot>-{in,gw}          the namespaces of a network slot
//! cgroup /sandbase-<tag>/<id>
//! ```
//!
//! All names carry a tag made from the data directory, so that servers with different data
//! directories never touch each other's things, and everything is found again by name after a
//! crash. Memory holds only a cache of what these files say.
//!
//! Invariants:
//! - One loop device per disk image: the device holds an exclusive lock of the image (`loopdev`).
//! - The network namespaces of an execution are never used by another one.
//! - No directory is removed recursively while something may be mounted below it.
//!
//! Where to start: `execution.rs` (start and destroy), then `disk.rs` and `network.rs`.

mod boot_mark;
mod builds;
mod cgroup;
mod checks;
mod config;
mod control;
mod destroy;
mod disk;
mod execution;
mod freezing;
mod given_disk;
mod image;
mod large_pages;
mod leftovers;
mod loopdev;
mod mounts;
mod netns;
mod network;
mod paths;
mod prepared;
mod process;
mod rescue;
mod runsc;
mod slots;
mod spec;
mod stacks;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::{RwLock, Semaphore};

pub use checks::{Check, host_checks};
pub use config::Config;

use crate::{
    BuildId, Engine, EngineBuild, EngineError, ExecutionId, ExecutionSpec, ExitReason, Found,
    KeptBuild, OpenFiles, StartError, StartFrom, Usage,
};
use execution::Live;
use paths::Paths;

/// A guest that has this much memory left, and half of what it was promised, has plenty.
const PLENTY: u64 = 128 << 20;

/// Why the engine cannot be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The given `runsc` cannot do what sandboxes need.
    #[error("{runsc} cannot be used: {reason}")]
    UnsuitableRunsc {
        /// The binary.
        runsc: PathBuf,
        /// What it lacks, or what went wrong when asking it.
        reason: String,
    },
    /// Setting something up on the host failed.
    #[error("{step}")]
    Host {
        /// What was being done.
        step: String,
        /// What the kernel or a tool said.
        #[source]
        source: io::Error,
    },
}

/// Runs executions with gVisor.
///
/// An execution of an earlier server must be [adopted](Engine::adopt) before anything but
/// [`destroy`](Engine::destroy) is asked of it; until then it counts as unknown, and
/// [`exited`](Engine::exited) answers at once. Dropping the engine leaves all executions running, for
/// the next one to adopt, and removes the network slots prepared in advance.
pub struct Gvisor {
    config: Config,
    paths: Paths,
    build: EngineBuild,
    slots: Arc<slots::SlotPool>,
    dialer: netns::Dialer,
    /// Turns for starts, first come, first served.
    turns: Semaphore,
    /// Executions that only wait for their image.
    prepared: Mutex<HashMap<ExecutionId, prepared::Prepared>>,
    /// Cache of what the execution directories say; an execution is in it from the begin of its
    /// start to the end of its destruction.
    live: Mutex<HashMap<ExecutionId, Live>>,
    /// Work of starts on blocking threads goes on when the start's future is dropped: it holds a
    /// read lock, and destruction takes the write lock before it looks at what is there.
    work: Mutex<HashMap<ExecutionId, Arc<RwLock<()>>>>,
}

impl Gvisor {
    /// Prepares the host: keeps a copy of the configured build, sets up forwarding and NAT, turns on
    /// large pages for memory of guests, and removes network slots of this data directory that belong
    /// to no execution. Needs root.
    ///
    /// Blocks for about 100 ms (hashing the build); call it outside async tasks or accept that.
    /// At most one `Gvisor` may be open per data directory.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(host_error(format!("create {}", config.data_dir.display())))?;
        let paths = Paths::new(&config).map_err(host_error("find the data directory"))?;
        paths
            .create_directories()
            .map_err(host_error("create the run directory"))?;
        netns::share_directory(&paths.netns("")).map_err(host_error(
            "make the directory of network namespaces a mount point",
        ))?;
        let build = builds::keep(&config, &paths)?;
        network::prepare_host(&config, &paths)
            .map_err(host_error("set up forwarding and NAT on the host"))?;
        if config.large_pages {
            match large_pages::turn_on() {
                Ok(state) => tracing::debug!(?state, "large pages for the memory of guests"),
                // Sandboxes work without, only slower where they hold much memory.
                Err(error) => tracing::warn!(%error, "no large pages for the memory of guests"),
            }
        }
        let in_use =
            leftovers::slots_in_use(&paths).map_err(host_error("look for network slots in use"))?;
        leftovers::clear_inspections(&paths)
            .map_err(host_error("unmount disks that were being looked at"))?;
        let slots = slots::SlotPool::open(&config, &paths, &in_use)
            .map_err(host_error("open the network slots"))?;
        let dialer = netns::Dialer::start().map_err(host_error("start the dialer thread"))?;
        let turns = Semaphore::new(config.starts_at_once.max(1));
        Ok(Self {
            config,
            paths,
            build,
            slots: Arc::new(slots),
            dialer,
            turns,
            prepared: Mutex::new(HashMap::new()),
            live: Mutex::new(HashMap::new()),
            work: Mutex::new(HashMap::new()),
        })
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<ExecutionId, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_on(&self, id: &ExecutionId) -> Arc<RwLock<()>> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(work.entry(id.clone()).or_default())
    }

    /// What is known of a running execution, from memory or, after a restart, from its directory.
    fn known(&self, id: &ExecutionId) -> Option<Live> {
        self.live().get(id).cloned()
    }

    fn require(&self, id: &ExecutionId) -> Result<Live, EngineError> {
        self.known(id)
            .ok_or_else(|| EngineError::Unknown(id.clone()))
    }
}

#[async_trait]
impl Engine for Gvisor {
    fn build(&self) -> &EngineBuild {
        &self.build
    }

    fn build_of(&self, id: &ExecutionId) -> Result<EngineBuild, EngineError> {
        Ok(builds::describe(&self.paths, &self.require(id)?.build))
    }

    fn has_build(&self, build: &BuildId) -> bool {
        builds::is_kept(&self.paths, build)
    }

    fn kept_build(&self, build: &BuildId) -> Option<KeptBuild> {
        builds::is_kept(&self.paths, build).then(|| KeptBuild {
            build: builds::describe(&self.paths, build),
            files: Some(self.paths.build(build)),
        })
    }

    async fn keep_build(&self, build: &BuildId, from: &Path) -> Result<(), EngineError> {
        let (paths, build, from) = (self.paths.clone(), build.clone(), from.to_owned());
        blocking(move || builds::keep_given(&paths, &build, &from)).await
    }

    async fn create_disk(&self, disk: &Path, size_bytes: u64) -> Result<(), EngineError> {
        let disk = disk.to_owned();
        blocking(move || disk::create(&disk, size_bytes)).await
    }

    async fn settle_disk(&self, disk: &Path) -> Result<(), EngineError> {
        let (disk, inspect) = (disk.to_owned(), self.paths.inspect_dir());
        blocking(move || disk::settle(&disk, &inspect)).await
    }

    async fn check_given_disk(&self, disk: &Path) -> Result<(), EngineError> {
        given_disk::check(disk).await
    }

    async fn remove_disk(&self, disk: &Path) -> Result<(), EngineError> {
        let disk = disk.to_owned();
        blocking(move || disk::remove(&disk)).await
    }

    async fn disk_changed_since(
        &self,
        disk: &Path,
        instant: SystemTime,
    ) -> Result<bool, EngineError> {
        let (disk, inspect) = (disk.to_owned(), self.paths.inspect_dir());
        blocking(move || disk::changed_since(&disk, &inspect, instant)).await
    }

    async fn has_written_since(
        &self,
        id: &ExecutionId,
        instant: SystemTime,
    ) -> Result<bool, EngineError> {
        self.require(id)?;
        let mount = self.paths.execution(id).disk_mount();
        let step = format!("look for changes on the disk of {id}");
        blocking(move || disk::mounted_changed_since(&mount, instant).map_err(failed(step))).await
    }

    async fn open_files(
        &self,
        layers: &[PathBuf],
        disks: &[PathBuf],
    ) -> Result<OpenFiles, EngineError> {
        let (layers, disks) = (layers.to_vec(), disks.to_vec());
        let inspect = self.paths.inspect_dir();
        let opened = blocking(move || rescue::open(&layers, &disks, &inspect)).await;
        opened.map_err(|error| EngineError::DiskDamaged {
            detail: error.to_string(),
        })
    }

    async fn prepare(&self, spec: &ExecutionSpec, image: &Path) -> Result<(), EngineError> {
        self.prepare_execution(spec, image).await
    }

    async fn start(&self, spec: &ExecutionSpec, from: StartFrom<'_>) -> Result<(), StartError> {
        self.start_execution(spec, from).await
    }

    async fn image_released(&self, id: &ExecutionId) -> Result<(), EngineError> {
        self.wait_for_image_release(id).await
    }

    async fn freeze(&self, id: &ExecutionId) -> Result<(), EngineError> {
        self.freeze_execution(id).await
    }

    async fn thaw(&self, id: &ExecutionId) -> Result<(), EngineError> {
        self.thaw_execution(id).await
    }

    async fn resident_bytes(&self, id: &ExecutionId) -> Result<u64, EngineError> {
        self.require(id)?;
        cgroup::resident_bytes(&self.paths.cgroup(id))
            .map_err(failed(format!("read the memory use of {id}")))
    }

    async fn usage(&self, id: &ExecutionId) -> Result<Usage, EngineError> {
        self.require(id)?;
        let (group, disk) = (self.paths.cgroup(id), self.paths.execution(id).disk_mount());
        let read = move || {
            let (memory_bytes, cache_bytes) = cgroup::memory(&group)?;
            let disk = rustix::fs::statvfs(&disk)?;
            Ok(Usage {
                cpu_time: cgroup::cpu_time(&group)?,
                memory_bytes,
                cache_bytes,
                disk_used_bytes: disk.f_blocks.saturating_sub(disk.f_bavail) * disk.f_frsize,
                disk_total_bytes: disk.f_blocks * disk.f_frsize,
            })
        };
        blocking(read)
            .await
            .map_err(failed(format!("read what {id} uses")))
    }

    fn memory_in_use(&self, id: &ExecutionId) -> Result<u64, EngineError> {
        let promised = self.require(id)?.memory_bytes;
        // When it uses no more than this, nobody needs to know how much exactly.
        let enough = promised.saturating_sub(PLENTY).min(promised / 2);
        cgroup::in_use(&self.paths.cgroup(id), enough)
            .map_err(failed(format!("read the memory use of {id}")))
    }

    async fn checkpoint(&self, id: &ExecutionId, image: &Path) -> Result<(), EngineError> {
        self.write_image(id, image).await
    }

    async fn sync_disk(&self, id: &ExecutionId) -> Result<(), EngineError> {
        self.require(id)?;
        let mount = self.paths.execution(id).disk_mount();
        let step = format!("sync the disk of {id}");
        blocking(move || mounts::sync_filesystem(&mount).map_err(failed(step))).await
    }

    async fn forget_cached_files(&self, id: &ExecutionId) -> Result<(), EngineError> {
        self.require(id)?;
        let mount = self.paths.execution(id).disk_mount();
        let step = format!("forget cached files of {id}");
        blocking(move || disk::forget_cached_files(&mount).map_err(failed(step))).await
    }

    async fn destroy(&self, id: &ExecutionId) -> Result<(), EngineError> {
        self.destroy_execution(id).await
    }

    async fn find(&self) -> Result<Vec<Found>, EngineError> {
        self.find_executions().await
    }

    async fn adopt(&self, id: &ExecutionId) -> Result<(), EngineError> {
        let live = Live::read(&self.paths.execution(id)).map_err(|error| {
            if leftovers::is_unreadable(&error) {
                failed(format!("read the state of {id}"))(error)
            } else {
                EngineError::Unknown(id.clone())
            }
        })?;
        self.live().insert(id.clone(), live);
        Ok(())
    }

    async fn exited(&self, id: &ExecutionId) -> ExitReason {
        self.wait_for_exit(id).await
    }

    async fn dial(&self, id: &ExecutionId, port: u16) -> io::Result<TcpStream> {
        let Some(live) = self.known(id) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{id} is not known"),
            ));
        };
        let gateway = self
            .paths
            .netns(&network::gateway_name(&self.paths.tag, live.slot));
        self.dialer
            .dial(gateway, port, self.config.dial_timeout)
            .await
    }

    async fn close(&self) {
        self.end_prepared().await;
        let (slots, paths) = (Arc::clone(&self.slots), self.paths.clone());
        blocking(move || {
            slots.close();
            if let Ok(false) = leftovers::any_trace(&paths) {
                leftovers::clear_host(&paths);
            }
        })
        .await;
    }
}

/// Runs blocking work on the blocking pool; a panic there is passed on.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is being shut down cancels blocking tasks that have not begun.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Turns an I/O error into an engine error that names the step.
fn failed(step: impl Into<String>) -> impl FnOnce(io::Error) -> EngineError {
    move |error| {
        let step = step.into();
        if error.kind() == io::ErrorKind::StorageFull {
            EngineError::NoSpace { step }
        } else {
            EngineError::Failed {
                step,
                detail: error.to_string(),
            }
        }
    }
}

fn host_error(step: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    move |source| OpenError::Host {
        step: step.into(),
        source,
    }
}
