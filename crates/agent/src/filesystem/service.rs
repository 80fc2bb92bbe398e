//! Stat, MakeDir, Move and Remove (contract §5.4, §5.6, §5.7).
//!
//! All of it runs as root; the user only says what paths mean and who owns new directories.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::messages::{EntryInfo, EntryResponse, MoveRequest, Nothing, PathRequest};
use crate::agent::Agent;
use crate::connect::{Caller, Code, RpcError, blocking};
use crate::files::directories::{self, CreateError};
use crate::log::Level;
use crate::users::Names;

pub(crate) async fn stat(
    agent: Arc<Agent>,
    caller: Caller,
    request: PathRequest,
) -> Result<EntryResponse, RpcError> {
    let user = agent.acting_user(&caller)?;
    let path = agent.resolve(&request.path, &user)?;
    blocking(move || entry(&path, &caller)).await
}

fn entry(path: &str, caller: &Caller) -> Result<EntryResponse, RpcError> {
    let entry = EntryInfo::read(path, &Names::load()).map_err(|error| {
        if is_missing(&error) {
            RpcError::not_found(format!("file not found: {path}: {error}"))
        } else {
            RpcError::internal(format!("error getting file info: {path}: {error}"))
        }
    })?;
    let entry = if caller.legacy {
        entry.for_legacy()
    } else {
        entry
    };
    Ok(EntryResponse { entry: Some(entry) })
}

pub(crate) async fn make_dir(
    agent: Arc<Agent>,
    caller: Caller,
    request: PathRequest,
) -> Result<EntryResponse, RpcError> {
    let user = agent.acting_user(&caller)?;
    let path = agent.resolve(&request.path, &user)?;
    let (made, username) = (path.clone(), user.name.clone());
    let reply = blocking(move || {
        match fs::metadata(&path) {
            Ok(existing) if existing.is_dir() => {
                let message = format!("directory already exists: {path}");
                return Err(RpcError::new(Code::AlreadyExists, message));
            }
            Ok(_) => {
                let message = format!("path already exists but it is not a directory: {path}");
                return Err(RpcError::invalid(message));
            }
            Err(_) => {}
        }
        directories::create_all(Path::new(&path), &user).map_err(|error| create_error(&error))?;
        entry(&path, &caller)
    })
    .await;
    agent.watchers.settle();
    if reply.is_ok() {
        log(&agent, "directory made", &made, &username);
    }
    reply
}

/// Tells the sandbox's owner what was changed.
fn log(agent: &Agent, message: &str, path: &str, username: &str) {
    let fields = json!({"path": path, "username": username});
    agent.log.add(Level::Info, "filesystem", message, fields);
}

pub(crate) async fn rename(
    agent: Arc<Agent>,
    caller: Caller,
    request: MoveRequest,
) -> Result<EntryResponse, RpcError> {
    let user = agent.acting_user(&caller)?;
    let source = agent.resolve(&request.source, &user)?;
    let destination = agent.resolve(&request.destination, &user)?;
    let (moved, username) = (destination.clone(), user.name.clone());
    let reply = blocking(move || {
        if let Some(parent) = Path::new(&destination).parent() {
            directories::create_all(parent, &user).map_err(|error| create_error(&error))?;
        }
        fs::rename(&source, &destination).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                RpcError::not_found(format!("source file not found: {source}: {error}"))
            } else {
                RpcError::internal(format!("error renaming {source} to {destination}: {error}"))
            }
        })?;
        entry(&destination, &caller)
    })
    .await;
    agent.watchers.settle();
    if reply.is_ok() {
        log(&agent, "moved", &moved, &username);
    }
    reply
}

fn create_error(error: &CreateError) -> RpcError {
    RpcError::internal(format!("failed to create directory: {error}"))
}

pub(crate) async fn remove(
    agent: Arc<Agent>,
    caller: Caller,
    request: PathRequest,
) -> Result<Nothing, RpcError> {
    let user = agent.acting_user(&caller)?;
    let path = agent.resolve(&request.path, &user)?;
    let removed = path.clone();
    let reply = blocking(move || {
        // With a slash at its end a link would be taken for the directory it leads to.
        let path = match path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        let removed = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if !is_missing(&error) => Err(RpcError::internal(format!(
                "error removing file or directory: {error}"
            ))),
            _ => Ok(Nothing {}),
        }
    })
    .await;
    if reply.is_ok() {
        log(&agent, "removed", &removed, &user.name);
    }
    reply
}

/// A path through a file leads nowhere either.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
