//! What is remembered of a snapshot.

use std::fmt;
use std::path::PathBuf;

use engine::{BuildId, Limits};
use serde::{Deserialize, Serialize};
use snapshot::ImageId;
use time::OffsetDateTime;

use super::SnapshotName;
use crate::sandbox::{DiskId, SandboxId};

/// Name of one snapshot, 20 characters of `[a-z0-9]` like that of a template, because it can be
/// used as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// A new random name.
    pub fn random() -> Self {
        Self(crate::random::lowercase(20))
    }

    /// Reads a name back from a request or a directory. `None` if it cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 20
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

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a snapshot is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotUse {
    /// A caller asked for it; it stays until it is deleted.
    Listed,
    /// Sandboxes are being forked from it; nobody sees it, and it goes when they run.
    Fork,
    /// Its files are being removed.
    Deleting,
}

/// A committed snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its own name.
    pub id: SnapshotId,
    /// What its maker called it, if anything.
    pub name: Option<SnapshotName>,
    /// What it is there for.
    pub usage: SnapshotUse,
    /// When it was committed.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The sandbox it was made of, which may be gone.
    pub source: SandboxId,
    /// Layers below its disks, topmost first, relative to the data directory.
    pub layers: Vec<PathBuf>,
    /// Its disks, topmost first.
    pub disks: Vec<DiskId>,
    /// Its memory; `None` when the source had none.
    pub image: Option<ImageId>,
    /// The engine build that wrote the memory.
    pub build: BuildId,
    /// Limits of the source, which a restore of the memory needs again.
    pub limits: Limits,
}

impl Snapshot {
    /// How callers refer to it: `<namespace>/<name>:<tag>`, or `<id>:default`.
    pub fn reference(&self) -> String {
        match &self.name {
            Some(name) => name.to_string(),
            None => format!("{}:default", self.id),
        }
    }
}
