//! What clients send.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A new sandbox.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewSandbox {
    /// Template to start from: an id or a name, optionally with a tag (`name:tag`).
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Seconds until the sandbox is killed or paused, counted from when it is ready. Must be greater
    /// than 0. Default: 15 on `/sandboxes`, 300 on `/v2/sandboxes`.
    #[schema(minimum = 1)]
    pub timeout: Option<i32>,
    /// Pause instead of kill when the time is up. Default: false.
    #[serde(rename = "autoPause")]
    pub auto_pause: Option<bool>,
    /// Whether the pause at the timeout keeps memory. False needs `autoPause` and excludes
    /// `autoResume`. Default: true.
    #[serde(rename = "autoPauseMemory")]
    pub auto_pause_memory: Option<bool>,
    /// Whether traffic to the paused sandbox resumes it.
    #[serde(rename = "autoResume")]
    pub auto_resume: Option<AutoResume>,
    /// Accepted for compatibility: every sandbox is secured with an access token.
    pub secure: Option<bool>,
    /// Whether the sandbox may open connections to the internet. Default: true.
    pub allow_internet_access: Option<bool>,
    /// Network rules.
    pub network: Option<NewSandboxNetwork>,
    /// Free text pairs, for filtering lists.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Environment of every process that is started through the agent.
    #[serde(rename = "envVars")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// Opaque to the server: the SDK itself starts the MCP gateway inside the sandbox.
    #[schema(value_type = Option<Object>)]
    pub mcp: Option<Value>,
    /// Workload identities: not supported, must be absent or empty.
    #[schema(value_type = Option<Object>)]
    pub iam: Option<Value>,
    /// Volumes: not supported, must be absent or empty.
    #[serde(rename = "volumeMounts")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub volume_mounts: Option<Value>,
}

/// Whether traffic to the paused sandbox resumes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AutoResume {
    /// True turns it on.
    pub enabled: bool,
}

/// Network rules of a new sandbox. What concerns traffic from the sandbox is not supported yet: those
/// fields must be absent, `null` or empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewSandboxNetwork {
    /// Whether ports other than the agent's are open to everybody. False: requests must bring the
    /// `trafficAccessToken` of the answer in header `E2b-Traffic-Access-Token`. Default: true.
    pub allow_public_traffic: Option<bool>,
    /// What services on ports other than the agent's see as `Host`: a host, optionally with a port, in
    /// which `${PORT}` stands for the port they listen on.
    pub mask_request_host: Option<String>,
    /// Not supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub allow_out: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub deny_out: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub egress_proxy: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub rules: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub dns_servers: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Vec<i32>>)]
    pub https_ports: Option<Value>,
}

/// Network rules that replace those of a sandbox. None can be changed yet: each field must be absent,
/// `null`, empty, or what it is already.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateNetwork {
    /// Whether the sandbox may open connections to the internet. Omitted means true.
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    /// Not supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub allow_out: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub deny_out: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub egress_proxy: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Object>)]
    pub rules: Option<Value>,
    /// Not supported.
    #[schema(value_type = Option<Vec<String>>)]
    pub dns_servers: Option<Value>,
}

/// How to connect to a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectSandbox {
    /// Seconds from now that the sandbox must go on for at least. Required on
    /// `/sandboxes/{sandboxID}/connect`; 300 when omitted on `/v2/sandboxes/{sandboxID}/connect`.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// False discards the saved memory of a paused sandbox and boots it from its disk. Without effect
    /// on a running sandbox. Default: true.
    pub memory: Option<bool>,
}

/// How to resume a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResumeSandbox {
    /// Seconds until the sandbox is killed or paused, counted from when it is ready. Default: 15.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// Deprecated. Changing the setting made at creation is not supported: must be absent or equal.
    #[serde(rename = "autoPause")]
    pub auto_pause: Option<bool>,
    /// False discards the saved memory and boots from the disk. Default: true.
    pub memory: Option<bool>,
}

/// How to pause a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PauseSandbox {
    /// False keeps files only: resuming boots the sandbox again. Default: true.
    pub memory: Option<bool>,
    /// True answers 503, with the sandbox still running, when its agent does not respond.
    pub require_healthy_guest: Option<bool>,
}

/// How to make a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewSnapshot {
    /// What to call it: `[<namespace>/]<name>[:<tag>]`. A snapshot that had this name and tag before
    /// is replaced.
    pub name: Option<String>,
    /// False keeps files only: sandboxes made from it are booted. Default: true.
    pub memory: Option<bool>,
}

/// How to fork a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkSandbox {
    /// Seconds until the forks are killed or paused, counted from when each is ready. Default: 15.
    #[schema(minimum = 0)]
    pub timeout: Option<i32>,
    /// How many forks. Default: 1.
    #[schema(minimum = 1, maximum = 100)]
    pub count: Option<i32>,
}

/// What to go back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackSandbox {
    /// A snapshot that was made of this very sandbox: its id or name.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
}

/// A new deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetTimeout {
    /// Seconds from now; 0 expires the sandbox at once.
    #[schema(minimum = 0)]
    pub timeout: i32,
}

/// A later deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtendTimeout {
    /// Seconds from now, at most 3600; less than 15 counts as 15. Default: 15.
    #[schema(minimum = 0, maximum = 3600)]
    pub duration: Option<i32>,
}
