//! Where everything of this data directory lives on the host.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Config;
use crate::{BuildId, ExecutionId};

const RUN_DIR: &str = "/run/sandbase";
/// Claims of network slots, shared by all servers of this machine.
pub(super) const SLOT_CLAIMS: &str = "/run/sandbase/slots";
/// Where `ip netns` keeps names, so that people can look into a sandbox's network with it.
const NETNS_DIR: &str = "/run/netns";

/// Names and places derived from the data directory.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// Eight hex digits that tell servers with different data directories apart, and stay the same when
    /// one is moved.
    pub(super) tag: String,
    engines: PathBuf,
    run: PathBuf,
}

impl Paths {
    /// Derives the names. The data directory must exist.
    pub(super) fn new(config: &Config) -> io::Result<Self> {
        let data = config.data_dir.canonicalize()?;
        let tag = tag(&data)?;
        let run = match &config.run_dir {
            Some(run) => run.clone(),
            None => Path::new(RUN_DIR).join(&tag),
        };
        Ok(Self {
            tag,
            engines: data.join("engines"),
            run,
        })
    }

    /// Creates the directories that executions are put into.
    pub(super) fn create_directories(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.engines)?;
        builder.create(self.executions())?;
        builder.create(self.runsc_root())?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(SLOT_CLAIMS)?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(NETNS_DIR)
    }

    pub(super) fn engines(&self) -> &Path {
        &self.engines
    }

    pub(super) fn build(&self, build: &BuildId) -> PathBuf {
        self.engines.join(&build.0)
    }

    pub(super) fn executions(&self) -> PathBuf {
        self.run.join("executions")
    }

    pub(super) fn execution(&self, id: &ExecutionId) -> ExecutionDir {
        ExecutionDir(self.executions().join(id.as_str()))
    }

    /// All directories below `/run` that every engine of this data directory makes, innermost first.
    pub(super) fn run_directories(&self) -> [PathBuf; 4] {
        [
            self.executions(),
            self.inspect_dir(),
            self.runsc_root(),
            self.run.clone(),
        ]
    }

    /// Disks are mounted here for a look from outside.
    pub(super) fn inspect_dir(&self) -> PathBuf {
        self.run.join("inspect")
    }

    /// runsc's `--root`.
    pub(super) fn runsc_root(&self) -> PathBuf {
        self.run.join("runsc")
    }

    /// Where the sentry of an execution takes calls.
    pub(super) fn control_socket(&self, id: &ExecutionId) -> PathBuf {
        self.runsc_root().join(format!("runsc-{id}.sock"))
    }

    /// Path of the execution's cgroup below the root of each hierarchy.
    pub(super) fn cgroup(&self, id: &ExecutionId) -> String {
        format!("{}/{id}", self.cgroup_parent())
    }

    pub(super) fn cgroup_parent(&self) -> String {
        format!("/sandbase-{}", self.tag)
    }

    /// The file that pins a network namespace.
    pub(super) fn netns(&self, name: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(name)
    }
}

/// The directory of one execution. Removed last, so that what exists is always found through it.
#[derive(Clone, Debug)]
pub(super) struct ExecutionDir(PathBuf);

impl ExecutionDir {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
    /// Mount point of the disk.
    pub(super) fn disk_mount(&self) -> PathBuf {
        self.0.join("disk")
    }
    /// Mount point of a sealed disk; 0 is the topmost.
    pub(super) fn sealed_mount(&self, position: usize) -> PathBuf {
        self.0.join(format!("sealed-{position}"))
    }
    /// Mount point of the overlay.
    pub(super) fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }
    pub(super) fn bundle(&self) -> PathBuf {
        self.0.join("bundle")
    }
    pub(super) fn oci_spec(&self) -> PathBuf {
        self.bundle().join("config.json")
    }
    /// The `ExecutionSpec`.
    pub(super) fn spec(&self) -> PathBuf {
        self.0.join("spec.json")
    }
    /// Number of the network slot.
    pub(super) fn slot(&self) -> PathBuf {
        self.0.join("slot")
    }
    /// Process id of the sentry, written by runsc.
    pub(super) fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }
    /// Exists if the execution was restored from an image.
    pub(super) fn restored(&self) -> PathBuf {
        self.0.join("restored")
    }
    /// Exists if the execution is frozen, or may be; see `freezing`.
    pub(super) fn frozen(&self) -> PathBuf {
        self.0.join("frozen")
    }
    /// What runsc complains about.
    pub(super) fn log(&self) -> PathBuf {
        self.0.join("runsc.log")
    }
    /// What the sentry says when it panics.
    pub(super) fn panic_log(&self) -> PathBuf {
        self.0.join("panic.log")
    }
}

/// By the directory itself, not by its path: that changes when it is moved, and servers in containers
/// may have the same one while they share the host's cgroups. A host that restarts may number its
/// devices otherwise, but then nothing carries a tag any more.
fn tag(data: &Path) -> io::Result<String> {
    let short = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..8].to_owned();
    // How it was before. Only what an earlier server left running still has such a tag.
    let by_path = short(data.as_os_str().as_bytes());
    let left = std::fs::read_dir(Path::new(RUN_DIR).join(&by_path).join("executions"));
    if left.is_ok_and(|mut entries| entries.next().is_some()) {
        return Ok(by_path);
    }
    let data = data.metadata()?;
    Ok(short(
        &[data.dev().to_le_bytes(), data.ino().to_le_bytes()].concat(),
    ))
}
