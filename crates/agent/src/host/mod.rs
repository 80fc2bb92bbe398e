//! The private channel of the host: initialisation, checkpoints, tunnels.
//!
//! It needs no secret because only the gateway's address is served, which nobody inside the sandbox
//! can send from.

mod init;
pub(crate) mod memory;
mod tunnel;

use std::net::IpAddr;
use std::sync::Arc;

use agent_api::{HEALTH_PATH, INIT_PATH, METRICS_PATH, PREPARE_PATH, TUNNEL_PATH};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use crate::agent::Agent;
use crate::server::{Body, Connections, Failed, Handler, Hangup, empty, fail, json};

/// Longest body of an init; it carries the user's environment.
const BODY_LIMIT: usize = 4 * 1024 * 1024;

/// Serves the host port.
#[derive(Clone)]
pub(crate) struct HostChannel {
    pub(crate) agent: Arc<Agent>,
    pub(crate) peer: IpAddr,
}

impl Handler for HostChannel {
    async fn handle(&self, request: Request<Incoming>, _hangup: Arc<Hangup>) -> Response<Body> {
        self.route(request).await.unwrap_or_else(fail)
    }

    fn connections(&self) -> &Connections {
        &self.agent.hosts
    }

    fn peer(&self) -> Option<IpAddr> {
        Some(self.peer)
    }
}

impl HostChannel {
    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Failed> {
        match (request.method().clone(), request.uri().path()) {
            (Method::GET, HEALTH_PATH) => {
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                Ok(response)
            }
            (Method::POST, INIT_PATH) => {
                let body = Limited::new(request.into_body(), BODY_LIMIT)
                    .collect()
                    .await;
                let body = body.map_err(|error| Failed::bad_request(error.to_string()))?;
                let message = serde_json::from_slice(&body.to_bytes())
                    .map_err(|error| Failed::bad_request(error.to_string()))?;
                Ok(json(
                    StatusCode::OK,
                    &init::init(&self.agent, message).await,
                ))
            }
            (Method::POST, PREPARE_PATH) => {
                let done = tokio::task::spawn_blocking(memory::write_back_and_shrink).await;
                done.map_err(|error| Failed::internal(error.to_string()))?;
                Ok(json(StatusCode::OK, &serde_json::json!({})))
            }
            (Method::GET, METRICS_PATH) => {
                let metrics = self.agent.meter.measure();
                let metrics = metrics.map_err(|error| Failed::internal(error.to_string()))?;
                Ok(json(StatusCode::OK, &metrics))
            }
            (Method::GET, TUNNEL_PATH) => tunnel::open(&self.agent, request).await,
            _ => Err(Failed::not_found("not found")),
        }
    }
}
