//! What every request needs.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::ApiKey;
use crate::history::History;
use crate::sandbox::Sandboxes;
use crate::transfer::EngineBuilds;

/// What the HTTP side of the server works with. Cheap to clone.
#[derive(Clone)]
pub struct HttpState {
    /// All sandboxes.
    pub sandboxes: Arc<Sandboxes>,
    /// What they used and did.
    pub history: History,
    /// The key that API callers must present.
    pub key: ApiKey,
    /// Domain given to clients, for example `localhost:3000`; may carry a port. Hosts of the form
    /// `<port>-<sandbox id>.<anything>` are sandbox hosts whatever this says.
    pub domain: Arc<str>,
    /// Hosts (without port) besides localhost, IP addresses and `sandbox.<domain>` on which the
    /// headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port` are honoured.
    pub extra_hosts: Arc<[String]>,
    /// What an import does with engine builds that are not kept here.
    pub engine_builds: EngineBuilds,
    /// Owner of every task that outlives the future that started it: API calls whose client has
    /// left, and upgraded connections.
    pub tasks: TaskTracker,
}

impl HttpState {
    /// A state with its own task tracker.
    pub fn new(
        sandboxes: Arc<Sandboxes>,
        history: History,
        key: ApiKey,
        domain: String,
        extra_hosts: Vec<String>,
    ) -> Self {
        Self {
            sandboxes,
            history,
            key,
            domain: domain.into(),
            extra_hosts: extra_hosts.into(),
            engine_builds: EngineBuilds::Refuse,
            tasks: TaskTracker::new(),
        }
    }
}
