//! The envd port: who may ask, and which service answers (contract §1 to §3, §6).

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::agent::Agent;
use crate::connect::{
    Caller, Code, Format, RpcError, client_stream, refuse, server_stream, unary, unary_body,
};
use crate::server::{Body, Connections, Failed, Handler, Hangup, empty, fail, json};
use crate::{files, filesystem as fs, process, users};

const ACCESS_TOKEN: &str = "x-access-token";
/// Answered with 404 here: initialisation comes over the host port, freezing is not ours.
const INTERNAL: [&str; 7] = [
    "/init",
    "/freeze",
    "/unfreeze",
    "/collapse",
    "/fsfreeze",
    "/fsthaw",
    "/upgrade",
];

/// Serves the envd port.
#[derive(Clone)]
pub(crate) struct Envd(pub(crate) Arc<Agent>);

impl Handler for Envd {
    async fn handle(&self, request: Request<Incoming>, hangup: Arc<Hangup>) -> Response<Body> {
        // Outside authentication: a preflight carries no token.
        if is_preflight(&request) {
            return preflight(request.headers());
        }
        let cross_origin = request.headers().contains_key(header::ORIGIN);
        let mut response = self.authorized(request, hangup).await;
        if cross_origin {
            allow_origin(response.headers_mut());
        }
        response
    }

    fn connections(&self) -> &Connections {
        &self.0.clients
    }

    fn peer(&self) -> Option<IpAddr> {
        None
    }
}

impl Envd {
    async fn authorized(&self, request: Request<Incoming>, hangup: Arc<Hangup>) -> Response<Body> {
        let token = self.0.settings().access_token.clone();
        if let Some(token) = token
            && !is_exempt(request.method(), request.uri().path())
            && !has_token(request.headers(), &token)
        {
            return fail(Failed::unauthorized(
                "unauthorized access, please provide a valid access token or method signing if \
                 supported",
            ));
        }
        let format = format_of(request.headers());
        let username = match basic_user(request.headers()) {
            Ok(username) => username,
            // Also for routes that do not use the header, as upstream.
            Err(error) => return refuse(format.unwrap_or(Format::PLAIN_JSON), &error),
        };
        if request.uri().path().starts_with("/process.Process/")
            || request.uri().path().starts_with("/filesystem.Filesystem/")
        {
            return self.rpc(request, format, username, hangup).await;
        }
        self.plain(request).await
    }

    async fn plain(&self, request: Request<Incoming>) -> Response<Body> {
        let agent = Arc::clone(&self.0);
        let method = request.method().clone();
        match (method, request.uri().path()) {
            (Method::GET | Method::HEAD, "/health") => no_store(status(StatusCode::NO_CONTENT)),
            (Method::GET | Method::HEAD, "/files") => {
                files::download(agent, request).await.unwrap_or_else(fail)
            }
            (Method::POST, "/files") => files::upload(agent, request).await.unwrap_or_else(fail),
            (Method::POST, "/files/compose") => {
                files::compose(agent, request).await.unwrap_or_else(fail)
            }
            (Method::GET, "/metrics") => match agent.measure() {
                Ok(metrics) => no_store(json(StatusCode::OK, &metrics)),
                Err(error) => fail(Failed::internal(format!("error reading metrics: {error}"))),
            },
            (Method::GET, "/envs") => {
                let table = agent.settings().environment();
                no_store(json(StatusCode::OK, &table))
            }
            (_, path) if INTERNAL.contains(&path) => fail(Failed::not_found("not found")),
            (_, "/health" | "/files" | "/files/compose" | "/metrics" | "/envs") => {
                status(StatusCode::METHOD_NOT_ALLOWED)
            }
            _ => fail(Failed::not_found("not found")),
        }
    }

    async fn rpc(
        &self,
        request: Request<Incoming>,
        format: Option<Format>,
        username: Option<String>,
        hangup: Arc<Hangup>,
    ) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some(streaming) = is_streaming(&path) else {
            return status(StatusCode::NOT_FOUND);
        };
        if request.method() != Method::POST {
            let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("POST"));
            return response;
        }
        let Some(format) = format.filter(|format| format.enveloped == streaming) else {
            let accepted = if streaming {
                "application/connect+json, application/connect+proto"
            } else {
                "application/json, application/proto"
            };
            let mut response = status(StatusCode::UNSUPPORTED_MEDIA_TYPE);
            let header = HeaderName::from_static("accept-post");
            response
                .headers_mut()
                .insert(header, HeaderValue::from_static(accepted));
            return response;
        };
        let caller = match Caller::from_headers(request.headers(), username, hangup) {
            Ok(caller) => caller,
            Err(error) => return refuse(format, &error),
        };
        self.dispatch(&path, request, format, caller).await
    }

    async fn dispatch(
        &self,
        path: &str,
        request: Request<Incoming>,
        format: Format,
        caller: Caller,
    ) -> Response<Body> {
        use process::service as process;
        let agent = || Arc::clone(&self.0);
        macro_rules! unary {
            ($service:path) => {
                unary(request, format, caller, |caller, message| {
                    $service(agent(), caller, message)
                })
                .await
            };
        }
        macro_rules! stream {
            ($service:path) => {
                server_stream(request, format, caller, |caller, codec, message| {
                    $service(agent(), caller, codec, message)
                })
                .await
            };
        }
        match path {
            "/process.Process/List" => unary!(process::list),
            "/process.Process/Start" => stream!(process::start),
            "/process.Process/Connect" => stream!(process::connect),
            "/process.Process/Update" => unary!(process::update),
            "/process.Process/SendInput" => unary!(process::send_input),
            "/process.Process/SendSignal" => unary!(process::send_signal),
            "/process.Process/CloseStdin" => unary!(process::close_stdin),
            "/process.Process/StreamInput" => {
                client_stream(request, format, &caller, |messages| {
                    process::stream_input(agent(), messages)
                })
                .await
            }
            "/filesystem.Filesystem/Stat" => unary!(fs::service::stat),
            "/filesystem.Filesystem/MakeDir" => unary!(fs::service::make_dir),
            "/filesystem.Filesystem/Move" => unary!(fs::service::rename),
            "/filesystem.Filesystem/ListDir" => {
                unary_body(request, format, caller, |caller, message| {
                    fs::listing::list_dir(agent(), caller, format.codec, message)
                })
                .await
            }
            "/filesystem.Filesystem/Remove" => unary!(fs::service::remove),
            "/filesystem.Filesystem/WatchDir" => stream!(fs::watch_dir),
            "/filesystem.Filesystem/CreateWatcher" => unary!(fs::create_watcher),
            "/filesystem.Filesystem/GetWatcherEvents" => unary!(fs::get_watcher_events),
            "/filesystem.Filesystem/RemoveWatcher" => unary!(fs::remove_watcher),
            _ => status(StatusCode::NOT_FOUND),
        }
    }
}

/// Whether an RPC's messages come in envelopes; `None` when there is no such RPC.
fn is_streaming(path: &str) -> Option<bool> {
    match path {
        "/process.Process/Start"
        | "/process.Process/Connect"
        | "/process.Process/StreamInput"
        | "/filesystem.Filesystem/WatchDir" => Some(true),
        "/process.Process/List"
        | "/process.Process/Update"
        | "/process.Process/SendInput"
        | "/process.Process/SendSignal"
        | "/process.Process/CloseStdin"
        | "/filesystem.Filesystem/Stat"
        | "/filesystem.Filesystem/MakeDir"
        | "/filesystem.Filesystem/Move"
        | "/filesystem.Filesystem/ListDir"
        | "/filesystem.Filesystem/Remove"
        | "/filesystem.Filesystem/CreateWatcher"
        | "/filesystem.Filesystem/GetWatcherEvents"
        | "/filesystem.Filesystem/RemoveWatcher" => Some(false),
        _ => None,
    }
}

/// Routes that need no token, or check a signature instead. Exact method and path.
fn is_exempt(method: &Method, path: &str) -> bool {
    matches!(
        (method, path),
        (&Method::GET, "/health") | (&Method::GET | &Method::POST, "/files")
    )
}

/// Whether the request carries the token.
pub(crate) fn has_token(headers: &HeaderMap, token: &str) -> bool {
    headers
        .get(ACCESS_TOKEN)
        .is_some_and(|given| same(given.as_bytes(), token.as_bytes()))
}

/// Compares in a time that depends on the lengths only.
pub(crate) fn same(given: &[u8], expected: &[u8]) -> bool {
    let difference = given
        .iter()
        .zip(expected)
        .fold(0, |bits, (a, b)| bits | (a ^ b));
    given.len() == expected.len() && std::hint::black_box(difference) == 0
}

/// The value of the token header, when it is not empty.
pub(crate) fn token_header(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(ACCESS_TOKEN).filter(|value| !value.is_empty())
}

fn format_of(headers: &HeaderMap) -> Option<Format> {
    Format::from_content_type(headers.get(header::CONTENT_TYPE)?.to_str().ok()?)
}

/// The username of the Basic header; the password means nothing. An empty one counts as none.
fn basic_user(headers: &HeaderMap) -> Result<Option<String>, RpcError> {
    let name = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, credentials)| STANDARD.decode(credentials.trim()).ok())
        .and_then(|credentials| String::from_utf8(credentials).ok())
        .and_then(|credentials| Some(credentials.split_once(':')?.0.to_owned()))
        .filter(|name| !name.is_empty());
    match &name {
        Some(name) if !matches!(users::find(name), Ok(Some(_))) => Err(RpcError::new(
            Code::Unauthenticated,
            format!("invalid username: '{name}'"),
        )),
        _ => Ok(name),
    }
}

fn is_preflight(request: &Request<Incoming>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(request: &HeaderMap) -> Response<Body> {
    let mut response = status(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    allow_origin(headers);
    let methods = HeaderValue::from_static("HEAD, GET, POST, PUT, PATCH, DELETE");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    if let Some(requested) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
    }
    headers.insert(
        header::ACCESS_CONTROL_MAX_AGE,
        HeaderValue::from_static("7200"),
    );
    response
}

fn allow_origin(headers: &mut HeaderMap) {
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("*"),
    );
    let exposed = "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Location, Cache-Control, \
                   X-Content-Type-Options";
    let exposed = HeaderValue::from_static(exposed);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

fn no_store(mut response: Response<Body>) -> Response<Body> {
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
