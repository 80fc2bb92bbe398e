//! WatchDir, CreateWatcher, GetWatcherEvents and RemoveWatcher.

use std::sync::Arc;

use super::stream::WatchStream;
use super::tree::Change;
use super::{State, Watcher};
use crate::agent::Agent;
use crate::connect::{Caller, Codec, Frames, RpcError, blocking};
use crate::filesystem::messages::{
    CreateWatcherResponse, EntryInfo, EventType, FilesystemEvent, GetWatcherEventsResponse,
    Nothing, WatchRequest, WatcherRequest,
};
use crate::filesystem::service::is_missing;
use crate::users::Names;

/// NFS, CIFS, SMB, SMB2 and FUSE: changes made elsewhere would not be seen.
const NETWORK_FILESYSTEMS: [u32; 5] = [0x6969, 0xff53_4d42, 0x517b, 0xfe53_4d42, 0x6573_5546];

pub(crate) async fn watch_dir(
    agent: Arc<Agent>,
    caller: Caller,
    codec: Codec,
    request: WatchRequest,
) -> Result<Frames, RpcError> {
    let watcher = start(&agent, &caller, &request).await?;
    Ok(WatchStream::start(
        agent,
        watcher,
        &caller,
        codec,
        request.include_entry,
    ))
}

pub(crate) async fn create_watcher(
    agent: Arc<Agent>,
    caller: Caller,
    request: WatchRequest,
) -> Result<CreateWatcherResponse, RpcError> {
    let watcher = start(&agent, &caller, &request).await?;
    watcher.lock().include_entry = request.include_entry;
    // Owned by the registry, which aborts it: it lives until it is removed, whoever disconnects.
    let reader = tokio::spawn(Arc::clone(&watcher).run()).abort_handle();
    Ok(CreateWatcherResponse {
        watcher_id: agent.watchers.add(&watcher, Some(reader)),
    })
}

pub(crate) async fn get_watcher_events(
    agent: Arc<Agent>,
    caller: Caller,
    request: WatcherRequest,
) -> Result<GetWatcherEventsResponse, RpcError> {
    let watcher = agent
        .watchers
        .find(&request.watcher_id)
        .ok_or_else(|| missing(&request))?;
    watcher.drain();
    let (changes, include_entry, root) = {
        let State {
            tree,
            unread,
            failure,
            include_entry,
        } = &mut *watcher.lock();
        if let Some(failure) = failure {
            return Err(RpcError::internal(format!("watcher error: {failure}")));
        }
        (std::mem::take(unread), *include_entry, tree.root.clone())
    };
    let legacy = caller.legacy;
    let describe = move |change| event(change, &root, include_entry && !legacy);
    let events = blocking(move || Ok(changes.into_iter().map(describe).collect())).await?;
    Ok(GetWatcherEventsResponse { events })
}

pub(crate) async fn remove_watcher(
    agent: Arc<Agent>,
    _caller: Caller,
    request: WatcherRequest,
) -> Result<Nothing, RpcError> {
    match agent.watchers.find(&request.watcher_id) {
        Some(_) if agent.watchers.remove(&request.watcher_id) => Ok(Nothing {}),
        _ => Err(missing(&request)),
    }
}

fn missing(request: &WatcherRequest) -> RpcError {
    RpcError::not_found(format!("watcher with id {} not found", request.watcher_id))
}

async fn start(
    agent: &Agent,
    caller: &Caller,
    request: &WatchRequest,
) -> Result<Arc<Watcher>, RpcError> {
    let user = agent.acting_user(caller)?;
    let path = agent.resolve(&request.path, &user)?;
    let (recursive, allow_network) = (request.recursive, request.allow_network_mounts);
    blocking(move || {
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(RpcError::invalid(format!("path {path} is not a directory"))),
            Err(error) if is_missing(&error) => {
                return Err(RpcError::not_found(format!(
                    "path {path} not found: {error}"
                )));
            }
            Err(error) => {
                return Err(RpcError::internal(format!(
                    "error statting path {path}: {error}"
                )));
            }
        }
        let kind = rustix::fs::statfs(&path).map(|statfs| statfs.f_type as u32);
        if !allow_network && kind.is_ok_and(|kind| NETWORK_FILESYSTEMS.contains(&kind)) {
            let message = format!("cannot watch path on network filesystem: {path}");
            return Err(RpcError::invalid(message));
        }
        let watcher = Watcher::start(path, recursive);
        watcher
            .map(Arc::new)
            .map_err(|error| RpcError::internal(format!("error creating watcher: {error}")))
    })
    .await
}

/// A change as clients see it. What was renamed or removed never has an entry, even if something
/// else has its name now.
pub(super) fn event(change: Change, root: &str, include_entry: bool) -> FilesystemEvent {
    let lasting = matches!(
        change.kind,
        EventType::Create | EventType::Write | EventType::Chmod
    );
    let entry = (include_entry && lasting)
        .then(|| {
            let path = crate::paths::join(root, &change.name);
            EntryInfo::read(&path, &Names::load()).ok()
        })
        .flatten();
    FilesystemEvent {
        name: change.name,
        kind: change.kind as i32,
        entry,
    }
}
