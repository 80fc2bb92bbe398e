//! A server behind a real listener, and a small HTTP client.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use server::api::{ApiKey, HttpState};
use server::history::{self, History};
use server::listener;
use server::sandbox::{SandboxId, Sandboxes};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::Place;

pub(crate) struct Served {
    pub(crate) place: Place,
    pub(crate) sandboxes: Arc<Sandboxes>,
    pub(crate) address: SocketAddr,
    pub(crate) key: ApiKey,
    pub(crate) shutdown: CancellationToken,
}

/// An answer whose body came to its proper end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}: not JSON: {:?}", self.status, self.body))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Served {
    pub(crate) async fn start() -> Self {
        let mut place = Place::new();
        std::fs::create_dir_all(place.data_dir()).unwrap();
        let history = History::open(&place.data_dir().join("history.db")).unwrap();
        place.events = history.queue().clone();
        let sandboxes = Arc::new(place.open().await);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = ApiKey::random();
        let domain = format!("localhost:{}", address.port());
        let shutdown = CancellationToken::new();
        tokio::spawn(history::record(
            Arc::clone(&sandboxes),
            history.clone(),
            shutdown.clone(),
        ));
        let state = HttpState::new(
            Arc::clone(&sandboxes),
            history,
            key.clone(),
            domain,
            Vec::new(),
        );
        tokio::spawn(listener::serve(vec![listener], state, shutdown.clone()));
        Self {
            place,
            sandboxes,
            address,
            key,
            shutdown,
        }
    }

    /// A call of the control plane with the right key; `body` is JSON or empty.
    pub(crate) async fn api(&self, line: &str, body: &str) -> Answer {
        let key = self.key.e2b();
        self.send(line, &[("x-api-key", &key)], body.to_owned())
            .await
    }

    /// Makes a sandbox with these further fields.
    pub(crate) async fn create(&self, fields: &str) -> SandboxId {
        let body = format!(r#"{{"templateID":"base"{fields}}}"#);
        let answer = self.api("POST /v2/sandboxes", &body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        SandboxId::parse(answer.json()["sandboxID"].as_str().unwrap()).unwrap()
    }

    pub(crate) async fn post(&self, id: &SandboxId, call: &str, body: &str) -> Answer {
        self.api(&format!("POST /sandboxes/{id}/{call}"), body)
            .await
    }

    /// A request to a port of a sandbox, addressed by headers as SDKs do.
    pub(crate) async fn inside(&self, id: &SandboxId, port: u16, line: &str) -> Answer {
        let port = port.to_string();
        let headers = [("e2b-sandbox-id", id.as_str()), ("e2b-sandbox-port", &port)];
        self.send(line, &headers, "").await
    }

    pub(crate) async fn send(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let response = self.open(line, headers, body).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }

    /// Sends a request over a connection of its own; the answer's body is still to be read.
    pub(crate) async fn open(
        &self,
        line: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let (method, path) = line.split_once(' ').unwrap();
        let mut all = BTreeMap::from([("host", format!("localhost:{}", self.address.port()))]);
        all.extend(
            headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in &all {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    }
}
