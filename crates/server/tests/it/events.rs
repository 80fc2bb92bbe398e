//! What is told of a sandbox: over HTTP, and after crashes.

use engine::ExitReason;
use http::StatusCode;
use serde_json::Value;
use server::db::Db;
use server::history::{EventQuery, History};
use server::sandbox::{Fault, PublicState, ResumeFrom, SandboxId, Step};

use crate::crash::{Server, crash_at};
use crate::served::Served;
use crate::snapshots::named;
use crate::support::{DISK_ONLY, FULL, MINUTE, Place, create, eventually, state_of};

fn line(id: &SandboxId, query: &str) -> String {
    format!("GET /events/sandboxes/{id}?orderAsc=true&limit=100{query}")
}

/// `label(field=value ...)` of each event, oldest first.
async fn told(server: &Served, id: &SandboxId, fields: &[&str]) -> Vec<String> {
    let answer = server.api(&line(id, ""), "").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let answer = answer.json();
    let events = answer.as_array().unwrap().iter();
    let shown = events.map(|event| {
        let data = &event["eventData"];
        let there = fields.iter().filter_map(|name| data[*name].as_str());
        let values: Vec<_> = there.collect();
        let label = event["eventLabel"].as_str().unwrap();
        match values.is_empty() {
            true => label.to_owned(),
            false => format!("{label}({})", values.join(" ")),
        }
    });
    shown.collect()
}

#[tokio::test]
async fn the_life_of_a_sandbox_is_told_also_when_it_is_over() {
    let server = Served::start().await;
    let id = server.create(r#","timeout":300,"autoPause":true"#).await;
    server.post(&id, "pause", "{}").await;
    server.post(&id, "connect", r#"{"timeout":60}"#).await;
    server.post(&id, "snapshots", r#"{"name":"job"}"#).await;
    server
        .post(&id, "rollback", r#"{"snapshotID":"job"}"#)
        .await;
    server.post(&id, "pause", r#"{"memory":false}"#).await;
    server.post(&id, "connect", r#"{"timeout":60}"#).await;
    let execution = server.place.execution();
    server.place.host.kill(&execution, ExitReason::OutOfMemory);
    let paused = || state_of(&server.sandboxes, &id) == Some(PublicState::Paused);
    eventually("the loss", paused).await;
    server.post(&id, "connect", r#"{"timeout":60}"#).await;
    server.post(&id, "timeout", r#"{"timeout":0}"#).await;
    eventually("the pause at the deadline", paused).await;
    server.post(&id, "connect", r#"{"timeout":60}"#).await;
    let gone = server.api(&format!("DELETE /sandboxes/{id}"), "").await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    let fields = ["mode", "reason", "from", "purpose"];
    let expected = [
        "created",
        "paused(full request)",
        "resumed(memory)",
        "checkpointed(snapshot)",
        "rolled_back",
        "paused(filesystem request)",
        "resumed(disk)",
        "paused(filesystem lost:out_of_memory)",
        "resumed(disk)",
        "paused(full timeout)",
        "resumed(memory)",
        "killed(request)",
    ];
    assert_eq!(told(&server, &id, &fields).await, expected);

    let all = server.api(&line(&id, ""), "").await.json();
    let lost = &all[7]["eventData"]["memory_lost"];
    assert!(lost.as_str().unwrap().contains("memory"));
    assert_eq!(
        all[8]["eventData"]["memory_lost"], *lost,
        "and when it runs again"
    );
    assert_eq!(all[6]["eventData"]["memory_lost"], Value::Null, "asked for");
    let first = &all[0];
    assert_eq!(first["type"], "sandbox.lifecycle.created");
    assert_eq!(first["eventCategory"], "lifecycle");
    assert_eq!(first["version"], "v2");
    assert_eq!(first["sandboxId"], id.as_str());
    for name in ["id", "timestamp", "sandboxExecutionId", "sandboxTemplateId"] {
        assert!(first[name].is_string(), "{name}");
    }
}

#[tokio::test]
async fn events_come_in_pages_by_type_and_order() {
    let server = Served::start().await;
    let one = server.create("").await;
    let other = server.create("").await;
    server.post(&one, "pause", "{}").await;
    let labels = async |query: &str| -> Vec<String> {
        let answer = server
            .api(&format!("GET /events/sandboxes{query}"), "")
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text());
        let answer = answer.json();
        let events = answer.as_array().unwrap().iter();
        events
            .map(|event| {
                let whose = if event["sandboxId"] == one.as_str() {
                    "one"
                } else {
                    "other"
                };
                format!("{whose} {}", event["eventLabel"].as_str().unwrap())
            })
            .collect()
    };
    assert_eq!(
        labels("").await,
        ["one paused", "other created", "one created"]
    );
    assert_eq!(labels("?limit=1&offset=1").await, ["other created"]);
    assert_eq!(labels("?orderAsc=true&limit=1").await, ["one created"]);
    let created = "types=sandbox.lifecycle.created";
    assert_eq!(
        labels(&format!("?{created}")).await,
        ["other created", "one created"]
    );
    let both = format!("?{created}&types=sandbox.lifecycle.paused");
    assert_eq!(labels(&both).await.len(), 3);
    server.api(&format!("DELETE /sandboxes/{other}"), "").await;
    assert_eq!(labels("?limit=1").await, ["other killed"]);

    let bad = [
        "limit=0",
        "limit=101",
        "limit=x",
        "offset=-1",
        "orderAsc=1",
        "types=killed",
        "types=%",
    ];
    for query in bad {
        let refused = server
            .api(&format!("GET /events/sandboxes?{query}"), "")
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}");
    }
    let stranger = server.api("GET /events/sandboxes/iunknown", "").await;
    assert_eq!(stranger.status, StatusCode::NOT_FOUND);
    let malformed = server.api("GET /events/sandboxes/A-b-c", "").await;
    assert_eq!(malformed.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_pause_by_a_server_that_goes_down_says_so() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    sandboxes.pause_all().await;
    let events = place.events_of(&id);
    assert_eq!(events[1].data["reason"], "shutdown");
}

#[tokio::test]
async fn a_history_that_cannot_be_written_holds_nothing_up_and_is_written_later() {
    let server = Served::start().await;
    let path = server.place.data_dir().join("history.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON events
                  BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    other.execute_batch(refuse).unwrap();
    let id = server.create("").await;
    let paused = server.post(&id, "pause", "{}").await;
    assert_eq!(paused.status, StatusCode::NO_CONTENT);
    let failed = server.api(&line(&id, ""), "").await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    assert_eq!(
        told(&server, &id, &["mode"]).await,
        ["created", "paused(full)"]
    );
}

/// Names of the kinds of a sandbox's events, oldest first, as the history has them.
async fn kept(history: &History, id: &SandboxId) -> Vec<String> {
    let query = EventQuery {
        sandbox: Some(id.clone()),
        ascending: true,
        limit: 100,
        ..EventQuery::default()
    };
    let events = history.events(query).await.unwrap();
    events.into_iter().map(|event| event.kind).collect()
}

#[tokio::test]
async fn what_a_killed_server_did_not_write_is_made_up_for_from_the_journal() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let ids = [
        create(&sandboxes).await,
        create(&sandboxes).await,
        create(&sandboxes).await,
        create(&sandboxes).await,
    ];
    let [running, paused, resumed, gone] = &ids;
    let history = History::open(&place.data_dir().join("history.db")).unwrap();
    let move_events = || {
        for event in place.events.take() {
            history.queue().add(event);
        }
    };
    sandboxes.pause(resumed, FULL).await.unwrap();
    move_events();
    history.write_events().await.unwrap();
    // From here on nothing is written before the crash.
    sandboxes.pause(paused, DISK_ONLY).await.unwrap();
    let connected = sandboxes.connect(resumed, MINUTE, ResumeFrom::Saved).await;
    connected.unwrap();
    sandboxes.kill(gone).await.unwrap();
    drop((sandboxes, history));

    let history = History::open(&place.data_dir().join("history.db")).unwrap();
    let db = Db::open(&place.data_dir().join("sandbase.db")).unwrap();
    for _ in 0..2 {
        // A second time there is nothing to add.
        history
            .catch_up(&db.load_all().await.unwrap())
            .await
            .unwrap();
        assert_eq!(kept(&history, running).await, ["created"]);
        assert_eq!(kept(&history, paused).await, ["created", "paused"]);
        assert_eq!(
            kept(&history, resumed).await,
            ["created", "paused", "resumed"]
        );
        assert_eq!(kept(&history, gone).await, ["created", "killed"]);
    }
    // An empty history knows at least what there is.
    drop(history);
    std::fs::remove_file(place.data_dir().join("history.db")).unwrap();
    let history = History::open(&place.data_dir().join("history.db")).unwrap();
    history
        .catch_up(&db.load_all().await.unwrap())
        .await
        .unwrap();
    assert_eq!(kept(&history, running).await, ["created"]);
    assert_eq!(kept(&history, paused).await, ["paused"]);
}

#[test]
fn a_recovery_tells_what_it_did() {
    let place = Place::new();
    let server = Server::start(&place);
    let id = server.runtime.block_on(create(&server.sandboxes));
    crash_at(&place, server, Step::PauseDestroy, async |sandboxes| {
        let _ = sandboxes.pause(&id, FULL).await;
    });
    let next = Server::start(&place);
    next.runtime.block_on(next.sandboxes.settle());
    let events = place.events_of(&id);
    let told: Vec<_> = events.iter().map(|event| event.kind.name()).collect();
    assert_eq!(told, ["created", "paused"]);
    assert_eq!(events[1].data["reason"], "unknown");
}

#[tokio::test]
async fn undone_and_failed_transitions_are_no_events() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    place.inject(Step::PauseCommit, Fault::Io);
    sandboxes.pause(&id, FULL).await.unwrap_err();
    place.inject(Step::SnapshotCommit, Fault::Io);
    sandboxes.snapshot(&id, named("job")).await.unwrap_err();
    sandboxes.pause(&id, FULL).await.unwrap();
    place.inject(Step::ResumeStart, Fault::Io);
    let failed = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    failed.unwrap_err();
    let events = place.events_of(&id);
    let told: Vec<_> = events.iter().map(|event| event.kind.name()).collect();
    assert_eq!(told, ["created", "paused"]);
}
