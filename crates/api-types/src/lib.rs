//! REST request and response types of the control plane, and nothing else.
//!
//! Doc comments here are the text of the published OpenAPI document. Requests ignore fields that
//! they do not know (clients send extra ones); fields of the upstream API that this server knows of
//! but does not support are named in the request types, so that the server can refuse them by name.
//! Responses omit what is not there instead of sending `null`: the Python SDK fails on a `null`
//! object.

mod error;
mod event;
mod history;
mod request;
mod response;

pub use error::ErrorBody;
pub use event::SandboxEvent;
pub use history::{
    LogLevel, SandboxLog, SandboxLogEntry, SandboxLogs, SandboxLogsV2, SandboxMetric,
    SandboxesWithMetrics,
};
pub use request::{
    AutoResume, ConnectSandbox, ExtendTimeout, ForkSandbox, NewSandbox, NewSandboxNetwork,
    NewSnapshot, PauseSandbox, ResumeSandbox, RollbackSandbox, SetTimeout, UpdateNetwork,
};
pub use response::{
    Fork, ListedSandbox, PauseMode, Sandbox, SandboxDetail, SandboxLifecycle, SandboxNetwork,
    SandboxOnTimeout, SandboxState, SnapshotInfo, StorageUse, VolumeMount,
};
