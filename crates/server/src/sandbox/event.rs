//! What is told of a sandbox when the journal says that something happened to it.
//!
//! Events are made of journal entries, after they are written: what is told is so. They are queued
//! for the history and nobody waits for it; a transition neither takes longer nor fails because the
//! history cannot be written.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::{ExecutionId, ExitReason};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::Notify;

use super::state::{DiskReason, RollbackStep, Saved, StartPoint, State};
use super::{PauseMode, Record, SandboxId};
use crate::snapshots::{Snapshot, SnapshotUse};

/// Most events that wait to be written. The oldest make room.
const MOST_WAITING: usize = 10_000;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A sandbox was made.
    Created,
    /// It does not run any more, and is kept.
    Paused,
    /// It runs again.
    Resumed,
    /// A snapshot was made of it.
    Checkpointed,
    /// It was put back to a snapshot.
    RolledBack,
    /// It is deleted with all it has.
    Killed,
}

/// One thing that happened to a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it was journaled.
    pub at: OffsetDateTime,
    /// What.
    pub kind: EventKind,
    /// To whom.
    pub sandbox: SandboxId,
    /// The execution that began or ended; `None` when there was none.
    pub execution: Option<ExecutionId>,
    /// Raw id of the sandbox's template.
    pub template_id: String,
    /// More about it.
    pub data: Map<String, Value>,
}

/// Why a transition was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody asked for it.
    Request,
    /// The deadline had come.
    Timeout,
    /// The server is going down.
    Shutdown,
    /// An earlier server had begun it.
    Unknown,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [EventKind; 6] = [
        EventKind::Created,
        EventKind::Paused,
        EventKind::Resumed,
        EventKind::Checkpointed,
        EventKind::RolledBack,
        EventKind::Killed,
    ];

    /// Its name, the last part of an event's type.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Created => "created",
            EventKind::Paused => "paused",
            EventKind::Resumed => "resumed",
            EventKind::Checkpointed => "checkpointed",
            EventKind::RolledBack => "rolled_back",
            EventKind::Killed => "killed",
        }
    }

    /// The kind of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Why::Request => "request",
            Why::Timeout => "timeout",
            Why::Shutdown => "shutdown",
            Why::Unknown => "unknown",
        }
    }
}

/// Whether an event of then is not kept any more.
fn is_old(at: OffsetDateTime) -> bool {
    OffsetDateTime::now_utc() - at > crate::history::KEPT
}

impl Event {
    /// What a journal entry means to callers; `None` when nothing.
    pub(super) fn between(before: &Record, after: &Record, why: Why) -> Option<Self> {
        let (was, is) = (&before.state, &after.state);
        let memory_lost = after.run.memory_lost.clone();
        let (kind, data) = match (was, is) {
            (State::Killing { .. } | State::Creating { .. }, State::Killing { .. }) => return None,
            (_, State::Killing { .. }) => (EventKind::Killed, json!({ "reason": why.name() })),
            (State::Creating { .. }, State::Running { .. }) => {
                (EventKind::Created, json!({ "memory_lost": memory_lost }))
            }
            (State::Resuming { from, .. }, State::Running { .. }) => {
                (EventKind::Resumed, resumed(*from, memory_lost))
            }
            // To callers a restarted one ran all the time, unless it lost its memory.
            (State::Restarting { .. }, State::Running { .. }) => {
                memory_lost.as_ref()?;
                (EventKind::Resumed, resumed(StartPoint::Disk, memory_lost))
            }
            (
                State::RollingBack {
                    step: RollbackStep::Staging { .. },
                    ..
                },
                State::RollingBack {
                    snapshot,
                    step: RollbackStep::Replacing { saved, .. },
                },
            ) => (
                EventKind::RolledBack,
                json!({ "snapshot_id": snapshot.as_str(), "memory": saved.image().is_some() }),
            ),
            (_, State::Paused { saved }) => {
                let reason = end_of_run(was, saved, why)?;
                (EventKind::Paused, paused(after, saved, &reason))
            }
            (
                _,
                State::Creating { .. }
                | State::Running { .. }
                | State::Pausing { .. }
                | State::Resuming { .. }
                | State::Keeping { .. }
                | State::Snapshotting { .. }
                | State::RollingBack { .. }
                | State::Restarting { .. },
            ) => return None,
        };
        let execution = is.execution().or(was.execution());
        Some(Self::of(after, kind, execution, data))
    }

    /// A snapshot was committed.
    pub(super) fn checkpointed(record: &Record, snapshot: &Snapshot) -> Option<Self> {
        let memory = snapshot.image.is_some();
        let data = match snapshot.usage {
            SnapshotUse::Listed => json!({
                "purpose": "snapshot",
                "snapshot_id": snapshot.reference(),
                "memory": memory,
            }),
            // Nobody sees that snapshot; what they see is that the sandbox stood still.
            SnapshotUse::Fork => json!({ "purpose": "copy", "memory": memory }),
            SnapshotUse::Deleting => return None,
        };
        Some(Self::of(record, EventKind::Checkpointed, None, data))
    }

    /// What a start of the server makes of a sandbox whose last event does not say what it is: the
    /// server before was killed before it had written it. `last` is the newest event about the state.
    pub(crate) fn missing(record: &Record, last: Option<EventKind>) -> Option<Self> {
        let (kind, data) = match &record.state {
            State::Running { .. } => match last {
                // Its events may have been thinned out.
                None if is_old(record.run.started_at) => return None,
                None => (EventKind::Created, json!({})),
                Some(EventKind::Paused) => (EventKind::Resumed, json!({})),
                Some(_) => return None,
            },
            State::Paused { .. } if last.is_none() && is_old(record.run.end_at) => return None,
            State::Paused { saved } if last != Some(EventKind::Paused) => {
                let reason = lost(saved).unwrap_or_else(|| Why::Unknown.name().to_owned());
                (EventKind::Paused, paused(record, saved, &reason))
            }
            State::Killing { .. } if last.is_some() && last != Some(EventKind::Killed) => {
                (EventKind::Killed, json!({ "reason": Why::Unknown.name() }))
            }
            // Those under way are told of when they end.
            State::Paused { .. }
            | State::Killing { .. }
            | State::Creating { .. }
            | State::Pausing { .. }
            | State::Resuming { .. }
            | State::Keeping { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. } => return None,
        };
        let mut event = Self::of(record, kind, record.state.execution(), data);
        event.found_at_start();
        Some(event)
    }

    /// The end of a sandbox that the journal does not know any more.
    pub(crate) fn missing_end(sandbox: SandboxId, template_id: String) -> Self {
        let mut event = Self {
            at: OffsetDateTime::now_utc(),
            kind: EventKind::Killed,
            sandbox,
            execution: None,
            template_id,
            data: cleared(json!({ "reason": Why::Unknown.name() })),
        };
        event.found_at_start();
        event
    }

    /// It happened before `at`, and was seen only then.
    fn found_at_start(&mut self) {
        self.data.insert("found_at_start".to_owned(), true.into());
    }

    fn of(record: &Record, kind: EventKind, execution: Option<&ExecutionId>, data: Value) -> Self {
        Self {
            at: OffsetDateTime::now_utc(),
            kind,
            sandbox: record.id.clone(),
            execution: execution.cloned(),
            template_id: record.spec.template_id.clone(),
            data: cleared(data),
        }
    }
}

/// Why a sandbox that is paused now does not run; `None` when it did not run before.
fn end_of_run(was: &State, saved: &Saved, why: Why) -> Option<String> {
    if let State::Resuming { saved: before, .. } | State::Keeping { saved: before, .. } = was {
        // A failed resume is told to its caller; here only if it cost something.
        let costs = before.image().is_some() && saved.image().is_none();
        return costs.then(|| "resume_failed".to_owned());
    }
    if !was.counts_as_running() {
        return None;
    }
    if let State::Restarting { .. } = was {
        return Some("restart_failed".to_owned());
    }
    Some(lost(saved).unwrap_or_else(|| why.name().to_owned()))
}

fn lost(saved: &Saved) -> Option<String> {
    let reason = match saved {
        Saved::Disk {
            reason: DiskReason::ExecutionLost(reason),
        } => reason,
        Saved::Memory { .. } | Saved::Disk { .. } => return None,
    };
    Some(match reason {
        ExitReason::OutOfMemory => "lost:out_of_memory".to_owned(),
        ExitReason::Exited => "lost:exited".to_owned(),
    })
}

fn paused(record: &Record, saved: &Saved, reason: &str) -> Value {
    let mode = match saved.mode() {
        PauseMode::Full => "full",
        PauseMode::Filesystem => "filesystem",
    };
    json!({
        "mode": mode,
        "reason": reason,
        "memory_lost": record.state.memory_lost(),
        "envd_unresponsive": record.run.agent_silent.then_some(true),
    })
}

fn resumed(from: StartPoint, memory_lost: Option<String>) -> Value {
    let from = match from {
        StartPoint::Memory => "memory",
        StartPoint::Disk => "disk",
    };
    json!({ "from": from, "memory_lost": memory_lost })
}

/// Without what is not there.
fn cleared(data: Value) -> Map<String, Value> {
    let Value::Object(mut data) = data else {
        return Map::new();
    };
    data.retain(|_, value| !value.is_null());
    data
}

/// Events on their way to the history. Cheap to clone; adding one never waits.
#[derive(Clone, Default)]
pub struct Events(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Event>>,
    added: Notify,
}

impl Events {
    /// Queues an event.
    pub fn add(&self, event: Event) {
        let mut waiting = self.queue();
        waiting.push_back(event);
        if waiting.len() > MOST_WAITING
            && let Some(dropped) = waiting.pop_front()
        {
            tracing::warn!(sandbox.id = %dropped.sandbox, kind = dropped.kind.name(), "an event is lost: the history cannot be written");
        }
        drop(waiting);
        self.0.added.notify_one();
    }

    /// All that wait, oldest first. Whoever takes them writes them or puts them back.
    pub fn take(&self) -> Vec<Event> {
        self.queue().drain(..).collect()
    }

    /// The same, left where they are.
    pub fn waiting(&self) -> Vec<Event> {
        self.queue().iter().cloned().collect()
    }

    /// Puts back what could not be written.
    pub(crate) fn put_back(&self, events: Vec<Event>) {
        let mut waiting = self.queue();
        for event in events.into_iter().rev() {
            if waiting.len() < MOST_WAITING {
                waiting.push_front(event);
            }
        }
    }

    /// Returns when events were added since the last time.
    pub(crate) async fn added(&self) {
        self.0.added.notified().await;
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
