//! Metrics and logs over HTTP.

use http::StatusCode;
use serde_json::{Value, json};
use server::sandbox::SandboxId;

use crate::served::Served;

/// Asks again until the answer is as wanted.
async fn until(server: &Served, line: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let ask = async {
        loop {
            let answer = server.api(line, "").await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
            let answer = answer.json();
            if wanted(&answer) {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), ask)
        .await
        .unwrap_or_else(|_| panic!("{line} never answers as wanted"))
}

fn has_some(answer: &Value) -> bool {
    answer.as_array().is_some_and(|points| !points.is_empty())
}

#[tokio::test]
async fn a_running_sandbox_has_metrics_and_a_killed_one_none() {
    let server = Served::start().await;
    let id = server.create("").await;
    let line = format!("GET /sandboxes/{id}/metrics");
    let points = until(&server, &line, has_some).await;
    let point = &points[0];
    assert_eq!(point["cpuCount"], 2);
    assert_eq!(point["memTotal"], 512 << 20);
    assert_eq!(point["diskTotal"], 1 << 30);
    assert_eq!(point["memCache"], 16 << 20);
    for name in ["cpuUsedPct", "memUsed", "diskUsed", "timestampUnix"] {
        assert!(point[name].as_f64().unwrap() > 0.0, "{name}: {point}");
    }
    let at = point["timestampUnix"].as_i64().unwrap();
    let before = format!("{line}?start={}&end={}", at - 100, at - 1);
    assert_eq!(server.api(&before, "").await.json(), json!([]));
    let within = server.api(&format!("{line}?start={at}&end={at}"), "").await;
    assert!(has_some(&within.json()));

    let other = SandboxId::random();
    let many = format!("GET /sandboxes/metrics?sandbox_ids={id},{other}");
    let newest = server.api(&many, "").await.json();
    let newest = newest["sandboxes"].as_object().unwrap();
    assert_eq!(newest.len(), 1);
    assert_eq!(newest[id.as_str()]["cpuCount"], 2);

    server.api(&format!("DELETE /sandboxes/{id}"), "").await;
    assert_eq!(server.api(&line, "").await.status, StatusCode::NOT_FOUND);
    let empty = until(&server, &many, |answer| answer["sandboxes"] == json!({})).await;
    assert_eq!(empty, json!({"sandboxes": {}}));
}

#[tokio::test]
async fn the_log_of_a_sandbox_is_kept_while_it_is_paused() {
    let server = Served::start().await;
    let id = server.create("").await;
    let first = format!("GET /sandboxes/{id}/logs");
    let both = |answer: &Value| {
        answer["logs"]
            .as_array()
            .is_some_and(|logs| logs.len() == 2)
    };
    until(&server, &first, both).await;
    server.post(&id, "pause", "").await;
    server.post(&id, "connect", r#"{"timeout":60}"#).await;

    // Nothing twice, although it was read again from the same boot.
    let answer = until(&server, &first, both).await;
    let line: Value = serde_json::from_str(answer["logs"][0]["line"].as_str().unwrap()).unwrap();
    assert_eq!((&line["level"], &line["pid"]), (&json!("info"), &json!(7)));
    let entry = json!({
        "timestamp": "2026-01-01T00:00:01Z", "level": "info", "message": "process started",
        "fields": {"logger": "process", "pid": "7", "command": "sleep 1"},
    });
    assert_eq!(answer["logEntries"][0], entry);
    let start = 1_767_225_602_000_i64;
    let later = server
        .api(&format!("{first}?start={start}&limit=5"), "")
        .await
        .json();
    assert_eq!(later["logs"].as_array().unwrap().len(), 1);

    let second = format!("GET /v2/sandboxes/{id}/logs");
    for (query, expected) in [
        ("", vec!["out of memory", "process started"]),
        (
            "?direction=forward",
            vec!["process started", "out of memory"],
        ),
        ("?direction=forward&limit=1", vec!["process started"]),
        ("?cursor=1767225601000", vec!["process started"]),
        ("?level=warn", vec!["out of memory"]),
        ("?search=process%20st", vec!["process started"]),
        ("?limit=0", vec![]),
    ] {
        let answer = server.api(&format!("{second}{query}"), "").await.json();
        let logs = answer["logs"].as_array().unwrap();
        let messages: Vec<_> = logs
            .iter()
            .map(|log| log["message"].as_str().unwrap())
            .collect();
        assert_eq!(messages, expected, "{query}");
    }
}

#[tokio::test]
async fn malformed_questions_are_refused() {
    let server = Served::start().await;
    let id = server.create("").await;
    let ids = ["iaaaaaaaaaaaaaaaaaaaa"; 2].join(",");
    let many: Vec<_> = (0..101).map(|_| SandboxId::random().to_string()).collect();
    for line in [
        format!("/sandboxes/{id}/metrics?start=2&end=1"),
        format!("/sandboxes/{id}/metrics?start=-1"),
        format!("/sandboxes/{id}/metrics?end=x"),
        "/sandboxes/metrics".to_owned(),
        "/sandboxes/metrics?sandbox_ids=a%2Fb".to_owned(),
        format!("/sandboxes/metrics?sandbox_ids={ids}"),
        format!("/sandboxes/metrics?sandbox_ids={}", many.join(",")),
        format!("/sandboxes/{id}/logs?limit=-1"),
        format!("/sandboxes/{id}/logs?start=x"),
        format!("/v2/sandboxes/{id}/logs?limit=1001"),
        format!("/v2/sandboxes/{id}/logs?direction=up"),
        format!("/v2/sandboxes/{id}/logs?level=loud"),
        format!("/v2/sandboxes/{id}/logs?search={}", "x".repeat(257)),
    ] {
        let answer = server.api(&format!("GET {line}"), "").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{line}");
        assert_eq!(answer.json()["code"], 400);
    }
    let unknown = SandboxId::random();
    for line in [
        format!("/sandboxes/{unknown}/metrics"),
        format!("/sandboxes/{unknown}/logs"),
        format!("/v2/sandboxes/{unknown}/logs"),
    ] {
        let answer = server.api(&format!("GET {line}"), "").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{line}");
    }
}
