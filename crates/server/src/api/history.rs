//! Metrics and logs. Their comments are the API text.

use std::collections::BTreeMap;

use api_types::{
    ErrorBody, LogLevel, SandboxLog, SandboxLogEntry, SandboxLogs, SandboxLogsV2, SandboxMetric,
    SandboxesWithMetrics,
};
use axum::Json as Answer;
use axum::extract::{RawQuery, State};
use serde_json::Value;
use time::OffsetDateTime;

use super::extract::Id;
use super::{ApiError, HttpState, query};
use crate::history::{Direction, Level, LogEntry, LogQuery, Sample};
use crate::sandbox::SandboxId;

/// Most sandboxes of one question.
const MOST_SANDBOXES: usize = 100;
/// Most entries of one answer of the second version, and what is answered unless asked.
const MOST_ENTRIES: u32 = 1000;
/// Longest text to search for.
const LONGEST_SEARCH: usize = 256;

/// Metrics of a sandbox
///
/// Every five seconds of its runs, oldest first; averages over longer times when the range is longer
/// than an hour. A new sandbox has none yet.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/metrics", tag = "sandboxes",
    params(
        ("sandboxID" = String, Path),
        ("start" = Option<i64>, Query, minimum = 0, description = "Seconds since the epoch. Default: its first metrics"),
        ("end" = Option<i64>, Query, minimum = 0, description = "Seconds since the epoch. Default: now"),
    ),
    responses(
        (status = 200, description = "The metrics", body = Vec<SandboxMetric>),
        (status = 400, description = "Malformed, or `start` after `end`", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
    ))]
pub(super) async fn metrics(
    State(state): State<HttpState>,
    Id(id): Id,
    RawQuery(text): RawQuery,
) -> Result<Answer<Vec<SandboxMetric>>, ApiError> {
    let (mut start, mut end) = (None, None);
    for (name, value) in pairs(text)? {
        match name.as_str() {
            "start" => start = Some(number(&name, &value, i64::MAX)?),
            "end" => end = Some(number(&name, &value, i64::MAX)?),
            _ => {}
        }
    }
    let end = end.unwrap_or_else(|| OffsetDateTime::now_utc().unix_timestamp());
    if start.is_some_and(|start| start > end) {
        return Err(invalid("start must not be after end"));
    }
    state.sandboxes.get(&id)?;
    let samples = state.history.samples(&id, start, end).await?;
    Ok(Answer(samples.into_iter().map(metric).collect()))
}

/// Newest metrics of several sandboxes
#[utoipa::path(get, path = "/sandboxes/metrics", tag = "sandboxes",
    params(("sandbox_ids" = String, Query, description = "Up to 100 different ids, joined by commas")),
    responses(
        (status = 200, description = "The metrics of those that have any", body = SandboxesWithMetrics),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
    ))]
pub(super) async fn metrics_of_many(
    State(state): State<HttpState>,
    RawQuery(text): RawQuery,
) -> Result<Answer<SandboxesWithMetrics>, ApiError> {
    let mut ids = Vec::new();
    for (name, value) in pairs(text)? {
        if name == "sandbox_ids" {
            ids.extend(
                value
                    .split(',')
                    .filter(|id| !id.is_empty())
                    .map(str::to_owned),
            );
        }
    }
    if ids.is_empty() {
        return Err(invalid("the query parameter sandbox_ids is required"));
    }
    if ids.len() > MOST_SANDBOXES {
        return Err(invalid(&format!(
            "sandbox_ids holds more than {MOST_SANDBOXES} ids"
        )));
    }
    let mut known = Vec::new();
    for text in ids {
        let id = SandboxId::parse(&text).ok_or(ApiError::BadSandboxId(text))?;
        if known.contains(&id) {
            return Err(invalid(&format!("sandbox_ids holds {id} twice")));
        }
        known.push(id);
    }
    known.retain(|id| state.sandboxes.get(id).is_ok());
    let newest = state.history.newest(known).await?;
    let sandboxes = newest
        .into_iter()
        .map(|(id, sample)| (id.to_string(), metric(sample)))
        .collect();
    Ok(Answer(SandboxesWithMetrics { sandboxes }))
}

/// Logs of a sandbox
///
/// What happened in it: processes, file calls, kills for want of memory; never what processes wrote.
/// Deprecated: use `GET /v2/sandboxes/{sandboxID}/logs`.
#[utoipa::path(get, path = "/sandboxes/{sandboxID}/logs", tag = "sandboxes",
    params(
        ("sandboxID" = String, Path),
        ("start" = Option<i64>, Query, minimum = 0, description = "Milliseconds since the epoch. Default: its first entry"),
        ("limit" = Option<i32>, Query, minimum = 0, description = "Default: 1000"),
    ),
    responses(
        (status = 200, description = "Entries from `start` on, oldest first", body = SandboxLogs),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
    ))]
pub(super) async fn logs(
    State(state): State<HttpState>,
    Id(id): Id,
    RawQuery(text): RawQuery,
) -> Result<Answer<SandboxLogs>, ApiError> {
    let mut query = LogQuery {
        cursor: None,
        direction: Direction::Forward,
        limit: MOST_ENTRIES,
        level: Level::Debug,
        search: None,
    };
    for (name, value) in pairs(text)? {
        match name.as_str() {
            "start" => query.cursor = Some(number(&name, &value, i64::MAX)?),
            "limit" => query.limit = limit(&value, i32::MAX.unsigned_abs())?,
            _ => {}
        }
    }
    state.sandboxes.get(&id)?;
    let entries = state.history.log(&id, query).await?;
    Ok(Answer(SandboxLogs {
        logs: entries
            .iter()
            .map(|entry| SandboxLog {
                timestamp: entry.at,
                line: entry.line.clone(),
            })
            .collect(),
        log_entries: entries.into_iter().map(log_entry).collect(),
    }))
}

/// Logs of a sandbox
///
/// What happened in it: processes, file calls, kills for want of memory; never what processes wrote.
#[utoipa::path(get, path = "/v2/sandboxes/{sandboxID}/logs", tag = "sandboxes",
    params(
        ("sandboxID" = String, Path),
        ("cursor" = Option<i64>, Query, minimum = 0, description = "Milliseconds since the epoch, inclusive. Default: the end in the direction's back"),
        ("limit" = Option<i32>, Query, minimum = 0, maximum = 1000, description = "Default: 1000"),
        ("direction" = Option<String>, Query, description = "`forward`: oldest first, from the cursor on. `backward` (default): newest first, up to the cursor"),
        ("level" = Option<LogLevel>, Query, description = "At least this level. Default: all"),
        ("search" = Option<String>, Query, max_length = 256, description = "Text that messages must hold"),
    ),
    responses(
        (status = 200, description = "The entries", body = SandboxLogsV2),
        (status = 400, description = "Malformed", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox", body = ErrorBody),
    ))]
pub(super) async fn logs_v2(
    State(state): State<HttpState>,
    Id(id): Id,
    RawQuery(text): RawQuery,
) -> Result<Answer<SandboxLogsV2>, ApiError> {
    let mut query = LogQuery {
        cursor: None,
        direction: Direction::Backward,
        limit: MOST_ENTRIES,
        level: Level::Debug,
        search: None,
    };
    for (name, value) in pairs(text)? {
        match name.as_str() {
            "cursor" => query.cursor = Some(number(&name, &value, i64::MAX)?),
            "limit" => query.limit = limit(&value, MOST_ENTRIES)?,
            "direction" => {
                query.direction = match value.as_str() {
                    "forward" => Direction::Forward,
                    "backward" => Direction::Backward,
                    _ => return Err(invalid("direction must be forward or backward")),
                }
            }
            "level" => {
                let level = Level::parse(&value);
                query.level =
                    level.ok_or_else(|| invalid("level must be debug, info, warn or error"))?;
            }
            "search" if value.chars().count() > LONGEST_SEARCH => {
                let problem = format!("search has more than {LONGEST_SEARCH} characters");
                return Err(invalid(&problem));
            }
            "search" => query.search = Some(value),
            _ => {}
        }
    }
    state.sandboxes.get(&id)?;
    let entries = state.history.log(&id, query).await?;
    let logs = entries.into_iter().map(log_entry).collect();
    Ok(Answer(SandboxLogsV2 { logs }))
}

fn pairs(text: Option<String>) -> Result<Vec<(String, String)>, ApiError> {
    query::pairs(&text.unwrap_or_default()).ok_or_else(|| invalid("the query string is malformed"))
}

fn number(name: &str, value: &str, most: i64) -> Result<i64, ApiError> {
    let number = value
        .parse()
        .ok()
        .filter(|number| (0..=most).contains(number));
    number.ok_or_else(|| invalid(&format!("{name} must be a whole number from 0 to {most}")))
}

fn limit(value: &str, most: u32) -> Result<u32, ApiError> {
    let limit = number("limit", value, i64::from(most))?;
    Ok(u32::try_from(limit).unwrap_or(most))
}

fn invalid(problem: &str) -> ApiError {
    ApiError::Validation(problem.to_owned())
}

fn metric(sample: Sample) -> SandboxMetric {
    SandboxMetric {
        timestamp: OffsetDateTime::from_unix_timestamp(sample.at)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        timestamp_unix: sample.at,
        cpu_count: sample.cpu_count,
        cpu_used_pct: (sample.cpu_used_pct * 100.0).round() / 100.0,
        mem_used: sample.mem_used,
        mem_total: sample.mem_total,
        mem_cache: sample.mem_cache,
        disk_used: sample.disk_used,
        disk_total: sample.disk_total,
    }
}

fn log_entry(entry: LogEntry) -> SandboxLogEntry {
    let mut fields = BTreeMap::new();
    for (name, value) in &entry.entry {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        if !["level", "message", "timestamp"].contains(&name.as_str()) {
            fields.insert(name.clone(), text);
        }
    }
    SandboxLogEntry {
        timestamp: entry.at,
        level: match entry.level {
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        },
        message: entry.message().to_owned(),
        fields,
    }
}
