//! Events. Their comments are the API text.

use api_types::{ErrorBody, SandboxEvent};
use axum::Json as Answer;
use axum::extract::{RawQuery, State};
use time::OffsetDateTime;

use super::extract::Id;
use super::{ApiError, HttpState, query};
use crate::history::{EventQuery, StoredEvent};
use crate::sandbox::{EventKind, SandboxError};

const TYPE: &str = "sandbox.lifecycle.";
const MOST: u32 = 100;
const LIMIT: u32 = 10;

/// Events of all sandboxes
///
/// What became of them, also of those that are gone; newest first. Kept for seven days.
#[utoipa::path(get, path = "/events/sandboxes", tag = "sandboxes",
    params(
        ("offset" = Option<i32>, Query, minimum = 0, description = "So many are passed over. Default: 0"),
        ("limit" = Option<i32>, Query, minimum = 1, maximum = 100, description = "Default: 10"),
        ("orderAsc" = Option<bool>, Query, description = "Oldest first. Default: false"),
        ("types" = Option<Vec<String>>, Query, description = "Only these types; may be repeated"),
    ),
    responses(
        (status = 200, description = "The events", body = Vec<SandboxEvent>),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
    ))]
pub(super) async fn of_all(
    State(state): State<HttpState>,
    RawQuery(text): RawQuery,
) -> Result<Answer<Vec<SandboxEvent>>, ApiError> {
    answer(&state, parsed(text)?).await
}

/// Events of a sandbox
///
/// What became of it, also when it is gone; newest first. Kept for seven days.
#[utoipa::path(get, path = "/events/sandboxes/{sandboxID}", tag = "sandboxes",
    params(
        ("sandboxID" = String, Path),
        ("offset" = Option<i32>, Query, minimum = 0, description = "So many are passed over. Default: 0"),
        ("limit" = Option<i32>, Query, minimum = 1, maximum = 100, description = "Default: 10"),
        ("orderAsc" = Option<bool>, Query, description = "Oldest first. Default: false"),
        ("types" = Option<Vec<String>>, Query, description = "Only these types; may be repeated"),
    ),
    responses(
        (status = 200, description = "The events", body = Vec<SandboxEvent>),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox, and no events of one", body = ErrorBody),
    ))]
pub(super) async fn of_one(
    State(state): State<HttpState>,
    Id(id): Id,
    RawQuery(text): RawQuery,
) -> Result<Answer<Vec<SandboxEvent>>, ApiError> {
    let query = EventQuery {
        sandbox: Some(id.clone()),
        ..parsed(text)?
    };
    if state.sandboxes.get(&id).is_err() {
        let any = EventQuery {
            sandbox: Some(id.clone()),
            limit: 1,
            ..EventQuery::default()
        };
        if state.history.events(any).await?.is_empty() {
            return Err(SandboxError::NotFound(id).into());
        }
    }
    answer(&state, query).await
}

async fn answer(
    state: &HttpState,
    query: EventQuery,
) -> Result<Answer<Vec<SandboxEvent>>, ApiError> {
    let events = state.history.events(query).await?;
    Ok(Answer(events.into_iter().map(shown).collect()))
}

fn parsed(text: Option<String>) -> Result<EventQuery, ApiError> {
    let malformed = || invalid("the query string is malformed");
    let mut query = EventQuery {
        limit: LIMIT,
        ..EventQuery::default()
    };
    for (name, value) in query::pairs(&text.unwrap_or_default()).ok_or_else(malformed)? {
        match name.as_str() {
            "offset" => {
                let offset = value.parse().ok();
                let offset = offset.filter(|offset| i32::try_from(*offset).is_ok());
                query.offset = offset.ok_or_else(|| invalid("offset must be 0 or more"))?;
            }
            "limit" => {
                let limit = value.parse().ok();
                let limit = limit.filter(|limit| (1..=MOST).contains(limit));
                query.limit = limit.ok_or_else(|| invalid("limit must be from 1 to 100"))?;
            }
            "orderAsc" => {
                let ascending = value.parse().ok();
                query.ascending =
                    ascending.ok_or_else(|| invalid("orderAsc must be true or false"))?;
            }
            "types" => {
                for value in value.split(',') {
                    let kind = value.strip_prefix(TYPE).and_then(EventKind::parse);
                    let unknown = || invalid("types holds one that is no type of event");
                    query.kinds.push(kind.ok_or_else(unknown)?);
                }
            }
            // Unknown parameters are ignored, as upstream does.
            _ => {}
        }
    }
    Ok(query)
}

fn shown(event: StoredEvent) -> SandboxEvent {
    let at = OffsetDateTime::from_unix_timestamp_nanos(event.at.into());
    SandboxEvent {
        version: "v2".to_owned(),
        id: event.id,
        kind: format!("{TYPE}{}", event.kind),
        timestamp: at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
        event_category: "lifecycle".to_owned(),
        event_label: event.kind,
        event_data: event.data,
        sandbox_id: event.sandbox,
        sandbox_execution_id: event.execution,
        sandbox_template_id: event.template_id,
    }
}

fn invalid(problem: &str) -> ApiError {
    ApiError::Validation(problem.to_owned())
}
