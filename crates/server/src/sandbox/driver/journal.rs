//! The record of a sandbox: what an outcome makes of it, its journal, and who sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::Driver;
use crate::db::DbError;
use crate::sandbox::event::{Event, Why};
use crate::sandbox::faults::Step;
use crate::sandbox::state::{self, Next, Outcome, State};
use crate::sandbox::transition::Cause;
use crate::sandbox::{Disks, Record, SandboxError, Timings, rollback, seal};
use crate::snapshots::Snapshot;

/// Between two tries to write the journal.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A sandbox as everybody may see it at any moment.
#[derive(Clone)]
pub(in crate::sandbox) struct Published {
    pub(in crate::sandbox) record: Arc<Record>,
    /// Fires at the end of the current run.
    pub(in crate::sandbox) ended: CancellationToken,
    /// How long the parts of its last transition took.
    pub(in crate::sandbox) timings: Timings,
}

impl Driver {
    /// The record that an outcome leads to, and the end of the current run if it is one. `None` when
    /// the sandbox is gone.
    pub(super) fn record_after(&mut self, outcome: &Outcome) -> Option<Record> {
        let mut record = self.record.clone();
        record.state = match state::after(&self.record.state, outcome) {
            Next::State(next) => next,
            Next::Gone => return None,
        };
        let ran = self.record.state.counts_as_running();
        // What a run did that was never announced, paused only now.
        let saved_late =
            matches!(self.record.state, State::Keeping { .. }) && *outcome == Outcome::Done;
        match &record.state {
            State::Running { .. } => {
                // A pause that does not happen, also one undone after a crash, leaves the run as it
                // was; so do snapshots and rollbacks.
                if !ran {
                    record.run = self.new_run();
                    self.forget_expiries();
                }
                let lost = self.record.state.memory_lost();
                if !ran || lost.is_some() {
                    record.run.memory_lost = lost;
                }
                record.disks.fresh = false;
            }
            State::Paused { .. } if ran || saved_late => {
                record.run.end_at = OffsetDateTime::now_utc();
            }
            State::Paused { .. }
            | State::Creating { .. }
            | State::Pausing { .. }
            | State::Resuming { .. }
            | State::Keeping { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. }
            | State::Killing { .. } => {}
        }
        if record.state.execution() != self.record.state.execution() {
            self.ended.cancel();
        }
        Some(record)
    }

    /// Writes the entry by which the sandbox comes to stand on other disks, together with the
    /// snapshot that was made of the old ones. On an error nothing has happened, and that is
    /// journaled as the end of the step.
    pub(super) async fn commit(
        &mut self,
        outcome: &Outcome,
        disks: Disks,
        snapshot: Option<Snapshot>,
    ) -> Result<(), Cause> {
        let before = self.record.clone();
        let Some(mut record) = self.record_after(outcome) else {
            return Ok(());
        };
        record.disks = disks;
        record.generation = before.generation + 1;
        // Names are given in one order, in the database and here.
        let turn = match snapshot {
            Some(_) => Some(self.context.snapshots.turn().await),
            None => None,
        };
        let db = &self.context.db;
        let (written, told) = match snapshot.clone() {
            Some(snapshot) => (
                db.commit_snapshot(record.clone(), snapshot).await,
                Step::SnapshotCommitted,
            ),
            None => (db.update(record.clone()).await, Step::RollbackCommitted),
        };
        let told = match written {
            Ok(()) => self.context.faults.reach(told).await.map_err(Cause::from),
            Err(error) => Err(Cause::Io {
                step: "commit",
                source: std::io::Error::other(error),
            }),
        };
        match told {
            Ok(()) => self.wrote(record),
            Err(cause) if self.take_back(record).await => {
                drop(turn);
                match snapshot {
                    Some(snapshot) => seal::remove(&self.context, &before, &snapshot.id).await,
                    None => rollback::unstage(&self.context, &before).await,
                }
                return Err(cause);
            }
            Err(cause) => {
                tracing::warn!(sandbox.id = %before.id, error = %cause, "a commit was told as failed and is there all the same");
            }
        }
        match snapshot {
            Some(snapshot) => {
                let made = Arc::new(snapshot);
                self.context.snapshots.committed(Arc::clone(&made));
                self.tell(Event::checkpointed(&self.record, &made));
                self.made = Some(made);
            }
            // Only a rollback comes here: what it goes back from ends now.
            None => self.ended.cancel(),
        }
        Ok(())
    }

    /// A commit that was told as failed may be in the journal all the same, or may turn up there
    /// after a crash. So nothing is undone before an end without it is written in its place. False
    /// when that is not possible because the commit is there; then it counts.
    async fn take_back(&mut self, committed: Record) -> bool {
        let mut wait = FIRST_WAIT;
        loop {
            let Some(mut undone) = self.record_after(&Outcome::Undone) else {
                return true;
            };
            undone.generation = committed.generation;
            match self.context.db.update(undone.clone()).await {
                Ok(()) => {
                    self.wrote(undone);
                    return true;
                }
                // Nothing is written if it is there already.
                Err(DbError::Outdated(_))
                    if self.context.db.update(committed.clone()).await.is_ok() =>
                {
                    self.wrote(committed);
                    return false;
                }
                Err(error) => {
                    tracing::error!(sandbox.id = %committed.id, error = ?error, "what became of a commit cannot be told, trying again");
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Writes the end of a transition, trying again until that works: nobody is told of a state that
    /// a restart of the server would not find. (One that finds `Creating` deletes the sandbox.)
    pub(super) async fn journal_end(&mut self, record: Record) {
        let mut wait = FIRST_WAIT;
        while self.journal(record.clone()).await.is_err() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Writes the record with the next generation and publishes it.
    pub(super) async fn journal(&mut self, mut record: Record) -> Result<(), SandboxError> {
        record.generation = self.record.generation + 1;
        if let Err(error) = self.context.db.update(record.clone()).await {
            let cause = format!("the journal cannot be written: {error:?}");
            tracing::error!(sandbox.id = %record.id, error = cause, "nothing was begun");
            return Err(SandboxError::Failed {
                action: "journal",
                left_as: "unchanged",
                cause,
            });
        }
        self.wrote(record);
        Ok(())
    }

    /// This record is in the journal now: everybody may know.
    fn wrote(&mut self, record: Record) {
        let (from, to) = (self.record.state.name(), record.state.name());
        if from != to {
            tracing::info!(sandbox.id = %record.id, from, to, "sandbox changed its state");
        }
        self.tell(Event::between(&self.record, &record, self.why()));
        self.record = record;
        // Before anybody may see that the disk is nobody's.
        if let Some(left) = self.left.take() {
            self.context.warm.bury(&self.record.id, left);
        }
        self.publish();
    }

    /// Why the transition in flight was begun.
    fn why(&self) -> Why {
        match self.why {
            Why::Request if self.context.stopping.load(Ordering::Relaxed) => Why::Shutdown,
            why => why,
        }
    }

    fn tell(&self, event: Option<Event>) {
        if let Some(event) = event {
            self.context.events.add(event);
        }
    }

    pub(super) fn publish(&mut self) {
        if self.ended.is_cancelled() && matches!(self.record.state, State::Running { .. }) {
            self.ended = CancellationToken::new();
        }
        let has_settled = matches!(
            self.record.state,
            State::Running { .. } | State::Paused { .. }
        );
        if has_settled && let Some(since) = self.still_since.take() {
            self.timings.note("still", since);
        }
        self.published.send_replace(Published {
            record: Arc::new(self.record.clone()),
            ended: self.ended.clone(),
            timings: self.timings.clone(),
        });
        self.context.changes.send_replace(());
    }
}
