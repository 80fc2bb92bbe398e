//! Everything the agent knows, shared by both listeners.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::connect::{Caller, Code, RpcError};
use crate::filesystem::Watchers;
use crate::host::hooks::Hooks;
use crate::host::watch::HostWatch;
use crate::log::Log;
use crate::metrics::Meter;
use crate::paths;
use crate::process::Processes;
use crate::server::Connections;
use crate::settings::Settings;
use crate::users::{self, User};

/// The state of the agent. All of it is memory: it survives a restore from a memory image.
#[derive(Debug)]
pub(crate) struct Agent {
    settings: Mutex<Settings>,
    /// What happened, for the owner of the sandbox.
    pub(crate) log: Arc<Log>,
    /// Processes that clients started.
    pub(crate) processes: Arc<Processes>,
    /// Directories that clients watch.
    pub(crate) watchers: Watchers,
    /// Programs of the owner around a pause.
    pub(crate) hooks: Hooks,
    /// Client connections and tunnels; cut when a new execution begins.
    pub(crate) clients: Connections,
    /// Connections of the host.
    pub(crate) hosts: Connections,
    /// Whether the host watches the memory.
    pub(crate) host_watch: Arc<HostWatch>,
    /// CPU use between two calls.
    meter: Meter,
    /// How long a subscriber may hold back a process.
    pub(crate) stall_limit: Duration,
}

impl Agent {
    /// An agent nobody has initialised yet.
    pub(crate) fn new(default_user: String, stall_limit: Duration, hooks: Hooks) -> Arc<Self> {
        let log = Arc::<Log>::default();
        Arc::new(Self {
            settings: Mutex::new(Settings::new(default_user)),
            processes: Arc::new(Processes::new(Arc::clone(&log))),
            log,
            watchers: Watchers::default(),
            hooks,
            clients: Connections::default(),
            hosts: Connections::default(),
            host_watch: Arc::default(),
            meter: Meter::default(),
            stall_limit,
        })
    }

    /// The settings, to be read or changed at once: never across an await.
    pub(crate) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this sandbox uses now.
    pub(crate) fn measure(&self) -> std::io::Result<agent_api::Metrics> {
        let limit = self.settings().memory_limit;
        self.meter.measure(limit)
    }

    /// The user an RPC acts as.
    pub(crate) fn acting_user(&self, caller: &Caller) -> Result<User, RpcError> {
        let (name, kind) = match &caller.username {
            Some(name) => (name.clone(), "username"),
            None => (self.settings().default_user.clone(), "default user"),
        };
        let unknown = || RpcError::new(Code::Unauthenticated, format!("invalid {kind}: '{name}'"));
        users::find(&name).ok().flatten().ok_or_else(unknown)
    }

    /// What a path of a request means for `user`.
    pub(crate) fn resolve(&self, path: &str, user: &User) -> Result<String, RpcError> {
        let workdir = self.settings().default_workdir.clone();
        paths::resolve(path, user, &workdir).map_err(|error| RpcError::invalid(error.to_string()))
    }
}
