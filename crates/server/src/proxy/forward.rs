//! One request into a sandbox and its answer back: streaming both ways, nothing buffered, no time
//! limit, and broken off at once when the run of the sandbox ends.

use std::time::Duration;

use agent_api::ENVD_PORT;
use axum::body::Body;
use axum::response::Response;
use http::header::{COOKIE, HOST};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::EdgeError;
use super::cut::{CutBody, HardClose};
use super::dial::{Stream, dial};
use super::headers;
use super::spare::Spares;
use crate::sandbox::Route;

/// When the connection inside breaks, the end of the whole run may be the cause; it is noticed about
/// this much later at most.
const END_OF_RUN_GRACE: Duration = Duration::from_millis(500);

/// Forwards requests.
#[derive(Clone)]
pub(super) struct Forwarder {
    tasks: TaskTracker,
    spares: Spares,
}

impl Forwarder {
    pub(super) fn new(tasks: TaskTracker) -> Self {
        Self {
            tasks,
            spares: Spares::default(),
        }
    }

    /// Sends `request` to `port` and returns the answer, whose body breaks off with the run.
    pub(super) async fn forward(
        &self,
        route: &Route,
        port: u16,
        request: Request<Incoming>,
        client: HardClose,
    ) -> Result<Response, EdgeError> {
        let exchange = self.exchange(route, port, request, client);
        let result = tokio::select! {
            biased;
            () = route.ended.cancelled() => return Err(EdgeError::NotFound),
            result = exchange => result,
        };
        if let Err(EdgeError::Upstream(_) | EdgeError::PortClosed) = result {
            let ended = route.ended.is_cancelled()
                || matches!(result, Err(EdgeError::Upstream(_)))
                    && timeout(END_OF_RUN_GRACE, route.ended.cancelled())
                        .await
                        .is_ok();
            if ended {
                return Err(EdgeError::NotFound);
            }
        }
        result
    }

    async fn exchange(
        &self,
        route: &Route,
        port: u16,
        mut request: Request<Incoming>,
        client: HardClose,
    ) -> Result<Response, EdgeError> {
        let version = request.version();
        // The agent has no use for other protocols: there, a switch would only open a way around
        // the routes that are refused.
        let protocol = headers::upgrade(request.headers())
            .filter(|_| version == Version::HTTP_11 && port != ENVD_PORT);
        let switch = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
        let mut request = to_upstream(request, protocol);
        let mask = route.ingress.host_mask.as_ref();
        if let Some(host) = mask
            .filter(|_| port != ENVD_PORT)
            .and_then(|m| m.host(port))
        {
            mask_host(request.headers_mut(), host);
        }

        // A connection for each request: one that was used may be closed by its peer in the very moment it
        // is used again, and a request that has left must not be sent twice.
        let mut inside = self.connect(route, port).await?;
        let mut response = inside.send_request(request).await.map_err(upstream)?;
        if port == ENVD_PORT {
            self.spares.open(route);
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(switch) = switch else {
                let problem = "it switched to another protocol without being asked";
                return Err(EdgeError::Upstream(problem.to_owned()));
            };
            let inside = hyper::upgrade::on(&mut response);
            self.tasks
                .spawn(relay(switch, inside, route.ended.clone(), client));
            return Ok(switching(response));
        }
        let (mut parts, body) = response.into_parts();
        headers::strip(&mut parts.headers);
        // Of the connection inside; the client has a connection of its own.
        parts.version = Version::HTTP_11;
        let hard_close = (version == Version::HTTP_10).then_some(client);
        let body = CutBody::new(body, route.ended.clone(), hard_close);
        Ok(Response::from_parts(parts, Body::new(body)))
    }

    async fn connect(&self, route: &Route, port: u16) -> Result<SendRequest<Body>, EdgeError> {
        let spare = (port == ENVD_PORT).then(|| self.spares.take(route));
        let stream: Box<dyn Stream> = match spare.flatten() {
            Some(spare) => Box::new(spare),
            None => dial(&route.guest, port)
                .await
                .map_err(|_| EdgeError::PortClosed)?,
        };
        // Upstream's edge writes names of headers like `Content-Type`, and there are programs that know
        // no other spelling.
        let handshake = http1::Builder::new()
            .title_case_headers(true)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(upstream)?;
        let ended = route.ended.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                // Dropped with the run: everything that still comes from it is void.
                () = ended.cancelled() => {}
                result = connection.with_upgrades() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, port, "a connection into a sandbox broke");
                    }
                }
            }
        });
        Ok(sender)
    }
}

fn to_upstream(request: Request<Incoming>, protocol: Option<HeaderValue>) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    if !parts.headers.contains_key(HOST) {
        let authority = parts
            .uri
            .authority()
            .map(|a| HeaderValue::from_str(a.as_str()));
        if let Some(Ok(host)) = authority {
            parts.headers.insert(HOST, host);
        }
    }
    let path = parts.uri.path_and_query().cloned();
    parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.version = Version::HTTP_11;
    headers::strip(&mut parts.headers);
    headers::strip_answered(&mut parts.headers);
    join_cookies(&mut parts.headers);
    if let Some(protocol) = protocol {
        headers::set_upgrade(&mut parts.headers, protocol);
    }
    Request::from_parts(parts, Body::new(body))
}

/// Shows a service another host than the one asked for, which it still gets told.
fn mask_host(headers: &mut HeaderMap, host: HeaderValue) {
    headers.remove("x-forwarded-host");
    if let Some(asked) = headers.insert(HOST, host) {
        headers.insert("x-forwarded-host", asked);
    }
}

/// HTTP/2 clients may send cookies one by one, which HTTP/1.1 does not allow.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().count() < 2 {
        return;
    }
    let all: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// The head of a 101 for the client. The copying starts once it has been sent.
fn switching(response: Response<Incoming>) -> Response {
    let (mut parts, _) = response.into_parts();
    let protocol = headers::upgrade(&parts.headers);
    headers::strip(&mut parts.headers);
    if let Some(protocol) = protocol {
        headers::set_upgrade(&mut parts.headers, protocol);
    }
    parts.version = Version::HTTP_11;
    Response::from_parts(parts, Body::empty())
}

/// Copies both ways between two switched connections until both have ended or the run has.
async fn relay(outside: OnUpgrade, inside: OnUpgrade, ended: CancellationToken, client: HardClose) {
    let copy = async {
        let (outside, inside) = tokio::try_join!(outside, inside)?;
        let (mut outside, mut inside) = (TokioIo::new(outside), TokioIo::new(inside));
        let copied = tokio::select! {
            biased;
            // Set before the streams are dropped, which is when the connection ends.
            () = ended.cancelled() => { client.set(); return Ok(()) }
            copied = copy_bidirectional(&mut outside, &mut inside) => copied,
        };
        if let Err(error) = copied {
            client.set();
            tracing::debug!(%error, "a switched connection broke");
        }
        Ok::<_, hyper::Error>(())
    };
    if let Err(error) = copy.await {
        tracing::debug!(%error, "a connection could not be switched");
    }
}

fn upstream(error: hyper::Error) -> EdgeError {
    EdgeError::Upstream(error.to_string())
}
