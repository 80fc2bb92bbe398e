//! `sandbase-agent`: the first process of every sandbox, and the only one the host talks to.
//!
//! ```text
//! edge ──► envd port ──► envd.rs ──┬─► process/     commands and terminals
//!                                  ├─► filesystem/  stat, list, move, watch
//!                                  └─► files/       upload and download
//! host ──► host port ──► host/     init, prepare, metrics, log, tunnels to loopback
//! ```
//!
//! One thread runs everything; file work goes to a few helper threads that end when idle. An
//! idle agent does not wake up; while there are processes, it looks after the memory when the host
//! does not.
//!
//! Invariants:
//! - every child of init is collected, and only through `process::reaper`;
//! - nothing a client sends makes the agent panic or hold unbounded memory;
//! - initialisation comes over the host port only, from the gateway's address only.

mod agent;
mod arguments;
mod connect;
mod descriptor;
mod envd;
mod files;
mod filesystem;
#[cfg(test)]
mod fuzz;
mod host;
mod log;
mod metrics;
mod paths;
mod process;
mod server;
mod settings;
mod users;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::agent::Agent;
use crate::arguments::Arguments;

/// Helper threads for file work. They are few because the guest may have one CPU, and end soon
/// because each keeps an allocator arena.
const HELPER_THREADS: usize = 16;
const HELPER_IDLE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let failure = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => run(arguments),
        Err(error) => Err(error.into()),
    };
    match failure {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is no log in the guest: the engine keeps what the first process writes.
            let _nobody_listens = writeln!(std::io::stderr(), "sandbase-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), server::BoxError> {
    host::memory::keep_small();
    process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HELPER_THREADS)
        .thread_keep_alive(HELPER_IDLE)
        .build()?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<(), server::BoxError> {
    if std::process::id() != 1 {
        // Started on an ordinary machine: orphans still come to us, as they do to init.
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    } else {
        // Not there after a start of anything but our own engine.
        let _absent = std::fs::remove_file(agent_api::BOOT_MARK);
    }
    let hooks = host::hooks::Hooks::new(arguments.hooks);
    let agent = Agent::new(arguments.default_user, arguments.stall_limit, hooks);
    let envd = TcpListener::bind(arguments.envd).await?;
    let host_channel = TcpListener::bind(arguments.host_channel).await?;
    let envd = server::serve(envd, envd::Envd(Arc::clone(&agent)));
    let host = host::HostChannel {
        agent: Arc::clone(&agent),
        peer: arguments.host_peer,
    };
    let host = server::serve(host_channel, host);
    tokio::select! {
        never = envd => never,
        never = host => never,
        ended = Arc::clone(&agent.processes.reaper).run() => ended?,
        never = process::guard_memory(&agent) => never,
    }
    Ok(())
}
