//! Snapshots in use: one that something is being made from is not deleted at that moment.
//!
//! Whoever reads a snapshot's files holds a [`Lease`]. A deletion is refused while there is one, and
//! a snapshot that is replaced by another of its name keeps its files until there is none. Whoever
//! asks for a lease while a deletion decides waits, and finds the snapshot either whole or not at all.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::Snapshot;

/// Read by those who use the snapshot, written by those who delete it.
pub(super) type Gate = Arc<RwLock<()>>;

/// The right to remove a snapshot's files.
pub(super) type Deletion = OwnedRwLockWriteGuard<()>;

/// A snapshot whose files stay where they are until the last clone of this is dropped.
#[derive(Clone, Debug)]
pub struct Lease {
    snapshot: Arc<Snapshot>,
    _in_use: Arc<OwnedRwLockReadGuard<()>>,
}

impl Lease {
    pub(super) async fn wait_for(snapshot: Arc<Snapshot>, gate: Gate) -> Self {
        Self {
            snapshot,
            _in_use: Arc::new(gate.read_owned().await),
        }
    }
}

impl Deref for Lease {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}
