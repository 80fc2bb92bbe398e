//! Exports and imports: one function per operation. Their comments are the API text.

use std::io;
use std::pin::pin;
use std::time::Duration;

use api_types::{ErrorBody, SnapshotInfo};
use axum::Json as Answer;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use futures_util::{Stream, StreamExt, stream};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use utoipa::ToSchema;

use super::extract::Id;
use super::{ApiError, HttpState, query, view};
use crate::snapshots::SnapshotName;
use crate::transfer::{Compression, ImportRequest, TransferError};

/// A client that sends nothing of its file for so long has gone.
const STALLED: Duration = Duration::from_secs(60);
/// How long a refused file may go on coming: clients that are cut off while they send do not read
/// why.
const DRAIN: Duration = Duration::from_secs(10);

/// An export: a tar archive, compressed with zstd or not. docs/export-format.md describes it.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(super) struct ExportFile(#[expect(dead_code, reason = "only its schema is used")] Vec<u8>);

/// Export a snapshot
///
/// All of it as one file: memory, disks, layers, and the engine build that wrote the memory. The
/// answer begins when everything was read and hashed once. A file that was cut short or altered is
/// refused by the import.
#[utoipa::path(get, path = "/snapshots/{snapshotID}/export", tag = "snapshots",
    params(
        ("snapshotID" = String, Path, description = "Its id or its name"),
        ("compression" = Option<String>, Query, description = "`zstd` (default) or `none`"),
        ("memory" = Option<bool>, Query, description = "False leaves memory out. Default: true"),
        ("files" = Option<String>, Query, description = "`readable`: a plain archive of the files alone, as far as they can be read, for a disk that is damaged; `missing.json` at its end names the rest"),
    ),
    responses(
        (status = 200, description = "The file", body = ExportFile, content_type = "application/octet-stream"),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such snapshot", body = ErrorBody),
        (status = 500, description = "It cannot be read", body = ErrorBody),
    ))]
pub(super) async fn export_snapshot(
    State(state): State<HttpState>,
    Path(reference): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let compression = compression(query.clone())?;
    if only_readable(query.clone())? {
        let sandboxes = &state.sandboxes;
        let (files, never) = sandboxes.readable_files_of_snapshot(&reference).await?;
        let content = files.stream(compression, never);
        return Ok(file(content, compression, &reference));
    }
    let memory = memory(query)?;
    let exported = state.sandboxes.export_snapshot(&reference, memory).await?;
    let name = exported.snapshot().to_string();
    Ok(file(exported.stream(compression), compression, &name))
}

/// Export a sandbox
///
/// As it is now, as a snapshot of it would be exported. A running one stands still meanwhile and
/// its connections are cut, as by a snapshot; then it goes on.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/export", tag = "snapshots",
    params(
        ("sandboxID" = String, Path),
        ("compression" = Option<String>, Query, description = "`zstd` (default) or `none`"),
        ("memory" = Option<bool>, Query, description = "False leaves memory out. Default: true"),
        ("files" = Option<String>, Query, description = "`readable`: a plain archive of the files alone, as far as they can be read, for a disk that is damaged; `missing.json` at its end names the rest"),
    ),
    responses(
        (status = 200, description = "The file", body = ExportFile, content_type = "application/octet-stream"),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 409, description = "It is changing its state; for `files=readable`, it is not paused", body = ErrorBody),
        (status = 500, description = "It failed; the sandbox is as before", body = ErrorBody),
        (status = 507, description = "The host's disk is full; the sandbox is as before", body = ErrorBody),
    ))]
pub(super) async fn export_sandbox(
    State(state): State<HttpState>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let compression = compression(query.clone())?;
    if only_readable(query.clone())? {
        let (files, changed) = state.sandboxes.readable_files(&id).await?;
        let content = files.stream(compression, changed);
        return Ok(file(content, compression, id.as_str()));
    }
    let memory = memory(query)?;
    let exported = state.sandboxes.export(&id, memory).await?;
    Ok(file(exported.stream(compression), compression, id.as_str()))
}

/// Import a snapshot
///
/// Makes a snapshot of an export of this or another server. It is verified as a whole before
/// anything of it is seen; a refused file leaves nothing. Engine builds that are not kept here are
/// refused unless the server is configured to take them.
#[utoipa::path(post, path = "/snapshots/import", tag = "snapshots",
    params(
        ("name" = Option<String>, Query,
            description = "What to call it: `[<namespace>/]<name>[:<tag>]`. A snapshot that had this \
                           name and tag before is replaced"),
        ("memory" = Option<bool>, Query,
            description = "False takes files only: sandboxes made from it are booted. Default: true"),
    ),
    request_body(content = ExportFile, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "The snapshot is durable", body = SnapshotInfo),
        (status = 400, description = "Malformed name, or a file that is refused", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 409, description = "The name is that of a template or the id of a snapshot", body = ErrorBody),
        (status = 429, description = "Four imports are under way; try again when one has ended", body = ErrorBody),
        (status = 500, description = "It could not be stored", body = ErrorBody),
        (status = 507, description = "The host's disk is full", body = ErrorBody),
    ))]
pub(super) async fn import(
    State(state): State<HttpState>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Answer<SnapshotInfo>), ApiError> {
    let name = parameter(query.clone(), "name")?;
    let memory = memory(query)?;
    let name = name.as_deref().filter(|name| !name.is_empty());
    let name = name.map(SnapshotName::parse).transpose();
    let name = name.map_err(|error| ApiError::Validation(error.to_string()))?;
    if let Some(name) = &name {
        state.sandboxes.check_name(name)?;
    }
    let mut chunks = pin!(chunks(body).fuse());
    let transfers = state.sandboxes.transfers();
    let request = ImportRequest {
        name,
        memory,
        builds: state.engine_builds,
    };
    let imported = transfers.import(chunks.as_mut(), request).await;
    if imported.is_err() {
        let drained = async { while chunks.next().await.is_some() {} };
        // Whether it ends in time or not: the answer is the same.
        let _ = tokio::time::timeout(DRAIN, drained).await;
    }
    let imported = imported?;
    Ok((StatusCode::CREATED, Answer(view::snapshot(&imported))))
}

/// The pieces of a body as they come, and an error when they stop coming.
fn chunks(body: Body) -> impl Stream<Item = io::Result<Bytes>> {
    let pieces = body.into_data_stream();
    stream::unfold(Some(pieces), async |pieces| {
        let mut pieces = pieces?;
        match tokio::time::timeout(STALLED, pieces.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Err(_) => {
                let problem = format!("nothing came for {STALLED:?}");
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, problem)), None))
            }
        }
    })
}

fn compression(query: Option<String>) -> Result<Compression, ApiError> {
    match parameter(query, "compression")?.as_deref() {
        None | Some("zstd") => Ok(Compression::Zstd),
        Some("none") => Ok(Compression::None),
        Some(_) => {
            let problem = "compression must be zstd or none".to_owned();
            Err(ApiError::Validation(problem))
        }
    }
}

fn memory(query: Option<String>) -> Result<bool, ApiError> {
    match parameter(query, "memory")?.as_deref() {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(_) => {
            let problem = "memory must be true or false".to_owned();
            Err(ApiError::Validation(problem))
        }
    }
}

fn parameter(query: Option<String>, wanted: &str) -> Result<Option<String>, ApiError> {
    let malformed = || ApiError::Validation("the query string is malformed".to_owned());
    let pairs = query::pairs(&query.unwrap_or_default()).ok_or_else(malformed)?;
    let mut values = pairs.into_iter().filter(|(name, _)| name == wanted);
    Ok(values.next().map(|(_, value)| value))
}

fn only_readable(query: Option<String>) -> Result<bool, ApiError> {
    match parameter(query, "files")?.as_deref() {
        None => Ok(false),
        Some("readable") => Ok(true),
        Some(_) => Err(ApiError::Validation("files must be readable".to_owned())),
    }
}

fn file(
    content: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    compression: Compression,
    name: &str,
) -> Response {
    let (kind, extension) = match compression {
        Compression::Zstd => ("application/zstd", "tar.zst"),
        Compression::None => ("application/x-tar", "tar"),
    };
    let mut response = Response::new(Body::from_stream(content));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    let name = file_name(name);
    let disposition = format!("attachment; filename=\"{name}.sandbase.{extension}\"");
    let disposition = HeaderValue::try_from(disposition);
    let disposition = disposition.expect("a file name has no character that a header may not have");
    headers.insert(CONTENT_DISPOSITION, disposition);
    response
}

/// A reference as a file name. A look-up is more lenient than a header: it takes what was asked for
/// with white space around it, too.
fn file_name(reference: &str) -> String {
    let kept = |letter: char| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' => letter,
        _ => '-',
    };
    reference.trim().chars().map(kept).collect()
}

/// For people: an error with all its causes.
pub(super) fn chain(error: &TransferError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_reference_makes_a_file_name_that_fits_a_header() {
        for (reference, name) in [
            ("sec\n", "sec"),
            ("team/name:v1.2", "team-name-v1.2"),
            ("a\"\r\n\u{0}\u{e4}b", "a-----b"),
        ] {
            assert_eq!(file_name(reference), name);
            let content = stream::empty::<io::Result<Bytes>>();
            let response = file(content, Compression::None, reference);
            let disposition = response.headers()[CONTENT_DISPOSITION].to_str().unwrap();
            let expected = format!("attachment; filename=\"{name}.sandbase.tar\"");
            assert_eq!(disposition, expected);
        }
    }
}
