//! When a run ends, who may move that, and what happens then.

use std::time::Duration;

use time::OffsetDateTime;

use super::Driver;
use super::calls::{Answered, Message, Request};
use crate::sandbox::event::Why;
use crate::sandbox::registry::Connected;
use crate::sandbox::state::{State, Transition};
use crate::sandbox::transition::Cause;
use crate::sandbox::{OnTimeout, PauseMode, PauseRequest, Run};

/// After a pause at the deadline failed, it is tried again this much later.
const EXPIRY_RETRY: Duration = Duration::from_secs(10);
/// A pause without memory depends on the agent. After so many at one deadline that it did not answer,
/// memory is saved too: it must not run for ever.
const SILENT_EXPIRIES: u32 = 2;

impl Driver {
    pub(super) fn new_run(&self) -> Run {
        let longest = self.context.settings.max_run;
        let asked = self
            .joined
            .iter()
            .filter_map(|message| match &message.request {
                Request::Resume { timeout, .. } | Request::Connect { timeout, .. } => {
                    Some(*timeout)
                }
                Request::Pause(_)
                | Request::Kill
                | Request::SetTimeout(_)
                | Request::Extend(_)
                | Request::Snapshot(_)
                | Request::Rollback(_)
                | Request::Created => None,
            });
        let timeout = asked.max().unwrap_or(self.record.spec.create_timeout);
        Run::starting_now(timeout, longest)
    }

    pub(super) async fn change_deadline(&mut self, message: Message) {
        let longest = self.context.settings.max_run;
        let mut record = self.record.clone();
        match message.request {
            Request::SetTimeout(timeout) => record.run.set_deadline(timeout, longest),
            Request::Extend(timeout) | Request::Connect { timeout, .. } => {
                record.run.extend(timeout, longest);
            }
            Request::Pause(_)
            | Request::Resume { .. }
            | Request::Kill
            | Request::Snapshot(_)
            | Request::Rollback(_)
            | Request::Created => {}
        }
        let changed = record.run != self.record.run;
        let answer = if changed {
            self.journal(record).await
        } else {
            Ok(())
        };
        self.forget_expiries();
        let answer = answer.map(|()| Answered::new(self.record.view(), Connected::AlreadyRunning));
        self.answer(message, answer);
    }

    pub(super) fn expiry(&self) -> Option<OffsetDateTime> {
        matches!(self.record.state, State::Running { .. }).then(|| {
            let end_at = self.record.run.end_at;
            self.expiry_not_before
                .map_or(end_at, |not_before| end_at.max(not_before))
        })
    }

    /// There is another deadline.
    pub(super) fn forget_expiries(&mut self) {
        self.expiry_not_before = None;
        self.silent_expiries = 0;
    }

    /// The pause in flight has ended: was it one at the deadline that an agent did not answer?
    pub(super) fn note_silent_expiry(&mut self) {
        let silent = matches!(self.cause, Some(Cause::AgentSilent(_)));
        if silent && self.why == Why::Timeout {
            self.silent_expiries += 1;
        }
    }

    /// The deadline has come.
    pub(super) async fn expire(&mut self) {
        self.expiry_not_before = Some(OffsetDateTime::now_utc() + EXPIRY_RETRY);
        let transition = match self.record.spec.lifecycle.on_timeout {
            OnTimeout::Kill => Transition::Kill,
            OnTimeout::Pause(mode) => Transition::Pause(PauseRequest {
                // It needs no agent, and keeps more than was asked for.
                mode: match self.silent_expiries {
                    0..SILENT_EXPIRIES => mode,
                    SILENT_EXPIRIES.. => PauseMode::Full,
                },
                require_healthy_guest: false,
            }),
        };
        tracing::info!(sandbox.id = %self.record.id, ?transition, "the deadline has come");
        self.begin(transition, None).await;
    }
}
