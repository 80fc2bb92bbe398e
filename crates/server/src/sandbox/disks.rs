//! Which disks a sandbox stands on.
//!
//! A sandbox writes to one disk of its own. Below it lie sealed ones, which snapshots have frozen:
//! nobody writes to them any more, and every sandbox and snapshot that stands on one has a name of
//! its own for it (a hard link), so that each can be deleted without asking the others.
//!
//! ```text
//! own       d7…  writable
//! sealed[0] d3…  read-only, topmost
//! sealed[1] d1…
//! layers         read-only directories, the template's
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use engine::Engine;
use serde::{Deserialize, Serialize};

use super::transition::{Cause, blocking};

/// Most sealed disks below one of a sandbox's own. Each costs a mount and a look-up per file; where
/// one more would be needed, the topmost is copied instead of sealed.
pub(crate) const MAX_SEALED: usize = 15;

/// Name of a disk: `d` and 20 characters of `[a-z0-9]`. It never changes, whoever stands on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(String);

impl DiskId {
    /// A new random name.
    pub fn random() -> Self {
        Self(format!("d{}", crate::random::lowercase(20)))
    }

    /// Reads a name back from a file of somebody else. `None` if it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 21
            && text.starts_with('d')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        valid.then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The disks of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disks {
    /// The one it writes to.
    pub own: DiskId,
    /// No guest has run on its own disk yet: an empty one in its place is the same. A memory image
    /// then fits again and again, whatever a failed start did.
    pub fresh: bool,
    /// The sealed ones, topmost first.
    pub sealed: Vec<DiskId>,
}

impl Disks {
    /// One disk, copied from a template.
    pub fn copied() -> Self {
        Self {
            own: DiskId::random(),
            fresh: false,
            sealed: Vec::new(),
        }
    }
}

/// A directory with disks, one directory each.
#[derive(Clone, Debug)]
pub struct DiskFolder {
    directory: PathBuf,
}

impl DiskFolder {
    /// The disks below `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Where a disk is.
    pub fn path(&self, id: &DiskId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    /// Makes the folder itself.
    pub(super) async fn create(&self) -> Result<(), Cause> {
        let directory = self.directory.clone();
        let made = blocking(move || std::fs::create_dir_all(directory)).await;
        made.map_err(|source| Cause::io("make the directory of disks", source))
    }

    /// Gives these sealed disks a name in `to`, too. One that has it already stays.
    pub(super) async fn share(
        &self,
        engine: &dyn Engine,
        sealed: &[DiskId],
        to: &DiskFolder,
    ) -> Result<(), Cause> {
        to.create().await?;
        for id in sealed {
            let target = to.path(id);
            if !target.exists() {
                engine.share_disk(&self.path(id), &target).await?;
            }
        }
        Ok(())
    }

    /// Removes every disk that is not one of these. None of the removed may be in use.
    pub(super) fn sweep(&self, keep: &Disks) -> std::io::Result<()> {
        let kept = |name: &str| {
            name == keep.own.as_str() || keep.sealed.iter().any(|id| id.as_str() == name)
        };
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(kept) {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a directory with all that is in it. A missing one is success.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
