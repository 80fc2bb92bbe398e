//! The edge: requests for the inside of sandboxes.
//!
//! ```text
//! route::decide ─► Sandbox { id, port } ─┬─► way in: running, or resumed by this request
//!               └► SignedFile ─ signature ┘        └─► forward ─ dial ─► guest
//! ```
//!
//! [`route`] decides from the head of a request, without looking at any sandbox. [`forward`] passes
//! it on, to the agent over a connection that was opened before ([`spare`]). [`answer`] has every answer
//! that the edge gives itself.
//!
//! Invariants: a connection into a sandbox belongs to one run and ends with it; a stream that is cut
//! never looks finished to the client; port 49982 and the agent's reserved routes are out of reach.

mod answer;
mod cut;
mod dial;
mod forward;
mod headers;
pub(crate) mod route;
mod signature;
mod spare;

use agent_api::ENVD_PORT;
use axum::response::Response;
use http::{HeaderMap, Request};
use hyper::body::Incoming;

use self::answer::{EdgeError, ForBrowser};
pub(crate) use self::cut::HardClose;
use self::forward::Forwarder;
use self::route::{Refusal, Target};
use self::signature::SignedFile;
use crate::api::HttpState;
use crate::sandbox::{Ingress, PauseMode, PublicState, Route, SandboxError};

const TRAFFIC_TOKEN_HEADER: &str = "e2b-traffic-access-token";

/// The edge.
#[derive(Clone)]
pub(crate) struct Proxy {
    state: HttpState,
    forwarder: Forwarder,
}

impl Proxy {
    pub(crate) fn new(state: HttpState) -> Self {
        let forwarder = Forwarder::new(state.tasks.clone());
        Self { state, forwarder }
    }

    /// Answers a request for a port of a sandbox.
    pub(crate) async fn to_sandbox(
        &self,
        target: Target,
        request: Request<Incoming>,
        client: HardClose,
    ) -> Response {
        let browser = ForBrowser::of(request.headers());
        let result = match self.way_in(&target, request.headers()).await {
            Ok(way) => {
                self.forwarder
                    .forward(&way, target.port, request, client)
                    .await
            }
            Err(error) => Err(error),
        };
        result.unwrap_or_else(|error| {
            tracing::debug!(sandbox.id = %target.id, port = target.port, ?error, "not forwarded");
            error.answer(&target, browser)
        })
    }

    /// Answers a signed file URL.
    pub(crate) async fn to_signed_file(
        &self,
        signed: SignedFile,
        request: Request<Incoming>,
        client: HardClose,
    ) -> Response {
        let signer = signed.check().and_then(|check| {
            let mut all = self.state.sandboxes.list().into_iter();
            all.find(|view| check.is_signed_with(&view.access_token))
        });
        match signer {
            Some(view) => {
                let target = Target {
                    id: view.id,
                    port: ENVD_PORT,
                };
                self.to_sandbox(target, request, client).await
            }
            None => answer::unknown_signature(),
        }
    }

    /// Answers a request that goes nowhere.
    pub(crate) fn refuse(refusal: &Refusal) -> Response {
        answer::refusal(refusal)
    }

    /// The way to a sandbox that runs, resuming it first if its owner wants traffic to do that.
    async fn way_in(&self, target: &Target, headers: &HeaderMap) -> Result<Route, EdgeError> {
        let sandboxes = &self.state.sandboxes;
        match sandboxes.route_when_settled(&target.id).await {
            Ok(way) => {
                admit(target, headers, &way.ingress)?;
                return Ok(way);
            }
            Err(SandboxError::NotFound(_)) => return Err(EdgeError::NotFound),
            Err(_) => {}
        }
        let view = sandboxes.get(&target.id).map_err(|_| EdgeError::NotFound)?;
        // A request must not reboot a sandbox.
        if view.pause_mode == Some(PauseMode::Filesystem) {
            return Err(EdgeError::NotFound);
        }
        let token = headers
            .get("x-access-token")
            .map_or(&b""[..], |value| value.as_bytes());
        if target.port == ENVD_PORT && !signature::same(token, view.access_token.as_bytes()) {
            // Without the token nobody may wake a sandbox, or learn more than that it sleeps.
            let wakes = view.lifecycle.auto_resume;
            return Err(if wakes {
                EdgeError::AccessToken
            } else {
                EdgeError::NotFound
            });
        }
        if let Err(refused) = admit(target, headers, &view.ingress) {
            let shown = view.state == PublicState::Running || view.lifecycle.auto_resume;
            return Err(if shown { refused } else { EdgeError::NotFound });
        }
        sandboxes
            .route_or_resume(&target.id)
            .await
            .map_err(EdgeError::Resume)
    }
}

/// Lets a request in by the rules for ports. The agent asks for a token of its own.
fn admit(target: &Target, headers: &HeaderMap, ingress: &Ingress) -> Result<(), EdgeError> {
    let Some(token) = &ingress.traffic_token else {
        return Ok(());
    };
    if target.port == ENVD_PORT {
        return Ok(());
    }
    match headers.get(TRAFFIC_TOKEN_HEADER) {
        None => Err(EdgeError::TrafficTokenMissing),
        Some(given) if signature::same(given.as_bytes(), token.as_bytes()) => Ok(()),
        Some(_) => Err(EdgeError::TrafficTokenInvalid),
    }
}
