//! What the machine of a local server tells: itself, its page cache, its processes.

mod cache;
mod cgroup;
mod machine;
mod processes;

pub(crate) use cache::PageCache;
pub(crate) use cgroup::{Execution, available_memory};
pub use machine::Machine;
pub(crate) use processes::{Used, of_command_line};
