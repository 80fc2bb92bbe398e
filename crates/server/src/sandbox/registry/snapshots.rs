//! What is made of a sandbox and kept: snapshots and exports.

use std::path::PathBuf;
use std::sync::Arc;

use super::Sandboxes;
use crate::sandbox::driver::Request;
use crate::sandbox::files::SandboxFiles;
use crate::sandbox::{SandboxError, SandboxId, SandboxView, SnapshotRequest, Storage};
use crate::snapshots::{Snapshot, SnapshotUse, Snapshots};
use crate::transfer::{Exported, TransferError};

impl Sandboxes {
    /// Opens a sandbox as it is now for an export, by way of a snapshot that nobody sees. A running
    /// one stands still meanwhile, as for any snapshot. Without memory, a memory image that cannot be
    /// read any more is no obstacle.
    pub async fn export(&self, id: &SandboxId, memory: bool) -> Result<Exported, ExportError> {
        let request = SnapshotRequest {
            name: None,
            usage: SnapshotUse::Fork,
            memory,
        };
        let snapshot = self.snapshot(id, request).await?;
        let exported = self.transfers.export(Arc::clone(&snapshot), memory).await;
        // What is exported is open, and needs its names no more.
        if let Err(error) = self.context.snapshots.delete(&snapshot.id).await {
            tracing::warn!(snapshot.id = %snapshot.id, %error, "the snapshot of an export is left for the next start");
        }
        Ok(exported?)
    }

    /// The snapshots of this server.
    pub fn snapshots(&self) -> &Snapshots {
        &self.context.snapshots
    }

    /// Makes a snapshot of a running or paused sandbox. A running one stands still meanwhile and its
    /// connections are cut, as by a pause.
    pub async fn snapshot(
        &self,
        id: &SandboxId,
        request: SnapshotRequest,
    ) -> Result<Arc<Snapshot>, SandboxError> {
        let answered = self.ask(id, Request::Snapshot(request)).await?;
        answered
            .snapshot
            .ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// Puts a sandbox back to one of its own snapshots, keeping its id, token and deadline. One that
    /// was running runs again when this returns.
    pub async fn rollback(
        &self,
        id: &SandboxId,
        reference: &str,
    ) -> Result<SandboxView, SandboxError> {
        let record = Arc::clone(&self.find(id)?.published.borrow().record);
        let named = self.context.snapshots.named(reference);
        // An imported one may claim any source: it must at least stand on the same ground.
        let own = |snapshot: &&Arc<Snapshot>| {
            snapshot.source == *id
                && snapshot.layers == record.spec.layers
                && snapshot.limits == record.spec.limits
        };
        let snapshot = named
            .iter()
            .filter(own)
            .max_by_key(|snapshot| snapshot.created_at);
        let Some(snapshot) = snapshot else {
            return Err(match named.is_empty() {
                true => SandboxError::SnapshotNotFound(reference.to_owned()),
                false => SandboxError::SnapshotOfAnother(reference.to_owned()),
            });
        };
        let request = Request::Rollback(Arc::clone(snapshot));
        let answered = self.ask(id, request).await?;
        answered
            .view
            .ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// What a sandbox takes on the host's disk.
    pub async fn storage(&self, id: &SandboxId) -> Result<Storage, SandboxError> {
        // For callers one that is being made or killed is not there.
        self.get(id)?;
        let directory = SandboxFiles::new(&self.context.data_dir, id)
            .root()
            .to_owned();
        added_up(directory).await
    }

    /// What a snapshot takes on the host's disk.
    pub async fn snapshot_storage(&self, reference: &str) -> Result<Storage, SandboxError> {
        let snapshot = self.context.snapshots.find(reference);
        let unknown = || SandboxError::SnapshotNotFound(reference.to_owned());
        let files = self
            .context
            .snapshots
            .files(&snapshot.ok_or_else(unknown)?.id);
        added_up(files.root().to_owned()).await
    }

    /// Deletes the snapshots that a reference names: all tags of a name. Refused as long as a
    /// sandbox exists that was made from one of them.
    pub async fn delete_snapshot(&self, reference: &str) -> Result<(), SandboxError> {
        let doomed = self.context.snapshots.all_tags(reference);
        if doomed.is_empty() {
            return Err(SandboxError::SnapshotNotFound(reference.to_owned()));
        }
        let used = self.live.all().into_iter().find_map(|handle| {
            let record = Arc::clone(&handle.published.borrow().record);
            let of = |snapshot: &Arc<Snapshot>| snapshot.id.as_str() == record.spec.template_id;
            doomed.iter().any(of).then(|| record.id.clone())
        });
        if let Some(user) = used {
            return Err(SandboxError::SnapshotInUse {
                snapshot: reference.to_owned(),
                sandbox: user,
            });
        }
        for snapshot in doomed {
            let deleted = self.context.snapshots.delete(&snapshot.id).await;
            deleted.map_err(|error| SandboxError::Failed {
                action: "deletion of a snapshot",
                left_as: "to be deleted at the next start at the latest",
                cause: format!("{error:?}"),
            })?;
        }
        Ok(())
    }
}

/// Why a sandbox was not exported; it is as before.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It could not be snapshotted.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The snapshot could not be read.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

async fn added_up(directory: PathBuf) -> Result<Storage, SandboxError> {
    let storage = crate::blocking::run(move || Storage::of(&directory)).await;
    storage.map_err(|error| SandboxError::Failed {
        action: "adding up of files",
        left_as: "as it was",
        cause: error.to_string(),
    })
}
