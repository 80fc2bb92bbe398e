//! Snapshots, forks and rollbacks: one function per operation. Their comments are the API text.

use std::time::Duration;

use api_types::{
    ErrorBody, Fork, ForkSandbox, NewSnapshot, RollbackSandbox, Sandbox, SnapshotInfo, StorageUse,
};
use axum::Json as Answer;
use axum::extract::{Path, RawQuery, State};
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};

use super::create_request::seconds;
use super::extract::{Id, Json, OptionalJson};
use super::snapshot_query::{next_token, snapshot_page};
use super::{ApiError, HttpState, timing, view};
use crate::sandbox::SnapshotRequest;
use crate::snapshots::{SnapshotName, SnapshotUse};

const FORK_TIMEOUT: Duration = Duration::from_secs(15);
const MOST_FORKS: i32 = 100;

/// Make a snapshot of a sandbox
///
/// Files and memory, as they are at one moment. A running sandbox goes on running with the same id
/// and deadline; it stands still for as long as a pause and a resume take, and its connections are
/// cut. (Should it not start again, it is paused, and the snapshot is there all the same.) A paused
/// one stays paused. The snapshot outlives the sandbox.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/snapshots", tag = "snapshots",
    params(("sandboxID" = String, Path)), request_body = Option<NewSnapshot>,
    responses(
        (status = 201, description = "The snapshot is durable", body = SnapshotInfo),
        (status = 400, description = "Malformed name", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 409, description = "It is changing its state, or the name is that of a template or the id of a snapshot", body = ErrorBody),
        (status = 500, description = "It failed; the sandbox is as before", body = ErrorBody),
        (status = 503, description = "Nothing was done: the execution before still uses its disk, or the server is shutting down", body = ErrorBody),
        (status = 507, description = "The host's disk is full; the sandbox is as before", body = ErrorBody),
    ))]
pub(super) async fn create(
    State(state): State<HttpState>,
    Id(id): Id,
    OptionalJson(body): OptionalJson<NewSnapshot>,
) -> Result<(StatusCode, HeaderMap, Answer<SnapshotInfo>), ApiError> {
    let name = body.name.as_deref().filter(|name| !name.is_empty());
    let name = name.map(SnapshotName::parse).transpose();
    let request = SnapshotRequest {
        name: name.map_err(|error| ApiError::Validation(error.to_string()))?,
        usage: SnapshotUse::Listed,
        memory: body.memory.unwrap_or(true),
    };
    let made = state.sandboxes.snapshot(&id, request).await?;
    Ok((
        StatusCode::CREATED,
        timing::headers(&state, &id),
        Answer(view::snapshot(&made)),
    ))
}

/// List snapshots
///
/// Newest first, in pages; of each name only the newest tag.
#[utoipa::path(get, path = "/snapshots", tag = "snapshots",
    params(
        ("sandboxID" = Option<String>, Query, description = "Only those made of this sandbox"),
        ("name" = Option<String>, Query, description = "Only the one of this name or id"),
        ("limit" = Option<i32>, Query, minimum = 1, maximum = 100, description = "Default: 100"),
        ("nextToken" = Option<String>, Query, description = "Header `X-Next-Token` of the page before"),
    ),
    responses(
        (status = 200, description = "One page", body = Vec<SnapshotInfo>,
            headers(("X-Next-Token" = String, description = "There when more follow"))),
        (status = 400, description = "Malformed filter", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
    ))]
pub(super) async fn list(
    State(state): State<HttpState>,
    RawQuery(query): RawQuery,
) -> Result<(HeaderMap, Answer<Vec<SnapshotInfo>>), ApiError> {
    let page = snapshot_page(&query.unwrap_or_default())?;
    let listed = page.of(state.sandboxes.snapshots().listed());
    let mut headers = HeaderMap::new();
    if let Some(last) = listed.snapshots.last().filter(|_| listed.more) {
        let token = HeaderValue::try_from(next_token(last));
        let token = token.expect("URL-safe base64 is a header value");
        headers.insert("x-next-token", token);
    }
    let shown = listed.snapshots.iter();
    Ok((
        headers,
        Answer(shown.map(|it| view::snapshot(it)).collect()),
    ))
}

/// Delete a snapshot
///
/// By its id or its name; all tags of a name go. Refused as long as a sandbox exists that was
/// created from it, and while something is being made from it. Templates are not deleted.
#[utoipa::path(delete, path = "/templates/{templateID}", tag = "snapshots",
    params(("templateID" = String, Path)),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, description = "A sandbox was created from it", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such snapshot", body = ErrorBody),
        (status = 409, description = "Something is being made from it at this moment", body = ErrorBody),
        (status = 500, description = "It could not be removed", body = ErrorBody),
    ))]
pub(super) async fn delete(
    State(state): State<HttpState>,
    Path(reference): Path<String>,
) -> Result<StatusCode, ApiError> {
    state.sandboxes.delete_snapshot(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Fork a sandbox
///
/// Starts copies of a running sandbox, with its files, memory and settings, and ids and tokens of
/// their own. The sandbox itself goes on running, as with a snapshot.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/fork", tag = "snapshots",
    params(("sandboxID" = String, Path)), request_body = Option<ForkSandbox>,
    responses(
        (status = 201, description = "One entry per fork", body = Vec<Fork>),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 409, description = "It is paused or changing its state", body = ErrorBody),
        (status = 500, description = "It failed; the sandbox is as before", body = ErrorBody),
        (status = 507, description = "The host's disk is full; the sandbox is as before", body = ErrorBody),
    ))]
pub(super) async fn fork(
    State(state): State<HttpState>,
    Id(id): Id,
    OptionalJson(body): OptionalJson<ForkSandbox>,
) -> Result<(StatusCode, Answer<Vec<Fork>>), ApiError> {
    let timeout = body.timeout.map(|given| seconds("timeout", given));
    let timeout = timeout.transpose()?.unwrap_or(FORK_TIMEOUT);
    let count = body.count.unwrap_or(1);
    let valid = (1..=MOST_FORKS).contains(&count);
    let count = usize::try_from(count).ok().filter(|_| valid);
    let problem = || ApiError::Validation(format!("count must be from 1 to {MOST_FORKS}"));
    let count = count.ok_or_else(problem)?;
    let forks = state.sandboxes.fork(&id, count, timeout).await?;
    let forks = forks.into_iter().map(|fork| match fork {
        Ok(made) => Fork {
            sandbox: Some(view::sandbox(made, &state.domain)),
            error: None,
        },
        Err(error) => Fork {
            sandbox: None,
            error: Some(ApiError::from(error).body()),
        },
    });
    Ok((StatusCode::CREATED, Answer(forks.collect())))
}

/// Roll a sandbox back
///
/// Puts it back to a snapshot that was made of it, with files and memory. Id, token and deadline
/// stay; what happened since is lost. A running one runs again when this answers, a paused one stays
/// paused.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/rollback", tag = "snapshots",
    params(("sandboxID" = String, Path)), request_body = RollbackSandbox,
    responses(
        (status = 200, description = "It is as it was", body = Sandbox),
        (status = 400, description = "Malformed, or a snapshot of another sandbox", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox or snapshot", body = ErrorBody),
        (status = 409, description = "It is changing its state", body = ErrorBody),
        (status = 500, description = "It failed; the text says what the sandbox is", body = ErrorBody),
        (status = 503, description = "Nothing was done: the execution before still uses its disk, or the server is shutting down", body = ErrorBody),
        (status = 507, description = "The host's disk is full; the sandbox is as before", body = ErrorBody),
    ))]
pub(super) async fn rollback(
    State(state): State<HttpState>,
    Id(id): Id,
    Json(body): Json<RollbackSandbox>,
) -> Result<Answer<Sandbox>, ApiError> {
    let rolled_back = state.sandboxes.rollback(&id, &body.snapshot_id).await?;
    Ok(Answer(view::sandbox(rolled_back, &state.domain)))
}

/// What a sandbox takes on the host's disk
///
/// Its disks and its memory image, if it has one.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/storage", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses(
        (status = 200, description = "Bytes on the host's disk", body = StorageUse),
        (status = 400, description = "Malformed id", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
    ))]
pub(super) async fn sandbox_storage(
    State(state): State<HttpState>,
    Id(id): Id,
) -> Result<Answer<StorageUse>, ApiError> {
    Ok(Answer(view::storage(state.sandboxes.storage(&id).await?)))
}

/// What a snapshot takes on the host's disk
#[utoipa::path(get, path = "/snapshots/{snapshotID}/storage", tag = "snapshots",
    params(("snapshotID" = String, Path)),
    responses(
        (status = 200, description = "Bytes on the host's disk", body = StorageUse),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such snapshot", body = ErrorBody),
    ))]
pub(super) async fn snapshot_storage(
    State(state): State<HttpState>,
    Path(reference): Path<String>,
) -> Result<Answer<StorageUse>, ApiError> {
    let storage = state.sandboxes.snapshot_storage(&reference).await?;
    Ok(Answer(view::storage(storage)))
}
