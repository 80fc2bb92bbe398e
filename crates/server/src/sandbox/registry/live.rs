//! The drivers by sandbox, and how many sandboxes may run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{mpsc, watch};

use crate::sandbox::driver::{Message, Published};
use crate::sandbox::{SandboxError, SandboxId};

/// The drivers by sandbox.
#[derive(Clone, Default)]
pub(in crate::sandbox) struct Live {
    drivers: Arc<RwLock<HashMap<SandboxId, Handle>>>,
    /// Executions that were admitted and are in no published record yet.
    admitted: Arc<AtomicUsize>,
}

/// A place among the running sandboxes, kept until this is dropped; by then the record that has the
/// execution must be published.
pub(in crate::sandbox) struct Admission(Arc<AtomicUsize>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone)]
pub(super) struct Handle {
    pub(super) inbox: mpsc::Sender<Message>,
    pub(super) published: watch::Receiver<Published>,
}

impl Live {
    pub(in crate::sandbox) fn remove(&self, id: &SandboxId) {
        self.drivers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    pub(super) fn insert(&self, id: SandboxId, handle: Handle) {
        self.drivers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, handle);
    }

    pub(super) fn find(&self, id: &SandboxId) -> Option<Handle> {
        self.drivers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    pub(super) fn all(&self) -> Vec<Handle> {
        let drivers = self.drivers.read().unwrap_or_else(PoisonError::into_inner);
        drivers.values().cloned().collect()
    }

    /// Refuses when `most` sandboxes have or are about to have an execution.
    pub(in crate::sandbox) fn admit(&self, most: usize) -> Result<Admission, SandboxError> {
        // For writing: two at once must not both take the last place.
        let drivers = self.drivers.write().unwrap_or_else(PoisonError::into_inner);
        let running = drivers.values().filter(|handle| {
            let state = &handle.published.borrow().record.state;
            state.execution().is_some() || state.counts_as_running()
        });
        if running.count() + self.admitted.load(Ordering::SeqCst) >= most {
            return Err(SandboxError::TooMany(most));
        }
        self.admitted.fetch_add(1, Ordering::SeqCst);
        Ok(Admission(Arc::clone(&self.admitted)))
    }
}
