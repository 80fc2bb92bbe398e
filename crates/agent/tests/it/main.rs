//! The real binary on loopback, spoken to over HTTP. Needs root, as the agent does.

mod agent;
mod files;
mod filesystem;
mod host;
mod process;
mod protocol;
mod watch;
