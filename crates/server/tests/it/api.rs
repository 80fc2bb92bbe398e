//! The control plane over HTTP.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use server::sandbox::{Fault, SandboxId, Step};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::served::{Answer, Served};

fn assert_error(answer: &Answer, status: u16, text: &str) {
    let body = answer.json();
    assert_eq!(answer.status.as_u16(), status, "{body}");
    assert_eq!(body["code"], status, "{body}");
    let message = body["message"].as_str().unwrap();
    assert!(
        message.contains(text),
        "'{message}' does not contain '{text}'"
    );
}

fn seconds_left(detail: &Value) -> i64 {
    let instant = |name: &str| OffsetDateTime::parse(detail[name].as_str().unwrap(), &Rfc3339);
    let left = instant("endAt").unwrap() - instant("startedAt").unwrap();
    (left + Duration::from_millis(500)).whole_seconds()
}

#[tokio::test]
async fn a_sandbox_lives_through_all_calls() {
    let server = Served::start().await;
    let body = r#"{"templateID":"base","metadata":{"a":"b"},"envVars":{},"secure":true}"#;
    let created = server.api("POST /v2/sandboxes", body).await;
    assert_eq!(created.status, StatusCode::CREATED);
    let sandbox = created.json();
    for field in ["templateID", "sandboxID", "envdAccessToken"] {
        assert!(
            !sandbox[field].as_str().unwrap().is_empty(),
            "{field}: {sandbox}"
        );
    }
    assert_eq!(sandbox["clientID"], "6532622b");
    assert_eq!(sandbox["envdVersion"], "0.6.13");
    assert_eq!(sandbox["alias"], "base");
    assert_eq!(
        sandbox["domain"],
        format!("localhost:{}", server.address.port())
    );
    let id = sandbox["sandboxID"].as_str().unwrap();

    let detail = server.api(&format!("GET /sandboxes/{id}"), "").await;
    assert_eq!(detail.status, StatusCode::OK);
    let detail = detail.json();
    assert_eq!(detail["state"], "running");
    assert_eq!(detail["metadata"]["a"], "b");
    assert_eq!(detail["lifecycle"]["onTimeout"], "kill");
    assert_eq!(detail["lifecycle"]["autoResume"], false);
    assert_eq!(
        (detail["cpuCount"].as_u64(), detail["memoryMB"].as_u64()),
        (Some(2), Some(512))
    );
    assert!(
        detail
            .as_object()
            .unwrap()
            .values()
            .all(|value| !value.is_null()),
        "{detail}"
    );
    assert!(detail.get("pauseMode").is_none());

    let pause = format!("POST /sandboxes/{id}/pause");
    assert_eq!(server.api(&pause, "").await.status, StatusCode::NO_CONTENT);
    assert_error(&server.api(&pause, "{}").await, 409, "already paused");
    let paused = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    assert_eq!(
        (&paused["state"], &paused["pauseMode"]),
        (&"paused".into(), &"full".into())
    );

    let connect = format!("POST /v2/sandboxes/{id}/connect");
    let resumed = server.api(&connect, "{}").await;
    assert_eq!(resumed.status, StatusCode::CREATED);
    assert_eq!(resumed.json(), sandbox);
    let again = server.api(&connect, "").await;
    assert_eq!(
        (again.status, again.json()),
        (StatusCode::OK, sandbox.clone())
    );
    let resume = format!("POST /sandboxes/{id}/resume");
    assert_error(&server.api(&resume, "").await, 409, "already running");

    let kill = format!("DELETE /sandboxes/{id}");
    assert_eq!(server.api(&kill, "").await.status, StatusCode::NO_CONTENT);
    let unknown = format!("Sandbox \"{id}\" doesn't exist or you don't have access to it");
    for line in [
        &kill,
        &pause,
        &connect,
        &resume,
        &format!("GET /sandboxes/{id}"),
    ] {
        assert_error(&server.api(line, "").await, 404, &unknown);
    }
    server.place.assert_clean().await;
}

#[tokio::test]
async fn the_key_is_asked_for_before_anything_is_looked_at() {
    let server = Served::start().await;
    for line in [
        "GET /sandboxes/Not..An-Id-",
        "POST /sandboxes",
        "GET /v2/sandboxes?limit=0",
        "POST /sandboxes/x/pause",
        "GET /snapshots",
    ] {
        assert_error(&server.send(line, &[], "{").await, 401, "API key");
        let wrong = [("x-api-key", "e2b_0000")];
        assert_error(&server.send(line, &wrong, "{").await, 401, "API key");
    }
    let bearer = format!("Bearer {}", server.key.e2b().replace("e2b_", "sk-sb-"));
    let listed = server
        .send("GET /v2/sandboxes", &[("authorization", &bearer)], "")
        .await;
    assert_eq!((listed.status, listed.text()), (StatusCode::OK, "[]"));
    let health = server.send("GET /health", &[], "").await;
    assert_eq!(
        (health.status, health.text()),
        (StatusCode::OK, "Health check successful")
    );
    let document = server.send("GET /openapi.json", &[], "").await.json();
    assert!(document["paths"]["/v2/sandboxes"].is_object());
}

#[tokio::test]
async fn errors_have_a_code_and_a_message_whatever_is_asked() {
    let server = Served::start().await;
    assert_error(&server.api("GET /nowhere", "").await, 404, "GET /nowhere");
    assert_error(
        &server.api("GET /templates", "").await,
        404,
        "not implemented by this server yet",
    );
    let deleted = server
        .api("DELETE /templates/team%2Fname%3Adefault", "")
        .await;
    assert_error(&deleted, 404, "'team/name:default' was not found");
    assert_error(&server.api("PUT /sandboxes", "").await, 405, "method");
    assert_error(
        &server.api("GET /sandboxes/a-b-c", "").await,
        400,
        "not a sandbox id",
    );
    assert_error(
        &server.api("GET /sandboxes/%ff", "").await,
        400,
        "not a sandbox id",
    );
    assert_error(
        &server.api("GET /sandboxes/non-existing", "").await,
        404,
        "\"non\"",
    );
    assert_error(
        &server.api("GET /sandboxes/%6eon", "").await,
        404,
        "\"non\"",
    );
    for (line, body) in [
        ("POST /sandboxes", ""),
        ("POST /sandboxes", "{"),
        ("POST /sandboxes", "{}"),
        ("POST /sandboxes", r#"{"templateID":1}"#),
        ("POST /sandboxes", r#"{"templateID":"base","timeout":1.5}"#),
        (
            "POST /sandboxes",
            r#"{"templateID":"base","timeout":3000000000}"#,
        ),
        ("POST /sandboxes", r#"{"templateID":"base","timeout":0}"#),
        ("POST /sandboxes", r#"{"templateID":"base","timeout":-1}"#),
        ("POST /sandboxes/x/connect", "{}"),
        ("POST /sandboxes/x/connect", ""),
        ("POST /v2/sandboxes/x/connect", r#"{"timeout":-1}"#),
        ("POST /sandboxes/x/timeout", "{}"),
        ("POST /sandboxes/x/timeout", r#"{"timeout":-1}"#),
        ("POST /sandboxes/x/refreshes", r#"{"duration":3601}"#),
        ("POST /sandboxes/x/pause", r#"{"memory":"no"}"#),
        ("GET /v2/sandboxes?limit=0", ""),
    ] {
        assert_error(&server.api(line, body).await, 400, "validation error");
    }
    let network = r#"{"templateID":"base","network":{"denyOut":["0.0.0.0/0"]}}"#;
    assert_error(
        &server.api("POST /sandboxes", network).await,
        400,
        "network.denyOut",
    );
    let template = r#"{"templateID":"nothing"}"#;
    assert_error(
        &server.api("POST /sandboxes", template).await,
        404,
        "nothing",
    );
    for line in [
        "POST /sandboxes/unknown/connect",
        "POST /sandboxes/unknown/resume",
    ] {
        // 72 h is over the limit of the test server: said before the sandbox is looked for.
        assert_error(
            &server.api(line, r#"{"timeout":259200}"#).await,
            400,
            "maximum",
        );
    }
    let large = format!(r#"{{"templateID":"{}"}}"#, "a".repeat(17 << 20));
    assert_error(&server.api("POST /sandboxes", &large).await, 413, "larger");
}

#[tokio::test]
async fn network_rules_are_refused_by_name_and_not_as_an_unknown_sandbox() {
    let server = Served::start().await;
    let open = server.create("").await;
    let closed = server.create(r#","allow_internet_access":false"#).await;
    let put = async |id: &SandboxId, body: &str| {
        server
            .api(&format!("PUT /sandboxes/{id}/network"), body)
            .await
    };
    for nothing in [
        "",
        "{}",
        r#"{"allow_internet_access":true,"denyOut":[],"rules":{}}"#,
    ] {
        assert_eq!(put(&open, nothing).await.status, StatusCode::NO_CONTENT);
    }
    let same = r#"{"allow_internet_access":false}"#;
    assert_eq!(put(&closed, same).await.status, StatusCode::NO_CONTENT);
    let unknown = SandboxId::parse("unknown").unwrap();
    for (body, field) in [
        (r#"{"denyOut":["8.8.8.8"]}"#, "'denyOut'"),
        (r#"{"allowOut":["8.8.8.8"]}"#, "'allowOut'"),
        (r#"{"rules":{"a.b":[{}]}}"#, "'rules'"),
    ] {
        assert_error(&put(&open, body).await, 400, field);
        assert_error(&put(&unknown, body).await, 400, field);
    }
    let fixed = "'allow_internet_access' can only be chosen when";
    assert_error(&put(&open, same).await, 400, fixed);
    // Nothing said means open, which it is not.
    assert_error(&put(&closed, "{}").await, 400, fixed);
    assert_error(&put(&unknown, "{}").await, 404, "unknown");
    server.post(&open, "pause", "").await;
    assert_error(&put(&open, "{}").await, 404, "paused");
}

#[tokio::test]
async fn bodies_may_be_chunked_as_the_javascript_sdk_sends_them() {
    let server = Served::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /sandboxes HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-api-key: {}\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        server.key.e2b()
    );
    let body = "8\r\n{\"templa\r\ne\r\nteID\": \"base\"}\r\n\r\n0\r\n\r\n";
    let body = body.replace("}\r\n\r\n0", "}\r\n0");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 Created"), "{answer}");
}

#[tokio::test]
async fn an_omitted_timeout_means_what_the_generation_of_the_client_means() {
    let server = Served::start().await;
    for (route, expected) in [("/sandboxes", 15), ("/v2/sandboxes", 300)] {
        let created = server
            .api(&format!("POST {route}"), r#"{"templateID":"base"}"#)
            .await;
        let id = created.json()["sandboxID"].as_str().unwrap().to_owned();
        let detail = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
        assert_eq!(seconds_left(&detail), expected, "{route}");
    }
}

#[tokio::test]
async fn deadlines_are_set_and_extended() {
    let server = Served::start().await;
    let id = server.create(r#","timeout":100"#).await;
    let get = format!("GET /sandboxes/{id}");
    let left = async || seconds_left(&server.api(&get, "").await.json());
    let ok = StatusCode::NO_CONTENT;
    assert_eq!(
        server
            .post(&id, "timeout", r#"{"timeout":50}"#)
            .await
            .status,
        ok
    );
    assert_eq!(left().await, 50);
    assert_eq!(server.post(&id, "refreshes", "{}").await.status, ok);
    assert_eq!(left().await, 50);
    assert_eq!(
        server
            .post(&id, "refreshes", r#"{"duration":200}"#)
            .await
            .status,
        ok
    );
    assert_eq!(left().await, 200);
    let before = server.api(&get, "").await.json()["endAt"].clone();
    let shorter = server.post(&id, "connect", r#"{"timeout":1}"#).await;
    assert_eq!(shorter.status, StatusCode::OK);
    assert_eq!(server.api(&get, "").await.json()["endAt"], before);
    assert_eq!(
        server
            .post(&id, "pause", r#"{"memory":false}"#)
            .await
            .status,
        ok
    );
    let detail = server.api(&get, "").await.json();
    assert_eq!(detail["pauseMode"], "filesystem");
    assert_error(
        &server.post(&id, "timeout", r#"{"timeout":50}"#).await,
        404,
        "paused",
    );
    assert_error(&server.post(&id, "refreshes", "").await, 404, "paused");
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let server = Served::start().await;
    let paused = server.create(r#","metadata":{"user id":"a&b"}"#).await;
    server.post(&paused, "pause", "{}").await;
    let running = server.create("").await;
    let v1 = server.api("GET /sandboxes", "").await.json();
    assert_eq!(v1.as_array().unwrap().len(), 1);
    assert_eq!(v1[0]["sandboxID"], running.as_str());
    assert_eq!(v1[0]["volumeMounts"], serde_json::json!([]));

    let first = server.api("GET /v2/sandboxes?limit=1", "").await;
    assert_eq!(first.headers["x-total-running"], "1");
    assert_eq!(first.json()[0]["sandboxID"], running.as_str());
    let token = first.headers["x-next-token"].to_str().unwrap();
    let second = server
        .api(&format!("GET /v2/sandboxes?limit=1&nextToken={token}"), "")
        .await;
    assert_eq!(second.json()[0]["sandboxID"], paused.as_str());
    assert!(!second.headers.contains_key("x-next-token"));

    let line = "GET /v2/sandboxes?metadata=user%252520id%3Da%252526b&state=paused,running";
    let found = server.api(line, "").await.json();
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["sandboxID"], paused.as_str());
}

#[tokio::test]
async fn browsers_may_call() {
    let server = Served::start().await;
    let headers = [
        ("origin", "https://page.example"),
        ("access-control-request-method", "POST"),
    ];
    let preflight = server.send("OPTIONS /v2/sandboxes", &headers, "").await;
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
    assert_eq!(preflight.headers["access-control-allow-origin"], "*");
    let allowed = preflight.headers["access-control-allow-headers"]
        .to_str()
        .unwrap();
    assert!(allowed.contains("X-API-Key"));
    let refused = server.send("GET /v2/sandboxes", &headers[..1], "").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.headers["access-control-allow-origin"], "*");
    let exposed = refused.headers["access-control-expose-headers"]
        .to_str()
        .unwrap();
    assert!(exposed.contains("X-Next-Token"));
}

#[tokio::test]
async fn a_pause_that_fails_is_an_error_and_the_sandbox_goes_on() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.place.host.fail(engine::fake::Call::Checkpoint);
    assert_error(&server.post(&id, "pause", "{}").await, 500, "");
    let detail = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    assert_eq!(detail["state"], "running");
    server
        .place
        .host
        .fail(engine::fake::Call::CheckpointNoSpace);
    assert!(
        server
            .post(&id, "pause", "{}")
            .await
            .status
            .is_server_error()
    );
    let inside = server.inside(&id, 8080, "GET /").await;
    assert_eq!(inside.status, StatusCode::OK);
    assert_eq!(
        server.post(&id, "pause", "{}").await.status,
        StatusCode::NO_CONTENT
    );
}

#[tokio::test]
async fn a_call_is_finished_when_its_client_has_left() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.place.inject(Step::PausePrepare, Fault::None);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /sandboxes/{id}/pause HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\n\
         content-length: 0\r\n\r\n",
        server.key.e2b()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    crate::support::eventually("the pause to begin", || server.place.faults_left() == 0).await;
    drop(stream);
    let sandboxes = &server.sandboxes;
    crate::support::eventually("the pause to end", || {
        sandboxes
            .get(&id)
            .is_ok_and(|view| view.pause_mode.is_some())
    })
    .await;
    sandboxes.settle().await;
}

#[tokio::test]
async fn snapshots_are_made_listed_used_and_deleted() {
    let server = Served::start().await;
    let id = server.create("").await;
    let unnamed = server.post(&id, "snapshots", "{}").await;
    assert_eq!(unnamed.status, StatusCode::CREATED, "{}", unnamed.text());
    let unnamed = unnamed.json();
    let reference = unnamed["snapshotID"].as_str().unwrap();
    assert!(reference.ends_with(":default"), "{reference}");
    assert_eq!(unnamed["names"], serde_json::json!([]));
    let body = r#"{"name":"Job:v1"}"#;
    let named = server.post(&id, "snapshots", body).await.json();
    assert_eq!(named["snapshotID"], "sandbase/job:v1");
    assert_eq!(named["names"], serde_json::json!(["sandbase/job"]));

    let first = server.api("GET /snapshots?limit=1", "").await;
    assert_eq!(first.json()[0], named);
    let token = first.headers["x-next-token"].to_str().unwrap();
    let line = format!("GET /snapshots?limit=1&nextToken={token}");
    let second = server.api(&line, "").await;
    assert_eq!(second.json()[0], unnamed);
    assert!(!second.headers.contains_key("x-next-token"));
    for (query, count) in [
        (format!("sandboxID={id}"), 2),
        ("sandboxID=iunknown".to_owned(), 0),
        ("name=job".to_owned(), 1),
        ("name=job:v2".to_owned(), 0),
        (format!("name={reference}"), 1),
    ] {
        let line = format!("GET /snapshots?{query}");
        let found = server.api(&line, "").await.json();
        assert_eq!(found.as_array().unwrap().len(), count, "{query}");
    }

    let line = format!("GET /snapshots/{}/storage", reference.replace(':', "%3A"));
    let of_snapshot = server.api(&line, "").await.json();
    let of_source = server
        .api(&format!("GET /sandboxes/{id}/storage"), "")
        .await
        .json();
    for storage in [of_snapshot, of_source] {
        assert!(storage["ownBytes"].as_u64().unwrap() > 0, "{storage}");
        assert!(storage["sharedBytes"].is_u64(), "{storage}");
    }
    let nowhere = server.api("GET /snapshots/nothing/storage", "").await;
    assert_error(&nowhere, 404, "not found");

    let child = server
        .api(
            "POST /v2/sandboxes",
            &format!(r#"{{"templateID":"{reference}"}}"#),
        )
        .await;
    assert_eq!(child.status, StatusCode::CREATED, "{}", child.text());
    let child = child.json();
    assert_eq!(
        reference.split(':').next(),
        child["templateID"].as_str(),
        "the template of the child is the snapshot"
    );
    let delete = format!("DELETE /templates/{}", reference.replace(':', "%3A"));
    assert_error(&server.api(&delete, "").await, 400, "kill it first");
    let child = format!("DELETE /sandboxes/{}", child["sandboxID"].as_str().unwrap());
    assert_eq!(server.api(&child, "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.api(&delete, "").await.status, StatusCode::NO_CONTENT);
    assert_error(&server.api(&delete, "").await, 404, "not found");
    let delete = "DELETE /templates/sandbase%2Fjob";
    assert_eq!(server.api(delete, "").await.status, StatusCode::NO_CONTENT);
    let gone = r#"{"templateID":"sandbase/job:v1"}"#;
    let refused = server.api("POST /v2/sandboxes", gone).await;
    assert_error(&refused, 404, "not found");
}

#[tokio::test]
async fn wrong_requests_about_snapshots_change_nothing() {
    let server = Served::start().await;
    let id = server.create("").await;
    for (call, body, status, text) in [
        ("snapshots", r#"{"name":"other/x"}"#, 400, "namespace"),
        (
            "snapshots",
            r#"{"name":"../x"}"#,
            400,
            "not a snapshot name",
        ),
        ("snapshots", r#"{"name":7}"#, 400, "validation error"),
        ("fork", r#"{"count":0}"#, 400, "count"),
        ("fork", r#"{"count":101}"#, 400, "count"),
        ("fork", r#"{"timeout":-1}"#, 400, "timeout"),
        ("rollback", "{}", 400, "snapshotID"),
        ("rollback", r#"{"snapshotID":"nothing"}"#, 404, "not found"),
    ] {
        assert_error(&server.post(&id, call, body).await, status, text);
    }
    for line in [
        "GET /snapshots?limit=0",
        "GET /snapshots?limit=x",
        "GET /snapshots?nextToken=%00",
        "GET /snapshots?sandboxID=A-b-c",
        "GET /snapshots?name=other%2Fx",
    ] {
        assert_error(&server.api(line, "").await, 400, "");
    }
    assert_error(&server.api("DELETE /templates/base", "").await, 404, "");
    assert_eq!(server.api("GET /snapshots", "").await.text(), "[]");
    let unknown = "POST /sandboxes/iunknown";
    for call in ["snapshots", "fork"] {
        let answer = server.api(&format!("{unknown}/{call}"), "{}").await;
        assert_error(&answer, 404, "doesn't exist");
    }
    server.post(&id, "pause", "{}").await;
    assert_error(&server.post(&id, "fork", "{}").await, 409, "paused");
    let detail = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    assert_eq!(detail["state"], "paused");
}

#[tokio::test]
async fn forks_and_rollbacks_answer_over_http() {
    let server = Served::start().await;
    let id = server.create(r#","metadata":{"k":"v"}"#).await;
    let snapshot = server.post(&id, "snapshots", "").await.json();
    let forks = server
        .post(&id, "fork", r#"{"count":2,"timeout":60}"#)
        .await;
    assert_eq!(forks.status, StatusCode::CREATED);
    let forks = forks.json();
    assert_eq!(forks.as_array().unwrap().len(), 2);
    for fork in forks.as_array().unwrap() {
        assert!(fork.get("error").is_none());
        let line = format!(
            "GET /sandboxes/{}",
            fork["sandbox"]["sandboxID"].as_str().unwrap()
        );
        let detail = server.api(&line, "").await.json();
        assert_eq!(detail["metadata"]["k"], "v");
        assert_eq!(seconds_left(&detail), 60);
    }
    let body = serde_json::json!({ "snapshotID": snapshot["snapshotID"] }).to_string();
    let rolled_back = server.post(&id, "rollback", &body).await;
    assert_eq!(rolled_back.status, StatusCode::OK);
    assert_eq!(rolled_back.json()["sandboxID"], id.as_str());
}

#[tokio::test]
async fn traffic_waits_for_a_sandbox_that_is_being_snapshotted() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.place.inject(Step::SnapshotLink, Fault::Stop);
    let address = server.address;
    let key = server.key.e2b();
    let (snapshotting, line) = (id.clone(), "snapshots");
    let head = format!(
        "POST /sandboxes/{snapshotting}/{line} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n\
         content-length: 0\r\n\r\n"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    crate::support::eventually("the seal to begin", || server.place.faults_left() == 0).await;
    let view = server.sandboxes.get(&id).unwrap();
    assert_eq!(view.state, server::sandbox::PublicState::Running);
    // It stays there for good, so a request waits instead of being told that there is nothing. One to
    // the agent needs no token for that, as signed file URLs have none: it wakes nobody.
    for (port, line) in [(8080, "GET /"), (49983, "GET /files?path=a")] {
        let request = server.inside(&id, port, line);
        let waiting = tokio::time::timeout(Duration::from_millis(300), request);
        assert!(waiting.await.is_err(), "traffic to {port} must wait");
    }
}
