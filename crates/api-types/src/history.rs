//! Metrics and logs of sandboxes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// What a sandbox used at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxMetric {
    /// When. Deprecated: use `timestampUnix`.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// When, in seconds since the epoch.
    pub timestamp_unix: i64,
    /// CPUs.
    pub cpu_count: u32,
    /// Percent of all its CPUs.
    pub cpu_used_pct: f64,
    /// Memory in use, in bytes, without file cache.
    pub mem_used: u64,
    /// Memory it may use, in bytes.
    pub mem_total: u64,
    /// File cache in bytes.
    pub mem_cache: u64,
    /// Disk in use, in bytes.
    pub disk_used: u64,
    /// Size of the disk in bytes.
    pub disk_total: u64,
}

/// The newest metrics of several sandboxes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxesWithMetrics {
    /// By sandbox id; those without metrics are left out.
    pub sandboxes: BTreeMap<String, SandboxMetric>,
}

/// How much a log entry matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Why something happens.
    Debug,
    /// What happens.
    Info,
    /// Something was mended.
    Warn,
    /// Somebody should look.
    Error,
}

/// A log entry as a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxLog {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// A JSON object with at least `level`, `logger`, `message` and `timestamp`.
    pub line: String,
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxLogEntry {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// How much it matters.
    pub level: LogLevel,
    /// What happened.
    pub message: String,
    /// Everything else that is known.
    pub fields: BTreeMap<String, String>,
}

/// Log entries, oldest first, in both forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLogs {
    /// As lines.
    pub logs: Vec<SandboxLog>,
    /// The same entries, parsed.
    pub log_entries: Vec<SandboxLogEntry>,
}

/// Log entries in the order that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxLogsV2 {
    /// The entries.
    pub logs: Vec<SandboxLogEntry>,
}
