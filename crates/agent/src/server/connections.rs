//! The connections that are open now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Cuts one connection.
#[derive(Debug, Default)]
pub(crate) struct Hangup(Notify);

impl Hangup {
    /// Asks the owner of the connection to close it.
    pub(crate) fn hang_up(&self) {
        self.0.notify_one();
    }

    /// Resolves once [`Self::hang_up`] was called, also if that was before.
    pub(crate) async fn requested(&self) {
        self.0.notified().await;
    }
}

/// All open connections, to be cut together.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    hangups: HashMap<u64, Arc<Hangup>>,
}

/// Keeps a connection registered while it lives.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    connections: &'a Connections,
    id: u64,
    /// Cuts this connection.
    pub(crate) hangup: Arc<Hangup>,
}

impl Connections {
    /// Registers a connection that was just accepted.
    pub(crate) fn register(&self) -> Registration<'_> {
        let hangup = Arc::new(Hangup::default());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let id = open.next;
        open.next += 1;
        open.hangups.insert(id, Arc::clone(&hangup));
        Registration {
            connections: self,
            id,
            hangup,
        }
    }

    /// Cuts everything that is registered now.
    pub(crate) fn hang_up_all(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for hangup in open.hangups.values() {
            hangup.hang_up();
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.hangups.remove(&self.id);
    }
}
