//! What the host and the in-sandbox agent say to each other.
//!
//! The agent listens on two ports. [`ENVD_PORT`] speaks E2B's envd contract and is what clients
//! reach through the edge. [`HOST_PORT`] is ours alone: the edge never forwards to it and the agent
//! refuses peers other than the gateway.
//!
//! The messages of the host channel are in [`messages`], one function per request in [`client`].
//! The caller dials (it has to do so inside the sandbox's network namespace) and bounds each call
//! with its own timeout.

pub mod client;
mod hooks;
mod log;
mod messages;
mod watch;

pub use client::{ClientError, Tunnel};
pub use hooks::{HookEnd, HookKind, HookRun, HooksReply, RunHooks};
pub use log::LogReader;
pub use messages::{
    Failure, InitReply, InitRequest, LogLine, Metrics, PrepareReply, PrepareRequest,
};
pub use watch::MemoryWatch;

/// TCP port of the envd contract, fixed by the E2B SDKs.
pub const ENVD_PORT: u16 = 49983;
/// TCP port of the private channel between host and agent.
pub const HOST_PORT: u16 = 49982;
/// The only peer address the agent accepts on [`HOST_PORT`] unless told otherwise.
pub const HOST_PEER: &str = "169.254.0.22";
/// Version of the envd contract the agent implements, as reported to SDKs.
///
/// SDKs switch features on by it and Python's parser rejects suffixes, so it stays a plain triple.
pub const ENVD_VERSION: &str = "0.6.13";

/// File that the engine leaves at a boot so that `/tmp` is not empty (gVisor would mount a tmpfs of
/// its own over it); the agent removes it when it runs as PID 1.
pub const BOOT_MARK: &str = "/tmp/.sandbase-boot";

/// Path of the liveness probe of the host channel.
pub const HEALTH_PATH: &str = "/health";
/// Path of the initialisation call of the host channel.
pub const INIT_PATH: &str = "/init";
/// Path of the call that precedes a checkpoint.
pub const PREPARE_PATH: &str = "/prepare";
/// Path of the call that runs hooks.
pub const HOOKS_PATH: &str = "/hooks";
/// Path of the byte tunnel to a loopback listener, `?port=N`.
pub const TUNNEL_PATH: &str = "/tunnel";
/// Path of the resource usage of the guest.
pub const METRICS_PATH: &str = "/metrics";
/// Path of the request that is open while the host watches the guest's memory.
pub const MEMORY_WATCH_PATH: &str = "/memory-watch";
/// How long the agent relies on one such request.
pub const MEMORY_WATCH_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);
/// Path of the agent's log, `?boot=ID&after=NUMBER`.
pub const LOG_PATH: &str = "/log";
/// `Upgrade` token of [`TUNNEL_PATH`].
pub const TUNNEL_PROTOCOL: &str = "sandbase-tunnel";
