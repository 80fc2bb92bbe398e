//! One RPC: read the request, run the service, write the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use futures_util::{Stream, StreamExt};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Read;
use tokio::time::Instant;

use super::codec::{Codec, Format, MESSAGE_LIMIT, end_of_stream, take_envelope};
use super::error::RpcError;
use crate::server::{Body, BoxError, Hangup, full};

const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const KEEPALIVE: HeaderName = HeaderName::from_static("keepalive-ping-interval");
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);

/// The encoded events of a stream, including its end. An `Err` cuts the connection.
pub(crate) type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// Who calls and for how long.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Username of the Basic header, known to exist.
    pub(crate) username: Option<String>,
    /// When the caller stops waiting.
    pub(crate) deadline: Option<Instant>,
    /// How often a quiet stream shows that it is alive.
    pub(crate) keepalive: Duration,
    /// Python before 1.5.3, which fails on fields it does not know (contract §12).
    pub(crate) legacy: bool,
    /// Cuts the caller's connection.
    pub(crate) hangup: Arc<Hangup>,
}

impl Caller {
    /// Reads the headers that apply to every RPC.
    pub(crate) fn from_headers(
        headers: &HeaderMap,
        username: Option<String>,
        hangup: Arc<Hangup>,
    ) -> Result<Self, RpcError> {
        let timeout = headers.get(TIMEOUT).map(parse_timeout).transpose()?;
        let keepalive = headers
            .get(KEEPALIVE)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .filter(|seconds| *seconds > 0 && *seconds <= u64::from(u32::MAX))
            .map_or(DEFAULT_KEEPALIVE, Duration::from_secs);
        let agent = headers.get(http::header::USER_AGENT);
        Ok(Self {
            username,
            deadline: timeout.map(|timeout| Instant::now() + timeout),
            keepalive,
            legacy: agent.is_some_and(|agent| agent == "connect-python"),
            hangup,
        })
    }
}

/// Milliseconds, at most ten digits. Old Python clients send a fraction, which is cut off.
fn parse_timeout(value: &HeaderValue) -> Result<Duration, RpcError> {
    let text = value.to_str().unwrap_or_default().trim();
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole);
    let valid = (1..=10).contains(&whole.len()) && whole.bytes().all(|byte| byte.is_ascii_digit());
    match whole.parse() {
        Ok(milliseconds) if valid => Ok(Duration::from_millis(milliseconds)),
        _ => Err(RpcError::invalid(format!(
            "parse timeout: invalid value {text:?}"
        ))),
    }
}

/// Answers a unary call.
pub(crate) async fn unary<M, R, F>(
    request: Request<Incoming>,
    format: Format,
    caller: Caller,
    service: impl FnOnce(Caller, M) -> F,
) -> Response<Body>
where
    M: Message + Default + DeserializeOwned,
    R: Message + Serialize,
    F: Future<Output = Result<R, RpcError>>,
{
    let encoded = |caller, message| {
        let answer = service(caller, message);
        async move { Ok(full(format.codec.encode(&answer.await?))) }
    };
    unary_body(request, format, caller, encoded).await
}

/// Answers a unary call whose service encodes the answer itself.
pub(crate) async fn unary_body<M, F>(
    request: Request<Incoming>,
    format: Format,
    caller: Caller,
    service: impl FnOnce(Caller, M) -> F,
) -> Response<Body>
where
    M: Message + Default + DeserializeOwned,
    F: Future<Output = Result<Body, RpcError>>,
{
    let deadline = caller.deadline;
    let legacy = caller.legacy;
    let work = async {
        let message = format.codec.decode(&read_whole(request).await?)?;
        service(caller, message).await
    };
    let mut response = match within(deadline, work).await {
        Ok(body) => {
            let mut response = Response::new(body);
            let content_type = HeaderValue::from_static(format.content_type());
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response
        }
        Err(error) => refuse(format, &error),
    };
    if legacy {
        tell_legacy(&mut response);
    }
    response
}

/// The outcome of a call, or that the caller's time was over before.
async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T, RpcError>>,
) -> Result<T, RpcError> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, work)
            .await
            .unwrap_or_else(|_| Err(RpcError::deadline())),
        None => work.await,
    }
}

/// Says that the answer has only what old clients know.
fn tell_legacy(response: &mut Response<Body>) {
    let header = HeaderName::from_static("x-e2b-legacy-sdk");
    let yes = HeaderValue::from_static("true");
    response.headers_mut().insert(header, yes);
}

/// Answers a call whose reply is a stream of events.
pub(crate) async fn server_stream<M, F>(
    request: Request<Incoming>,
    format: Format,
    caller: Caller,
    service: impl FnOnce(Caller, Codec, M) -> F,
) -> Response<Body>
where
    M: Message + Default + DeserializeOwned,
    F: Future<Output = Result<Frames, RpcError>>,
{
    let legacy = caller.legacy;
    let work = async {
        let mut messages = Messages::new(request, format.codec)?;
        let message = messages.next().await?.ok_or_else(|| {
            RpcError::invalid("protocol error: incomplete envelope: unexpected end of request")
        })?;
        service(caller, format.codec, message).await
    };
    let mut response = match work.await {
        Ok(frames) => stream_response(format, frames),
        Err(error) => refuse(format, &error),
    };
    if legacy {
        tell_legacy(&mut response);
    }
    response
}

/// Answers a call whose request is a stream of messages.
pub(crate) async fn client_stream<M, R, F>(
    request: Request<Incoming>,
    format: Format,
    caller: &Caller,
    service: impl FnOnce(Messages<M>) -> F,
) -> Response<Body>
where
    M: Message + Default + DeserializeOwned,
    R: Message + Serialize,
    F: Future<Output = Result<R, RpcError>>,
{
    let work = async { service(Messages::new(request, format.codec)?).await };
    match within(caller.deadline, work).await {
        Ok(message) => {
            let frames = [Ok(format.codec.envelope(&message)), Ok(end_of_stream(None))];
            stream_response(format, futures_util::stream::iter(frames).boxed())
        }
        Err(error) => refuse(format, &error),
    }
}

/// Runs file work on a helper thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RpcError> + Send + 'static,
) -> Result<T, RpcError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RpcError::internal(error.to_string())),
    }
}

/// An error in the shape the kind of call demands: HTTP status, or 200 and a last envelope.
pub(crate) fn refuse(format: Format, error: &RpcError) -> Response<Body> {
    if format.enveloped {
        let mut response = Response::new(full(end_of_stream(Some(error))));
        let content_type = HeaderValue::from_static(format.content_type());
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        return response;
    }
    let body = serde_json::to_vec(error).expect("an error is two strings");
    let mut response = Response::new(full(body));
    *response.status_mut() = error.code.status();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn stream_response(format: Format, frames: Frames) -> Response<Body> {
    let body = StreamBody::new(frames.map(|bytes| bytes.map(Frame::data)));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = StatusCode::OK;
    let content_type = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

async fn read_whole(request: Request<Incoming>) -> Result<Bytes, RpcError> {
    let gzip = is_gzip(request.headers().get(CONTENT_ENCODING))?;
    let body = Limited::new(request.into_body(), MESSAGE_LIMIT)
        .collect()
        .await;
    let body = body.map_err(|error| RpcError::invalid(format!("read message: {error}")))?;
    let body = body.to_bytes();
    if !gzip {
        return Ok(body);
    }
    let mut plain = Vec::new();
    let mut decoder = MultiGzDecoder::new(&body[..]).take(MESSAGE_LIMIT as u64 + 1);
    match decoder.read_to_end(&mut plain) {
        Ok(length) if length <= MESSAGE_LIMIT => Ok(plain.into()),
        Ok(_) => Err(RpcError::invalid("message is larger than configured max")),
        Err(error) => Err(RpcError::invalid(format!("decompress message: {error}"))),
    }
}

/// Clients send `identity`; connect-go may send gzip.
fn is_gzip(encoding: Option<&HeaderValue>) -> Result<bool, RpcError> {
    match encoding.map(HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Ok(false),
        Some(b"gzip") => Ok(true),
        Some(other) => Err(RpcError::unimplemented(format!(
            "unknown compression {:?}: supported encodings are gzip",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// The enveloped messages of a request.
pub(crate) struct Messages<M> {
    body: Incoming,
    buffer: BytesMut,
    codec: Codec,
    message: std::marker::PhantomData<fn() -> M>,
}

impl<M: Message + Default + DeserializeOwned> Messages<M> {
    fn new(request: Request<Incoming>, codec: Codec) -> Result<Self, RpcError> {
        if is_gzip(request.headers().get("connect-content-encoding"))? {
            return Err(RpcError::unimplemented(
                "unknown compression \"gzip\": streams are not compressed",
            ));
        }
        let message = std::marker::PhantomData;
        Ok(Self {
            body: request.into_body(),
            buffer: BytesMut::new(),
            codec,
            message,
        })
    }

    /// The next message; `None` when the client has sent its last one.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, RpcError> {
        loop {
            if let Some(payload) = take_envelope(&mut self.buffer)? {
                return self.codec.decode(&payload).map(Some);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(RpcError::invalid(format!("read message: {error}")));
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(RpcError::invalid("protocol error: incomplete envelope")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(text: &str) -> Result<Duration, RpcError> {
        parse_timeout(&HeaderValue::from_str(text).unwrap())
    }

    #[test]
    fn timeouts_are_milliseconds_and_fractions_are_cut() {
        assert_eq!(timeout("60000").unwrap(), Duration::from_secs(60));
        assert_eq!(timeout("2500.0").unwrap(), Duration::from_millis(2500));
        for text in ["", "-1", "12345678901", "1s", ".5"] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }
}
