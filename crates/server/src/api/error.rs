//! Every way a request to the API can fail, and the only place that chooses a status.
//!
//! Two habits of the SDKs decide much of this. Python repeats requests by itself on 502, 503 and 504
//! (and on any status with `Should-Retry: true`), creates and pauses included, so these statuses may
//! only mean that nothing happened. And 409 on a pause reads as "already paused" and nothing else.

use api_types::ErrorBody;
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};

use crate::history::HistoryError;
use crate::sandbox::{ExportError, SandboxError};
use crate::transfer::TransferError;

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The body or a parameter is not of the right form.
    #[error("validation error: {0}")]
    Validation(String),
    /// A field of the upstream API that this server does not support, set to something that means
    /// something.
    #[error("'{0}' is not supported by this server")]
    Unsupported(&'static str),
    /// Something else is asked for than at create, where alone it can be chosen.
    #[error("'{0}' can only be chosen when a sandbox is created")]
    FixedAtCreate(&'static str),
    /// `allowPublicTraffic: false` with `secure: false`. Upstream's very words.
    #[error(
        "You cannot create a sandbox without public access unless you enable secure envd access via \
         'secure' flag."
    )]
    PrivateNotSecure,
    /// Neither an id nor an old `<id>-<client id>`.
    #[error("validation error: '{0}' is not a sandbox id")]
    BadSandboxId(String),
    /// No key, or not ours.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// No such path.
    #[error("there is no {0}")]
    NoSuchRoute(String),
    /// No such path, but a header names a sandbox that may have it.
    #[error(
        "there is no {0}. E2b-Sandbox-Id is heard on localhost, IP addresses and the host names in \
         'sandbox_hosts' of the server's configuration only"
    )]
    NoSandboxHost(String),
    /// An operation that upstream has and this server does not, yet.
    #[error("{0} is not implemented by this server yet")]
    NotImplemented(&'static str),
    /// The path exists with other methods.
    #[error("this method is not allowed here")]
    MethodNotAllowed,
    /// The body is larger than the limit.
    #[error("the request body is larger than {0} bytes")]
    BodyTooLarge(usize),
    /// A bug of ours; the details are in the log.
    #[error("internal server error")]
    Internal,
    /// Metrics and logs cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The sandbox refused or failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// An export or an import was refused or failed.
    #[error("{}", super::transfers::chain(.0))]
    Transfer(#[from] TransferError),
    /// A pause was refused or failed, where statuses mean something of their own.
    #[error(transparent)]
    Pause(SandboxError),
}

/// What a client is told about repeating the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    /// Nothing: the client's own rules apply.
    Unsaid,
    /// Worth repeating after so many seconds; nothing has happened.
    After(u16),
    /// Not to be repeated without thought.
    No,
}

impl ApiError {
    fn answer(&self) -> (StatusCode, Retry) {
        match self {
            Self::Validation(_)
            | Self::Unsupported(_)
            | Self::FixedAtCreate(_)
            | Self::PrivateNotSecure
            | Self::BadSandboxId(_) => (StatusCode::BAD_REQUEST, Retry::Unsaid),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, Retry::Unsaid),
            Self::NoSuchRoute(_) | Self::NoSandboxHost(_) | Self::NotImplemented(_) => {
                (StatusCode::NOT_FOUND, Retry::Unsaid)
            }
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, Retry::Unsaid),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, Retry::Unsaid),
            Self::Internal | Self::History(_) => (StatusCode::INTERNAL_SERVER_ERROR, Retry::Unsaid),
            Self::Sandbox(error) => of_sandbox(error),
            Self::Transfer(error) => (of_transfer(error), Retry::Unsaid),
            Self::Pause(error) => of_pause(error),
        }
    }
}

fn of_sandbox(error: &SandboxError) -> (StatusCode, Retry) {
    match error {
        SandboxError::NotFound(_)
        | SandboxError::TemplateNotFound(_)
        | SandboxError::SnapshotNotFound(_) => (StatusCode::NOT_FOUND, Retry::Unsaid),
        SandboxError::SnapshotOfAnother(_) | SandboxError::SnapshotInUse { .. } => {
            (StatusCode::BAD_REQUEST, Retry::Unsaid)
        }
        SandboxError::ForkOfPaused(_)
        | SandboxError::NameTaken(_)
        | SandboxError::SnapshotBusy(_)
        | SandboxError::NotPaused(_) => (StatusCode::CONFLICT, Retry::Unsaid),
        // To upstream's timeout, refresh, network and snapshot calls a paused sandbox does not exist.
        SandboxError::Paused(_) => (StatusCode::NOT_FOUND, Retry::Unsaid),
        SandboxError::AlreadyPaused(_)
        | SandboxError::AlreadyRunning(_)
        | SandboxError::Busy(_)
        | SandboxError::BeingKilled(_) => (StatusCode::CONFLICT, Retry::Unsaid),
        SandboxError::TimeoutTooLong { .. } => (StatusCode::BAD_REQUEST, Retry::Unsaid),
        SandboxError::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, Retry::Unsaid),
        // Not 503: Python would repeat it three times within a second, on a disk as full as before.
        SandboxError::NoSpace(_) => (StatusCode::INSUFFICIENT_STORAGE, Retry::Unsaid),
        // What is asked for would wait for the same silent agent again.
        SandboxError::GuestUnresponsive(_) => (StatusCode::SERVICE_UNAVAILABLE, Retry::No),
        // It was waited for as long as that promised anything.
        SandboxError::DiskInUse { .. } => (StatusCode::SERVICE_UNAVAILABLE, Retry::No),
        SandboxError::Failed { .. } => (StatusCode::INTERNAL_SERVER_ERROR, Retry::Unsaid),
        SandboxError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, Retry::After(2)),
    }
}

fn of_pause(error: &SandboxError) -> (StatusCode, Retry) {
    match error {
        SandboxError::AlreadyPaused(_) => (StatusCode::CONFLICT, Retry::Unsaid),
        SandboxError::BeingKilled(_) => (StatusCode::NOT_FOUND, Retry::Unsaid),
        SandboxError::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, Retry::After(1)),
        // No answer to a pause; if it ever were, it must not read as "already paused".
        SandboxError::AlreadyRunning(_)
        | SandboxError::NameTaken(_)
        | SandboxError::SnapshotBusy(_)
        | SandboxError::NotPaused(_)
        | SandboxError::ForkOfPaused(_) => (StatusCode::INTERNAL_SERVER_ERROR, Retry::Unsaid),
        SandboxError::NotFound(_)
        | SandboxError::Paused(_)
        | SandboxError::TemplateNotFound(_)
        | SandboxError::SnapshotNotFound(_)
        | SandboxError::SnapshotOfAnother(_)
        | SandboxError::SnapshotInUse { .. }
        | SandboxError::TimeoutTooLong { .. }
        | SandboxError::TooMany(_)
        | SandboxError::NoSpace(_)
        | SandboxError::GuestUnresponsive(_)
        | SandboxError::DiskInUse { .. }
        | SandboxError::Failed { .. }
        | SandboxError::ShuttingDown => of_sandbox(error),
    }
}

fn of_transfer(error: &TransferError) -> StatusCode {
    match error {
        TransferError::NotAnExport(_)
        | TransferError::Newer { .. }
        | TransferError::Damaged(_)
        | TransferError::TooLarge { .. }
        | TransferError::BuildRefused { .. } => StatusCode::BAD_REQUEST,
        TransferError::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
        TransferError::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
        TransferError::Source(_)
        | TransferError::Image(_)
        | TransferError::Engine(_)
        | TransferError::Db(_)
        | TransferError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<ExportError> for ApiError {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Sandbox(error) => Self::Sandbox(error),
            ExportError::Transfer(error) => Self::Transfer(error),
        }
    }
}

impl ApiError {
    /// What clients are told.
    pub(super) fn body(&self) -> ErrorBody {
        let (status, _) = self.answer();
        ErrorBody {
            code: status.as_u16(),
            message: self.to_string(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, retry) = self.answer();
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), error = %self, "an API request failed");
        }
        let body = self.body();
        let mut response = (status, Json(body)).into_response();
        match retry {
            Retry::Unsaid => {}
            Retry::After(seconds) => {
                response
                    .headers_mut()
                    .insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Retry::No => {
                response
                    .headers_mut()
                    .insert("should-retry", HeaderValue::from_static("false"));
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sandbox::SandboxId;

    fn every_sandbox_error() -> Vec<SandboxError> {
        let id = SandboxId::parse("i1").unwrap();
        vec![
            SandboxError::NotFound(id.clone()),
            SandboxError::AlreadyPaused(id.clone()),
            SandboxError::AlreadyRunning(id.clone()),
            SandboxError::Paused(id.clone()),
            SandboxError::Busy(id.clone()),
            SandboxError::BeingKilled(id),
            SandboxError::TemplateNotFound("base".into()),
            SandboxError::SnapshotNotFound("a".into()),
            SandboxError::SnapshotOfAnother("a".into()),
            SandboxError::SnapshotBusy("a".into()),
            SandboxError::NameTaken("a".into()),
            SandboxError::NotPaused(SandboxId::parse("i1").unwrap()),
            SandboxError::ForkOfPaused(SandboxId::parse("i1").unwrap()),
            SandboxError::TimeoutTooLong { asked: 2, most: 1 },
            SandboxError::TooMany(20),
            SandboxError::NoSpace("1 MiB left".into()),
            SandboxError::GuestUnresponsive(SandboxId::parse("i1").unwrap()),
            SandboxError::DiskInUse {
                id: SandboxId::parse("i1").unwrap(),
                waited: Duration::from_secs(60),
                problem: None,
            },
            failed(),
            SandboxError::ShuttingDown,
        ]
    }

    fn failed() -> SandboxError {
        SandboxError::Failed {
            action: "pause",
            left_as: "running",
            cause: "x".into(),
        }
    }

    #[test]
    fn a_conflict_on_pause_only_means_already_paused() {
        for error in every_sandbox_error() {
            let conflict = of_pause(&error).0 == StatusCode::CONFLICT;
            let already_paused = matches!(error, SandboxError::AlreadyPaused(_));
            assert_eq!(conflict, already_paused, "{error}");
        }
    }

    #[test]
    fn a_failed_pause_is_not_repeated_by_clients() {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        assert_eq!(of_pause(&failed()), (status, Retry::Unsaid));
        let full = of_pause(&SandboxError::NoSpace(String::new()));
        assert_eq!(full, (StatusCode::INSUFFICIENT_STORAGE, Retry::Unsaid));
        let silent = SandboxError::GuestUnresponsive(SandboxId::parse("i1").unwrap());
        assert_eq!(
            of_pause(&silent),
            (StatusCode::SERVICE_UNAVAILABLE, Retry::No)
        );
    }

    #[test]
    fn statuses_that_python_repeats_by_itself_say_when() {
        let repeated = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE];
        for error in every_sandbox_error() {
            let (status, retry) = of_sandbox(&error);
            assert_ne!(status, StatusCode::GATEWAY_TIMEOUT);
            if repeated.contains(&status) {
                assert_ne!(retry, Retry::Unsaid, "{error}");
            }
        }
    }

    #[tokio::test]
    async fn the_body_repeats_the_status_as_a_number() {
        let id = SandboxId::parse("nope").unwrap();
        let response = ApiError::from(SandboxError::NotFound(id)).into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let body = axum::body::to_bytes(response.into_body(), 1000)
            .await
            .unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], 404);
        let message = "Sandbox \"nope\" doesn't exist or you don't have access to it";
        assert_eq!(body["message"], message);
    }
}
