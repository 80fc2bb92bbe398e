//! Network slots: numbers claimed machine-wide, and namespaces prepared before they are needed.
//!
//! A slot is used by one execution and then thrown away, namespaces and all, so nothing of one
//! tenant (connection tracking, neighbours, rules) is left for the next. Making one takes tens of
//! milliseconds, so a thread of the pool keeps some ready.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::paths::{Paths, SLOT_CLAIMS};
use super::{Config, network};

/// A claim of another server this old without namespaces belongs to nobody.
const STALE_AFTER: Duration = Duration::from_secs(60);

/// Gives out network slots and takes them back.
pub(super) struct SlotPool {
    shared: Arc<Shared>,
    /// The thread that prepares slots, and what wakes it; `None` once closed.
    preparing: Mutex<Option<Preparing>>,
}

struct Preparing {
    wake: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

struct Shared {
    config: Config,
    paths: Paths,
    ready: Mutex<Vec<u32>>,
    /// Where to look for a free number next. Going round leaves the kernel time to clear away the
    /// interfaces of an earlier use.
    next: AtomicU32,
}

impl SlotPool {
    /// Removes what earlier servers of this data directory left, except `in_use`, and begins to
    /// prepare slots.
    pub(super) fn open(config: &Config, paths: &Paths, in_use: &HashSet<u32>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            config: config.clone(),
            paths: paths.clone(),
            ready: Mutex::new(Vec::new()),
            next: AtomicU32::new(rand::random::<u32>() % config.slot_count()),
        });
        for slot in shared.left_behind()? {
            if !in_use.contains(&slot) {
                shared.discard(slot)?;
            }
        }
        let (wake, wakes) = mpsc::channel();
        let preparing = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("network-slots".to_owned())
            .spawn(move || {
                preparing.fill();
                while wakes.recv().is_ok() {
                    while wakes.try_recv().is_ok() {}
                    preparing.fill();
                }
            })?;
        Ok(Self {
            shared,
            preparing: Mutex::new(Some(Preparing { wake, thread })),
        })
    }

    /// Something that gives slots back, for use on another thread.
    pub(super) fn handle(&self) -> SlotReturn {
        SlotReturn(Arc::clone(&self.shared))
    }

    /// Work for a blocking thread that answers a slot with fresh namespaces: at once if one is
    /// ready.
    pub(super) fn take(&self) -> impl FnOnce() -> io::Result<u32> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        let wake = self.preparing().as_ref().map(|it| it.wake.clone());
        move || {
            let ready = shared.ready().pop();
            let slot = ready.map_or_else(|| shared.make(), Ok);
            if let Some(wake) = wake {
                let _ = wake.send(());
            }
            slot
        }
    }

    /// Prepares no more slots and removes those that are ready.
    pub(super) fn close(&self) {
        let preparing = self.preparing().take();
        if let Some(Preparing { wake, thread }) = preparing {
            drop(wake);
            let _ = thread.join();
        }
        for slot in std::mem::take(&mut *self.shared.ready()) {
            if let Err(error) = self.shared.discard(slot) {
                tracing::warn!(slot, %error, "a prepared network slot was left behind");
            }
        }
    }

    fn preparing(&self) -> std::sync::MutexGuard<'_, Option<Preparing>> {
        self.preparing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives slots back.
pub(super) struct SlotReturn(Arc<Shared>);

impl SlotReturn {
    /// Removes the namespaces and frees the number. Removing what is gone is success.
    pub(super) fn discard(&self, slot: u32) -> io::Result<()> {
        self.0.discard(slot)
    }
}

impl Drop for SlotPool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn ready(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self) {
        while self.ready().len() < self.config.ready_slots {
            match self.make() {
                Ok(slot) => self.ready().push(slot),
                Err(error) => {
                    // Whoever needs a slot next tries again and reports it.
                    tracing::warn!(%error, "no network slot could be prepared");
                    return;
                }
            }
        }
    }

    fn make(&self) -> io::Result<u32> {
        let slot = self.claim_number()?;
        let made = network::create(&self.config, &self.paths, slot);
        if made.is_err() {
            let _ = self.discard(slot);
        }
        made.map(|()| slot)
    }

    fn discard(&self, slot: u32) -> io::Result<()> {
        network::remove(&self.paths, slot)?;
        match std::fs::remove_file(claim_file(slot)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Claims a free number by creating its file, which only one of all servers can.
    fn claim_number(&self) -> io::Result<u32> {
        let count = self.config.slot_count();
        for _ in 0..count {
            let slot = self.next.fetch_add(1, Ordering::Relaxed) % count;
            let file = claim_file(slot);
            match std::fs::File::create_new(&file) {
                Ok(mut claim) => {
                    claim.write_all(self.paths.tag.as_bytes())?;
                    if !network::uplink_exists(&self.paths, slot) {
                        return Ok(slot);
                    }
                    std::fs::remove_file(&file)?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if self.is_stale(slot, &file) {
                        let _ = std::fs::remove_file(&file);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other(format!(
            "all {count} network slots are taken"
        )))
    }

    /// Whether a server that is gone for good left this claim. Our own are dealt with at the start.
    fn is_stale(&self, slot: u32, file: &Path) -> bool {
        let Ok(owner) = std::fs::read_to_string(file) else {
            return false;
        };
        if owner == self.paths.tag {
            return false;
        }
        let old = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > STALE_AFTER));
        old && !self
            .paths
            .netns(&network::gateway_name(&owner, slot))
            .exists()
    }

    /// Slots of this tag that have a claim or a namespace.
    fn left_behind(&self) -> io::Result<HashSet<u32>> {
        let mut slots = HashSet::new();
        for entry in std::fs::read_dir(SLOT_CLAIMS)? {
            let entry = entry?;
            let slot = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let owner = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if let Some(slot) = slot.filter(|_| owner == self.paths.tag) {
                slots.insert(slot);
            }
        }
        let namespaces = self.paths.netns("");
        for entry in std::fs::read_dir(namespaces)? {
            let name = entry?.file_name();
            let slot = name
                .to_str()
                .and_then(|name| network::slot_of(&self.paths.tag, name));
            slots.extend(slot);
        }
        Ok(slots)
    }
}

fn claim_file(slot: u32) -> PathBuf {
    Path::new(SLOT_CLAIMS).join(slot.to_string())
}
