//! The Process service: commands and terminals (contract §4).
//!
//! Start reading at [`service`]; a started process lives in [`live`] and [`table`].

mod exit;
mod fanout;
mod guard;
mod limits;
mod live;
mod memory;
mod messages;
mod pipes;
mod reaper;
pub(crate) mod service;
mod spawn;
mod stream;
mod table;

pub(crate) use exit::ExitStatus;
pub(crate) use guard::guard_memory;
pub(crate) use limits::raise_open_files;
#[cfg(test)]
pub(crate) use messages::fuzzed_requests;
pub(crate) use pipes::read_now;
pub(crate) use spawn::Program;
pub(crate) use table::Processes;
