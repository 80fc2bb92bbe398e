//! Output of one process, copied to everyone who watches it (contract §4.8).
//!
//! Delivery is lock-step: the reader waits until each subscriber has taken a chunk, so a slow one
//! slows the process down instead of filling memory. The wait is bounded twice: a subscriber that
//! takes nothing for the stall limit is dropped and its connection cut; and one that makes others
//! wait is, once it has done so for the patience in all. Or one half-dead client would freeze the
//! command for everyone.
//!
//! What is written while nobody is subscribed is thrown away, and counted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::messages::Output;
use crate::server::Hangup;

/// Chunks a subscriber may be behind; with 32 KiB chunks half a mebibyte.
const BACKLOG: usize = 16;
/// How long one subscriber may make the others wait, altogether.
const PATIENCE: Duration = Duration::from_secs(2);

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
    /// How long it may still make others wait.
    patience: Arc<Mutex<Duration>>,
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
            subscribers.push(Subscriber {
                sender,
                hangup,
                patience: Arc::new(Mutex::new(PATIENCE.min(self.stall_limit))),
            });
        }
        receiver
    }

    /// Hands one chunk to all subscribers. Without any it is thrown away.
    pub(crate) async fn publish(&self, output: Output) {
        let subscribers = self.lock().clone().unwrap_or_default();
        self.count(&output, subscribers.is_empty());
        let everybody = subscribers.len();
        let alone = everybody < 2;
        let mut full = Vec::new();
        let mut gone = Vec::new();
        for subscriber in subscribers {
            match subscriber.sender.try_send(output.clone()) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => full.push(subscriber),
                Err(TrySendError::Closed(_)) => gone.push(subscriber),
            }
        }
        if full.len() > 1 && full.len() == everybody {
            // They are slow together: nobody makes the others wait until the first has room.
            let (first, sent) = self.wait_for_any(&full, &output).await;
            let first = full.swap_remove(first);
            if !sent {
                first.hangup.hang_up();
                gone.push(first);
            }
        }
        for subscriber in full {
            let limit = if alone {
                self.stall_limit
            } else {
                subscriber.patience()
            };
            let begin = Instant::now();
            let send = subscriber.sender.send_timeout(output.clone(), limit);
            if send.await.is_err() {
                subscriber.hangup.hang_up();
                gone.push(subscriber);
            } else if !alone {
                subscriber.use_up(begin.elapsed());
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

    /// Hands the chunk to whoever has room first; says who, and whether it was taken in time.
    async fn wait_for_any(&self, full: &[Subscriber], output: &Output) -> (usize, bool) {
        let room = full
            .iter()
            .map(|subscriber| Box::pin(subscriber.sender.reserve()));
        let any = futures_util::future::select_all(room);
        match tokio::time::timeout(self.stall_limit, any).await {
            Ok((Ok(room), index, _)) => {
                room.send(output.clone());
                (index, true)
            }
            Ok((Err(_closed), index, _)) => (index, false),
            Err(_nobody) => (0, false),
        }
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

impl Subscriber {
    fn patience(&self) -> Duration {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_up(&self, waited: Duration) {
        let mut patience = self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        *patience = patience.saturating_sub(waited);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn chunk() -> Output {
        Output::Stdout(Bytes::from_static(b"x"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_subscriber_holds_others_back_for_a_bounded_time_in_all() {
        let fanout = Fanout::new(Duration::from_secs(30));
        let mut slow = fanout.subscribe(Arc::default());
        let mut quick = fanout.subscribe(Arc::default());
        let begin = Instant::now();
        let mut delivered = 0;
        let feed = async {
            for _ in 0..200 {
                fanout.publish(chunk()).await;
            }
            fanout.close();
        };
        let take_slowly = async {
            while slow.recv().await.is_some() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let take = async {
            while quick.recv().await.is_some() {
                delivered += 1;
            }
            begin.elapsed()
        };
        let ((), (), elapsed) = tokio::join!(feed, take_slowly, take);
        assert_eq!(delivered, 200);
        assert!(elapsed <= PATIENCE + Duration::from_secs(1), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn subscribers_that_are_slow_together_get_everything() {
        let fanout = Fanout::new(Duration::from_secs(30));
        let slow = [(); 3].map(|()| fanout.subscribe(Arc::default()));
        let feed = async {
            for _ in 0..100 {
                fanout.publish(chunk()).await;
            }
            fanout.close();
        };
        let take = slow.map(|mut slow| async move {
            let mut delivered = 0;
            while slow.recv().await.is_some() {
                delivered += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            delivered
        });
        let ((), delivered) = tokio::join!(feed, futures_util::future::join_all(take));
        assert_eq!(delivered, [100, 100, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_is_alone_gets_everything_however_slow_it_is() {
        let fanout = Fanout::new(Duration::from_secs(30));
        let mut slow = fanout.subscribe(Arc::default());
        let feed = async {
            for _ in 0..100 {
                fanout.publish(chunk()).await;
            }
            fanout.close();
        };
        let take = async {
            let mut delivered = 0;
            while slow.recv().await.is_some() {
                delivered += 1;
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
            delivered
        };
        assert_eq!(tokio::join!(feed, take).1, 100);
        assert_eq!(fanout.written().discarded, 0);
        fanout.publish(chunk()).await;
        assert_eq!(fanout.written().discarded, 1);
    }
}
