//! `POST /files/compose`: several files become one (contract §6.4).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;

use super::directories;
use super::query;
use super::target::{blocking, is_full, not_enough};
use super::upload::Written;
use crate::agent::Agent;
use crate::server::{Body, Failed, json};
use crate::users::User;

/// Longest request: some thousand paths.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

#[derive(Debug, Deserialize)]
struct ComposeRequest {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

pub(crate) async fn compose(
    agent: Arc<Agent>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failed> {
    let body = Limited::new(request.into_body(), BODY_LIMIT)
        .collect()
        .await;
    let body = body
        .map_err(|error| Failed::bad_request(error.to_string()))?
        .to_bytes();
    let request: ComposeRequest = serde_json::from_slice(&body)
        .map_err(|error| Failed::bad_request(format!("error parsing request body: {error}")))?;
    if request.source_paths.is_empty() {
        return Err(Failed::bad_request("source_paths must not be empty"));
    }
    if request.destination.is_empty() {
        return Err(Failed::bad_request("destination is required"));
    }
    let user = query::find_user(&agent, request.username.as_deref())?;
    let destination = query::resolve(&agent, &request.destination, &user)?;
    let mut sources = Vec::new();
    for source in &request.source_paths {
        sources.push(query::resolve(&agent, source, &user)?);
    }
    let written = blocking(move || {
        join(&sources, &destination, &user)?;
        Ok(Written::new(destination, BTreeMap::new()))
    })
    .await;
    agent.watchers.settle();
    Ok(json(StatusCode::OK, &written?))
}

/// The destination is replaced at the end and untouched by a failure.
fn join(sources: &[String], destination: &str, user: &User) -> Result<(), Failed> {
    let target = place(destination);
    for source in sources {
        // Also in another spelling: the sources are removed at the end.
        if place(source) == target {
            let message = format!("source file is the same as the destination: {source}");
            return Err(Failed::bad_request(message));
        }
        match fs::metadata(source) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => {
                return Err(Failed::bad_request(format!(
                    "source is not a regular file: {source}"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failed::not_found(format!(
                    "source file not found: {source}"
                )));
            }
            Err(error) => return Err(failed("read source", &error)),
        }
    }
    if let Some(parent) = Path::new(destination).parent() {
        directories::create_all(parent, user)
            .map_err(|error| failed("make directories", &error.source))?;
    }
    let temporary = format!("{destination}.e2b-compose.{}.tmp", unique());
    let joined =
        concatenate(sources, &temporary, user).and_then(|()| fs::rename(&temporary, destination));
    if let Err(error) = joined {
        let _may_not_exist = fs::remove_file(&temporary);
        return Err(failed("compose files", &error));
    }
    for source in sources {
        // A source named twice is gone the second time.
        let _best_effort = fs::remove_file(source);
    }
    Ok(())
}

/// The directory entry a path names, whichever way it gets there. A link at its end is an entry of
/// its own.
fn place(path: &str) -> PathBuf {
    let path = Path::new(path);
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn concatenate(sources: &[String], temporary: &str, user: &User) -> io::Result<()> {
    let mut output = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(temporary)?;
    fchown(&output, Some(user.uid), Some(user.gid))?;
    for source in sources {
        io::copy(&mut File::open(source)?, &mut output)?;
    }
    Ok(())
}

fn unique() -> String {
    let mut bytes = [0_u8; 16];
    let _best_effort = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(what: &str, error: &io::Error) -> Failed {
    if is_full(error) {
        return not_enough("disk space");
    }
    Failed::internal(format!("failed to {what}: {error}"))
}
