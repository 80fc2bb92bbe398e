//! Bodies of the host channel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::HookKind;

/// Body of `POST /init`: everything a sandbox learns from its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitRequest {
    /// Changes with every execution. A new value makes the agent drop the client connections of
    /// the execution before it, whose peers no longer exist.
    pub lifecycle_id: String,
    /// When the host sent this; a call older than the newest one seen changes nothing.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// Becomes `E2B_SANDBOX_ID`.
    pub sandbox_id: String,
    /// Becomes `E2B_TEMPLATE_ID`.
    pub template_id: String,
    /// Name that the guest finds itself by in `/etc/hosts`. The kernel has its own from the engine.
    pub hostname: String,
    /// Token clients must send; absent means that everyone may connect.
    #[serde(default)]
    pub access_token: Option<String>,
    /// Replaces the user's variables; absent keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// User for requests that name none; empty keeps the present one.
    #[serde(default)]
    pub default_user: String,
    /// Directory meant by an empty path; empty keeps the present one.
    #[serde(default)]
    pub default_workdir: String,
    /// Memory the sandbox was promised. When it uses more, the agent ends its biggest process; without
    /// it the agent guards nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Base64 bytes to stir into the guest's random pool, so that clones of one memory image part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
}

/// Answer to `POST /init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitReply {
    /// Version of the agent binary.
    pub agent_version: String,
    /// Version of the envd contract it implements.
    pub envd_version: String,
    /// Differs after a boot, is the same after a restore from memory.
    pub boot_id: String,
    /// Number of live processes started by clients.
    pub processes: usize,
    /// Hooks to run before the sandbox is served; absent when there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks_due: Option<HookKind>,
}

/// Body of `POST /prepare`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareRequest {
    /// Whether the host writes files back itself. Absent, the agent does it: one fsync for each file that
    /// the guest has open or remembers, a thousand and more of them.
    #[serde(default)]
    pub host_writes_back: bool,
}

/// Answer to `POST /prepare`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrepareReply {
    /// Number of pre-pause hooks. When there are some, the host runs them and prepares once more.
    #[serde(default)]
    pub pre_pause_hooks: usize,
}

/// Resource usage of the guest, as `GET /metrics` of both ports answers it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Unix seconds by the guest's clock.
    pub ts: i64,
    /// Logical CPUs.
    pub cpu_count: u32,
    /// 0 to 100 over all CPUs since the call before.
    pub cpu_used_pct: f64,
    /// Bytes.
    pub mem_total: u64,
    /// Bytes that are neither free nor reclaimable.
    pub mem_used: u64,
    /// Bytes of page cache and reclaimable slab.
    pub mem_cache: u64,
    /// `mem_total` in MiB, kept for old readers.
    pub mem_total_mib: u64,
    /// `mem_used` in MiB, kept for old readers.
    pub mem_used_mib: u64,
    /// Bytes used on `/`; blocks reserved for root count as used.
    pub disk_used: u64,
    /// Bytes of `/`.
    pub disk_total: u64,
}

/// One line of the agent's log, as [`LogReader`](crate::LogReader) gives them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Counts up from 1 with every boot.
    pub number: u64,
    /// A JSON object with `level`, `logger`, `message`, `timestamp` and fields of the entry's kind.
    pub entry: serde_json::Map<String, serde_json::Value>,
}

/// Body of every answer that is not a success: the status again and a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// HTTP status.
    pub code: u16,
    /// What went wrong.
    pub message: String,
}
