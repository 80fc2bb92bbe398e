//! What is remembered of a sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use engine::{BuildId, Limits, NetworkPolicy};
use serde::{Deserialize, Serialize};
use snapshot::ImageId;
use time::OffsetDateTime;

use super::state::{Before, DiskReason, PauseTarget, RollbackStep, Saved, SnapshotStep, State};
use super::{Disks, Ingress, Lifecycle, PauseMode, PublicState, SandboxId, SandboxView};

/// Everything fixed at create; carried unchanged through every pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Raw id of the template it was made from.
    pub template_id: String,
    /// Name of that template.
    pub alias: String,
    /// Layers below its disk, topmost first, relative to the data directory.
    pub layers: Vec<PathBuf>,
    /// Build its first execution was started with; a boot uses the server's current one.
    pub build: BuildId,
    /// What it may use.
    pub limits: Limits,
    /// Free text pairs for filters.
    pub metadata: BTreeMap<String, String>,
    /// Environment of every process started by the agent.
    pub env_vars: BTreeMap<String, String>,
    /// Token of its agent.
    pub access_token: String,
    /// As given at create.
    pub allow_internet_access: Option<bool>,
    /// Rules for its ports.
    pub ingress: Ingress,
    /// Standing orders.
    pub lifecycle: Lifecycle,
    /// Timeout given at create, which an auto-resume uses again.
    pub create_timeout: Duration,
}

impl SandboxSpec {
    /// Where its packets may go.
    pub fn network(&self) -> NetworkPolicy {
        match self.allow_internet_access {
            Some(false) => NetworkPolicy::Closed,
            Some(true) | None => NetworkPolicy::Internet,
        }
    }
}

/// Times of the current run, or of the last one when paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// When it became ready.
    pub started_at: OffsetDateTime,
    /// Its deadline, or the moment of the pause.
    pub end_at: OffsetDateTime,
    /// Why it was booted although the run before was not given up on request.
    pub memory_lost: Option<String>,
    /// Its pause was done without the agent, which did not answer.
    pub agent_silent: bool,
}

impl Run {
    /// A run that starts now and ends after `timeout`, at most `longest`.
    pub fn starting_now(timeout: Duration, longest: Duration) -> Self {
        let started_at = OffsetDateTime::now_utc();
        Self {
            started_at,
            end_at: started_at + timeout.min(longest),
            memory_lost: None,
            agent_silent: false,
        }
    }

    /// Moves the deadline to `timeout` from now, within `longest` of the start.
    pub fn set_deadline(&mut self, timeout: Duration, longest: Duration) {
        self.end_at = (OffsetDateTime::now_utc() + timeout).min(self.started_at + longest);
    }

    /// Like [`set_deadline`](Self::set_deadline), but never to an earlier time.
    pub fn extend(&mut self, timeout: Duration, longest: Duration) {
        let end_at = (OffsetDateTime::now_utc() + timeout).min(self.started_at + longest);
        self.end_at = self.end_at.max(end_at);
    }
}

/// The journaled whole of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub id: SandboxId,
    /// Counts up with every write; an older writer is refused by the database.
    pub generation: u64,
    /// Where it is.
    pub state: State,
    /// What it is.
    pub spec: SandboxSpec,
    /// What it stands on.
    pub disks: Disks,
    /// When it runs.
    pub run: Run,
}

impl Record {
    /// What clients see; `None` when they see nothing (not announced yet, or being killed).
    pub fn view(&self) -> Option<SandboxView> {
        let (state, pause_mode) = match &self.state {
            State::Creating { .. } | State::Killing { .. } => return None,
            State::Running { .. } => (PublicState::Running, None),
            State::Pausing { target, .. } => {
                let mode = match target {
                    PauseTarget::Memory { .. } => PauseMode::Full,
                    PauseTarget::Disk => PauseMode::Filesystem,
                };
                (PublicState::Paused, Some(mode))
            }
            State::Paused { saved } | State::Resuming { saved, .. } => {
                (PublicState::Paused, Some(saved.mode()))
            }
            State::Keeping { .. } => (PublicState::Paused, Some(PauseMode::Full)),
            State::Snapshotting { .. } | State::RollingBack { .. } | State::Restarting { .. } => {
                match self.state.saved_at_rest() {
                    Some(saved) => (PublicState::Paused, Some(saved.mode())),
                    None => (PublicState::Running, None),
                }
            }
        };
        Some(SandboxView {
            id: self.id.clone(),
            template_id: self.spec.template_id.clone(),
            alias: self.spec.alias.clone(),
            started_at: self.run.started_at,
            // Lists show a passed deadline from the begin of a pause on; one that fails has its own again.
            end_at: match &self.state {
                State::Pausing { .. } => self.run.end_at.min(OffsetDateTime::now_utc()),
                _ => self.run.end_at,
            },
            state,
            pause_mode,
            agent_silent: self.run.agent_silent && state == PublicState::Paused,
            memory_lost: match state {
                PublicState::Running => self.run.memory_lost.clone(),
                PublicState::Paused => self.state.memory_lost(),
            },
            cpu_count: self.spec.limits.cpu_milli.div_ceil(1000),
            memory_mb: self.spec.limits.memory_bytes >> 20,
            disk_size_mb: self.spec.limits.disk_bytes >> 20,
            metadata: self.spec.metadata.clone(),
            access_token: self.spec.access_token.clone(),
            allow_internet_access: self.spec.allow_internet_access,
            ingress: self.spec.ingress.clone(),
            lifecycle: self.spec.lifecycle,
        })
    }

    /// The images that must be kept in this state.
    pub fn images(&self) -> Vec<&ImageId> {
        let saved = match &self.state {
            State::Paused { saved }
            | State::Resuming { saved, .. }
            | State::Restarting { saved, .. }
            | State::Snapshotting {
                step: SnapshotStep::Sealing { saved, .. },
                ..
            }
            | State::RollingBack {
                step: RollbackStep::Replacing { saved, .. },
                ..
            } => vec![saved],
            State::RollingBack {
                step: RollbackStep::Staging { before, saved, .. },
                ..
            } => match before {
                Before::Running { .. } => vec![saved],
                Before::Paused { saved: before } => vec![before, saved],
            },
            State::Keeping { saved, image, .. } => {
                return saved.image().into_iter().chain([image]).collect();
            }
            State::Pausing {
                target: PauseTarget::Memory { image },
                ..
            }
            | State::Snapshotting {
                step: SnapshotStep::Saving { image, .. },
                ..
            } => return vec![image],
            State::Pausing {
                target: PauseTarget::Disk,
                ..
            }
            | State::Creating { .. }
            | State::Running { .. }
            | State::Killing { .. } => Vec::new(),
        };
        saved.into_iter().filter_map(Saved::image).collect()
    }
}

impl Saved {
    /// The memory image, if there is one.
    pub fn image(&self) -> Option<&ImageId> {
        match self {
            Saved::Memory { image } => Some(image),
            Saved::Disk { .. } => None,
        }
    }

    /// In the words of the API.
    pub fn mode(&self) -> PauseMode {
        match self {
            Saved::Memory { .. } => PauseMode::Full,
            Saved::Disk {
                reason: DiskReason::Asked | DiskReason::ExecutionLost(_) | DiskReason::MemoryStale,
            } => PauseMode::Filesystem,
        }
    }
}
