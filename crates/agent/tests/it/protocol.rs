//! What holds for every request: tokens, users, codecs, and nonsense.

use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, init_of, request};

#[tokio::test]
async fn health_is_empty_and_internal_routes_do_not_exist() {
    let agent = Agent::start().await;
    let health = agent.get("/health").await;
    assert_eq!(
        (health.status, health.body.len()),
        (StatusCode::NO_CONTENT, 0)
    );
    assert_eq!(health.headers["cache-control"], "no-store");
    for path in ["/init", "/freeze", "/upgrade", "/nonsense"] {
        let answer = agent.send(request(Method::POST, path, &[], "{}")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn with_a_token_only_health_and_signed_files_are_open() {
    let agent = Agent::start().await;
    let mut init = init_of("l1");
    init.access_token = Some("secret".to_owned());
    agent.init(&init).await;
    assert_eq!(agent.get("/health").await.status, StatusCode::NO_CONTENT);
    let refused = agent.rpc("/process.Process/List", &json!({})).await;
    let message = "unauthorized access, please provide a valid access token or method signing if \
                   supported";
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.json(), json!({"code": 401, "message": message}));
    let unsigned = agent.get("/files?path=/etc/hostname").await;
    assert_eq!(
        unsigned.json()["message"],
        "missing signature query parameter"
    );
    let token = [("x-access-token", "secret")];
    let allowed = agent.send(request(Method::GET, "/envs", &token, "")).await;
    assert_eq!(allowed.json()["E2B_SANDBOX_ID"], "sandbox1");
    let wrong = [("x-access-token", "secreT")];
    let refused = agent
        .send(request(Method::GET, "/files?path=/x", &wrong, ""))
        .await;
    assert_eq!(
        refused.json()["message"],
        "access token present in header but does not match"
    );
}

#[tokio::test]
async fn preflights_need_no_token() {
    let agent = Agent::start().await;
    let mut init = init_of("l1");
    init.access_token = Some("secret".to_owned());
    agent.init(&init).await;
    let headers = [
        ("origin", "http://localhost"),
        ("access-control-request-method", "POST"),
        (
            "access-control-request-headers",
            "x-access-token,content-type",
        ),
    ];
    let path = "/process.Process/List";
    let answer = agent
        .send(request(Method::OPTIONS, path, &headers, ""))
        .await;
    assert!(answer.status.is_success());
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!(
        answer.headers["access-control-allow-headers"],
        "x-access-token,content-type"
    );
    assert_eq!(answer.headers["access-control-max-age"], "7200");
}

#[tokio::test]
async fn wrong_methods_types_and_users_are_told_apart() {
    let agent = Agent::start().await;
    let path = "/process.Process/List";
    let get = agent.get(path).await;
    assert_eq!(
        (get.status, &get.headers["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap())
    );
    let text = [("content-type", "text/plain")];
    let answer = agent.send(request(Method::POST, path, &text, "{}")).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let unknown = [
        ("content-type", "application/json"),
        ("authorization", "Basic bm9ib2R5LWF0LWFsbDo="),
    ];
    let answer = agent
        .send(request(Method::POST, path, &unknown, "{}"))
        .await;
    let body = json!({"code": "unauthenticated", "message": "invalid username: 'nobody-at-all'"});
    assert_eq!(
        (answer.status, answer.json()),
        (StatusCode::UNAUTHORIZED, body)
    );
    let identity = [
        ("content-type", "application/json"),
        ("content-encoding", "identity"),
    ];
    let answer = agent
        .send(request(Method::POST, path, &identity, " {\n} "))
        .await;
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (StatusCode::OK, "{}")
    );
}

#[tokio::test]
async fn the_binary_codec_works_too() {
    let agent = Agent::start().await;
    let proto = [("content-type", "application/proto")];
    // StatRequest{path: "/etc"}
    let body = b"\x0a\x04/etc".to_vec();
    let answer = agent
        .send(request(
            Method::POST,
            "/filesystem.Filesystem/Stat",
            &proto,
            body,
        ))
        .await;
    assert_eq!(answer.headers["content-type"], "application/proto");
    assert!(
        answer
            .body
            .windows(6)
            .any(|bytes| bytes == b"\x0a\x03etc\x10"),
        "{:?}",
        answer.body
    );
    // Errors are JSON in every codec.
    let body = b"\x0a\x04/nop".to_vec();
    let answer = agent
        .send(request(
            Method::POST,
            "/filesystem.Filesystem/Stat",
            &proto,
            body,
        ))
        .await;
    assert_eq!(answer.json()["code"], "not_found");

    let connect = [("content-type", "application/connect+proto")];
    // StartRequest{process: {cmd: "true"}}
    let body = b"\0\0\0\0\x08\x0a\x06\x0a\x04true".to_vec();
    let answer = agent
        .send(request(
            Method::POST,
            "/process.Process/Start",
            &connect,
            body,
        ))
        .await;
    assert!(answer.body.ends_with(b"\x02\0\0\0\x02{}"));
    assert!(
        answer
            .body
            .windows(13)
            .any(|bytes| bytes == b"exit status 0")
    );
}

#[tokio::test]
async fn truncated_and_oversized_envelopes_end_the_stream_with_an_error() {
    let agent = Agent::start().await;
    let kind = [("content-type", "application/connect+json")];
    for body in [
        &b"\0\0\0\0\x09{}"[..],
        b"\0\0",
        b"",
        b"\0\xff\xff\xff\xff{}",
        b"\0\0\0\0\x01{",
    ] {
        let path = "/process.Process/Start";
        let answer = agent.send(request(Method::POST, path, &kind, body)).await;
        assert_eq!(
            (answer.status, answer.body[0]),
            (StatusCode::OK, 2),
            "{body:?}"
        );
        let end: serde_json::Value = serde_json::from_slice(&answer.body[5..]).unwrap();
        assert_eq!(end["error"]["code"], "invalid_argument", "{body:?}");
    }
    let path = "/filesystem.Filesystem/Stat";
    let json = [("content-type", "application/json")];
    for body in ["{", "[]", r#"{"path": 7}"#, "\u{0}"] {
        let answer = agent.send(request(Method::POST, path, &json, body)).await;
        assert_eq!(answer.json()["code"], "invalid_argument", "{body:?}");
    }
}

#[tokio::test]
async fn nonsense_on_the_socket_does_not_end_the_agent() {
    let agent = Agent::start().await;
    for bytes in [
        &b"\x16\x03\x01\x02\0"[..],
        b"GET",
        b"POST /files HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(agent.envd).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
    }
    assert_eq!(agent.get("/health").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn old_python_gets_only_the_fields_it_knows() {
    let agent = Agent::start().await;
    let headers = [
        ("content-type", "application/json"),
        ("user-agent", "connect-python"),
    ];
    let path = "/filesystem.Filesystem/Stat";
    let answer = agent
        .send(request(
            Method::POST,
            path,
            &headers,
            r#"{"path":"/etc/passwd"}"#,
        ))
        .await;
    let entry = json!({"name": "passwd", "type": "FILE_TYPE_FILE", "path": "/etc/passwd"});
    assert_eq!(answer.json(), json!({"entry": entry}));
    assert_eq!(answer.headers["x-e2b-legacy-sdk"], "true");
}

#[tokio::test]
async fn metrics_have_all_keys() {
    let agent = Agent::start().await;
    let metrics = agent.get("/metrics").await.json();
    let metrics: agent_api::Metrics = serde_json::from_value(metrics).unwrap();
    assert!(metrics.cpu_count > 0 && metrics.mem_total > metrics.mem_used);
    assert!(metrics.disk_total >= metrics.disk_used);
}
