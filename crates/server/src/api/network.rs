//! Changes of what a running sandbox may reach.

use api_types::{ErrorBody, UpdateNetwork};
use axum::extract::State;
use http::StatusCode;

use super::create_request::means_something;
use super::extract::{Id, OptionalJson};
use super::{ApiError, HttpState};
use crate::sandbox::{PublicState, SandboxError};

/// Replace the network rules
///
/// There are no rules that could be replaced yet: what asks for any, or for another
/// `allow_internet_access` than the sandbox was created with (omitted means true), is refused by name.
#[utoipa::path(put, path = "/sandboxes/{sandboxID}/network", tag = "sandboxes",
    params(("sandboxID" = String, Path)), request_body = Option<UpdateNetwork>,
    responses(
        (status = 204, description = "The sandbox has these rules"),
        (status = 400, description = "Malformed or not supported", body = ErrorBody),
        (status = 401, description = "No valid API key", body = ErrorBody),
        (status = 404, description = "No such sandbox, or it is paused", body = ErrorBody),
    ))]
pub(super) async fn update(
    State(state): State<HttpState>,
    Id(id): Id,
    OptionalJson(body): OptionalJson<UpdateNetwork>,
) -> Result<StatusCode, ApiError> {
    let fields = [
        ("allowOut", &body.allow_out),
        ("denyOut", &body.deny_out),
        ("egressProxy", &body.egress_proxy),
        ("rules", &body.rules),
        ("dnsServers", &body.dns_servers),
    ];
    if let Some((field, _)) = fields
        .into_iter()
        .find(|(_, value)| means_something(value.as_ref()))
    {
        return Err(ApiError::Unsupported(field));
    }
    let view = state.sandboxes.get(&id)?;
    if view.state == PublicState::Paused {
        return Err(SandboxError::Paused(id).into());
    }
    let asked = body.allow_internet_access.unwrap_or(true);
    if asked != view.allow_internet_access.unwrap_or(true) {
        return Err(ApiError::FixedAtCreate("allow_internet_access"));
    }
    Ok(StatusCode::NO_CONTENT)
}
