//! Who gets to the ports of a sandbox, and what services there see of it.

use http::StatusCode;
use server::sandbox::SandboxId;

use crate::edge::{AGENT, answer_with, assert_not_found, service};
use crate::served::{Answer, Served};

const TRAFFIC_TOKEN: &str = "e2b-traffic-access-token";

/// A request to a user port with these further headers.
async fn port(server: &Served, id: &SandboxId, more: &[(&str, &str)]) -> Answer {
    let headers = [
        ("e2b-sandbox-id", id.as_str()),
        ("e2b-sandbox-port", "8080"),
    ];
    server.send("GET /", &[&headers, more].concat(), "").await
}

fn assert_needs_token(answer: &Answer, id: &SandboxId, what: &str) {
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text());
    let message = format!("Sandbox is secured with traffic access token. {what}");
    let expected = serde_json::json!({"sandboxId": id.as_str(), "message": message, "code": 403});
    assert_eq!(answer.json(), expected);
}

#[tokio::test]
async fn private_ports_are_for_those_with_the_token_of_that_sandbox() {
    const MISSING: &str = "Token header 'e2b-traffic-access-token' is missing";
    const INVALID: &str = "Provided token in header 'e2b-traffic-access-token' is invalid";
    let server = Served::start().await;
    let created = server
        .api(
            "POST /v2/sandboxes",
            r#"{"templateID":"base","network":{"allowPublicTraffic":false},"autoResume":{"enabled":true}}"#,
        )
        .await
        .json();
    let id = SandboxId::parse(created["sandboxID"].as_str().unwrap()).unwrap();
    let token = created["trafficAccessToken"].as_str().unwrap().to_owned();
    assert_ne!(created["envdAccessToken"], token.as_str());
    let detail = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    let network = serde_json::json!({"allowPublicTraffic": false});
    assert_eq!(
        (&detail["network"], &detail["trafficAccessToken"]),
        (&network, &serde_json::Value::Null)
    );

    assert_needs_token(&port(&server, &id, &[]).await, &id, MISSING);
    let wrong = port(&server, &id, &[(TRAFFIC_TOKEN, "no")]).await;
    assert_needs_token(&wrong, &id, INVALID);
    let host = format!("8080-{id}.localhost");
    let browser = [("host", host.as_str()), ("user-agent", "Mozilla/5.0")];
    let page = server.send("GET /", &browser, "").await;
    assert_eq!(page.status, StatusCode::FORBIDDEN);
    assert!(page.text().contains("Missing Traffic Access Token"));
    let right = [(TRAFFIC_TOKEN, token.as_str())];
    assert_eq!(port(&server, &id, &right).await.status, StatusCode::OK);
    // The agent's port has a token of its own.
    let agent = server.inside(&id, AGENT, "GET /x").await;
    assert_eq!(agent.status, StatusCode::OK);

    // A copy has rules like it, and another token.
    let forks = server
        .post(&id, "fork", r#"{"count":1,"timeout":60}"#)
        .await;
    let fork = &forks.json()[0]["sandbox"];
    let copy = SandboxId::parse(fork["sandboxID"].as_str().unwrap()).unwrap();
    let refused = port(&server, &copy, &right).await;
    assert_needs_token(&refused, &copy, INVALID);
    let its_own = [(TRAFFIC_TOKEN, fork["trafficAccessToken"].as_str().unwrap())];
    assert_eq!(port(&server, &copy, &its_own).await.status, StatusCode::OK);

    // Nobody wakes it without the token, and the token stays the same.
    server.post(&id, "pause", "").await;
    assert_needs_token(&port(&server, &id, &[]).await, &id, MISSING);
    let detail = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    assert_eq!(detail["state"], "paused");
    assert_eq!(port(&server, &id, &right).await.status, StatusCode::OK);
    server.post(&id, "pause", "").await;
    let connected = server.post(&id, "connect", r#"{"timeout":60}"#).await;
    assert_eq!(connected.json()["trafficAccessToken"], token.as_str());
}

#[tokio::test]
async fn services_see_the_host_that_was_asked_for_at_create() {
    let server = Served::start().await;
    let id = server
        .create(r#","network":{"maskRequestHost":"a.example:${PORT}"}"#)
        .await;
    let detail = server.api(&format!("GET /sandboxes/{id}"), "").await.json();
    let network =
        serde_json::json!({"allowPublicTraffic": true, "maskRequestHost": "a.example:${PORT}"});
    assert_eq!(detail["network"], network);
    let echo = service(async |stream, head| answer_with(stream, &head).await).await;
    server.place.host.serve(8080, echo);
    server.place.host.serve(AGENT, echo);
    let asked = format!("host: 8080-{id}.localhost");
    let host = asked.trim_start_matches("host: ");
    // Nobody outside can pretend to have been forwarded.
    let headers = [("host", host), ("x-forwarded-host", "forged.example")];
    let seen = server
        .send("GET /", &headers, "")
        .await
        .text()
        .to_lowercase();
    assert!(seen.contains("\r\nhost: a.example:8080\r\n"), "{seen}");
    assert!(
        seen.contains(&format!("\r\nx-forwarded-{asked}\r\n")),
        "{seen}"
    );
    assert!(!seen.contains("forged"), "{seen}");
    let agent = server.inside(&id, AGENT, "GET /x").await;
    let seen = agent.text().to_lowercase();
    assert!(seen.contains("\r\nhost: localhost:"), "{seen}");
    assert!(!seen.contains("x-forwarded-host"), "{seen}");
}

#[tokio::test]
async fn one_with_private_ports_that_traffic_cannot_wake_is_not_told_of() {
    let server = Served::start().await;
    let id = server
        .create(r#","network":{"allowPublicTraffic":false}"#)
        .await;
    server.post(&id, "pause", "").await;
    assert_not_found(&port(&server, &id, &[]).await, &id);
}
