//! From what the sandbox module shows to what clients see.

use api_types::{
    ListedSandbox, Sandbox, SandboxDetail, SandboxLifecycle, SandboxNetwork, SandboxOnTimeout,
    SandboxState, SnapshotInfo, StorageUse,
};

use crate::sandbox::{Ingress, Lifecycle, OnTimeout, PauseMode, PublicState, SandboxView, Storage};
use crate::snapshots::{Snapshot, SnapshotName};

/// Old clients refuse a sandbox without one; it means nothing.
const CLIENT_ID: &str = "6532622b";

pub(super) fn sandbox(view: SandboxView, domain: &str) -> Sandbox {
    Sandbox {
        template_id: view.template_id,
        sandbox_id: view.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        envd_version: agent_api::ENVD_VERSION.to_owned(),
        alias: view.alias,
        envd_access_token: view.access_token,
        traffic_access_token: view.ingress.traffic_token,
        // Without a domain SDKs fall back to E2B's cloud and send it the token.
        domain: domain.to_owned(),
    }
}

pub(super) fn detail(view: SandboxView, domain: &str) -> SandboxDetail {
    SandboxDetail {
        template_id: view.template_id,
        sandbox_id: view.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        envd_version: agent_api::ENVD_VERSION.to_owned(),
        alias: view.alias,
        started_at: view.started_at,
        end_at: view.end_at,
        state: state(view.state),
        cpu_count: view.cpu_count,
        memory_mb: view.memory_mb,
        disk_size_mb: view.disk_size_mb,
        metadata: view.metadata,
        envd_access_token: view.access_token,
        allow_internet_access: view.allow_internet_access,
        network: network(&view.ingress),
        domain: domain.to_owned(),
        lifecycle: lifecycle(view.lifecycle),
        pause_mode: view.pause_mode.map(pause_mode),
        envd_unresponsive_at_pause: view.agent_silent.then_some(true),
        memory_lost: view.memory_lost,
        volume_mounts: Vec::new(),
    }
}

pub(super) fn listed(view: SandboxView) -> ListedSandbox {
    ListedSandbox {
        template_id: view.template_id,
        sandbox_id: view.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        envd_version: agent_api::ENVD_VERSION.to_owned(),
        alias: view.alias,
        started_at: view.started_at,
        end_at: view.end_at,
        state: state(view.state),
        cpu_count: view.cpu_count,
        memory_mb: view.memory_mb,
        disk_size_mb: view.disk_size_mb,
        metadata: view.metadata,
        volume_mounts: Vec::new(),
    }
}

pub(super) fn snapshot(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        snapshot_id: snapshot.reference(),
        names: snapshot
            .name
            .iter()
            .map(SnapshotName::without_tag)
            .collect(),
        sandbox_id: snapshot.source.to_string(),
        created_at: snapshot.created_at,
        memory: snapshot.image.is_some(),
    }
}

pub(super) fn storage(storage: Storage) -> StorageUse {
    StorageUse {
        own_bytes: storage.own_bytes,
        shared_bytes: storage.shared_bytes,
    }
}

fn state(state: PublicState) -> SandboxState {
    match state {
        PublicState::Running => SandboxState::Running,
        PublicState::Paused => SandboxState::Paused,
    }
}

fn pause_mode(mode: PauseMode) -> api_types::PauseMode {
    match mode {
        PauseMode::Full => api_types::PauseMode::Full,
        PauseMode::Filesystem => api_types::PauseMode::Filesystem,
    }
}

/// `None` for the default: clients would take a `network` without anything in it for a setting.
fn network(ingress: &Ingress) -> Option<SandboxNetwork> {
    (*ingress != Ingress::default()).then(|| SandboxNetwork {
        allow_public_traffic: ingress.traffic_token.is_none(),
        mask_request_host: ingress
            .host_mask
            .as_ref()
            .map(|mask| mask.as_str().to_owned()),
    })
}

fn lifecycle(lifecycle: Lifecycle) -> SandboxLifecycle {
    let on_timeout = match lifecycle.on_timeout {
        OnTimeout::Kill => SandboxOnTimeout::Kill,
        OnTimeout::Pause(_) => SandboxOnTimeout::Pause,
    };
    SandboxLifecycle {
        on_timeout,
        auto_resume: lifecycle.auto_resume,
    }
}
