//! The private channel of the host: initialisation, checkpoints, hooks, tunnels, and who looks after
//! the memory.
//!
//! It needs no secret because only the gateway's address is served, which nobody inside the sandbox
//! can send from.

pub(crate) mod hooks;
mod init;
pub(crate) mod memory;
mod ports;
mod tunnel;
pub(crate) mod watch;

use std::net::IpAddr;
use std::sync::Arc;

use agent_api::{
    HEALTH_PATH, HOOKS_PATH, HookKind, HooksReply, INIT_PATH, LOG_PATH, MEMORY_WATCH_PATH,
    METRICS_PATH, PREPARE_PATH, PrepareReply, PrepareRequest, TUNNEL_PATH,
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::de::DeserializeOwned;

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
                let message = read(request).await?;
                Ok(json(
                    StatusCode::OK,
                    &init::init(&self.agent, message).await,
                ))
            }
            (Method::POST, PREPARE_PATH) => {
                let message: PrepareRequest = read(request).await?;
                let work = move || {
                    if !message.host_writes_back {
                        rustix::fs::sync();
                    }
                    memory::shrink();
                };
                let done = tokio::task::spawn_blocking(work).await;
                done.map_err(|error| Failed::internal(error.to_string()))?;
                let pre_pause_hooks = self.agent.hooks.count(HookKind::PrePause);
                Ok(json(StatusCode::OK, &PrepareReply { pre_pause_hooks }))
            }
            (Method::POST, HOOKS_PATH) => {
                let hooks = hooks::Hooks::run(&self.agent, read(request).await?).await;
                Ok(json(StatusCode::OK, &HooksReply { hooks }))
            }
            (Method::GET, METRICS_PATH) => {
                let metrics = self.agent.measure();
                let metrics = metrics.map_err(|error| Failed::internal(error.to_string()))?;
                Ok(json(StatusCode::OK, &metrics))
            }
            (Method::GET, MEMORY_WATCH_PATH) => {
                let body = StreamBody::new(self.agent.host_watch.answer());
                Ok(Response::new(BodyExt::boxed_unsync(body)))
            }
            (Method::GET, LOG_PATH) => Ok(self.log(request.uri().query().unwrap_or_default())),
            (Method::GET, TUNNEL_PATH) => tunnel::open(&self.agent, request).await,
            _ => Err(Failed::not_found("not found")),
        }
    }

    /// A line with the boot id, by which the host knows whether its numbers still count, then the
    /// entries.
    fn log(&self, query: &str) -> Response<Body> {
        let parameter = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let boot = init::boot_id();
        let after = match parameter("boot") {
            Some(same) if same == boot => parameter("after").and_then(|after| after.parse().ok()),
            _ => None,
        };
        let start = Bytes::from(format!("{}\n", serde_json::json!({"boot": boot})));
        let entries = self.agent.log.follow(after.unwrap_or(0));
        let lines = futures_util::stream::iter([start]).chain(entries);
        let body = StreamBody::new(lines.map(|line| Ok(Frame::data(line))));
        Response::new(BodyExt::boxed_unsync(body))
    }
}

/// The message of a request.
async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failed> {
    let body = Limited::new(request.into_body(), BODY_LIMIT)
        .collect()
        .await;
    let body = body.map_err(|error| Failed::bad_request(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Failed::bad_request(error.to_string()))
}
