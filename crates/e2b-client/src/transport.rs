//! HTTP with nothing between: no retries, no proxies, a limit for every request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::Problem;

/// What E2B's SDKs give a request: a server that needs longer is unusable by them.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Longest body that is read.
const BODY_LIMIT: usize = 64 << 20;

type Connector = HttpsConnector<HttpConnector>;

/// What becomes of a connection when its request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// It is closed: those into a sandbox break when it is paused, and a request on a broken one
    /// would look like a fault of the server.
    Fresh,
    /// It is kept for the next request, as E2B's SDKs do.
    Kept,
}

/// Sends requests.
#[derive(Clone, Debug)]
pub struct Transport {
    client: Client<Connector, Full<Bytes>>,
}

/// One request.
#[derive(Debug)]
pub struct Call {
    /// The verb.
    pub method: Method,
    /// Absolute.
    pub url: String,
    /// Names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// Sent whole.
    pub body: Bytes,
}

/// One answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    /// As it came.
    pub status: StatusCode,
    /// As they came.
    pub headers: HeaderMap,
    /// To its end.
    pub body: Bytes,
}

impl Call {
    /// Without headers and body.
    pub fn new(method: Method, url: String) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Makes this the body.
    pub fn json(self, body: &Value) -> Self {
        let mut call = self.header("content-type", "application/json");
        call.body = Bytes::from(body.to_string());
        call
    }

    /// For people.
    fn what(&self) -> String {
        let path = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let path = path.split_once('/').map_or("", |(_, path)| path);
        format!("{} /{path}", self.method)
    }
}

impl Answer {
    /// The body, when the status is the wanted one.
    pub fn expect(&self, what: &str, wanted: StatusCode) -> Result<&Self, Problem> {
        if self.status == wanted {
            return Ok(self);
        }
        Err(self.unwanted(what))
    }

    /// That this is not the answer that was promised; as "not supported" when the server says so.
    pub fn unwanted(&self, what: &str) -> Problem {
        let text = format!("{what} answered {}: {}", self.status.as_u16(), self.text());
        if self.is_not_supported() {
            Problem::NotSupported(text)
        } else {
            Problem::Broken(text)
        }
    }

    /// Whether the server has no such operation or no such option, as opposed to no such thing.
    pub fn is_not_supported(&self) -> bool {
        let text = self.text();
        match self.status {
            StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => true,
            // The contract fixes the text about a sandbox that is not there.
            StatusCode::NOT_FOUND => !text.contains("you don't have access to it"),
            StatusCode::BAD_REQUEST => text.contains("not supported"),
            _ => false,
        }
    }

    /// The message of an error, or the start of the body.
    pub fn text(&self) -> String {
        let message = serde_json::from_slice::<Value>(&self.body)
            .ok()
            .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()));
        message.unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&self.body);
            text.chars().take(200).collect()
        })
    }

    /// The body as what it must be.
    pub fn decode<T: DeserializeOwned>(&self, what: &str) -> Result<T, Problem> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Problem::Broken(format!(
                "{what} answered something unreadable ({error}): {}",
                self.text()
            ))
        })
    }
}

impl Transport {
    /// With the certificates that this host trusts, when the server is reached by HTTPS.
    pub fn new(encrypted: bool, connections: Connections) -> Result<Self, Problem> {
        let builder = rustls::ClientConfig::builder();
        let config = if encrypted {
            let trusted = builder.with_native_roots();
            trusted.map_err(|error| {
                Problem::Broken(format!(
                    "this host trusts no certificates ({error}); install ca-certificates"
                ))
            })?
        } else {
            builder.with_root_certificates(Arc::new(rustls::RootCertStore::empty()))
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        let idle = match connections {
            Connections::Fresh => 0,
            Connections::Kept => usize::MAX,
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(idle)
            .build(connector);
        Ok(Self { client })
    }

    /// Sends a request and reads the answer.
    pub async fn send(&self, call: Call) -> Result<Answer, Problem> {
        self.send_within(call, REQUEST_LIMIT).await
    }

    /// The same with a limit of one's own.
    pub async fn send_within(&self, call: Call, limit: Duration) -> Result<Answer, Problem> {
        let what = call.what();
        let exchange = async {
            let (head, body) = self.open(call).await?.into_parts();
            let body = Limited::new(body, BODY_LIMIT).collect().await;
            let body = body.map_err(|error| broken(&what, &*error))?;
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes(),
            })
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Problem::Broken(format!("{what}: no answer in {limit:?}"))),
        }
    }

    /// Sends a request; the body of the answer is for the caller to read.
    pub async fn open(&self, call: Call) -> Result<Response<Incoming>, Problem> {
        let what = call.what();
        let mut request = Request::builder().method(call.method).uri(&call.url);
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(call.body))
            .map_err(|error| broken(&what, &error))?;
        let response = self.client.request(request).await;
        response.map_err(|error| broken(&what, &error))
    }
}

fn broken(what: &str, error: &dyn std::error::Error) -> Problem {
    let mut text = format!("{what}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    Problem::Broken(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn what_a_server_lacks_is_told_from_what_is_not_there() {
        let lacks = [
            answer(
                404,
                "{\"code\":404,\"message\":\"POST /x is not implemented\"}",
            ),
            answer(404, ""),
            answer(405, ""),
            answer(501, ""),
            answer(
                400,
                "{\"message\":\"'autoPause' is not supported by this server\"}",
            ),
        ];
        for answer in lacks {
            assert!(answer.is_not_supported(), "{answer:?}");
        }
        let refuses = [
            answer(
                404,
                "{\"message\":\"Sandbox \\\"i\\\" doesn't exist or you don't have access to it\"}",
            ),
            answer(400, "{\"message\":\"validation error\"}"),
            answer(500, ""),
            answer(503, ""),
        ];
        for answer in refuses {
            assert!(!answer.is_not_supported(), "{answer:?}");
        }
    }

    #[test]
    fn an_unwanted_answer_is_told_with_its_message() {
        let answer = answer(500, "{\"code\":500,\"message\":\"disk on fire\"}");
        let problem = answer.expect("pause", StatusCode::NO_CONTENT).unwrap_err();
        assert_eq!(problem.to_string(), "pause answered 500: disk on fire");
    }
}
