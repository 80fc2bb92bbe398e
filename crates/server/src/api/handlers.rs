//! One function per operation: parameters, one call, the answer. Their comments are the API text.

use std::time::Duration;

use api_types::{
    ConnectSandbox, ErrorBody, ExtendTimeout, ListedSandbox, NewSandbox, PauseSandbox,
    ResumeSandbox, Sandbox, SandboxDetail, SetTimeout,
};
use axum::Json as Answer;
use axum::extract::{RawQuery, State};
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};

use super::create_request::{create_request, seconds};
use super::extract::{Id, Json, OptionalJson};
use super::list_query::ListQuery;
use super::{ApiError, HttpState, timing, view};
use crate::sandbox::{Connected, OnTimeout, PauseMode, PauseRequest, ResumeFrom};

/// Timeouts that the two generations of clients mean when they leave it out.
const TIMEOUT_V1: Duration = Duration::from_secs(15);
const TIMEOUT_V2: Duration = Duration::from_secs(300);
/// Bounds of a refresh.
const REFRESH_AT_LEAST: i32 = 15;
const REFRESH_AT_MOST: i32 = 3600;

/// Health
///
/// Answers as soon as the server accepts requests. Needs no key.
#[utoipa::path(get, path = "/health", tag = "server", security(()),
    responses((status = 200, description = "The server accepts requests", body = String)))]
pub(super) async fn health() -> &'static str {
    "Health check successful"
}

/// Create a sandbox
///
/// Answers when the sandbox is ready for use. An omitted `timeout` means 15 seconds. Options that
/// this server does not support are refused by name.
#[utoipa::path(post, path = "/sandboxes", tag = "sandboxes", request_body = NewSandbox,
    responses(
        (status = 201, description = "The sandbox runs", body = Sandbox),
        (status = 400, description = "Malformed or not supported", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such template", body = ErrorBody),
        (status = 429, description = "Too many running sandboxes", body = ErrorBody),
        (status = 500, description = "It could not be started", body = ErrorBody),
        (status = 503, description = "The server is shutting down", body = ErrorBody),
        (status = 507, description = "The host's disk is full", body = ErrorBody),
    ))]
pub(super) async fn create(
    State(state): State<HttpState>,
    Json(body): Json<NewSandbox>,
) -> Result<(StatusCode, HeaderMap, Answer<Sandbox>), ApiError> {
    create_with(&state, body, TIMEOUT_V1).await
}

/// Create a sandbox
///
/// Like `POST /sandboxes`, but an omitted `timeout` means 300 seconds.
#[utoipa::path(post, path = "/v2/sandboxes", tag = "sandboxes", request_body = NewSandbox,
    responses(
        (status = 201, description = "The sandbox runs", body = Sandbox),
        (status = 400, description = "Malformed or not supported", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such template", body = ErrorBody),
        (status = 429, description = "Too many running sandboxes", body = ErrorBody),
        (status = 500, description = "It could not be started", body = ErrorBody),
        (status = 503, description = "The server is shutting down", body = ErrorBody),
        (status = 507, description = "The host's disk is full", body = ErrorBody),
    ))]
pub(super) async fn create_v2(
    State(state): State<HttpState>,
    Json(body): Json<NewSandbox>,
) -> Result<(StatusCode, HeaderMap, Answer<Sandbox>), ApiError> {
    create_with(&state, body, TIMEOUT_V2).await
}

async fn create_with(
    state: &HttpState,
    body: NewSandbox,
    default_timeout: Duration,
) -> Result<(StatusCode, HeaderMap, Answer<Sandbox>), ApiError> {
    let request = create_request(body, default_timeout)?;
    let created = state.sandboxes.create(request).await?;
    Ok((
        StatusCode::CREATED,
        timing::headers(state, &created.id),
        Answer(view::sandbox(created, &state.domain)),
    ))
}

/// Connect to a sandbox
///
/// Makes sure that the sandbox runs for at least `timeout` from now: resumes it when it is paused,
/// and only ever extends the deadline when it runs.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/connect", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = ConnectSandbox,
    responses(
        (status = 200, description = "It was running", body = Sandbox),
        (status = 201, description = "It was paused and runs again", body = Sandbox),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 409, description = "It is being killed", body = ErrorBody),
        (status = 429, description = "Too many running sandboxes", body = ErrorBody),
        (status = 500, description = "It could not be resumed and is still paused", body = ErrorBody),
        (status = 503, description = "Nothing was done: the execution before still uses its disk, or the server is shutting down", body = ErrorBody),
    ))]
pub(super) async fn connect(
    State(state): State<HttpState>,
    Id(id): Id,
    Json(body): Json<ConnectSandbox>,
) -> Result<(StatusCode, HeaderMap, Answer<Sandbox>), ApiError> {
    let missing = || ApiError::Validation("missing field `timeout`".to_owned());
    let timeout = seconds("timeout", body.timeout.ok_or_else(missing)?)?;
    connect_for(&state, Id(id), timeout, body.memory).await
}

/// Connect to a sandbox
///
/// Like `POST /sandboxes/{sandboxID}/connect`, but an omitted `timeout` means 300 seconds.
#[utoipa::path(post, path = "/v2/sandboxes/{sandboxID}/connect", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<ConnectSandbox>,
    responses(
        (status = 200, description = "It was running", body = Sandbox),
        (status = 201, description = "It was paused and runs again", body = Sandbox),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 409, description = "It is being killed", body = ErrorBody),
        (status = 429, description = "Too many running sandboxes", body = ErrorBody),
        (status = 500, description = "It could not be resumed and is still paused", body = ErrorBody),
        (status = 503, description = "Nothing was done: the execution before still uses its disk, or the server is shutting down", body = ErrorBody),
    ))]
pub(super) async fn connect_v2(
    State(state): State<HttpState>,
    id: Id,
    OptionalJson(body): OptionalJson<ConnectSandbox>,
) -> Result<(StatusCode, HeaderMap, Answer<Sandbox>), ApiError> {
    let given = body
        .timeout
        .map(|given| seconds("timeout", given))
        .transpose()?;
    connect_for(&state, id, given.unwrap_or(TIMEOUT_V2), body.memory).await
}

async fn connect_for(
    state: &HttpState,
    Id(id): Id,
    timeout: Duration,
    memory: Option<bool>,
) -> Result<(StatusCode, HeaderMap, Answer<Sandbox>), ApiError> {
    let (found, how) = state
        .sandboxes
        .connect(&id, timeout, resume_from(memory))
        .await?;
    let (status, headers) = match how {
        Connected::AlreadyRunning => (StatusCode::OK, HeaderMap::new()),
        Connected::Resumed => (StatusCode::CREATED, timing::headers(state, &id)),
    };
    Ok((status, headers, Answer(view::sandbox(found, &state.domain))))
}

fn resume_from(memory: Option<bool>) -> ResumeFrom {
    match memory {
        Some(false) => ResumeFrom::Disk,
        Some(true) | None => ResumeFrom::Saved,
    }
}

/// Resume a sandbox
///
/// Like connect, but refuses a sandbox that runs. Deprecated: use connect.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/resume", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<ResumeSandbox>,
    responses(
        (status = 201, description = "It runs again", body = Sandbox),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 409, description = "It runs already", body = ErrorBody),
        (status = 429, description = "Too many running sandboxes", body = ErrorBody),
        (status = 500, description = "It could not be resumed and is still paused", body = ErrorBody),
        (status = 503, description = "Nothing was done: the execution before still uses its disk, or the server is shutting down", body = ErrorBody),
    ))]
pub(super) async fn resume(
    State(state): State<HttpState>,
    Id(id): Id,
    OptionalJson(body): OptionalJson<ResumeSandbox>,
) -> Result<(StatusCode, HeaderMap, Answer<Sandbox>), ApiError> {
    let given = body
        .timeout
        .map(|given| seconds("timeout", given))
        .transpose()?;
    if let Some(auto_pause) = body.auto_pause {
        let now = state.sandboxes.get(&id)?.lifecycle.on_timeout;
        if auto_pause != matches!(now, OnTimeout::Pause(_)) {
            return Err(ApiError::FixedAtCreate("autoPause"));
        }
    }
    let timeout = given.unwrap_or(TIMEOUT_V1);
    let resumed = state
        .sandboxes
        .resume(&id, timeout, resume_from(body.memory))
        .await?;
    Ok((
        StatusCode::CREATED,
        timing::headers(&state, &id),
        Answer(view::sandbox(resumed, &state.domain)),
    ))
}

/// Pause a sandbox
///
/// Answers when the saved state is durable. A pause that fails leaves the sandbox running.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/pause", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<PauseSandbox>,
    responses(
        (status = 204, description = "It is paused"),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 409, description = "It was paused already", body = ErrorBody),
        (status = 500, description = "The pause failed; it goes on running", body = ErrorBody),
        (status = 503, description = "It cannot be paused now; it goes on running", body = ErrorBody),
        (status = 507, description = "The host's disk is full; it goes on running", body = ErrorBody),
    ))]
pub(super) async fn pause(
    State(state): State<HttpState>,
    Id(id): Id,
    OptionalJson(body): OptionalJson<PauseSandbox>,
) -> Result<(StatusCode, HeaderMap), ApiError> {
    let mode = match body.memory {
        Some(false) => PauseMode::Filesystem,
        Some(true) | None => PauseMode::Full,
    };
    let require_healthy_guest = body.require_healthy_guest.unwrap_or(false);
    let request = PauseRequest {
        mode,
        require_healthy_guest,
    };
    state
        .sandboxes
        .pause(&id, request)
        .await
        .map_err(ApiError::Pause)?;
    Ok((StatusCode::NO_CONTENT, timing::headers(&state, &id)))
}

/// Kill a sandbox
///
/// Ends it and deletes everything that was saved of it, from any state.
#[utoipa::path(delete, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses(
        (status = 204, description = "It is gone"),
        (status = 400, description = "Malformed id", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
        (status = 500, description = "It could not be removed", body = ErrorBody),
    ))]
pub(super) async fn kill(
    State(state): State<HttpState>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    state.sandboxes.kill(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Get a sandbox
#[utoipa::path(get, path = "/sandboxes/{sandboxID}", tag = "sandboxes",
    params(("sandboxID" = String, Path)),
    responses(
        (status = 200, description = "The sandbox", body = SandboxDetail),
        (status = 400, description = "Malformed id", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
    ))]
pub(super) async fn get(
    State(state): State<HttpState>,
    Id(id): Id,
) -> Result<Answer<SandboxDetail>, ApiError> {
    let found = state.sandboxes.get(&id)?;
    Ok(Answer(view::detail(found, &state.domain)))
}

/// List running sandboxes
///
/// All of them, newest first. Deprecated: use `GET /v2/sandboxes`.
#[utoipa::path(get, path = "/sandboxes", tag = "sandboxes",
    params(("metadata" = Option<String>, Query, description = "As on `/v2/sandboxes`")),
    responses(
        (status = 200, description = "The running sandboxes", body = Vec<ListedSandbox>),
        (status = 400, description = "Malformed filter", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
    ))]
pub(super) async fn list(
    State(state): State<HttpState>,
    RawQuery(query): RawQuery,
) -> Result<Answer<Vec<ListedSandbox>>, ApiError> {
    let query = ListQuery::parse_v1(&query.unwrap_or_default())?;
    let page = query.page(state.sandboxes.list());
    Ok(Answer(page.items.into_iter().map(view::listed).collect()))
}

/// List sandboxes
///
/// Running and paused ones in one order, in pages.
#[utoipa::path(get, path = "/v2/sandboxes", tag = "sandboxes",
    params(
        ("state" = Option<String>, Query, description = "`running`, `paused` or both joined by a comma. Default: both"),
        ("metadata" = Option<String>, Query, description = "`key=value` pairs joined by `&`, each key and value percent-encoded, the whole form-encoded. All must match"),
        ("template" = Option<String>, Query, description = "Id or name of a template"),
        ("startedAfter" = Option<String>, Query, description = "RFC 3339 time, inclusive"),
        ("order" = Option<String>, Query, description = "`asc` or `desc` by start. Default: `desc`"),
        ("limit" = Option<i32>, Query, minimum = 1, maximum = 100, description = "Default: 100"),
        ("nextToken" = Option<String>, Query, description = "Header `X-Next-Token` of the page before"),
    ),
    responses(
        (status = 200, description = "One page", body = Vec<ListedSandbox>,
            headers(
                ("X-Next-Token" = String, description = "There when more follow"),
                ("X-Total-Running" = i64, description = "Running sandboxes on all pages"),
            )),
        (status = 400, description = "Malformed filter", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
    ))]
pub(super) async fn list_v2(
    State(state): State<HttpState>,
    RawQuery(query): RawQuery,
) -> Result<(HeaderMap, Answer<Vec<ListedSandbox>>), ApiError> {
    let query = ListQuery::parse(&query.unwrap_or_default())?;
    let page = query.page(state.sandboxes.list());
    let mut headers = HeaderMap::new();
    if let Some(token) = page.next_token {
        let value = HeaderValue::try_from(token).expect("URL-safe base64 is a header value");
        headers.insert("x-next-token", value);
    }
    if let Some(count) = page.total_running {
        headers.insert("x-total-running", HeaderValue::from(count));
    }
    Ok((
        headers,
        Answer(page.items.into_iter().map(view::listed).collect()),
    ))
}

/// Set the deadline
///
/// `timeout` from now, earlier or later than before. 0 expires the sandbox at once.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/timeout", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = SetTimeout,
    responses(
        (status = 204, description = "The deadline is set"),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such running sandbox", body = ErrorBody),
        (status = 409, description = "It is changing its state", body = ErrorBody),
    ))]
pub(super) async fn set_timeout(
    State(state): State<HttpState>,
    Id(id): Id,
    Json(body): Json<SetTimeout>,
) -> Result<StatusCode, ApiError> {
    let timeout = seconds("timeout", body.timeout)?;
    state.sandboxes.set_timeout(&id, timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Extend the deadline
///
/// To `duration` from now if that is later. Deprecated: use connect.
#[utoipa::path(post, path = "/sandboxes/{sandboxID}/refreshes", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<ExtendTimeout>,
    responses(
        (status = 204, description = "The sandbox goes on at least that long"),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such running sandbox", body = ErrorBody),
        (status = 409, description = "It is changing its state", body = ErrorBody),
    ))]
pub(super) async fn extend(
    State(state): State<HttpState>,
    Id(id): Id,
    OptionalJson(body): OptionalJson<ExtendTimeout>,
) -> Result<StatusCode, ApiError> {
    let given = body.duration.unwrap_or(REFRESH_AT_LEAST);
    if !(0..=REFRESH_AT_MOST).contains(&given) {
        let problem = format!("duration must be from 0 to {REFRESH_AT_MOST}");
        return Err(ApiError::Validation(problem));
    }
    let duration = seconds("duration", given.max(REFRESH_AT_LEAST))?;
    state.sandboxes.extend(&id, duration).await?;
    Ok(StatusCode::NO_CONTENT)
}
