//! What callers ask for and what they see.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{Ingress, IngressRules, SandboxId};
use crate::guest::Guest;
use crate::snapshots::{SnapshotName, SnapshotUse};

/// The two states that clients know; a sandbox that is neither is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublicState {
    /// It executes, or is about to again.
    Running,
    /// It is kept and cannot execute.
    Paused,
}

/// What a pause keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    /// Files and memory.
    Full,
    /// Files only: resuming boots.
    Filesystem,
}

/// A request to pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PauseRequest {
    /// What to keep.
    pub mode: PauseMode,
    /// Refuse, changing nothing, when the agent does not answer (`requireHealthyGuest`). A
    /// filesystem-only pause always does, because the agent writes back what the guest holds.
    pub require_healthy_guest: bool,
}

/// A request for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// What it is to be called.
    pub name: Option<SnapshotName>,
    /// What it is for.
    pub usage: SnapshotUse,
    /// Whether it has the memory of the sandbox, or its files only.
    pub memory: bool,
}

/// What a resume starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeFrom {
    /// The memory image if there is one, else the disk.
    Saved,
    /// The disk, discarding a memory image (`memory: false` on connect).
    Disk,
}

/// What happens at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The sandbox is killed.
    Kill,
    /// The sandbox is paused.
    Pause(PauseMode),
}

/// Standing orders of a sandbox; they survive every pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// What happens at the deadline.
    pub on_timeout: OnTimeout,
    /// Whether traffic to a paused sandbox resumes it.
    pub auto_resume: bool,
}

/// A request for a new sandbox, already validated for form by the API.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// Template reference as given, for example `base`.
    pub template: String,
    /// Time until the deadline, counted from when the sandbox is ready.
    pub timeout: Duration,
    /// Standing orders.
    pub lifecycle: Lifecycle,
    /// Free text pairs for filters.
    pub metadata: BTreeMap<String, String>,
    /// Environment of every process started by the agent.
    pub env_vars: BTreeMap<String, String>,
    /// As given; `None` means allowed.
    pub allow_internet_access: Option<bool>,
    /// Rules for its ports.
    pub ingress: IngressRules,
}

/// One consistent look at a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxView {
    /// Its name.
    pub id: SandboxId,
    /// Raw id of its template.
    pub template_id: String,
    /// Name of its template.
    pub alias: String,
    /// Start of the current run, or of the last one when paused.
    pub started_at: OffsetDateTime,
    /// Deadline of the current run, or the moment of the pause.
    pub end_at: OffsetDateTime,
    /// Running or paused.
    pub state: PublicState,
    /// What the last pause kept; `None` while running.
    pub pause_mode: Option<PauseMode>,
    /// Why the memory of the last run is not there; `None` when it is, or was given up on request.
    pub memory_lost: Option<String>,
    /// It is paused, and its agent did not answer at the pause.
    pub agent_silent: bool,
    /// CPUs, rounded up.
    pub cpu_count: u32,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Disk in MiB.
    pub disk_size_mb: u64,
    /// As given at create.
    pub metadata: BTreeMap<String, String>,
    /// Token of the agent; the same for the sandbox's whole life, different in every sandbox.
    pub access_token: String,
    /// As given at create.
    pub allow_internet_access: Option<bool>,
    /// Rules for its ports.
    pub ingress: Ingress,
    /// Standing orders.
    pub lifecycle: Lifecycle,
}

/// The way to a running sandbox for the edge.
#[derive(Clone)]
pub struct Route {
    /// Opens connections to its ports.
    pub guest: Guest,
    /// Fires when this run ends (pause, kill, loss): every stream must then be cut hard.
    pub ended: CancellationToken,
    /// Rules for its ports.
    pub ingress: Ingress,
}
