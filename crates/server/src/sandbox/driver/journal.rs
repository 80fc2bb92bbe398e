//! The record of a sandbox: what an outcome makes of it, its journal, and who sees it.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::Driver;
use crate::db::DbError;
use crate::sandbox::state::{self, Next, Outcome, State};
use crate::sandbox::transition::Cause;
use crate::sandbox::{Disks, Record, SandboxError, Timings, rollback, seal};
use crate::snapshots::Snapshot;

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
        match &record.state {
            State::Running { .. } => {
                // A pause that does not happen, also one undone after a crash, leaves the run as it
                // was; so do snapshots and rollbacks.
                if !ran {
                    record.run = self.new_run();
                }
                let lost = self.record.state.memory_lost();
                if !ran || lost.is_some() {
                    record.run.memory_lost = lost;
                }
                record.disks.fresh = false;
            }
            State::Paused { .. } if ran => record.run.end_at = OffsetDateTime::now_utc(),
            State::Paused { .. }
            | State::Creating { .. }
            | State::Pausing { .. }
            | State::Resuming { .. }
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
    /// snapshot that was made of the old ones. Until it is written nothing has happened: an error
    /// leaves all as it was.
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
        // Names are given in one order, in the database and here.
        let _turn = self.context.snapshots.turn().await;
        let written = match snapshot.clone() {
            Some(snapshot) => self.journal_with(record, snapshot).await,
            None => self.journal(record).await,
        };
        match (written, snapshot) {
            (Ok(()), Some(snapshot)) => {
                let made = Arc::new(snapshot);
                self.context.snapshots.committed(Arc::clone(&made)).await;
                self.made = Some(made);
                Ok(())
            }
            (Ok(()), None) => {
                // Only a rollback comes here: what it goes back from ends now.
                self.ended.cancel();
                Ok(())
            }
            (Err(error), snapshot) => {
                match snapshot {
                    Some(snapshot) => {
                        seal::remove(&self.context, &before, &snapshot.id).await;
                    }
                    None => rollback::unstage(&self.context, &before).await,
                }
                Err(Cause::Io {
                    step: "commit",
                    source: std::io::Error::other(error),
                })
            }
        }
    }

    /// Writes the end of a transition, trying again until that works: nobody is told of a state that
    /// a restart of the server would not find. (One that finds `Creating` deletes the sandbox.)
    pub(super) async fn journal_end(&mut self, record: Record) {
        let mut wait = Duration::from_millis(50);
        while self.journal(record.clone()).await.is_err() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    /// Writes the record with the next generation and publishes it.
    pub(super) async fn journal(&mut self, mut record: Record) -> Result<(), SandboxError> {
        record.generation = self.record.generation + 1;
        let written = self.context.db.update(record.clone()).await;
        self.written(record, written)
    }

    /// Like [`journal`](Self::journal), with a snapshot in the same transaction.
    pub(super) async fn journal_with(
        &mut self,
        mut record: Record,
        snapshot: Snapshot,
    ) -> Result<(), SandboxError> {
        record.generation = self.record.generation + 1;
        let written = self
            .context
            .db
            .commit_snapshot(record.clone(), snapshot)
            .await;
        self.written(record, written)
    }

    pub(super) fn written(
        &mut self,
        record: Record,
        written: Result<(), DbError>,
    ) -> Result<(), SandboxError> {
        if let Err(error) = written {
            let cause = format!("the journal cannot be written: {error:?}");
            tracing::error!(sandbox.id = %record.id, error = cause, "nothing was begun");
            return Err(SandboxError::Failed {
                action: "journal",
                left_as: "unchanged",
                cause,
            });
        }
        let (from, to) = (self.record.state.name(), record.state.name());
        if from != to {
            tracing::info!(sandbox.id = %record.id, from, to, "sandbox changed its state");
        }
        self.record = record;
        self.publish();
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        if self.ended.is_cancelled() && matches!(self.record.state, State::Running { .. }) {
            self.ended = CancellationToken::new();
        }
        let mut timings = self.timings.clone();
        if let Some(since) = self.still_since {
            timings.note("still", since);
        }
        self.published.send_replace(Published {
            record: Arc::new(self.record.clone()),
            ended: self.ended.clone(),
            timings,
        });
        self.context.changes.send_replace(());
    }
}
