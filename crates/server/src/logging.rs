//! What the program says on standard error while it works.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Logs to standard error from now on, as much as `SANDBASE_LOG` asks for (`info`).
pub fn start() {
    let filter = EnvFilter::try_from_env("SANDBASE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        // A line that cannot be written (a log file on a full disk) is lost. To say so on standard
        // error, too, would panic, and end whatever task had something to say.
        .log_internal_errors(false)
        .init();
}
