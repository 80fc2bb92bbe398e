//! Output of one process, copied to everyone who watches it (contract §4.8).
//!
//! Delivery is lock-step: the reader waits until each subscriber has taken a chunk, so a slow one
//! slows the process down instead of filling memory. The wait is bounded: a subscriber that takes
//! nothing for the stall limit is dropped and its connection cut, or one half-dead client would
//! freeze the command for everyone.
//!
//! What is written while nobody is subscribed is thrown away, and counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::messages::Output;
use crate::server::Hangup;

/// Chunks a subscriber may be behind; with 32 KiB chunks half a mebibyte.
const BACKLOG: usize = 16;

/// The subscribers of one process.
#[derive(Debug)]
pub(crate) struct Fanout {
    /// `None` once the process has ended.
    subscribers: Mutex<Option<Vec<Subscriber>>>,
    stall_limit: Duration,
    written: Mutex<Written>,
}

/// Bytes the process has written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
    pub(crate) pty: u64,
    /// Of all these, how many nobody was there for.
    pub(crate) discarded: u64,
}

#[derive(Debug, Clone)]
struct Subscriber {
    sender: mpsc::Sender<Output>,
    hangup: Arc<Hangup>,
}

impl Fanout {
    /// Nobody is subscribed yet.
    pub(crate) fn new(stall_limit: Duration) -> Self {
        Self {
            subscribers: Mutex::new(Some(Vec::new())),
            stall_limit,
            written: Mutex::default(),
        }
    }

    /// How much has been written so far.
    pub(crate) fn written(&self) -> Written {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes to everything from now on. The channel closes when the process has ended, or
    /// when the subscriber was dropped.
    pub(crate) fn subscribe(&self, hangup: Arc<Hangup>) -> mpsc::Receiver<Output> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        if let Some(subscribers) = self.lock().as_mut() {
            subscribers.push(Subscriber { sender, hangup });
        }
        receiver
    }

    /// Hands one chunk to all subscribers. Without any it is thrown away.
    pub(crate) async fn publish(&self, output: Output) {
        let subscribers = self.lock().clone().unwrap_or_default();
        self.count(&output, subscribers.is_empty());
        let mut full = Vec::new();
        let mut gone = Vec::new();
        for subscriber in subscribers {
            match subscriber.sender.try_send(output.clone()) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => full.push(subscriber),
                Err(TrySendError::Closed(_)) => gone.push(subscriber),
            }
        }
        for subscriber in full {
            let send = subscriber
                .sender
                .send_timeout(output.clone(), self.stall_limit);
            if send.await.is_err() {
                subscriber.hangup.hang_up();
                gone.push(subscriber);
            }
        }
        if !gone.is_empty()
            && let Some(subscribers) = self.lock().as_mut()
        {
            subscribers.retain(|one| !gone.iter().any(|two| two.sender.same_channel(&one.sender)));
        }
    }

    /// Closes all channels, now and for later subscribers.
    pub(crate) fn close(&self) {
        self.lock().take();
    }

    fn count(&self, output: &Output, nobody_listens: bool) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let (counter, data) = match output {
            Output::Stdout(data) => (&mut written.stdout, data),
            Output::Stderr(data) => (&mut written.stderr, data),
            Output::Pty(data) => (&mut written.pty, data),
        };
        *counter += data.len() as u64;
        if nobody_listens {
            written.discarded += data.len() as u64;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Subscriber>>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
