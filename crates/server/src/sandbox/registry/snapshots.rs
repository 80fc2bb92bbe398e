//! What is made of a sandbox and kept: snapshots and exports.

use std::path::PathBuf;
use std::sync::Arc;

use super::Sandboxes;
use crate::sandbox::driver::{Published, Request};
use crate::sandbox::files::SandboxFiles;
use crate::sandbox::state::State;
use crate::sandbox::{SandboxError, SandboxId, SandboxView, SnapshotRequest, Storage};
use crate::snapshots::{Snapshot, SnapshotName, SnapshotUse, Snapshots};
use crate::transfer::{Exported, Readable, TransferError};

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
        let exported = self.transfers.export(&snapshot, memory).await;
        // What is exported is open, and needs its names no more.
        if let Err(error) = self.context.snapshots.delete(&snapshot.id).await {
            tracing::warn!(snapshot.id = %snapshot.id, %error, "the snapshot of an export is left for the next start");
        }
        Ok(exported?)
    }

    /// Opens a snapshot for an export.
    pub async fn export_snapshot(
        &self,
        reference: &str,
        memory: bool,
    ) -> Result<Exported, ExportError> {
        let lease = self.context.snapshots.lease_named(reference).await;
        let unknown = || SandboxError::SnapshotNotFound(reference.to_owned());
        let lease = lease.ok_or_else(unknown)?;
        Ok(self.transfers.export(&lease, memory).await?)
    }

    /// Opens the files of a paused sandbox that can be read, also when its disk is damaged. A
    /// connect or a kill ends the reading.
    pub async fn readable_files(
        &self,
        id: &SandboxId,
    ) -> Result<(Readable, impl Future<Output = ()> + Send + 'static), ExportError> {
        let mut published = self.find(id)?.published;
        let record = Arc::clone(&published.borrow_and_update().record);
        match &record.state {
            State::Paused { .. } => {}
            State::Creating { .. } | State::Killing { .. } => {
                return Err(SandboxError::NotFound(id.clone()).into());
            }
            State::Running { .. } => return Err(SandboxError::NotPaused(id.clone()).into()),
            State::Pausing { .. }
            | State::Resuming { .. }
            | State::Keeping { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. } => return Err(SandboxError::Busy(id.clone()).into()),
        }
        let alone = self.context.warm.drop_of(id);
        let alone = tokio::time::timeout(self.context.settings.disk_wait, alone).await;
        alone.map_err(|_| self.context.disk_in_use(id))?;
        let folder = SandboxFiles::new(&self.context.data_dir, id).disks();
        let disks = [&record.disks.own].into_iter().chain(&record.disks.sealed);
        let disks: Vec<_> = disks.map(|disk| folder.path(disk)).collect();
        let opened = self.transfers.readable(&record.spec.layers, &disks).await;
        // What was opened beside somebody else, or not opened for that, says nothing of the disks.
        if published.borrow().record.generation != record.generation {
            return Err(SandboxError::Busy(id.clone()).into());
        }
        let opened = opened?;
        let not_paused_any_more = async move {
            let paused = |now: &Published| matches!(now.record.state, State::Paused { .. });
            // An error means that the sandbox is gone.
            let _ = published.wait_for(|now| !paused(now)).await;
        };
        Ok((opened, not_paused_any_more))
    }

    /// The same of a snapshot, which stays until they are read.
    pub async fn readable_files_of_snapshot(
        &self,
        reference: &str,
    ) -> Result<(Readable, impl Future<Output = ()> + Send + 'static), ExportError> {
        let lease = self.context.snapshots.lease_named(reference).await;
        let unknown = || SandboxError::SnapshotNotFound(reference.to_owned());
        let lease = lease.ok_or_else(unknown)?;
        let folder = self.context.snapshots.files(&lease.id).disks();
        let disks: Vec<_> = lease.disks.iter().map(|disk| folder.path(disk)).collect();
        let opened = self.transfers.readable(&lease.layers, &disks).await?;
        Ok((opened, async move {
            let _until_the_end = lease;
            std::future::pending().await
        }))
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
        if let Some(name) = &request.name {
            self.check_name(name)?;
        }
        let answered = self.ask(id, Request::Snapshot(request)).await?;
        answered
            .snapshot
            .ok_or_else(|| SandboxError::NotFound(id.clone()))
    }

    /// Refuses a name by which something else is found already.
    pub fn check_name(&self, name: &SnapshotName) -> Result<(), SandboxError> {
        let word = &name.name;
        let snapshots = self.context.snapshots.named(word);
        let is_id = snapshots.iter().any(|other| other.id.as_str() == word);
        if is_id || self.templates.find(word).is_some() {
            return Err(SandboxError::NameTaken(word.clone()));
        }
        Ok(())
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
        let lease = self.context.snapshots.lease(&snapshot.id).await;
        let gone = || SandboxError::SnapshotNotFound(reference.to_owned());
        let request = Request::Rollback(lease.ok_or_else(gone)?);
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
    /// sandbox exists that was made from one of them, or something is being made from one.
    pub async fn delete_snapshot(&self, reference: &str) -> Result<(), SandboxError> {
        let doomed = self.context.snapshots.all_tags(reference);
        if doomed.is_empty() {
            return Err(SandboxError::SnapshotNotFound(reference.to_owned()));
        }
        // First: a create that has its lease later finds the snapshot gone, or waits until it stays.
        let unused = self.context.snapshots.doom(doomed.clone());
        let busy = || SandboxError::SnapshotBusy(reference.to_owned());
        let unused = unused.ok_or_else(busy)?;
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
        let deleted = self.context.snapshots.delete_doomed(unused).await;
        deleted.map_err(|error| SandboxError::Failed {
            action: "deletion of a snapshot",
            left_as: "to be deleted at the next start at the latest",
            cause: format!("{error:?}"),
        })
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
