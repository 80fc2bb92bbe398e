//! Where a sandbox keeps its things in the data directory.

use std::path::{Path, PathBuf};

use snapshot::Images;

use super::SandboxId;
use super::disks::{DiskFolder, Disks};

/// The directory of one sandbox: all it owns, so that deleting it deletes the sandbox.
///
/// ```text
/// sandboxes/<id>/disks/     the disks it stands on (the engine's)
/// sandboxes/<id>/images/    memory images
/// ```
#[derive(Clone, Debug)]
pub(super) struct SandboxFiles {
    root: PathBuf,
}

impl SandboxFiles {
    /// The files of `id` below `data_dir`.
    pub(super) fn new(data_dir: &Path, id: &SandboxId) -> Self {
        Self {
            root: Self::all(data_dir).join(id.as_str()),
        }
    }

    /// The directory that holds one directory per sandbox.
    pub(super) fn all(data_dir: &Path) -> PathBuf {
        data_dir.join("sandboxes")
    }

    /// All of it.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Its disks, the sealed ones too.
    pub(super) fn disks(&self) -> DiskFolder {
        DiskFolder::new(self.root.join("disks"))
    }

    /// The disk it writes to.
    pub(super) fn own_disk(&self, disks: &Disks) -> PathBuf {
        self.disks().path(&disks.own)
    }

    /// Its memory images.
    pub(super) fn images(&self) -> Images {
        Images::new(self.root.join("images"))
    }
}
