//! Stat, ListDir, MakeDir, Move and Remove.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

#[tokio::test]
async fn removing_a_link_leaves_what_it_leads_to() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    for slash in ["", "/", "//"] {
        fs::create_dir_all(&target).unwrap();
        fs::write(target.join("kept"), "x").unwrap();
        symlink(&target, &link).unwrap();
        let path = format!("{}{slash}", link.display());
        agent.call(&method("Remove"), &json!({"path": path})).await;
        assert!(!link.is_symlink(), "{path}");
        assert!(target.join("kept").exists(), "{path}");
    }
    let path = format!("{}/", target.display());
    agent.call(&method("Remove"), &json!({"path": path})).await;
    assert!(!target.exists());
}

/// Most memory the process ever had, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().split_whitespace().next().unwrap();
    kibibytes.parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_large_directory_is_listed_whole_in_little_memory() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_string_lossy().into_owned();
    let count = 100_000;
    for number in 0..count {
        std::fs::File::create(folder.path().join(format!("file-{number:06}"))).unwrap();
    }
    let before = peak_memory(agent.pid());
    let list = json!({"path": root, "depth": 1});
    let answer = agent.call("/filesystem.Filesystem/ListDir", &list).await;
    let entries = answer["entries"].as_array().unwrap();
    assert_eq!(entries.len(), count);
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!(entry["name"], format!("file-{number:06}"));
    }
    // The answer alone has more than 20 MB.
    let grown = peak_memory(agent.pid()) - before;
    assert!(grown < 12 << 20, "listing took {grown} bytes");

    // A client that leaves in the middle leaves a free helper behind.
    for _ in 0..32 {
        let stream = tokio::net::TcpStream::connect(agent.envd).await.unwrap();
        let mut stream = tokio::io::BufReader::new(stream);
        let body = list.to_string();
        let head = format!(
            "POST /filesystem.Filesystem/ListDir HTTP/1.1\r\nhost: x\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
    }
    let stat = json!({"path": root});
    agent.call("/filesystem.Filesystem/Stat", &stat).await;
}

#[tokio::test]
async fn paths_with_nul_bytes_are_invalid_everywhere() {
    let agent = Agent::start().await;
    for method in ["Stat", "ListDir", "MakeDir", "Remove", "CreateWatcher"] {
        let method = format!("/filesystem.Filesystem/{method}");
        let answer = agent.rpc(&method, &json!({"path": "/tmp/a\0b"})).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{method}");
        assert_eq!(answer.json()["code"], "invalid_argument", "{method}");
    }
    let moved = json!({"source": "/tmp/a", "destination": "/tmp/\0"});
    let answer = agent.rpc("/filesystem.Filesystem/Move", &moved).await;
    assert_eq!(answer.json()["code"], "invalid_argument");
    let read = agent.get("/files?path=/tmp/a%00b").await;
    assert_eq!(read.status, StatusCode::BAD_REQUEST);
    let process = json!({"process": {"cmd": "true", "cwd": "/tmp\0"}});
    let finished = agent.start_process(&[], &process).await.finish().await;
    assert_eq!(finished.terminator["error"]["code"], "invalid_argument");
}
