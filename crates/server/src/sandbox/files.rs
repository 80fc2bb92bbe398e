//! Where a sandbox keeps its things in the data directory.

use std::path::{Path, PathBuf};

use snapshot::Images;

use super::SandboxId;

/// The directory of one sandbox: all it owns, so that deleting it deletes the sandbox.
///
/// ```text
/// sandboxes/<id>/disk/      the writable disk (the engine's)
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

    /// The writable disk.
    pub(super) fn disk(&self) -> PathBuf {
        self.root.join("disk")
    }

    /// Its memory images.
    pub(super) fn images(&self) -> Images {
        Images::new(self.root.join("images"))
    }
}
