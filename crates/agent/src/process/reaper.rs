//! Collects every child that ends: the agent is init.
//!
//! One loop per SIGCHLD calls `wait` for whatever ended and routes the status. Between `fork` and
//! [`Reaper::expect`] a child can already be gone, so while any spawn is in flight the statuses of
//! unknown pids are kept for it. Signals go through here as well: a pid is only signalled while it
//! is known not to have been collected, so it can never hit a stranger that got the same number.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::exit::ExitStatus;

/// Routes exit statuses to whoever started the process.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    state: Mutex<State>,
    /// Whether the agent may have children. Orphans become its children too, so without any it is
    /// the only process there is.
    children: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Processes that were started and not collected.
    expected: HashMap<u32, oneshot::Sender<ExitStatus>>,
    /// Spawns between fork and `expect`.
    in_flight: usize,
    /// Statuses of children that nobody has claimed yet; empty without spawns in flight.
    unclaimed: HashMap<u32, ExitStatus>,
}

/// A spawn in flight; statuses are kept for it until it is dropped.
#[derive(Debug)]
pub(crate) struct SpawnTicket(Arc<Reaper>);

/// The process has been collected and cannot be signalled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignalError {
    /// It ended already.
    #[error("os: process already finished")]
    Finished,
    /// The system refused.
    #[error(transparent)]
    Refused(#[from] Errno),
}

impl Reaper {
    /// Announces a spawn; to be held until the pid was registered or the spawn failed.
    pub(crate) fn announce(self: &Arc<Self>) -> SpawnTicket {
        self.state().in_flight += 1;
        self.children.send_replace(true);
        SpawnTicket(Arc::clone(self))
    }

    /// Sends a signal to a process that was started and not collected yet.
    pub(crate) fn signal(&self, pid: u32, signal: Signal) -> Result<(), SignalError> {
        let state = self.state();
        let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
        match target {
            Some(target) if state.expected.contains_key(&pid) => Ok(kill_process(target, signal)?),
            _ => Err(SignalError::Finished),
        }
    }

    /// Returns once there are children, at once if there are.
    pub(crate) async fn has_children(&self) {
        // The sender lives as long as `self`.
        let mut children = self.children.subscribe();
        let _never_closed = children.wait_for(|any| *any).await;
    }

    /// Collects children for ever.
    pub(crate) async fn run(self: Arc<Self>) -> io::Result<()> {
        let mut child_ended = signal(SignalKind::child())?;
        loop {
            self.collect();
            if child_ended.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    fn collect(&self) {
        loop {
            // Taken anew for each child and held across the wait: see `signal`.
            let mut state = self.state();
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) => return,
                Err(_no_children) => {
                    if state.in_flight == 0 {
                        self.children.send_replace(false);
                    }
                    return;
                }
            };
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            let status = ExitStatus(status.as_raw());
            if let Some(owner) = state.expected.remove(&pid) {
                let _owner_gone = owner.send(status);
            } else if state.in_flight > 0 {
                state.unclaimed.insert(pid, status);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpawnTicket {
    /// Registers the child and returns where its status will arrive.
    pub(crate) fn expect(self, pid: u32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.0.state();
        match state.unclaimed.remove(&pid) {
            Some(status) => {
                let _receiver_is_here = sender.send(status);
            }
            None => {
                state.expected.insert(pid, sender);
            }
        }
        receiver
    }
}

impl Drop for SpawnTicket {
    fn drop(&mut self) {
        let last = {
            let mut state = self.0.state();
            state.in_flight -= 1;
            if state.in_flight == 0 {
                state.unclaimed.clear();
            }
            state.in_flight == 0
        };
        if last {
            // Children that ended meanwhile announced it while this spawn could have had another.
            self.0.collect();
        }
    }
}
