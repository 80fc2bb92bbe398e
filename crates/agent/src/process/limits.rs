//! How many files may be open.
//!
//! Every process costs the agent up to four descriptors, so it raises its own limit as far as it
//! may; its children get the one it was started with.

use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// Called once at the start.
pub(crate) fn raise_open_files() {
    let inherited = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: inherited.maximum,
        maximum: inherited.maximum,
    };
    let _best_effort = setrlimit(Resource::Nofile, raised);
    INHERITED.get_or_init(|| inherited);
}

/// The limit of children.
pub(super) fn open_files() -> Option<libc::rlimit> {
    let inherited = INHERITED.get()?;
    let number = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    Some(libc::rlimit {
        rlim_cur: number(inherited.current),
        rlim_max: number(inherited.maximum),
    })
}
