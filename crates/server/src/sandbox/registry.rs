//! All sandboxes by id.

use std::time::Duration;

use super::{
    CreateRequest, PauseMode, ResumeFrom, Route, SandboxError, SandboxId, SandboxView,
};

/// Every sandbox of this server. Cheap to clone through an `Arc`.
pub struct Sandboxes {}

/// How a connect was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connected {
    /// It was running; its deadline may have been extended.
    AlreadyRunning,
    /// It was paused and runs again.
    Resumed,
}

#[expect(unused_variables, clippy::todo, reason = "interface first; bodies follow")]
impl Sandboxes {
    /// Makes a sandbox and returns when its agent answers.
    pub async fn create(&self, request: CreateRequest) -> Result<SandboxView, SandboxError> {
        todo!()
    }

    /// Makes sure it runs for at least `timeout` from now, resuming it if it is paused.
    pub async fn connect(
        &self,
        id: &SandboxId,
        timeout: Duration,
        from: ResumeFrom,
    ) -> Result<(SandboxView, Connected), SandboxError> {
        todo!()
    }

    /// Resumes a paused one; refused when it runs.
    pub async fn resume(
        &self,
        id: &SandboxId,
        timeout: Duration,
        from: ResumeFrom,
    ) -> Result<SandboxView, SandboxError> {
        todo!()
    }

    /// Pauses it and returns when the saved state is durable.
    pub async fn pause(&self, id: &SandboxId, mode: PauseMode) -> Result<(), SandboxError> {
        todo!()
    }

    /// Ends it and deletes all it has, from any state.
    pub async fn kill(&self, id: &SandboxId) -> Result<(), SandboxError> {
        todo!()
    }

    /// Sets the deadline of a running one to `timeout` from now; zero expires it at once.
    pub async fn set_timeout(&self, id: &SandboxId, timeout: Duration) -> Result<(), SandboxError> {
        todo!()
    }

    /// Moves the deadline of a running one to `duration` from now if that is later.
    pub async fn extend(&self, id: &SandboxId, duration: Duration) -> Result<(), SandboxError> {
        todo!()
    }

    /// One sandbox.
    pub fn get(&self, id: &SandboxId) -> Result<SandboxView, SandboxError> {
        todo!()
    }

    /// All sandboxes, in no order.
    pub fn list(&self) -> Vec<SandboxView> {
        todo!()
    }

    /// The way to a running sandbox. `NotFound` for unknown ones, `Paused` for paused ones; waits
    /// for nothing.
    pub fn route(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        todo!()
    }

    /// Like [`route`](Self::route), but resumes a paused sandbox that has auto-resume on and waits
    /// for a transition in flight. `Paused` when it is paused and may not be resumed by traffic.
    pub async fn route_or_resume(&self, id: &SandboxId) -> Result<Route, SandboxError> {
        todo!()
    }
}
