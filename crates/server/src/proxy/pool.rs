//! Connections to agents that are kept between requests.
//!
//! Only the agent's port: SDKs call it all the time and it serves many connections at once. User
//! services may serve one connection at a time, and a kept idle one would lock everybody else out.
//! Connections are kept by execution, so that none outlives a run; whoever drives one drops it when
//! the run ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use engine::ExecutionId;
use hyper::client::conn::http1::SendRequest;

/// Kept per execution, busy ones included. More are opened when needed, and closed after use.
const MOST_KEPT: usize = 128;

/// All kept connections.
#[derive(Clone, Default)]
pub(super) struct Pool {
    kept: Arc<Mutex<HashMap<ExecutionId, Vec<SendRequest<Body>>>>>,
}

impl Pool {
    /// A connection that can take a request now.
    pub(super) fn take(&self, execution: &ExecutionId) -> Option<SendRequest<Body>> {
        let mut kept = self.lock();
        let senders = kept.get_mut(execution)?;
        senders.retain(|sender| !sender.is_closed());
        let at = senders.iter().position(SendRequest::is_ready)?;
        Some(senders.swap_remove(at))
    }

    /// Keeps a connection that has been used. It may still be busy with the bodies of an exchange.
    pub(super) fn keep(&self, execution: &ExecutionId, sender: SendRequest<Body>) {
        let mut kept = self.lock();
        if sender.is_closed() {
            return;
        }
        let senders = kept.entry(execution.clone()).or_default();
        if senders.len() < MOST_KEPT {
            senders.push(sender);
        }
    }

    /// Forgets connections that have ended.
    pub(super) fn prune(&self, execution: &ExecutionId) {
        let mut kept = self.lock();
        if let Some(senders) = kept.get_mut(execution) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                kept.remove(execution);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ExecutionId, Vec<SendRequest<Body>>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
