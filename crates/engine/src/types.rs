//! The nouns of the engine seam.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of one live incarnation of a sandbox. Always `x` and 20 characters of `[a-z0-9]`: runsc
/// resolves prefixes of ids, so all of them have the same length.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExecutionId(String);

impl ExecutionId {
    const LENGTH: usize = 21;

    /// A new random id.
    pub fn random() -> Self {
        use rand::Rng;
        const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut rng = rand::rng();
        let mut id = String::with_capacity(Self::LENGTH);
        id.push('x');
        for _ in 1..Self::LENGTH {
            id.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
        }
        Self(id)
    }

    /// Reads an id back from a name found on the host or in the database.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == Self::LENGTH
            && text.starts_with('x')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        valid.then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// BLAKE3 of an engine's program directory, in hex: images only restore with the build that wrote
/// them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(pub String);

/// One kept build of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineBuild {
    /// Which engine, for example `gvisor`.
    pub engine: String,
    /// What the build calls itself, for people.
    pub version: String,
    /// Its identity.
    pub id: BuildId,
}

/// A kept build and where its files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBuild {
    /// Which build.
    pub build: EngineBuild,
    /// The directory with its files; `None` for an engine without files of its own.
    pub files: Option<PathBuf>,
}

/// What an execution may use at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_milli: u32,
    /// Memory the guest may use; the engine adds the headroom it needs itself.
    pub memory_bytes: u64,
    /// Size of the writable disk.
    pub disk_bytes: u64,
    /// Host tasks of the execution (engine threads included).
    pub pids: u32,
}

/// What an execution uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start, the engine's included.
    pub cpu_time: std::time::Duration,
    /// Memory of the guest in bytes, without file cache.
    pub memory_bytes: u64,
    /// File cache in bytes, which the host takes back when it needs it.
    pub cache_bytes: u64,
    /// Bytes of its disk in use; blocks that are kept for root count as used.
    pub disk_used_bytes: u64,
    /// Size of its disk in bytes, without the file system's own needs.
    pub disk_total_bytes: u64,
}

/// Where packets of the guest may go. Private ranges, link-local addresses, the host and other
/// sandboxes are always denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkPolicy {
    /// Public addresses through NAT.
    Internet,
    /// Nothing leaves the sandbox; services inside stay reachable through the edge.
    Closed,
}

/// All an engine needs to know to start an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionSpec {
    /// Its name.
    pub id: ExecutionId,
    /// The kept build to start it with: that of the image when restoring.
    pub build: BuildId,
    /// Read-only directories at the bottom, topmost first.
    pub layers: Vec<PathBuf>,
    /// Sealed disks on top of the layers, topmost first: nothing is written to them, and other
    /// executions may use the same ones.
    #[serde(default)]
    pub sealed: Vec<PathBuf>,
    /// The writable disk on top of all, made by `create_disk`.
    pub disk: PathBuf,
    /// Host name inside.
    pub hostname: String,
    /// What it may use.
    pub limits: Limits,
    /// Where its packets may go.
    pub network: NetworkPolicy,
}

/// How an execution begins.
#[derive(Clone, Copy, Debug)]
pub enum StartFrom<'a> {
    /// PID 1 is started afresh on the disk.
    Boot,
    /// Memory is loaded from a directory that `checkpoint` filled.
    Image(&'a Path),
}

/// State of an execution as found on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutionStatus {
    /// Its guest is running.
    Running,
    /// Alive and frozen.
    Frozen,
    /// Not alive, or not fully started: only destroying it makes sense.
    Dead,
}

/// One thing found by `Engine::find`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub id: ExecutionId,
    /// What is left of it.
    pub status: ExecutionStatus,
}

/// Why an execution is no longer alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitReason {
    /// The host's memory limit of the sandbox was hit.
    OutOfMemory,
    /// PID 1 ended or the engine died.
    Exited,
}

/// Files that are open to be read. They are closed when this is dropped.
pub struct OpenFiles {
    root: PathBuf,
    left_out: Vec<LeftOut>,
    _open: Box<dyn Send + Sync>,
}

impl OpenFiles {
    /// Files below `root`, for as long as `open` is not dropped.
    pub(crate) fn new(
        root: PathBuf,
        left_out: Vec<LeftOut>,
        open: impl Send + Sync + 'static,
    ) -> Self {
        Self {
            root,
            left_out,
            _open: Box::new(open),
        }
    }

    /// The guest's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Disks of which nothing is to be seen.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }
}

/// A disk that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Which one.
    pub disk: PathBuf,
    /// Why.
    pub problem: String,
}

/// A failed engine call. The text names the step, the command and what it printed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such execution is known.
    #[error("execution {0} is not known to the engine")]
    Unknown(ExecutionId),
    /// Storage ran out while writing an image or a disk.
    #[error("no space left on the device while {step}")]
    NoSpace {
        /// What was being done.
        step: String,
    },
    /// The step did not end in its time.
    #[error("{step} did not finish within {limit:?}")]
    Timeout {
        /// What was being done.
        step: String,
        /// How long it was given.
        limit: std::time::Duration,
    },
    /// A disk cannot be mounted, or not be read where that is needed. What is on it is as it was.
    #[error("the disk cannot be used any more: {detail}")]
    DiskDamaged {
        /// What the kernel said.
        detail: String,
    },
    /// The engine refused or failed.
    #[error("{step} failed: {detail}")]
    Failed {
        /// What was being done.
        step: String,
        /// What the engine or kernel said.
        detail: String,
    },
}

/// A failed start.
#[derive(Debug, thiserror::Error)]
#[error("start of an execution failed")]
pub struct StartError {
    /// Whether the guest may have run some instructions before the failure. If it may, the memory
    /// image can only be used again if the disk did not change.
    pub guest_may_have_run: bool,
    /// What went wrong.
    #[source]
    pub source: EngineError,
}
