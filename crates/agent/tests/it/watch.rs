//! Watching directories.

use std::fs;

use http::Method;
use serde_json::{Value, json};

use crate::agent::{Agent, request};

fn method(name: &str) -> String {
    format!("/filesystem.Filesystem/{name}")
}

async fn upload(agent: &Agent, path: &std::path::Path, body: &str) {
    let path = format!("/files?path={}", path.display());
    let kind = [("content-type", "application/octet-stream")];
    let answer = agent
        .send(request(Method::POST, &path, &kind, body.to_owned()))
        .await;
    assert!(answer.status.is_success(), "{}", answer.text());
}

async fn watch(agent: &Agent, message: Value) -> String {
    let created = agent.call(&method("CreateWatcher"), &message).await;
    created["watcherId"].as_str().unwrap().to_owned()
}

async fn events(agent: &Agent, id: &str) -> Vec<(String, String)> {
    let reply = agent
        .call(&method("GetWatcherEvents"), &json!({"watcherId": id}))
        .await;
    let events = reply["events"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| {
        value
            .as_str()
            .unwrap()
            .trim_start_matches("EVENT_TYPE_")
            .to_owned()
    };
    events
        .iter()
        .map(|event| (text(&event["name"]), text(&event["type"])))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected
        .iter()
        .map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned()))
        .collect()
}

#[tokio::test]
async fn an_upload_makes_exactly_three_events_that_are_there_at_once() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let id = watch(&agent, json!({"path": folder.path()})).await;
    assert!(id.len() == 21 && id.starts_with('w'));
    upload(&agent, &folder.path().join("a.txt"), "hello").await;
    let three = pairs(&[("a.txt", "CREATE"), ("a.txt", "CHMOD"), ("a.txt", "WRITE")]);
    assert_eq!(events(&agent, &id).await, three);
    assert_eq!(events(&agent, &id).await, []);

    agent
        .call(&method("RemoveWatcher"), &json!({"watcherId": id}))
        .await;
    for name in ["GetWatcherEvents", "RemoveWatcher"] {
        let answer = agent.rpc(&method(name), &json!({"watcherId": id})).await;
        assert_eq!(
            answer.json()["message"],
            format!("watcher with id {id} not found")
        );
    }
}

#[tokio::test]
async fn a_recursive_watcher_sees_into_new_directories() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let id = watch(&agent, json!({"path": folder.path(), "recursive": true})).await;
    agent
        .call(
            &method("MakeDir"),
            &json!({"path": folder.path().join("n/m")}),
        )
        .await;
    upload(&agent, &folder.path().join("n/m/f"), "x").await;
    let seen = events(&agent, &id).await;
    for expected in [
        ("n", "CREATE"),
        ("n/m", "CREATE"),
        ("n/m/f", "CREATE"),
        ("n/m/f", "WRITE"),
    ] {
        assert!(
            seen.contains(&pairs(&[expected])[0]),
            "{expected:?} in {seen:?}"
        );
    }
    let creations = seen.iter().filter(|(_, kind)| kind == "CREATE").count();
    assert_eq!(creations, 3, "{seen:?}");
}

#[tokio::test]
async fn a_stream_begins_when_it_watches_and_describes_files_on_request() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let message = json!({"path": folder.path(), "includeEntry": true});
    let mut stream = agent.stream(&method("WatchDir"), &[], &message).await;
    assert_eq!(stream.next().await.unwrap().1, json!({"start": {}}));
    let file = folder.path().join("f");
    fs::write(&file, "x").unwrap();
    let (_, created) = stream.next().await.unwrap();
    assert_eq!(created["filesystem"]["type"], "EVENT_TYPE_CREATE");
    assert_eq!(
        created["filesystem"]["entry"]["path"],
        file.to_str().unwrap()
    );
    assert_eq!(
        stream.next().await.unwrap().1["filesystem"]["type"],
        "EVENT_TYPE_WRITE"
    );
    fs::rename(&file, folder.path().join("g")).unwrap();
    let (_, renamed) = stream.next().await.unwrap();
    assert_eq!(
        renamed["filesystem"],
        json!({"name": "f", "type": "EVENT_TYPE_RENAME"})
    );
    assert_eq!(stream.next().await.unwrap().1["filesystem"]["name"], "g");
}

#[tokio::test]
async fn a_watched_directory_that_goes_away_says_so_once_and_the_stream_stays() {
    let agent = Agent::start().await;
    for (gone, told) in [("removed", "REMOVE"), ("moved", "RENAME")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("watched");
        fs::create_dir(&path).unwrap();
        let message = json!({"path": path, "recursive": true});
        let id = watch(&agent, message.clone()).await;
        let keepalive = [("keepalive-ping-interval", "1")];
        let mut stream = agent
            .stream(&method("WatchDir"), &keepalive, &message)
            .await;
        assert_eq!(stream.next().await.unwrap().1, json!({"start": {}}));
        let elsewhere = folder.path().join("elsewhere");
        match gone {
            "removed" => fs::remove_dir(&path).unwrap(),
            _ => fs::rename(&path, &elsewhere).unwrap(),
        }
        // Neither what comes to its name afterwards nor what happens where it is now.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("new"), "x").unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join("new"), "x").unwrap();
        let kind = format!("EVENT_TYPE_{told}");
        let (_, event) = stream.next().await.unwrap();
        assert_eq!(event["filesystem"], json!({"name": ".", "type": kind}));
        assert_eq!(stream.next().await.unwrap().1, json!({"keepalive": {}}));
        assert_eq!(events(&agent, &id).await, pairs(&[(".", told)]));
        agent
            .call(&method("RemoveWatcher"), &json!({"watcherId": id}))
            .await;
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_deadline_and_refuses_what_is_no_directory() {
    let agent = Agent::start().await;
    let timeout = [("connect-timeout-ms", "100")];
    let message = json!({"path": "/tmp"});
    let mut stream = agent.stream(&method("WatchDir"), &timeout, &message).await;
    let end = loop {
        let (flags, message) = stream.next().await.unwrap();
        if flags == 2 {
            break message;
        }
    };
    assert_eq!(end["error"]["code"], "deadline_exceeded");
    for (path, code) in [
        ("/etc/passwd", "invalid_argument"),
        ("/no/such", "not_found"),
    ] {
        let mut stream = agent
            .stream(&method("WatchDir"), &[], &json!({"path": path}))
            .await;
        assert_eq!(stream.next().await.unwrap().1["error"]["code"], code);
    }
}
