//! What the server answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::ErrorBody;

/// What a client needs to talk to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Id of the template, also when the sandbox was created by name.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Name of the sandbox, the same for its whole life.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Deprecated constant that old clients require.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Version of the agent contract that the sandbox speaks.
    #[serde(rename = "envdVersion")]
    pub envd_version: String,
    /// Name of the template.
    pub alias: String,
    /// Token that the agent asks for (header `X-Access-Token`), the same for the sandbox's whole life.
    #[serde(rename = "envdAccessToken")]
    pub envd_access_token: String,
    /// What requests to all other ports must bring in header `E2b-Traffic-Access-Token`, the same for the
    /// sandbox's whole life. Absent when they are open to everybody.
    #[serde(
        rename = "trafficAccessToken",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub traffic_access_token: Option<String>,
    /// Domain under which the ports of the sandbox are reached: `<port>-<sandboxID>.<domain>`.
    pub domain: String,
}

/// Everything about one sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxDetail {
    /// Id of the template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Name of the sandbox.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Deprecated constant that old clients require.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Version of the agent contract that the sandbox speaks.
    pub envd_version: String,
    /// Name of the template.
    pub alias: String,
    /// Start of this run; of the last run when paused.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// Deadline of this run; the moment of the pause when paused.
    #[serde(with = "time::serde::rfc3339")]
    pub end_at: OffsetDateTime,
    /// Running or paused.
    pub state: SandboxState,
    /// CPUs.
    pub cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// Disk in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// As given when the sandbox was created.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Token that the agent asks for.
    pub envd_access_token: String,
    /// As given when the sandbox was created; absent means allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub allow_internet_access: Option<bool>,
    /// What was asked for when the sandbox was created. Absent when that is what all sandboxes have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub network: Option<SandboxNetwork>,
    /// Domain under which the ports of the sandbox are reached.
    pub domain: String,
    /// What happens at the deadline and on traffic to the paused sandbox.
    pub lifecycle: SandboxLifecycle,
    /// What the pause kept. Absent while running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub pause_mode: Option<PauseMode>,
    /// True when the sandbox is paused and its agent did not answer at the pause, which was done
    /// without it. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub envd_unresponsive_at_pause: Option<bool>,
    /// Why the memory of the last run is not there: the sandbox was or will be booted from its files
    /// though nobody asked for that. Absent when all is as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub memory_lost: Option<String>,
    /// Always empty: volumes are not supported.
    pub volume_mounts: Vec<VolumeMount>,
}

/// One sandbox in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListedSandbox {
    /// Id of the template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Name of the sandbox.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Deprecated constant that old clients require.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Version of the agent contract that the sandbox speaks.
    pub envd_version: String,
    /// Name of the template.
    pub alias: String,
    /// Start of this run; of the last run when paused.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// Deadline of this run; the moment of the pause when paused.
    #[serde(with = "time::serde::rfc3339")]
    pub end_at: OffsetDateTime,
    /// Running or paused.
    pub state: SandboxState,
    /// CPUs.
    pub cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u64,
    /// Disk in MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// As given when the sandbox was created.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Always empty: volumes are not supported.
    pub volume_mounts: Vec<VolumeMount>,
}

/// The two states that a sandbox can be in; one that is in neither does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// It executes.
    Running,
    /// It is kept and can be connected to.
    Paused,
}

/// What a pause kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = SandboxPauseMode)]
pub enum PauseMode {
    /// Files and memory.
    Full,
    /// Files only.
    Filesystem,
}

/// Network rules of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxNetwork {
    /// Whether ports other than the agent's are open to everybody.
    pub allow_public_traffic: bool,
    /// What services see as `Host`. Absent when they see what the client asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mask_request_host: Option<String>,
}

/// Standing orders of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLifecycle {
    /// What happens at the deadline.
    pub on_timeout: SandboxOnTimeout,
    /// Whether traffic to the paused sandbox resumes it.
    pub auto_resume: bool,
}

/// What happens at the deadline of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxOnTimeout {
    /// It is killed.
    Kill,
    /// It is paused.
    Pause,
}

/// A volume of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeMount {
    /// Name of the volume.
    pub name: String,
    /// Where it is mounted.
    pub path: String,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotInfo {
    /// What to give as `templateID` to create a sandbox from it.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Its name, if it has one, without the tag.
    pub names: Vec<String>,
    /// The sandbox it was made of, which may be gone.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Whether it has memory; sandboxes made from one without are booted.
    pub memory: bool,
}

/// One fork: exactly one of the two is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Fork {
    /// The new sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub sandbox: Option<Sandbox>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<ErrorBody>,
}

/// Bytes on the host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StorageUse {
    /// What its deletion would give back.
    pub own_bytes: u64,
    /// What other sandboxes or snapshots stand on, too.
    pub shared_bytes: u64,
}
