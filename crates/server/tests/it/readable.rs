//! Exports of the files that can be read, over HTTP on a fake host; `e2e` has damaged disks.

use std::collections::BTreeMap;
use std::io::Read;

use engine::fake::DISK_FILE;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::Value;

use crate::served::Served;

fn content(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        found.insert(path, bytes);
    }
    found
}

#[tokio::test]
async fn the_files_of_a_paused_sandbox_and_of_a_snapshot_are_a_plain_archive() {
    let server = Served::start().await;
    let id = server.create("").await;
    assert!(server.place.host.step(&server.place.execution()));
    let line = format!("GET /sandboxes/{id}/export?files=readable&compression=none");
    let running = server.api(&line, "").await;
    assert_eq!(running.status, StatusCode::CONFLICT);
    assert!(
        running.text().contains("pause it first"),
        "{}",
        running.text()
    );
    server.post(&id, "pause", "{}").await;
    server.post(&id, "snapshots", r#"{"name":"job"}"#).await;
    let of_snapshot = "GET /snapshots/job/export?files=readable&compression=none";
    let answer = server.api(of_snapshot, "").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let found = content(&answer.body);
    assert_eq!(found[&format!("files/{DISK_FILE}")], b"1\n");
    let report: Value = serde_json::from_slice(&found["missing.json"]).unwrap();
    assert_eq!(report["complete"], true);
    // The snapshot is let go of afterwards.
    let deleted = async {
        while server.api("DELETE /templates/job", "").await.status != StatusCode::NO_CONTENT {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, deleted).await.unwrap();
    let answer = server.api(&line, "").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(content(&answer.body).contains_key("missing.json"));

    for (line, status) in [
        (
            format!("GET /sandboxes/{id}/export?files=all"),
            StatusCode::BAD_REQUEST,
        ),
        (
            "GET /sandboxes/iunknown/export?files=readable".to_owned(),
            StatusCode::NOT_FOUND,
        ),
        (
            "GET /snapshots/nothing/export?files=readable".to_owned(),
            StatusCode::NOT_FOUND,
        ),
    ] {
        assert_eq!(server.api(&line, "").await.status, status, "{line}");
    }
}

#[tokio::test]
async fn a_connect_breaks_an_export_off() {
    let server = Served::start().await;
    let id = server.create("").await;
    server.post(&id, "pause", "{}").await;
    // Far more than fits into buffers.
    let disks = server
        .place
        .data_dir()
        .join("sandboxes")
        .join(id.as_str())
        .join("disks");
    let disk = std::fs::read_dir(disks)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::write(disk.join("big"), vec![7; 64 << 20]).unwrap();
    let key = server.key.e2b();
    let line = format!("GET /sandboxes/{id}/export?files=readable&compression=none");
    let mut response = server.open(&line, &[("x-api-key", &key)], "").await;
    assert_eq!(response.status(), StatusCode::OK);
    response.frame().await.unwrap().unwrap();
    let connected = server.post(&id, "connect", r#"{"timeout":60}"#).await;
    assert_eq!(connected.status, StatusCode::CREATED);
    let rest = response.into_body().collect().await;
    assert!(rest.is_err(), "what was cut off is not taken for whole");
}
