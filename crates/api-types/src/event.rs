//! Events of sandboxes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Something that happened to a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxEvent {
    /// Form of events: `v2`.
    pub version: String,
    /// Its own id.
    pub id: String,
    /// `sandbox.lifecycle.` and the label.
    #[serde(rename = "type")]
    pub kind: String,
    /// When it was certain.
    #[serde(with = "time::serde::rfc3339")]
    pub timestamp: OffsetDateTime,
    /// `lifecycle`.
    pub event_category: String,
    /// `created`, `paused`, `resumed`, `checkpointed`, `rolled_back` or `killed`.
    pub event_label: String,
    /// More about it. `paused`: `mode` (`full`, `filesystem`) and `reason` (`request`, `timeout`,
    /// `shutdown`, `lost:out_of_memory`, `lost:exited`, `resume_failed`, `restart_failed`,
    /// `unknown`). `resumed`: `from` (`memory`, `disk`). `checkpointed`: `purpose` (`snapshot`,
    /// `copy` for forks and exports), `snapshot_id`, `memory`. `rolled_back`: `snapshot_id`,
    /// `memory`. `killed`: `reason` (`request`, `timeout`, `unknown`). `memory_lost` says why memory
    /// is not there that nobody gave up. `found_at_start`: it happened before `timestamp`, while no
    /// server saw it.
    #[schema(value_type = Object)]
    pub event_data: Map<String, Value>,
    /// Id of the sandbox, which may be gone.
    pub sandbox_id: String,
    /// The execution that began or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_execution_id: Option<String>,
    /// Raw id of its template.
    pub sandbox_template_id: String,
}
