//! One request of the host channel over a connection the caller dialled.
//!
//! Nothing here has a timeout. Dropping the future, or what it returned, drops the connection.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::hooks::{HooksReply, RunHooks};
use crate::messages::{Failure, InitReply, InitRequest, Metrics, PrepareReply, PrepareRequest};
use crate::{
    HEALTH_PATH, HOOKS_PATH, INIT_PATH, METRICS_PATH, PREPARE_PATH, TUNNEL_PATH, TUNNEL_PROTOCOL,
};

/// Longest answer body that is read.
const ANSWER_LIMIT: usize = 1024 * 1024;

/// A raw byte stream to a loopback listener inside the sandbox. Shutting down one direction leaves
/// the other open.
pub type Tunnel = TokioIo<Upgraded>;

/// Why a request to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke or did not speak HTTP.
    #[error("talk to the agent")]
    Connection(#[from] hyper::Error),
    /// The agent answered, and refused.
    #[error("agent refused with {status}: {message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The agent's text.
        message: String,
    },
    /// Nothing listens on that loopback port.
    #[error("nothing listens on port {0} inside the sandbox")]
    PortClosed(u16),
    /// The answer could not be read.
    #[error("unreadable answer of the agent: {0}")]
    Answer(String),
}

/// Asks whether the agent is up.
pub async fn health(stream: TcpStream) -> Result<(), ClientError> {
    exchange(stream, request(Method::GET, HEALTH_PATH, Bytes::new())).await?;
    Ok(())
}

/// Tells the agent who it is; may be repeated.
pub async fn init(stream: TcpStream, message: &InitRequest) -> Result<InitReply, ClientError> {
    let body = serde_json::to_vec(message).map_err(|error| answer_error(&error))?;
    decode(&exchange(stream, request(Method::POST, INIT_PATH, body.into())).await?)
}

/// Makes the guest ready to be frozen: small, and written back to disk unless the host does that.
pub async fn prepare(
    stream: TcpStream,
    message: &PrepareRequest,
) -> Result<PrepareReply, ClientError> {
    let body = serde_json::to_vec(message).map_err(|error| answer_error(&error))?;
    decode(&exchange(stream, request(Method::POST, PREPARE_PATH, body.into())).await?)
}

/// Runs hooks of the sandbox's owner. Answers when the last of them is over.
pub async fn run_hooks(stream: TcpStream, message: &RunHooks) -> Result<HooksReply, ClientError> {
    let body = serde_json::to_vec(message).map_err(|error| answer_error(&error))?;
    decode(&exchange(stream, request(Method::POST, HOOKS_PATH, body.into())).await?)
}

/// Reads the guest's resource usage.
pub async fn metrics(stream: TcpStream) -> Result<Metrics, ClientError> {
    decode(&exchange(stream, request(Method::GET, METRICS_PATH, Bytes::new())).await?)
}

/// Connects to whatever listens on `port` of the guest's loopback, IPv4 before IPv6.
pub async fn tunnel(stream: TcpStream, port: u16) -> Result<Tunnel, ClientError> {
    let mut request = request(
        Method::GET,
        &format!("{TUNNEL_PATH}?port={port}"),
        Bytes::new(),
    );
    let headers = request.headers_mut();
    headers.insert(CONNECTION, http::HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, http::HeaderValue::from_static(TUNNEL_PROTOCOL));

    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let upgraded = async move {
        let response = sender.send_request(request).await?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => Ok(hyper::upgrade::on(response).await?),
            StatusCode::BAD_GATEWAY => Err(ClientError::PortClosed(port)),
            _ => Err(refusal(response).await),
        }
    };
    // The connection future finishes by itself: at the upgrade, or once the sender is gone.
    let (upgraded, _closed) = tokio::join!(upgraded, connection.with_upgrades());
    Ok(TokioIo::new(upgraded?))
}

/// Sends a GET and returns the body of a successful answer as it comes, with the task that drives its
/// connection.
pub(crate) async fn open(
    stream: TcpStream,
    path: &str,
) -> Result<(Incoming, tokio::task::JoinHandle<()>), ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Owned by the reader of the body, which aborts it.
    let connection = tokio::spawn(async move {
        // How it ended is what the body says.
        let _ended = connection.await;
    });
    let response = sender
        .send_request(request(Method::GET, path, Bytes::new()))
        .await;
    let response = response.inspect_err(|_| connection.abort())?;
    if response.status().is_success() {
        return Ok((response.into_body(), connection));
    }
    let refused = refusal(response).await;
    connection.abort();
    Err(refused)
}

fn request(method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path
        .parse()
        .expect("paths are constants with at most numbers and ids");
    let headers = request.headers_mut();
    headers.insert(HOST, http::HeaderValue::from_static("sandbox"));
    headers.insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    request
}

/// Sends one request and returns the body of a successful answer.
async fn exchange(stream: TcpStream, request: Request<Full<Bytes>>) -> Result<Bytes, ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        if response.status().is_success() {
            read(response).await
        } else {
            Err(refusal(response).await)
        }
    };
    let (answer, _closed) = tokio::join!(answer, connection);
    answer
}

async fn read(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    match Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
    {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(ClientError::Answer(error.to_string())),
    }
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let message = match read(response).await {
        Ok(body) => match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => failure.message,
            Err(_) => String::from_utf8_lossy(&body).into_owned(),
        },
        Err(error) => error.to_string(),
    };
    ClientError::Refused { status, message }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| answer_error(&error))
}

fn answer_error(error: &serde_json::Error) -> ClientError {
    ClientError::Answer(error.to_string())
}
