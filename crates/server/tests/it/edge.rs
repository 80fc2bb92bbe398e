//! The ports of sandboxes over HTTP: routing, streaming, and what clients see when a run ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt;
use server::sandbox::SandboxId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::served::{Answer, Served};
use crate::support::eventually;

const LIMIT: Duration = Duration::from_secs(10);
pub(crate) const AGENT: u16 = 49983;

/// A service inside: `serve` gets every connection after the head of its first request was read.
pub(crate) async fn service<F>(
    serve: impl Fn(TcpStream, String) -> F + Send + Sync + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let serve = Arc::clone(&serve);
            tokio::spawn(async move {
                let head = read_head(&mut stream).await;
                // A spare of the edge that nobody came to need.
                if !head.is_empty() {
                    serve(stream, head).await;
                }
            });
        }
    });
    address
}

/// Byte by byte: what follows the head stays in the socket.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

pub(crate) async fn answer_with(mut stream: TcpStream, text: &str) {
    let length = text.len();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{text}");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

fn head(id: &SandboxId, port: u16, rest: &str) -> String {
    format!("{rest}\r\nhost: {port}-{id}.localhost\r\n")
}

pub(crate) fn assert_not_found(answer: &Answer, id: &SandboxId) {
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let expected = serde_json::json!({"sandboxId": id.as_str(), "message": "The sandbox was not found", "code": 502});
    assert_eq!(answer.json(), expected);
}

#[tokio::test]
async fn requests_reach_the_port_that_the_host_or_the_headers_name() {
    let server = Served::start().await;
    let id = server.create("").await;
    let echo = service(async |stream, head| answer_with(stream, &head).await).await;
    server.place.host.serve(8080, echo);
    let host = format!("8080-{id}.localhost:{}", server.address.port());
    let headers = [
        ("host", host.as_str()),
        ("x-end", "1"),
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
    ];
    let named = server.send("GET /a%2Fb?c=d%20e", &headers, "").await;
    // Programs inside may know no other spelling of names.
    for name in ["\r\nHost: ", "\r\nX-End: "] {
        assert!(named.text().contains(name), "{}", named.text());
    }
    let seen = named.text().to_lowercase();
    assert!(seen.starts_with("get /a%2fb?c=d%20e http/1.1"), "{seen}");
    assert!(seen.contains(&format!("host: {host}")), "{seen}");
    assert!(
        seen.contains("x-end: 1") && !seen.contains("x-hop"),
        "{seen}"
    );
    let by_header = server.inside(&id, 8080, "GET /x").await;
    assert!(by_header.text().starts_with("GET /x HTTP/1.1"));

    let absent = SandboxId::parse("iabsent").unwrap();
    assert_not_found(&server.inside(&absent, 8080, "GET /").await, &absent);
    let reserved = server.inside(&id, AGENT, "POST /init").await;
    assert_eq!(
        (reserved.status, reserved.json()["path"].as_str()),
        (StatusCode::NOT_FOUND, Some("/init"))
    );
    let half = server
        .send("GET /", &[("e2b-sandbox-id", id.as_str())], "")
        .await;
    assert_eq!(half.status, StatusCode::BAD_REQUEST);
    let elsewhere = [
        ("host", "server.example"),
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", "8080"),
    ];
    let elsewhere = server.send("GET /x", &elsewhere, "").await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND);
    assert!(elsewhere.text().contains("sandbox_hosts"));
}

#[tokio::test]
async fn a_closed_port_is_502_and_the_host_channel_is_always_closed() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.place.host.serve(8080, closed_port().await);
    let started = Instant::now();
    let answer = server.inside(&id, 8080, "GET /").await;
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "a service may be just starting"
    );
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    let message = "The sandbox is running but port is not open";
    let expected = serde_json::json!(
        {"sandboxId": id.as_str(), "message": message, "port": 8080, "code": 502}
    );
    assert_eq!(answer.json(), expected);
    let channel = server.inside(&id, 49982, "GET /health").await;
    assert_eq!(channel.status, StatusCode::BAD_GATEWAY);
    assert_eq!(channel.json()["message"], message);
}

#[tokio::test]
async fn a_service_on_loopback_is_reached_through_the_tunnel_of_the_agent() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.place.host.serve(8080, closed_port().await);
    let tunnel = service(async |mut stream, head| {
        if !head.starts_with("GET /tunnel?port=8080 ") {
            return;
        }
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: sandbase-tunnel\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        let inner = read_head(&mut stream).await;
        answer_with(stream, &inner).await;
    })
    .await;
    server.place.host.serve(49982, tunnel);
    let answer = server.inside(&id, 8080, "GET /through").await;
    assert!(
        answer.text().starts_with("GET /through HTTP/1.1"),
        "{}",
        answer.text()
    );
}

/// Sends one chunk and then nothing more.
async fn endless() -> SocketAddr {
    service(async |mut stream, _| {
        let chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        stream.write_all(chunk.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await
}

#[tokio::test]
async fn a_stream_breaks_off_when_the_sandbox_is_paused_killed_or_lost() {
    for end in ["pause", "kill", "loss"] {
        let server = Served::start().await;
        let id = server.create("").await;
        server.place.host.serve(AGENT, endless().await);
        let (agent, port) = (AGENT.to_string(), [("e2b-sandbox-id", id.as_str())]);
        let headers = [port[0], ("e2b-sandbox-port", &agent)];
        let mut body = server.open("GET /", &headers, "").await.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "hello");
        match end {
            "pause" => assert_eq!(server.post(&id, "pause", "").await.status.as_u16(), 204),
            "kill" => {
                let killed = server.api(&format!("DELETE /sandboxes/{id}"), "").await;
                assert_eq!(killed.status.as_u16(), 204);
            }
            _ => {
                let execution = server.place.execution();
                server
                    .place
                    .host
                    .kill(&execution, engine::ExitReason::OutOfMemory);
            }
        }
        let next = timeout(LIMIT, body.frame())
            .await
            .expect("the stream must not hang");
        let broken = next.expect("the body must not end in good order");
        assert!(broken.is_err(), "{end}");
        // What SDKs ask right after: it must already be known to be gone.
        assert_not_found(&server.inside(&id, AGENT, "GET /health").await, &id);
    }
}

#[tokio::test]
async fn the_wire_has_no_last_chunk_and_old_clients_get_a_reset() {
    for (version, cut) in [("1.1", "close"), ("1.0", "reset")] {
        let server = Served::start().await;
        let id = server.create("").await;
        server.place.host.serve(8080, endless().await);
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = head(&id, 8080, &format!("GET / HTTP/{version}")) + "\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains("hello") {
            let count = stream.read(&mut buffer).await.unwrap();
            seen.extend_from_slice(&buffer[..count]);
        }
        server.post(&id, "pause", "").await;
        let mut rest = Vec::new();
        let ended = timeout(LIMIT, stream.read_to_end(&mut rest)).await.unwrap();
        match cut {
            "close" => assert_eq!(String::from_utf8(rest).unwrap().trim(), "", "no last chunk"),
            _ => {
                let kind = ended.expect_err("a clean end would look complete").kind();
                assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
            }
        }
    }
}

#[tokio::test]
async fn a_request_without_an_answer_yet_gets_502_when_the_run_ends() {
    let server = Served::start().await;
    let id = server.create("").await;
    let reached = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reached);
    let silent = service(move |stream, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            let _open = stream;
            std::future::pending::<()>().await;
        }
    });
    server.place.host.serve(8080, silent.await);
    let ask = server.inside(&id, 8080, "GET /slow");
    let pause = async {
        eventually("the request", || reached.load(Ordering::SeqCst) == 1).await;
        server.post(&id, "pause", "").await
    };
    let (answer, paused) = tokio::join!(ask, pause);
    assert_eq!(paused.status, StatusCode::NO_CONTENT);
    assert_not_found(&answer, &id);
}

#[tokio::test]
async fn switched_protocols_are_copied_both_ways_and_reset_at_the_end_of_the_run() {
    let server = Served::start().await;
    let id = server.create("").await;
    let echo = service(async |mut stream, head| {
        assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\n\
                      upgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    });
    server.place.host.serve(8080, echo.await);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = head(&id, 8080, "GET /ws HTTP/1.1")
        + "connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_head(&mut stream).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(answer.contains("sec-websocket-accept: x"), "{answer}");
    for text in ["ping", "pong"] {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut back = [0; 4];
        timeout(LIMIT, stream.read_exact(&mut back))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&back, text.as_bytes());
    }
    server.post(&id, "pause", "").await;
    let end = timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn the_agent_is_not_asked_to_switch_protocols() {
    let server = Served::start().await;
    let id = server.create("").await;
    let echo = service(async |stream, head| answer_with(stream, &head).await).await;
    server.place.host.serve(AGENT, echo);
    let agent = AGENT.to_string();
    let headers = [
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", &agent),
        ("connection", "upgrade, http2-settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "x"),
    ];
    let seen = server.send("GET /", &headers, "").await;
    assert!(
        !seen.text().to_lowercase().contains("h2c"),
        "{}",
        seen.text()
    );
}

#[tokio::test]
async fn an_upload_is_not_buffered() {
    let server = Served::start().await;
    let id = server.create("").await;
    let deaf = service(async |stream, _| {
        let _open = stream;
        std::future::pending::<()>().await;
    });
    server.place.host.serve(8080, deaf.await);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let length = 1 << 30;
    let request = head(&id, 8080, "POST / HTTP/1.1") + &format!("content-length: {length}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let block = vec![0; 1 << 20];
    let mut taken = 0;
    while let Ok(written) = timeout(Duration::from_secs(1), stream.write(&block)).await {
        taken += written.unwrap();
        assert!(
            taken < 64 << 20,
            "a service that does not read must stop its client"
        );
    }
}

#[tokio::test]
async fn a_large_upload_and_its_answer_pass_complete() {
    let server = Served::start().await;
    let id = server.create("").await;
    let counting = service(async |mut stream, head| {
        assert!(
            !head.to_lowercase().contains("expect:"),
            "answered by the edge: {head}"
        );
        let mut buffer = vec![0; 1 << 20];
        let mut left = 256 << 20;
        while left > 0 {
            left -= stream.read(&mut buffer).await.unwrap();
        }
        answer_with(stream, "all there").await;
    });
    server.place.host.serve(8080, counting.await);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = head(&id, 8080, "POST / HTTP/1.1")
        + &format!(
            "connection: close\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            256 << 20
        );
    stream.write_all(request.as_bytes()).await.unwrap();
    let go_on = timeout(LIMIT, read_head(&mut stream)).await.unwrap();
    assert!(go_on.starts_with("HTTP/1.1 100"), "{go_on}");
    let block = vec![0; 1 << 20];
    for _ in 0..256 {
        stream.write_all(&block).await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("all there"),
        "{answer}"
    );
}

#[tokio::test]
async fn trailers_are_passed_on() {
    let server = Served::start().await;
    let id = server.create("").await;
    let trailing = service(async |mut stream, head| {
        assert!(head.to_lowercase().contains("te: trailers"), "{head}");
        let answer = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                      2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    server.place.host.serve(8080, trailing.await);
    let headers = [
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", "8080"),
        ("te", "trailers"),
    ];
    let body = server.open("GET /", &headers, "").await.into_body();
    let body = body.collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "7");
}

#[tokio::test]
async fn every_request_has_a_connection_of_its_own() {
    let server = Served::start().await;
    let id = server.create("").await;
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let agent = service(move |mut stream, _| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            loop {
                let text = number.to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}",
                    text.len()
                );
                if stream.write_all(answer.as_bytes()).await.is_err()
                    || read_head(&mut stream).await.is_empty()
                {
                    return;
                }
            }
        }
    });
    server.place.host.serve(AGENT, agent.await);
    for number in ["1", "2", "3"] {
        assert_eq!(
            server.inside(&id, AGENT, "GET /health").await.text(),
            number
        );
    }
    server.post(&id, "pause", "").await;
    assert_not_found(&server.inside(&id, AGENT, "GET /health").await, &id);
    server.post(&id, "connect", r#"{"timeout":60}"#).await;
    assert_eq!(server.inside(&id, AGENT, "GET /health").await.text(), "4");
}

/// An agent that hands over every connection, unread, in the order of their arrival.
async fn agent(server: &Served) -> tokio::sync::mpsc::UnboundedReceiver<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    server.place.host.serve(AGENT, address);
    let (hand_over, connections) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if hand_over.send(stream).is_err() {
                return;
            }
        }
    });
    connections
}

/// Sends a request to the agent and has it answered over this connection.
async fn answered_over(server: &Served, id: &SandboxId, mut connection: TcpStream) {
    let (answer, ()) = tokio::join!(server.inside(id, AGENT, "GET /files"), async {
        let head = timeout(LIMIT, read_head(&mut connection)).await.unwrap();
        assert!(head.starts_with("GET /files"), "{head}");
        answer_with(connection, "over this one").await;
    });
    assert_eq!(answer.text(), "over this one");
}

#[tokio::test]
async fn the_next_request_to_the_agent_finds_a_connection() {
    let server = Served::start().await;
    let id = server.create("").await;
    let mut connections = agent(&server).await;
    let mut next = async || timeout(LIMIT, connections.recv()).await.unwrap().unwrap();

    let (answer, ()) = tokio::join!(server.inside(&id, AGENT, "GET /files"), async {
        let mut first = next().await;
        read_head(&mut first).await;
        answer_with(first, "over the first").await;
    });
    assert_eq!(answer.text(), "over the first");
    let spare = next().await;
    answered_over(&server, &id, spare).await;

    // One that the agent has left is not used.
    drop(next().await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (answer, ()) = tokio::join!(server.inside(&id, AGENT, "GET /files"), async {
        let mut fresh = next().await;
        read_head(&mut fresh).await;
        answer_with(fresh, "over a fresh one").await;
    });
    assert_eq!(answer.text(), "over a fresh one");

    // None outlives its run.
    let mut spare = next().await;
    server.post(&id, "pause", "").await;
    let end = timeout(LIMIT, spare.read(&mut [0])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn traffic_resumes_a_sandbox_whose_owner_wants_that() {
    let server = Served::start().await;
    let id = server.create(r#","autoResume":{"enabled":true}"#).await;
    assert!(server.place.host.step(&server.place.execution()));
    let token = server.sandboxes.get(&id).unwrap().access_token;
    let agent = AGENT.to_string();
    let addressed = [
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", &agent),
    ];

    server.post(&id, "pause", "").await;
    let many = (0..4).map(|_| server.inside(&id, 8080, "GET /"));
    for answer in futures_util::future::join_all(many).await {
        assert_eq!(
            (answer.status, answer.text()),
            (StatusCode::OK, "1"),
            "its memory is back"
        );
    }
    server.post(&id, "pause", "").await;
    for wrong in [
        &addressed[..],
        &[addressed[0], addressed[1], ("x-access-token", "no")],
    ] {
        assert_eq!(
            server.send("GET /x", wrong, "").await.status,
            StatusCode::FORBIDDEN
        );
    }
    let paused = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    assert_eq!(paused["state"], "paused");
    let right = [addressed[0], addressed[1], ("x-access-token", &token)];
    assert_eq!(
        server.send("GET /x", &right, "").await.status,
        StatusCode::OK
    );

    server.post(&id, "pause", r#"{"memory":false}"#).await;
    assert_not_found(&server.send("GET /x", &right, "").await, &id);
}

#[tokio::test]
async fn traffic_does_not_resume_other_sandboxes() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.post(&id, "pause", "").await;
    assert_not_found(&server.inside(&id, 8080, "GET /").await, &id);
    let host = format!("8080-{id}.localhost");
    let browser = [("host", host.as_str()), ("user-agent", "Mozilla/5.0")];
    let page = server.send("GET /", &browser, "").await;
    assert_eq!(page.status, StatusCode::BAD_GATEWAY);
    assert!(page.text().contains("Sandbox Not Found"), "{}", page.text());
}

#[tokio::test]
async fn a_signed_file_url_finds_its_sandbox() {
    use base64::Engine as _;
    use sha2::{Digest, Sha256};
    let server = Served::start().await;
    let (first, second) = (server.create("").await, server.create("").await);
    server.post(&first, "pause", "").await;
    let sign = |id: &SandboxId| {
        let token = server.sandboxes.get(id).unwrap().access_token;
        let digest = Sha256::digest(format!("/a b:read:root:{token}"));
        let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest);
        format!("v1_{text}").replace('+', "%2B").replace('/', "%2F")
    };
    let line =
        |signature: &str| format!("GET /files?path=%2Fa%20b&username=root&signature={signature}");
    let running = server.send(&line(&sign(&second)), &[], "").await;
    assert_eq!((running.status, running.text()), (StatusCode::OK, "0"));
    assert_not_found(&server.send(&line(&sign(&first)), &[], "").await, &first);
    let forged = server.send(&line("v1_AAAA"), &[], "").await;
    assert_eq!(
        (forged.status, forged.json()["code"].as_u64()),
        (StatusCode::UNAUTHORIZED, Some(401))
    );
}

#[tokio::test]
async fn the_listener_ends_in_time_and_cuts_endless_streams() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.place.host.serve(8080, endless().await);
    let headers = [
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", "8080"),
    ];
    let mut body = server.open("GET /", &headers, "").await.into_body();
    body.frame().await.unwrap().unwrap();
    let idle = TcpStream::connect(server.address).await.unwrap();
    server.shutdown.cancel();
    let next = timeout(LIMIT, body.frame())
        .await
        .expect("the stream must be cut");
    assert!(next.expect("not ended in good order").is_err());
    drop(idle);
    eventually("the port to be free", || {
        std::net::TcpStream::connect(server.address).is_err()
    })
    .await;
    // The sandbox does not notice.
    assert!(server.place.host.step(&server.place.execution()));
}
