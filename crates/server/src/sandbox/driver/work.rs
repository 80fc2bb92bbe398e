//! What has to be done in each transient state.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::Driver;
use super::calls::Request;
use crate::sandbox::pause::After;
use crate::sandbox::resume::Start;
use crate::sandbox::state::{RollbackStep, SnapshotStep, State, Transition};
use crate::sandbox::transition::Ended;
use crate::sandbox::{SnapshotRequest, keep, kill, pause, resume, rollback, seal};

/// Work under way.
pub(in crate::sandbox) type Work = BoxFuture<'static, Ended>;

impl Driver {
    /// What has to be done in this state; `None` in those that last.
    pub(super) fn work_for(&self, transition: Option<&Transition>, start: Start) -> Option<Work> {
        let (context, record) = (Arc::clone(&self.context), self.record.clone());
        Some(match self.record.state.clone() {
            State::Pausing { execution, target } => {
                let request = match transition {
                    Some(Transition::Pause(request)) => *request,
                    Some(_) | None => return None,
                };
                Box::pin(pause::pause(
                    context,
                    record,
                    execution,
                    target,
                    request,
                    After::Leave,
                ))
            }
            State::Resuming {
                execution,
                saved,
                from,
                ..
            } => Box::pin(resume::resume(
                context, record, execution, saved, from, start,
            )),
            State::Keeping {
                execution, image, ..
            } => Box::pin(keep::keep(context, record, execution, image)),
            State::Snapshotting { snapshot, step } => match step {
                SnapshotStep::Saving {
                    execution, image, ..
                } => Box::pin(pause::save(context, record, execution, image)),
                SnapshotStep::Sealing { saved, .. } => match self.snapshot_request() {
                    Some(request) => {
                        Box::pin(seal::seal(context, record, snapshot, saved, request))
                    }
                    // A crash took whoever asked for it.
                    None => Box::pin(seal::abandon(context, record, snapshot)),
                },
            },
            State::RollingBack { snapshot, step } => match step {
                RollbackStep::Staging { .. } => {
                    let target = self
                        .joined
                        .iter()
                        .find_map(|message| match &message.request {
                            Request::Rollback(snapshot) => Some(snapshot.clone()),
                            _ => None,
                        })?;
                    Box::pin(rollback::stage(context, record, target))
                }
                RollbackStep::Replacing {
                    execution, saved, ..
                } => Box::pin(rollback::replace(
                    context, record, snapshot, execution, saved,
                )),
            },
            State::Restarting {
                execution, saved, ..
            } => {
                let from = self.record.state.start_point();
                Box::pin(resume::resume(
                    context,
                    record,
                    execution,
                    saved,
                    from,
                    Start::New,
                ))
            }
            State::Killing { execution } => Box::pin(kill::kill(context, record, execution)),
            State::Creating { .. } | State::Running { .. } | State::Paused { .. } => return None,
        })
    }

    pub(super) fn snapshot_request(&self) -> Option<SnapshotRequest> {
        self.joined
            .iter()
            .find_map(|message| match &message.request {
                Request::Snapshot(request) => Some(request.clone()),
                _ => None,
            })
    }
}
