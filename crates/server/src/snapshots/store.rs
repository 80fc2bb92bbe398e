//! All snapshots of this server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_util::task::TaskTracker;

use super::lease::{Deletion, Gate, Lease};
use super::page::is_named;
use super::{Snapshot, SnapshotFiles, SnapshotId, SnapshotName, SnapshotUse};
use crate::db::{Db, DbError};

/// Finds, lists and deletes snapshots. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    db: Db,
    data_dir: PathBuf,
    known: Arc<RwLock<BTreeMap<SnapshotId, Known>>>,
    /// Owns the removal of snapshots that were replaced.
    tasks: TaskTracker,
    /// Held from before a snapshot's row is committed until [`Snapshots::committed`] has ended: two
    /// of one name must be taken up in the order in which they were committed.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Known {
    snapshot: Arc<Snapshot>,
    gate: Gate,
}

/// Snapshots that nothing is being made from, and nothing will be: they may be deleted.
pub(crate) struct Doomed(Vec<(Arc<Snapshot>, Deletion)>);

/// Why a snapshot was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The database cannot be written; nothing was deleted.
    #[error("the database cannot be written")]
    Db(#[from] DbError),
    /// Its files could not be removed; the next start of the server tries again.
    #[error("the files of snapshot {id} could not be removed")]
    Files {
        /// Which snapshot.
        id: SnapshotId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Snapshots {
    /// Loads all, and removes what a crash left of those that were to go.
    pub async fn open(db: Db, data_dir: &Path, tasks: TaskTracker) -> Result<Self, DbError> {
        let snapshots = Self {
            db,
            data_dir: data_dir.to_owned(),
            known: Arc::default(),
            tasks,
            turn: Arc::default(),
        };
        for snapshot in snapshots.db.load_snapshots().await? {
            match snapshot.usage {
                SnapshotUse::Listed => snapshots.remember(Arc::new(snapshot)),
                SnapshotUse::Fork | SnapshotUse::Deleting => {
                    if let Err(error) = snapshots.remove(&snapshot.id).await {
                        tracing::warn!(snapshot.id = %snapshot.id, %error, "a snapshot could not be removed");
                    }
                }
            }
        }
        snapshots.report_strangers();
        Ok(snapshots)
    }

    /// Where a snapshot keeps its files.
    pub fn files(&self, id: &SnapshotId) -> SnapshotFiles {
        SnapshotFiles::new(&self.data_dir, id)
    }

    /// Waits for the right to commit a snapshot.
    pub(crate) async fn turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Takes up a snapshot that was just committed, in place of an older one of the same name, whose
    /// files a task removes: whoever waits for a turn does not wait for that. The caller has the
    /// [`turn`](Self::turn).
    pub(crate) fn committed(&self, snapshot: Arc<Snapshot>) {
        let replaced: Vec<SnapshotId> = match &snapshot.name {
            Some(name) => self
                .listed()
                .iter()
                .filter(|old| old.id != snapshot.id && old.name.as_ref() == Some(name))
                .map(|old| old.id.clone())
                .collect(),
            None => Vec::new(),
        };
        self.remember(snapshot);
        for old in replaced {
            let Some(known) = self.forget(&old) else {
                continue;
            };
            let snapshots = self.clone();
            self.tasks.spawn(async move {
                let _unused = known.gate.write_owned().await;
                if let Err(error) = snapshots.remove(&old).await {
                    tracing::warn!(snapshot.id = %old, %error, "a replaced snapshot could not be removed");
                }
            });
        }
    }

    /// Keeps a snapshot while something is made from it. `None` when it is deleted meanwhile.
    pub(crate) async fn lease(&self, id: &SnapshotId) -> Option<Lease> {
        let known = self.known_as(id)?;
        let lease = Lease::wait_for(known.snapshot, known.gate).await;
        // A deletion that was waited for has taken it.
        self.known_as(id).map(|_| lease)
    }

    /// The snapshot that a reference names, as [`find`](Self::find) does, kept while it is used.
    pub(crate) async fn lease_named(&self, reference: &str) -> Option<Lease> {
        // One that is deleted in between may have been replaced by another of its name.
        while let Some(found) = self.find(reference) {
            if let Some(lease) = self.lease(&found.id).await {
                return Some(lease);
            }
        }
        None
    }

    /// The right to delete these snapshots. `None` as long as one of them is in use.
    pub(crate) fn doom(&self, snapshots: Vec<Arc<Snapshot>>) -> Option<Doomed> {
        let mut doomed = Vec::new();
        for snapshot in snapshots {
            // One that another deletion has taken meanwhile is as gone as it is to be.
            if let Some(known) = self.known_as(&snapshot.id) {
                doomed.push((snapshot, known.gate.try_write_owned().ok()?));
            }
        }
        Some(Doomed(doomed))
    }

    fn known_as(&self, id: &SnapshotId) -> Option<Known> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(id).cloned()
    }

    /// The snapshot that a reference names: `<id>`, `<id>:default`, `[<namespace>/]<name>[:<tag>]`.
    /// Without a tag, the newest of that name.
    pub fn find(&self, reference: &str) -> Option<Arc<Snapshot>> {
        let named = self.named(reference);
        named
            .into_iter()
            .max_by_key(|snapshot| (snapshot.created_at, snapshot.id.clone()))
    }

    /// All that a reference names; a tag chooses among those of one name.
    pub fn named(&self, reference: &str) -> Vec<Arc<Snapshot>> {
        let mut listed = self.listed();
        listed.retain(|snapshot| is_named(snapshot, reference));
        listed
    }

    /// All tags of the name that a reference names, or the one snapshot without a name.
    pub fn all_tags(&self, reference: &str) -> Vec<Arc<Snapshot>> {
        match SnapshotName::parse_parts(reference) {
            Ok((word, _)) => self.named(&word),
            Err(_) => Vec::new(),
        }
    }

    /// Everything that callers may see.
    pub fn listed(&self) -> Vec<Arc<Snapshot>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known
            .values()
            .map(|known| &known.snapshot)
            .filter(|snapshot| snapshot.usage == SnapshotUse::Listed)
            .cloned()
            .collect()
    }

    /// Deletes a snapshot as soon as nothing is being made from it. Sandboxes made from it have
    /// their own names of its files.
    pub async fn delete(&self, id: &SnapshotId) -> Result<(), DeleteError> {
        let _unused = match self.known_as(id) {
            Some(known) => Some(known.gate.write_owned().await),
            None => None,
        };
        self.delete_unused(id).await
    }

    /// Deletes what nothing is being made from.
    pub(crate) async fn delete_doomed(&self, doomed: Doomed) -> Result<(), DeleteError> {
        for (snapshot, _unused) in doomed.0 {
            self.delete_unused(&snapshot.id).await?;
        }
        Ok(())
    }

    async fn delete_unused(&self, id: &SnapshotId) -> Result<(), DeleteError> {
        self.db.mark_snapshot_deleting(id.clone()).await?;
        self.forget(id);
        self.remove(id).await
    }

    /// First the files, then the row: as long as anything is left, the row says that it has to go.
    async fn remove(&self, id: &SnapshotId) -> Result<(), DeleteError> {
        let files = self.files(id);
        let removed = crate::blocking::run(move || files.remove()).await;
        removed.map_err(|source| DeleteError::Files {
            id: id.clone(),
            source,
        })?;
        Ok(self.db.delete_snapshot(id.clone()).await?)
    }

    fn remember(&self, snapshot: Arc<Snapshot>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let gate = Gate::default();
        known.insert(snapshot.id.clone(), Known { snapshot, gate });
    }

    fn forget(&self, id: &SnapshotId) -> Option<Known> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(id)
    }

    /// A directory that no row names may be a snapshot whose database is lost: it is pointed out and
    /// left alone. One that was never finished is rubbish of a crash.
    fn report_strangers(&self) {
        let all = SnapshotFiles::all(&self.data_dir);
        for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if name.starts_with(".staging-") {
                if let Err(error) = crate::sandbox::remove_tree(&path) {
                    tracing::warn!(path = %path.display(), %error, "an unfinished snapshot could not be removed");
                }
                continue;
            }
            let id = SnapshotId::parse(&name);
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            if id.is_none_or(|id| !known.contains_key(&id)) {
                tracing::warn!(path = %path.display(), "this directory belongs to no snapshot of the database; remove it if you do not need it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::sandbox::SandboxId;

    fn named(name: &str) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            id: SnapshotId::random(),
            name: Some(SnapshotName::parse(name).unwrap()),
            usage: SnapshotUse::Listed,
            created_at: OffsetDateTime::now_utc(),
            source: SandboxId::parse("i1").unwrap(),
            layers: Vec::new(),
            disks: Vec::new(),
            image: None,
            build: engine::BuildId("build".to_owned()),
            limits: engine::Limits {
                cpu_milli: 1000,
                memory_bytes: 1,
                disk_bytes: 1,
                pids: 1,
            },
        })
    }

    /// On one thread: no other task gets on before this one waits.
    #[tokio::test]
    async fn the_next_turn_does_not_wait_for_the_removal_of_what_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("sandbase.db")).unwrap();
        let tasks = TaskTracker::new();
        let snapshots = Snapshots::open(db, folder.path(), tasks.clone());
        let snapshots = snapshots.await.unwrap();
        let (old, new) = (named("job"), named("job"));
        let files = snapshots.files(&old.id);
        std::fs::create_dir_all(files.root()).unwrap();

        let turn = snapshots.turn().await;
        snapshots.committed(Arc::clone(&old));
        snapshots.committed(Arc::clone(&new));
        drop(turn);
        assert!(snapshots.turn.try_lock().is_ok());
        assert_eq!(snapshots.find("job").unwrap().id, new.id);
        assert!(files.root().is_dir(), "its removal was waited for");

        tasks.close();
        tasks.wait().await;
        assert!(!files.root().exists());
    }
}
