//! Runs one execution of a sandbox on this host: directory in, directory out.
//!
//! An [`Engine`] knows nothing of sandboxes, their owners or their states. It starts an execution
//! from a disk (and perhaps a memory image), freezes it, writes its memory to a directory, and
//! destroys it. Everything an execution needs on the host (mounts, network namespaces, cgroups,
//! engine state) belongs to the engine and is found again by name after a crash of the server.

mod disk_copy;
pub mod fake;
pub mod gvisor;
mod types;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use async_trait::async_trait;
use tokio::net::TcpStream;

pub use types::{
    BuildId, EngineBuild, EngineError, ExecutionId, ExecutionSpec, ExecutionStatus, ExitReason,
    Found, KeptBuild, LeftOut, Limits, NetworkPolicy, OpenFiles, StartError, StartFrom, Usage,
};

/// Address of the guest's network interface, the same in every sandbox, so that a restored or
/// cloned guest never sees it change. E2B's agents use the same one.
pub const GUEST_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 0, 21);
/// The guest's default gateway; the only peer the agent's host channel accepts.
pub const GATEWAY_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 0, 22);

/// Name of a file that a boot leaves in the guest's `/tmp` for PID 1 to remove.
pub const TMP_MARK: &str = ".sandbase-boot";

/// Runs executions. Every call has its own bounded time; none waits for ever.
///
/// Calls for the same execution are never made concurrently by the server (one driver per
/// sandbox), except [`dial`](Engine::dial) and [`exited`](Engine::exited).
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The build that new executions are started with.
    fn build(&self) -> &EngineBuild;

    /// The build that an execution was started with, which is the one its images need.
    fn build_of(&self, id: &ExecutionId) -> Result<EngineBuild, EngineError>;

    /// Whether a build that wrote an older image is still kept on this host.
    fn has_build(&self, build: &BuildId) -> bool;

    /// A kept build and its files, to take it along to another host. `None` when it is not kept.
    fn kept_build(&self, build: &BuildId) -> Option<KeptBuild>;

    /// Keeps a build that was taken along: `from` holds what [`kept_build`](Engine::kept_build) named
    /// there. Refused unless it is what its id says. A build that is kept already is success.
    async fn keep_build(&self, build: &BuildId, from: &Path) -> Result<(), EngineError>;

    /// Makes an empty writable disk of `size_bytes` at the directory `disk`, which must not exist.
    /// The size is enforced: the guest gets ENOSPC and a true `df`.
    async fn create_disk(&self, disk: &Path, size_bytes: u64) -> Result<(), EngineError>;

    /// Copies a disk that no execution uses to the directory `to`, which must not exist. Cheap:
    /// holes stay holes and blocks are shared where the file system can. A power cut may take the
    /// copy: for a disk that can be made again.
    async fn copy_disk(&self, from: &Path, to: &Path) -> Result<(), EngineError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        on_disk("copying a disk", move || disk_copy::copy(&from, &to)).await
    }

    /// [Copies](Engine::copy_disk) a disk whose content may soon be nowhere else: the copy is durable
    /// when this returns.
    async fn copy_disk_durably(&self, from: &Path, to: &Path) -> Result<(), EngineError> {
        self.copy_disk(from, to).await?;
        let to = to.to_owned();
        on_disk("writing a copied disk back", move || disk_copy::sync(&to)).await
    }

    /// Gives a disk that will never be written again a second home at the directory `to`, which must
    /// not exist. Nothing is copied, and each home can be removed without harm to the other. What
    /// is on the disk is durable when this returns.
    async fn share_disk(&self, from: &Path, to: &Path) -> Result<(), EngineError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        on_disk("sharing a disk", move || disk_copy::share(&from, &to)).await
    }

    /// Brings a disk that no execution uses into the state of one that was cleanly let go: after a
    /// power cut it may not be, and then could not be read as a sealed one, since nothing may be
    /// written there. Nothing that [`disk_changed_since`](Engine::disk_changed_since) looks at changes.
    async fn settle_disk(&self, _disk: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    /// Checks a disk that somebody else may have made, and that nothing uses: whether an execution on it
    /// would ask the host for nothing that disks of its own do not. An engine whose disks ask for nothing
    /// has nothing to do. [`DiskDamaged`](EngineError::DiskDamaged) says what is wrong with it.
    async fn check_given_disk(&self, _disk: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    /// Removes a disk that no execution uses. A missing disk is success.
    async fn remove_disk(&self, disk: &Path) -> Result<(), EngineError>;

    /// Whether anything on the disk was written after `instant`. The disk must not be in use.
    ///
    /// This decides if a memory image still belongs to the disk after a resume that failed half
    /// way: an image may only be restored over exactly the state it was taken with.
    async fn disk_changed_since(
        &self,
        disk: &Path,
        instant: SystemTime,
    ) -> Result<bool, EngineError>;

    /// The same of the own disk of an execution that is frozen: whether it was written after `instant`.
    async fn has_written_since(
        &self,
        id: &ExecutionId,
        instant: SystemTime,
    ) -> Result<bool, EngineError>;

    /// Opens the files that an execution on these `disks` (topmost first) over these `layers` would
    /// see, to be read and nothing else, also where a disk is damaged. No execution may use the disks
    /// until the answer is dropped, which may block for a moment.
    async fn open_files(
        &self,
        layers: &[PathBuf],
        disks: &[PathBuf],
    ) -> Result<OpenFiles, EngineError>;

    /// Does all of a start from `image` that comes before the image is read, so that it may be done
    /// ahead of time or beside a check of the image. The guest does not run yet: the disk stays what
    /// the image belongs to, but until [`start`](Engine::start) or [`destroy`](Engine::destroy) it is
    /// in use. A start with the very same specification goes on from here; any other start of this
    /// id begins anew. Found by [`find`](Engine::find) as dead, since only this process can go on.
    ///
    /// On failure nothing is left behind. Optional: an engine may leave all to the start.
    async fn prepare(&self, _spec: &ExecutionSpec, _image: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    /// Starts an execution, booting it or restoring it. On success PID 1 is running or about to;
    /// whether the agent answers is the caller's to find out through [`dial`](Engine::dial).
    /// On failure nothing of the execution is left behind.
    async fn start(&self, spec: &ExecutionSpec, from: StartFrom<'_>) -> Result<(), StartError>;

    /// Returns when the memory image of a restore is no longer read, so that it may be deleted.
    async fn image_released(&self, id: &ExecutionId) -> Result<(), EngineError>;

    /// Stops every task of the guest where it stands. Freezing a frozen one is success.
    async fn freeze(&self, id: &ExecutionId) -> Result<(), EngineError>;

    /// Lets a frozen guest go on. Thawing a running one is success.
    async fn thaw(&self, id: &ExecutionId) -> Result<(), EngineError>;

    /// Bytes a checkpoint of this execution may need at most, for the free-space check.
    async fn resident_bytes(&self, id: &ExecutionId) -> Result<u64, EngineError>;

    /// What an execution uses now, seen from outside: the guest does not notice.
    async fn usage(&self, id: &ExecutionId) -> Result<Usage, EngineError>;

    /// Bytes of memory that its guest and the engine for it use now, swapped out or not, seen from
    /// outside. Without file cache, unless there is plenty left with it. Quick enough to be asked many times a second: it neither blocks nor wakes the guest.
    fn memory_in_use(&self, id: &ExecutionId) -> Result<u64, EngineError>;

    /// Writes the memory of a *frozen* execution into the existing empty directory `image`. The
    /// execution stays frozen, whether this succeeds or fails. Nothing is made durable here.
    async fn checkpoint(&self, id: &ExecutionId, image: &Path) -> Result<(), EngineError>;

    /// Makes everything written to the execution's disk durable (syncfs).
    async fn sync_disk(&self, id: &ExecutionId) -> Result<(), EngineError>;

    /// Lets the host forget what it caches of large files on the execution's disk, which goes on
    /// running. Unmounting a disk takes the longer the more of it is cached: this does that work
    /// while the guest does not stand still yet.
    async fn forget_cached_files(&self, _id: &ExecutionId) -> Result<(), EngineError> {
        Ok(())
    }

    /// Ends an execution and removes all it held on the host except its disk. Works from every
    /// state, half-started ones included; an unknown id is success.
    async fn destroy(&self, id: &ExecutionId) -> Result<(), EngineError>;

    /// Every execution of this data directory that has left anything on this host, found by name,
    /// in any state. Waits (bounded) for engine commands that an earlier server left in flight.
    async fn find(&self) -> Result<Vec<Found>, EngineError>;

    /// Takes over an execution that an earlier server process started, so that
    /// [`dial`](Engine::dial) and the other calls work on it.
    async fn adopt(&self, id: &ExecutionId) -> Result<(), EngineError>;

    /// Resolves when the execution is no longer alive, by whatever cause.
    async fn exited(&self, id: &ExecutionId) -> ExitReason;

    /// Connects to a TCP port of the guest's network interface, from inside its gateway namespace.
    async fn dial(&self, id: &ExecutionId, port: u16) -> io::Result<TcpStream>;

    /// Gives back what the engine keeps on the host beside its executions, which go on running for
    /// the next engine to adopt. With none left, nothing of this data directory stays on the host.
    /// The last call of an orderly stop; starts after it fail or are slower.
    async fn close(&self);
}

/// Runs file work on the blocking pool and names the step in its error.
async fn on_disk(
    step: &'static str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), EngineError> {
    let detail = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::StorageFull => {
            return Err(EngineError::NoSpace { step: step.into() });
        }
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Err(EngineError::Failed {
        step: step.into(),
        detail,
    })
}
