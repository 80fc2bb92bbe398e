//! The processes of this sandbox: started, found, and forgotten.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::exit::ExitStatus;
use super::live::{Outputs, Process};
use super::messages::{ProcessConfig, ProcessInfo, Selector};
use super::reaper::{Reaper, SignalError};
use crate::log::{Level, Log};

/// How long a late `Connect` still learns how a process ended.
const RETENTION: Duration = Duration::from_secs(30);

/// How long a kill is remembered for a process that was forked and is not in the table yet.
const UNCLAIMED: Duration = Duration::from_secs(5);

/// All processes that clients started.
#[derive(Debug)]
pub(crate) struct Processes {
    /// Collects the children.
    pub(crate) reaper: Arc<Reaper>,
    pub(super) log: Arc<Log>,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    live: HashMap<u32, Live>,
    /// Ended within [`RETENTION`], newest last.
    ended: Vec<Arc<Process>>,
    /// What the memory guard killed of processes that are about to join.
    killed: Vec<(u32, Instant, String)>,
}

/// A live process and what is only of interest while it lives: a command may be megabytes long.
#[derive(Debug)]
struct Live {
    process: Arc<Process>,
    /// As the client sent it, which is what `List` shows.
    config: ProcessConfig,
}

impl Processes {
    /// No process yet; what happens to them goes to `log`.
    pub(crate) fn new(log: Arc<Log>) -> Self {
        Self {
            reaper: Arc::default(),
            log,
            entries: Mutex::default(),
        }
    }

    /// All live processes, in no particular order.
    pub(crate) fn list(&self) -> Vec<ProcessInfo> {
        let entries = self.entries();
        let describe = |live: &Live| ProcessInfo {
            config: Some(live.config.clone()),
            pid: live.process.pid,
            tag: live.process.tag.clone(),
        };
        entries.live.values().map(describe).collect()
    }

    /// How many processes live.
    pub(crate) fn count(&self) -> usize {
        self.entries().live.len()
    }

    /// A live process.
    pub(crate) fn find(&self, selector: &Selector) -> Option<Arc<Process>> {
        let entries = self.entries();
        let found = match selector {
            Selector::Pid(pid) => entries.live.get(pid),
            Selector::Tag(_) => entries.live.values().find(|live| live.process.is(selector)),
        };
        found.map(|live| Arc::clone(&live.process))
    }

    /// A live process, or one that ended a moment ago.
    pub(crate) fn find_or_ended(&self, selector: &Selector) -> Option<Arc<Process>> {
        self.find(selector).or_else(|| {
            let entries = self.entries();
            entries
                .ended
                .iter()
                .rev()
                .find(|process| process.is(selector))
                .cloned()
        })
    }

    /// Takes over a process that was just started and sees it through to its end.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        process: &Arc<Process>,
        config: ProcessConfig,
        outputs: Outputs,
        status: oneshot::Receiver<ExitStatus>,
        deadline: Option<Instant>,
    ) {
        let mut entries = self.entries();
        entries.ended.retain(|old| {
            old.pid != process.pid && (process.tag.is_none() || old.tag != process.tag)
        });
        entries.killed.retain(|(pid, at, text)| {
            let own = *pid == process.pid;
            if own && at.elapsed() < UNCLAIMED {
                process.out_of_memory.get_or_init(|| text.clone());
            }
            !own && at.elapsed() < UNCLAIMED
        });
        let command = config.command_line();
        let live = Live {
            process: Arc::clone(process),
            config,
        };
        entries.live.insert(process.pid, live);
        drop(entries);
        let timeout = deadline.map(|deadline| (deadline - Instant::now()).as_millis());
        let fields = json!({
            "event_type": "process_start",
            "pid": process.pid,
            "command": command,
            "request_timeout_ms": timeout.and_then(|timeout| u64::try_from(timeout).ok()),
        });
        self.log
            .add(Level::Info, "process", "process started", fields);
        // Owned by the table: ends with the process.
        tokio::spawn(Arc::clone(self).see_through(Arc::clone(process), outputs, status, deadline));
    }

    /// Signals the direct child; its descendants are left alone.
    pub(crate) fn signal(&self, process: &Process, signal: Signal) -> Result<(), SignalError> {
        self.reaper.signal(process.pid, signal)?;
        process.force_end(false);
        Ok(())
    }

    /// Remembers, for how they end, what the memory guard killed of those among `pids`.
    pub(crate) fn note_out_of_memory(&self, pids: &[u32], text: &str) {
        let mut entries = self.entries();
        for pid in pids {
            match entries.live.get(pid) {
                Some(live) => {
                    live.process.out_of_memory.get_or_init(|| text.to_owned());
                }
                // The newest of all may be on its way here.
                None => entries.killed.push((*pid, Instant::now(), text.to_owned())),
            }
        }
        entries.killed.retain(|(_, at, _)| at.elapsed() < UNCLAIMED);
    }

    async fn see_through(
        self: Arc<Self>,
        process: Arc<Process>,
        outputs: Outputs,
        status: oneshot::Receiver<ExitStatus>,
        deadline: Option<Instant>,
    ) {
        let end = async {
            let collected = async {
                // The reaper keeps the sender until it has a status.
                let status = status.await.unwrap_or(ExitStatus(0));
                process.child_collected();
                status
            };
            tokio::join!(collected, process.pump(outputs)).0
        };
        let mut end = std::pin::pin!(end);
        let status = match deadline {
            None => end.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, end.as_mut()).await {
                Ok(status) => status,
                Err(_) => {
                    self.enforce_deadline(&process);
                    end.await
                }
            },
        };
        self.finish(&process, status).await;
        tokio::time::sleep(RETENTION).await;
        self.entries()
            .ended
            .retain(|old| !Arc::ptr_eq(old, &process));
    }

    /// Kills only the child, as upstream does; who was started with `nohup … &` survives.
    fn enforce_deadline(&self, process: &Process) {
        process.deadline_passed.store(true, Ordering::Relaxed);
        let collected = self.reaper.signal(process.pid, Signal::KILL).is_err();
        process.force_end(collected);
    }

    /// The order matters to clients: who has seen the end must not find the process any more.
    async fn finish(&self, process: &Arc<Process>, status: ExitStatus) {
        let killed = process.out_of_memory.get().map(String::as_str);
        process.end.get_or_init(|| status.end_event(killed));
        self.retain(process);
        self.log_end(process);
        process.fanout.close();
        process.release().await;
    }

    fn log_end(&self, process: &Process) {
        let Some(end) = process.end.get() else { return };
        let written = process.fanout.written();
        let fields = json!({
            "event_type": "process_end",
            "pid": process.pid,
            "process_result": end.error.as_ref().unwrap_or(&end.status),
            "stdout_bytes": written.stdout,
            "stderr_bytes": written.stderr,
            "pty_bytes": written.pty,
            "discarded_bytes": written.discarded,
        });
        self.log
            .add(Level::Info, "process", "process ended", fields);
    }

    fn retain(&self, process: &Arc<Process>) {
        let mut entries = self.entries();
        entries.ended.push(Arc::clone(process));
        if entries
            .live
            .get(&process.pid)
            .is_some_and(|live| Arc::ptr_eq(&live.process, process))
        {
            entries.live.remove(&process.pid);
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    fn is(&self, selector: &Selector) -> bool {
        match selector {
            Selector::Pid(pid) => self.pid == *pid,
            Selector::Tag(tag) => self.tag.as_ref() == Some(tag),
        }
    }
}
