//! Stat, ListDir, MakeDir, Move and Remove.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::agent::{Agent, encode, request};

const SERVICE: &str = "/filesystem.Filesystem";

fn method(name: &str) -> String {
    format!("{SERVICE}/{name}")
}

fn names(list: &Value) -> Vec<&str> {
    let entries = list["entries"].as_array().unwrap();
    entries
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn directories_are_listed_in_order_to_the_depth_asked_for() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("subdir1/deep")).unwrap();
    fs::create_dir(root.join("subdir2")).unwrap();
    fs::write(root.join("file1.txt"), "x").unwrap();
    fs::write(root.join("subdir1/a"), "x").unwrap();
    symlink("subdir1", root.join("zlink")).unwrap();
    let path = root.to_str().unwrap();
    let shallow = agent.call(&method("ListDir"), &json!({"path": path})).await;
    assert_eq!(
        names(&shallow),
        ["file1.txt", "subdir1", "subdir2", "zlink"]
    );
    let deep = agent
        .call(&method("ListDir"), &json!({"path": path, "depth": 2}))
        .await;
    assert_eq!(
        names(&deep),
        ["file1.txt", "subdir1", "a", "deep", "subdir2", "zlink"]
    );
    let link = root.join("zlink").to_str().unwrap().to_owned();
    let through = agent.call(&method("ListDir"), &json!({"path": link})).await;
    assert_eq!(through["entries"][0]["path"], format!("{link}/a"));

    symlink("loop", root.join("loop")).unwrap();
    for (name, code) in [
        ("missing", "not_found"),
        ("file1.txt", "invalid_argument"),
        ("loop", "failed_precondition"),
    ] {
        let answer = agent
            .rpc(&method("ListDir"), &json!({"path": root.join(name)}))
            .await;
        assert_eq!(answer.json()["code"], code, "{name}");
    }
}

#[tokio::test]
async fn a_directory_is_made_once_for_the_user() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    let headers = [
        ("content-type", "application/json"),
        ("authorization", &format!("Basic {}", encode(b"nobody:"))),
    ];
    let body = json!({"path": path}).to_string();
    let make = async || {
        agent
            .send(request(
                Method::POST,
                &method("MakeDir"),
                &headers,
                body.clone(),
            ))
            .await
    };
    let made = make().await;
    assert_eq!(made.json()["entry"]["owner"], "nobody");
    assert_eq!(made.json()["entry"]["permissions"], "drwxr-xr-x");
    let parent = fs::metadata(folder.path().join("a")).unwrap();
    assert_eq!((parent.uid(), parent.mode() & 0o777), (65534, 0o755));
    let again = make().await;
    assert_eq!(
        (again.status, again.json()["code"].as_str()),
        (StatusCode::CONFLICT, Some("already_exists"))
    );
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "x").unwrap();
    assert_eq!(make().await.json()["code"], "invalid_argument");
}

#[tokio::test]
async fn files_move_and_disappear() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = (folder.path().join("a"), folder.path().join("new/b"));
    fs::write(&source, "x").unwrap();
    let message = json!({"source": source, "destination": destination});
    let moved = agent.call(&method("Move"), &message).await;
    assert_eq!(moved["entry"]["path"], destination.to_str().unwrap());
    assert_eq!(
        agent.rpc(&method("Move"), &message).await.json()["code"],
        "not_found"
    );

    let remove = json!({"path": folder.path().join("new")});
    for _ in 0..2 {
        assert_eq!(agent.call(&method("Remove"), &remove).await, json!({}));
    }
    let gone = agent.rpc(&method("Stat"), &remove).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    let through = agent
        .rpc(&method("Stat"), &json!({"path": "/etc/passwd/x"}))
        .await;
    assert_eq!(through.json()["code"], "not_found");
}
