//! Where a snapshot keeps its files.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use snapshot::Images;

use super::{Snapshot, SnapshotId};
use crate::sandbox::{DiskFolder, remove_tree};

const DESCRIPTION: &str = "snapshot.json";

/// The directory of one snapshot, finished or being written.
#[derive(Clone, Debug)]
pub struct SnapshotFiles {
    root: PathBuf,
    staging: PathBuf,
}

impl SnapshotFiles {
    /// The files of `id` below `data_dir`.
    pub fn new(data_dir: &Path, id: &SnapshotId) -> Self {
        let all = Self::all(data_dir);
        Self {
            root: all.join(id.as_str()),
            staging: all.join(format!(".staging-{id}")),
        }
    }

    /// The directory that holds one directory per snapshot.
    pub fn all(data_dir: &Path) -> PathBuf {
        data_dir.join("snapshots")
    }

    /// All of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All of it while it is being written.
    pub fn staging(&self) -> PathBuf {
        self.staging.clone()
    }

    /// Its disks.
    pub fn disks(&self) -> DiskFolder {
        DiskFolder::new(self.root.join("disks"))
    }

    /// Its memory image.
    pub fn images(&self) -> Images {
        Images::new(self.root.join("images"))
    }

    /// Its disks while it is being written.
    pub fn staged_disks(&self) -> DiskFolder {
        DiskFolder::new(self.staging.join("disks"))
    }

    /// Its memory image while it is being written.
    pub fn staged_images(&self) -> Images {
        Images::new(self.staging.join("images"))
    }

    /// Puts the written files under their name, durable with the description of what they are.
    pub fn finish(&self, snapshot: &Snapshot) -> io::Result<()> {
        let path = self.staging.join(DESCRIPTION);
        let text = serde_json::to_vec_pretty(snapshot)?;
        fs::write(&path, text)?;
        for synced in [&path, &self.staging] {
            File::open(synced)?.sync_all()?;
        }
        fs::rename(&self.staging, &self.root)?;
        match self.root.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Removes all of it, finished or not.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.staging)?;
        remove_tree(&self.root)
    }
}
