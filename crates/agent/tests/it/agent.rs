//! A running agent and the requests to it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command};
use std::time::Duration;

use agent_api::{InitReply, InitRequest};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Longest wait for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// The agent, killed when the test ends.
pub(crate) struct Agent {
    child: Child,
    pub(crate) envd: SocketAddr,
    pub(crate) host: SocketAddr,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// A stream of events being read.
pub(crate) struct Events {
    body: Incoming,
    buffer: BytesMut,
    connection: JoinHandle<()>,
}

impl Agent {
    /// Starts an agent and waits until it answers.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        loop {
            let mut agent = Self::spawn(arguments);
            let mut exited = false;
            eventually("the agent to listen", async || {
                exited = agent.child.try_wait().unwrap().is_some();
                exited || agent.answers().await
            })
            .await;
            // Somebody else took one of the ports meanwhile.
            exited = exited || agent.child.try_wait().unwrap().is_some();
            if !exited {
                return agent;
            }
        }
    }

    /// Requests are answered once both ports are bound.
    async fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.envd).await else {
            return false;
        };
        let asked = stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            .await;
        asked.is_ok()
            && stream
                .read(&mut [0; 64])
                .await
                .is_ok_and(|length| length > 0)
    }

    fn spawn(arguments: &[&str]) -> Self {
        let (envd, host) = (free_address(), free_address());
        let child = Command::new(env!("CARGO_BIN_EXE_sandbase-agent"))
            .args(["--envd", &envd.to_string()])
            .args(["--host-channel", &host.to_string()])
            .args(["--host-peer", "127.0.0.1"])
            .args(arguments)
            .spawn()
            .unwrap();
        Self { child, envd, host }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One plain request on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let (response, connection) = self.open(request).await;
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(LIMIT, body.collect()).await.unwrap();
        connection.abort();
        Answer {
            status: head.status,
            headers: head.headers,
            body: body.unwrap().to_bytes(),
        }
    }

    async fn open(&self, request: Request<Full<Bytes>>) -> (Response<Incoming>, JoinHandle<()>) {
        let stream = TcpStream::connect(self.envd).await.unwrap();
        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        let connection = tokio::spawn(async move {
            let _cut_by_the_test = connection.await;
        });
        let response = tokio::time::timeout(LIMIT, sender.send_request(request))
            .await
            .unwrap();
        (response.unwrap(), connection)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request(Method::GET, path, &[], "")).await
    }

    /// A unary RPC.
    pub(crate) async fn rpc(&self, method: &str, message: &Value) -> Answer {
        let json = [("content-type", "application/json")];
        self.send(request(Method::POST, method, &json, message.to_string()))
            .await
    }

    /// A unary RPC that has to succeed.
    pub(crate) async fn call(&self, method: &str, message: &Value) -> Value {
        let answer = self.rpc(method, message).await;
        assert_eq!(answer.status, StatusCode::OK, "{method}: {}", answer.text());
        answer.json()
    }

    /// A streaming RPC.
    pub(crate) async fn stream(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        message: &Value,
    ) -> Events {
        let payload = message.to_string();
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        body.extend_from_slice(payload.as_bytes());
        let mut request = request(Method::POST, method, headers, body);
        let kind = http::HeaderValue::from_static("application/connect+json");
        request.headers_mut().insert("content-type", kind);
        let (response, connection) = self.open(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            response.headers()["content-type"],
            "application/connect+json"
        );
        Events {
            body: response.into_body(),
            buffer: BytesMut::new(),
            connection,
        }
    }

    /// Starts a command of the shell without standard input.
    pub(crate) async fn shell(&self, command: &str) -> Events {
        let process = json!({"cmd": "/bin/bash", "args": ["-c", command]});
        self.start_process(&[], &json!({"process": process, "stdin": false}))
            .await
    }

    pub(crate) async fn start_process(&self, headers: &[(&str, &str)], message: &Value) -> Events {
        self.stream("/process.Process/Start", headers, message)
            .await
    }

    pub(crate) async fn connect(&self, pid: u64) -> Events {
        let message = json!({"process": {"pid": pid}});
        self.stream("/process.Process/Connect", &[], &message).await
    }

    /// Initialises the sandbox.
    pub(crate) async fn init(&self, message: &InitRequest) -> InitReply {
        let stream = TcpStream::connect(self.host).await.unwrap();
        tokio::time::timeout(LIMIT, agent_api::client::init(stream, message))
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn live_pids(&self) -> Vec<u64> {
        let list = self.call("/process.Process/List", &json!({})).await;
        let processes = list["processes"].as_array().cloned().unwrap_or_default();
        processes
            .iter()
            .map(|process| process["pid"].as_u64().unwrap())
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Events {
    /// The next message with its flags; `None` when the connection broke or the body ended.
    pub(crate) async fn next(&mut self) -> Option<(u8, Value)> {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    let flags = self.buffer.get_u8();
                    self.buffer.advance(4);
                    let payload = self.buffer.split_to(length);
                    return Some((flags, serde_json::from_slice(&payload).unwrap()));
                }
            }
            let frame = tokio::time::timeout(LIMIT, self.body.frame()).await;
            match frame.expect("an event within the limit") {
                Some(Ok(frame)) => self.buffer.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next event of a process stream.
    pub(crate) async fn event(&mut self) -> Value {
        let (flags, mut message) = self.next().await.expect("an event");
        assert_eq!(flags, 0, "{message}");
        message["event"].take()
    }

    /// Reads `start`.
    pub(crate) async fn started(&mut self) -> u64 {
        self.event().await["start"]["pid"]
            .as_u64()
            .expect("a start event")
    }

    /// Reads to the end: what was written where, the `end` event, and the terminator.
    pub(crate) async fn finish(mut self) -> Finished {
        let mut finished = Finished::default();
        while let Some((flags, message)) = self.next().await {
            if flags == 2 {
                assert!(finished.terminator.is_null(), "two terminators");
                finished.terminator = message;
                continue;
            }
            let event = &message["event"];
            for (name, output) in [
                ("stdout", &mut finished.stdout),
                ("stderr", &mut finished.stderr),
                ("pty", &mut finished.pty),
            ] {
                if let Some(text) = event["data"][name].as_str() {
                    output.extend(decode(text));
                }
            }
            if !event["end"].is_null() {
                assert!(finished.end.is_null(), "two ends");
                finished.end = event["end"].clone();
            }
        }
        finished
    }

    /// Reads until the output holds `text`.
    pub(crate) async fn until(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            let event = self.event().await;
            for name in ["stdout", "stderr", "pty"] {
                if let Some(data) = event["data"][name].as_str() {
                    seen.push_str(&String::from_utf8_lossy(&decode(data)));
                }
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A stream that was read to its end.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) pty: Vec<u8>,
    pub(crate) end: Value,
    pub(crate) terminator: Value,
}

pub(crate) fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "sandbox");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into())).unwrap()
}

/// An init of the given execution that changes nothing else.
pub(crate) fn init_of(lifecycle: &str) -> InitRequest {
    let message = json!({
        "lifecycleId": lifecycle, "timestamp": "2026-01-01T00:00:00Z", "sandboxId": "sandbox1",
        "templateId": "template1", "hostname": "", "accessToken": null,
    });
    serde_json::from_value(message).unwrap()
}

/// Waits for a condition that nothing announces.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .unwrap_or_else(|_| panic!("no sign of {what}"));
}

pub(crate) fn encode(data: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(data)
}

pub(crate) fn decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
}
