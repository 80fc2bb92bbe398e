//! Sandbox ids and JSON bodies of requests, with errors in our own form.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::ApiError;
use crate::sandbox::SandboxId;

/// Upstream's limit.
const LARGEST_BODY: usize = 16 << 20;
/// Bodies of the control plane are small; a client that takes longer than this has gone.
const BODY_LIMIT: Duration = Duration::from_secs(60);

/// The `{sandboxID}` of the path, decoded after the path was matched.
pub(super) struct Id(pub(super) SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Ok(Path(text)) = path else {
            return Err(ApiError::BadSandboxId(parts.uri.path().to_owned()));
        };
        SandboxId::parse(&text)
            .map(Self)
            .ok_or(ApiError::BadSandboxId(text))
    }
}

/// A JSON body that must be there.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let body = read(request.into_body()).await?;
        if body.is_empty() {
            return Err(ApiError::Validation(
                "the request body is missing".to_owned(),
            ));
        }
        parse(&body).map(Self)
    }
}

/// A JSON body that may be left out, which means the same as `{}`.
pub(super) struct OptionalJson<T>(pub(super) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        // Not by Content-Length: the JavaScript SDK sends every body chunked.
        let body = read(request.into_body()).await?;
        if body.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        parse(&body).map(Self)
    }
}

async fn read(body: Body) -> Result<Vec<u8>, ApiError> {
    let collect = Limited::new(body, LARGEST_BODY).collect();
    match tokio::time::timeout(BODY_LIMIT, collect).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::BodyTooLarge(LARGEST_BODY))
        }
        Ok(Err(error)) => Err(ApiError::Validation(format!("the body broke off: {error}"))),
        Err(_) => Err(ApiError::Validation(
            "the body did not arrive in time".to_owned(),
        )),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::Validation(error.to_string()))
}
