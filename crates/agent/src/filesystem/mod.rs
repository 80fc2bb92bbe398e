//! The Filesystem service: entries of directories, and watching them (contract §5).

mod entry;
pub(crate) mod listing;
mod messages;
pub(crate) mod service;
mod watch;

pub(crate) use watch::Watchers;
pub(crate) use watch::service::{create_watcher, get_watcher_events, remove_watcher, watch_dir};
