//! Watching directories (contract §5.8).
//!
//! A [`Watcher`] owns one inotify descriptor. Whoever comes first reads it: the task or stream that
//! waits for it, or [`Watchers::settle`], which uploads call before they answer, so that a client
//! that asks right afterwards finds its own events.

pub(super) mod service;
mod stream;
mod tree;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use self::tree::{Change, Tree};
use crate::descriptor::register;

/// Unread changes after which a watcher fails, so that one nobody asks cannot fill the memory.
const UNREAD_LIMIT: usize = 100_000;
/// Characters of an id after its `w`.
const ID_LENGTH: usize = 20;

/// All watchers, those of streams and those that are asked.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    entries: Mutex<HashMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    watcher: Arc<Watcher>,
    /// The task that reads for a watcher that is asked.
    reader: Option<AbortHandle>,
}

/// One watched directory.
#[derive(Debug)]
pub(super) struct Watcher {
    descriptor: AsyncFd<OwnedFd>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    unread: VecDeque<Change>,
    failure: Option<String>,
    /// Whether events that are asked for describe their files.
    include_entry: bool,
}

impl Watchers {
    /// Reads what all watchers have waiting.
    pub(crate) fn settle(&self) {
        let watchers: Vec<_> = self
            .lock()
            .values()
            .map(|entry| Arc::clone(&entry.watcher))
            .collect();
        for watcher in watchers {
            watcher.drain();
        }
    }

    fn add(&self, watcher: &Arc<Watcher>, reader: Option<AbortHandle>) -> String {
        let id = random_id();
        self.lock().insert(
            id.clone(),
            Entry {
                watcher: Arc::clone(watcher),
                reader,
            },
        );
        id
    }

    /// A watcher that can be asked.
    fn find(&self, id: &str) -> Option<Arc<Watcher>> {
        let entries = self.lock();
        let entry = entries.get(id).filter(|entry| entry.reader.is_some())?;
        Some(Arc::clone(&entry.watcher))
    }

    /// Forgets a watcher; false when there is none.
    fn remove(&self, id: &str) -> bool {
        let Some(entry) = self.lock().remove(id) else {
            return false;
        };
        if let Some(reader) = entry.reader {
            reader.abort();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher {
    /// Starts watching; everything from now on is seen.
    fn start(root: String, recursive: bool) -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let tree = Tree::start(&descriptor, root, recursive)?;
        let descriptor = register(descriptor, Interest::READABLE)?;
        let state = State {
            tree,
            unread: VecDeque::new(),
            failure: None,
            include_entry: false,
        };
        Ok(Self {
            descriptor,
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// Waits until something happened, and reads it.
    async fn wait(&self) -> io::Result<()> {
        tokio::select! {
            ready = self.descriptor.readable() => {
                let mut ready = ready?;
                self.drain();
                ready.clear_ready();
            }
            () = self.changed.notified() => {}
        }
        Ok(())
    }

    /// Reads for ever.
    async fn run(self: Arc<Self>) {
        while self.wait().await.is_ok() {}
    }

    /// Reads what is waiting, without waiting for more.
    fn drain(&self) {
        let mut state = self.lock();
        let State {
            tree,
            unread,
            failure,
            ..
        } = &mut *state;
        if failure.is_some() {
            return;
        }
        let before = unread.len();
        if let Err(error) = tree.read(self.descriptor.get_ref(), unread) {
            *failure = Some(error.to_string());
        } else if unread.len() > UNREAD_LIMIT {
            unread.clear();
            *failure = Some("too many unread events".to_owned());
        }
        if unread.len() != before || failure.is_some() {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut bytes = [0_u8; ID_LENGTH];
    let _best_effort = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let letters = bytes.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    std::iter::once('w').chain(letters).collect()
}
