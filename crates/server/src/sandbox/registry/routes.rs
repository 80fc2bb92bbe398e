//! The way to the services inside a sandbox.

use std::sync::Arc;
use std::time::Duration;

use super::Sandboxes;
use crate::sandbox::driver::Request;
use crate::sandbox::state::State;
use crate::sandbox::{PauseMode, PublicState, ResumeFrom, Route, SandboxError, SandboxId};

/// After an auto-resume a sandbox runs at least this long.
const AUTO_RESUME_AT_LEAST: Duration = Duration::from_secs(300);
/// How long traffic waits for a sandbox that is being snapshotted or rolled back.
const BUSY_LIMIT: Duration = Duration::from_secs(60);

impl Sandboxes {
    /// The way to a running sandbox. `NotFound` for unknown ones, `Paused` for paused ones; waits
    /// for nothing.
    pub fn route(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        let handle = self.find(id)?;
        let published = handle.published.borrow();
        match &published.record.state {
            State::Running { execution } if !published.ended.is_cancelled() => Ok(Route {
                guest: self.context.guest(execution),
                ended: published.ended.clone(),
                ingress: published.record.spec.ingress.clone(),
            }),
            State::Running { .. }
            | State::Pausing { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Keeping { .. } => Err(SandboxError::Paused(id.clone())),
            state @ (State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. }) => Err(if state.counts_as_running() {
                SandboxError::Busy(id.clone())
            } else {
                SandboxError::Paused(id.clone())
            }),
            State::Creating { .. } | State::Killing { .. } => {
                Err(SandboxError::NotFound(id.clone()))
            }
        }
    }

    /// Like [`route`](Self::route), but waits for a sandbox that is being snapshotted or rolled back
    /// and runs again in a moment.
    pub async fn route_when_settled(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        let mut published = match self.route(id) {
            Err(SandboxError::Busy(_)) => self.find(id)?.published,
            other => return other,
        };
        let settled = published.wait_for(|now| match now.record.state {
            State::Snapshotting { .. } | State::RollingBack { .. } | State::Restarting { .. } => {
                false
            }
            State::Creating { .. }
            | State::Running { .. }
            | State::Pausing { .. }
            | State::Paused { .. }
            | State::Resuming { .. }
            | State::Keeping { .. }
            | State::Killing { .. } => true,
        });
        // Too late, or the sandbox is gone: either way the route now says what is so.
        let _ = tokio::time::timeout(BUSY_LIMIT, settled).await;
        self.route(id)
    }

    /// Like [`route`](Self::route), but resumes a paused sandbox that has auto-resume on and waits
    /// for a transition in flight. `Paused` when it is paused and may not be resumed by traffic.
    pub async fn route_or_resume(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        let paused = match self.route_when_settled(id).await {
            Err(paused @ SandboxError::Paused(_)) => paused,
            other => return other,
        };
        let record = Arc::clone(&self.find(id)?.published.borrow().record);
        // Traffic may wake a sandbox, not reboot it.
        let keeps_memory = record.view().is_some_and(|view| {
            view.state == PublicState::Paused && view.pause_mode == Some(PauseMode::Full)
        });
        if !(record.spec.lifecycle.auto_resume && keeps_memory) {
            return Err(paused);
        }
        let timeout = record.spec.create_timeout.max(AUTO_RESUME_AT_LEAST);
        let timeout = timeout.min(self.context.settings.max_run);
        self.ask(
            id,
            Request::Connect {
                timeout,
                from: ResumeFrom::Saved,
            },
        )
        .await?;
        self.route(id)
    }
}
