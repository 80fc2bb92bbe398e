//! Upload, download and joining.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{Method, StatusCode};
use serde_json::json;

use crate::agent::{Agent, Answer, init_of, request};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=xyz");

async fn post(
    agent: &Agent,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> Answer {
    agent.send(request(Method::POST, path, headers, body)).await
}

fn form(parts: &[(&str, &str, &str)]) -> String {
    let mut body = String::new();
    for (field, filename, content) in parts {
        body.push_str(&format!(
            "--xyz\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{filename}\"\r\n\
             Content-Type: text/plain\r\n\r\n{content}\r\n"
        ));
    }
    body + "--xyz--\r\n"
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn raw_uploads_make_their_directories_and_belong_to_the_user() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/b.txt");
    let uri = format!("/files?path={}&username=nobody", path.display());
    let content = vec![b'x'; 1_000_000];
    let answer = post(&agent, &uri, &[OCTETS], content.clone()).await;
    assert_eq!(
        answer.json(),
        json!([{"path": path, "name": "b.txt", "type": "file"}])
    );
    assert_eq!(fs::read(&path).unwrap(), content);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (65534, 0o644));
    assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().uid(), 65534);

    let zipped = [OCTETS, ("content-encoding", "gzip")];
    let answer = post(&agent, &uri, &zipped, gzip(&content)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(fs::read(&path).unwrap(), content);
    let broken = post(&agent, &uri, &zipped, "not gzip").await;
    assert_eq!(broken.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn multipart_uploads_take_names_or_the_path() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (
        folder.path().join("a b%22.txt"),
        folder.path().join("sub/ä.txt"),
    );
    let body = form(&[
        ("other", "/tmp/ignored", "no"),
        ("file", a.to_str().unwrap(), "first\r\n--xy\r\n"),
        ("file", b.to_str().unwrap(), ""),
    ]);
    let answer = post(&agent, "/files", &[FORM], body).await;
    assert_eq!(
        answer.json().as_array().map(Vec::len),
        Some(2),
        "{}",
        answer.text()
    );
    assert_eq!(fs::read_to_string(&a).unwrap(), "first\r\n--xy\r\n");
    assert_eq!(fs::read_to_string(&b).unwrap(), "");

    let uri = format!("/files?path={}", a.display())
        .replace(' ', "%20")
        .replace("%22", "%2522");
    let body = form(&[("file", "upload", "one"), ("file", "upload", "two")]);
    let answer = post(&agent, &uri, &[FORM], body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let text = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(
        text.starts_with("you cannot upload multiple files to the same path"),
        "{text}"
    );
    assert_eq!(fs::read_to_string(&a).unwrap(), "one");
    let zipped = [FORM, ("content-encoding", "gzip")];
    let body = gzip(form(&[("file", "upload", "zipped")]).as_bytes());
    assert_eq!(
        post(&agent, &uri, &zipped, body).await.status,
        StatusCode::OK
    );
    assert_eq!(fs::read_to_string(&a).unwrap(), "zipped");
    let none = post(&agent, "/files", &[FORM], "--xyz--\r\n").await;
    assert_eq!((none.status, none.text().as_str()), (StatusCode::OK, "[]"));
    let cut = post(&agent, "/files", &[FORM], "--xyz\r\nX: y").await;
    assert_eq!(cut.status, StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn uploads_that_make_no_sense_are_refused() {
    let agent = Agent::start().await;
    let cases = [
        (
            "/files",
            OCTETS,
            "path query parameter is required for raw body upload",
        ),
        ("/files?path=/tmp", OCTETS, "path is a directory: /tmp"),
        (
            "/files?path=/tmp/x",
            ("content-type", "text/plain"),
            "unsupported content type: text/plain",
        ),
        (
            "/files?path=~root/x",
            OCTETS,
            "cannot expand user-specific home dir",
        ),
    ];
    for (uri, header, message) in cases {
        let answer = post(&agent, uri, &[header], "x").await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.text().contains(message), "{}", answer.text());
    }
    let headers = [OCTETS, ("content-encoding", "br")];
    let answer = post(&agent, "/files?path=/tmp/x", &headers, "x").await;
    assert!(answer.text().contains("unsupported Content-Encoding"));
    let answer = post(&agent, "/files?path=/tmp/x&username=who", &[OCTETS], "x").await;
    let message = "error looking up user 'who': user: unknown user who";
    assert_eq!(answer.json(), json!({"code": 401, "message": message}));
}

#[tokio::test]
async fn a_refused_upload_is_read_to_its_end_and_the_connection_lives() {
    let agent = Agent::start().await;
    let answer = post(&agent, "/files?path=/tmp", &[OCTETS], vec![0; 8_000_000]).await;
    assert_eq!(answer.json()["message"], "path is a directory: /tmp");
    assert!(!answer.headers.contains_key("connection"));
}

#[tokio::test]
async fn metadata_is_kept_shown_and_cleared() {
    let agent = Agent::start().await;
    // Not every temporary folder has extended attributes.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("m");
    let uri = format!("/files?path={}", path.display());
    let answer = post(&agent, &uri, &[OCTETS, ("X-Metadata-Author", "me")], "x").await;
    assert_eq!(answer.json()[0]["metadata"], json!({"author": "me"}));
    let stat = agent
        .call("/filesystem.Filesystem/Stat", &json!({"path": path}))
        .await;
    assert_eq!(stat["entry"]["metadata"], json!({"author": "me"}));
    let answer = post(&agent, &uri, &[OCTETS], "x").await;
    assert_eq!(
        answer.json(),
        json!([{"path": path, "name": "m", "type": "file"}])
    );
}

#[tokio::test]
async fn downloads_have_the_headers_of_a_file_server() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    fs::write(&path, "0123456789").unwrap();
    let uri = format!("/files?path={}", path.display());
    let get =
        async |headers: &[(&str, &str)]| agent.send(request(Method::GET, &uri, headers, "")).await;
    let whole = get(&[]).await;
    assert_eq!(
        (whole.status, whole.text().as_str()),
        (StatusCode::OK, "0123456789")
    );
    assert_eq!(whole.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(
        whole.headers["content-disposition"],
        "inline; filename=a.txt"
    );
    assert_eq!(whole.headers["content-length"], "10");
    assert_eq!(whole.headers["vary"], "Accept-Encoding");

    let zipped = get(&[("accept-encoding", "gzip, deflate")]).await;
    assert_eq!(zipped.headers["content-encoding"], "gzip");
    let mut plain = String::new();
    GzDecoder::new(&zipped.body[..])
        .read_to_string(&mut plain)
        .unwrap();
    assert_eq!(plain, "0123456789");

    let part = get(&[("range", "bytes=2-4"), ("accept-encoding", "gzip")]).await;
    assert_eq!(
        (part.status, part.text().as_str()),
        (StatusCode::PARTIAL_CONTENT, "234")
    );
    assert_eq!(part.headers["content-range"], "bytes 2-4/10");
    let parts = get(&[("range", "bytes=0-0,8-")]).await;
    assert!(
        parts.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("multipart/byteranges")
    );
    assert!(parts.text().contains("Content-Range: bytes 8-9/10\r\n"));
    let none = get(&[("range", "bytes=10-")]).await;
    assert_eq!(none.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(none.headers["content-range"], "bytes */10");
    let modified = whole.headers["last-modified"].to_str().unwrap();
    let unchanged = get(&[("if-modified-since", modified)]).await;
    assert_eq!(
        (unchanged.status, unchanged.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    let refused = get(&[("accept-encoding", "identity;q=0, br")]).await;
    assert_eq!(refused.status, StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test]
async fn missing_files_directories_and_devices_are_refused() {
    let agent = Agent::start().await;
    let missing = agent.get("/files?path=no-such-file").await;
    let message = "path '/root/no-such-file' does not exist";
    assert_eq!(missing.json(), json!({"code": 404, "message": message}));
    let directory = agent.get("/files?path=/tmp").await;
    assert_eq!(directory.json()["message"], "path '/tmp' is a directory");
    assert_eq!(
        agent.get("/files?path=/dev/zero").await.status,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn files_without_a_size_are_read_to_their_end() {
    let agent = Agent::start().await;
    let status = agent.get("/files?path=/proc/self/status").await.text();
    assert!(status.starts_with("Name:"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty");
    fs::write(&path, "").unwrap();
    let empty = agent.get(&format!("/files?path={}", path.display())).await;
    assert_eq!(
        (empty.status, &empty.headers["content-length"]),
        (StatusCode::OK, &"0".parse().unwrap())
    );
}

#[tokio::test]
async fn an_expired_signature_is_refused_with_the_exact_body() {
    let agent = Agent::start().await;
    let mut init = init_of("l1");
    init.access_token = Some("tok123".to_owned());
    agent.init(&init).await;
    let uri = "/files?path=/home/user/a%20b.txt&signature_expiration=1700000000\
               &signature=v1_WPwdJg54o69JkISVaFhu8VQx0aUIWtJkgiefjPOjxzw";
    let answer = post(&agent, uri, &[OCTETS], "x").await;
    assert_eq!(
        answer.text(),
        r#"{"code":401,"message":"signature is already expired"}"#
    );
    let answer = agent.get(uri).await;
    assert_eq!(
        answer.text(),
        r#"{"code":401,"message":"invalid signature"}"#
    );
}

#[tokio::test]
async fn files_are_joined_in_order_and_removed() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("1"), "one").unwrap();
    fs::write(path("2"), "two").unwrap();
    let compose = async |sources: &[&str]| {
        let sources: Vec<_> = sources.iter().map(|name| path(name)).collect();
        let body = json!({"source_paths": sources, "destination": path("out")}).to_string();
        post(
            &agent,
            "/files/compose",
            &[("content-type", "application/json")],
            body,
        )
        .await
    };
    assert_eq!(compose(&[]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        compose(&["1", "missing"]).await.status,
        StatusCode::NOT_FOUND
    );
    let done = compose(&["1", "2"]).await;
    assert_eq!(
        done.json(),
        json!({"path": path("out"), "name": "out", "type": "file"})
    );
    assert_eq!(fs::read_to_string(path("out")).unwrap(), "onetwo");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    // The destination in another spelling is no source: it would be removed at the end.
    fs::create_dir(path("sub")).unwrap();
    symlink(folder.path(), path("sub/up")).unwrap();
    for source in ["out", "sub/../out", "./out", "sub/up/out"] {
        let refused = compose(&[source]).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{source}");
        assert_eq!(fs::read_to_string(path("out")).unwrap(), "onetwo");
    }
    symlink("out", path("link")).unwrap();
    assert_eq!(compose(&["link"]).await.status, StatusCode::OK);
    assert_eq!(fs::read_to_string(path("out")).unwrap(), "onetwo");
}

/// A small file system of its own, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success());
        Self(folder)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _left_behind = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_file_system_is_507() {
    let agent = Agent::start().await;
    let disk = Small::mount("size=64k");
    let path = disk.0.path().join("big");
    let uri = format!("/files?path={}", path.display());
    let big = vec![0; 1_000_000];
    let message = "attempted to write 1000000 bytes: not enough disk space available";
    let answer = post(&agent, &uri, &[OCTETS], big.clone()).await;
    assert_eq!(answer.json(), json!({"code": 507, "message": message}));
    let zipped = [OCTETS, ("content-encoding", "gzip")];
    let answer = post(&agent, &uri, &zipped, gzip(&big)).await;
    assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE);
    let content = "x".repeat(1_000_000);
    let answer = post(&agent, &uri, &[FORM], form(&[("file", "x", &content)])).await;
    assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE);

    fs::remove_file(&path).unwrap();
    for name in ["1", "2"] {
        fs::write(disk.0.path().join(name), vec![0; 24 * 1024]).unwrap();
    }
    let body = json!({
        "source_paths": [disk.0.path().join("1"), disk.0.path().join("2")],
        "destination": disk.0.path().join("out"),
    });
    let json = ("content-type", "application/json");
    let answer = post(&agent, "/files/compose", &[json], body.to_string()).await;
    assert_eq!(answer.status, StatusCode::INSUFFICIENT_STORAGE);
    // Sources are there, and nothing else.
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 2);

    // The root and the first file are two of them.
    let inodes = Small::mount("nr_inodes=2");
    fs::write(inodes.0.path().join("1"), "").unwrap();
    for name in ["2", "new/2"] {
        let uri = format!("/files?path={}", inodes.0.path().join(name).display());
        let answer = post(&agent, &uri, &[OCTETS], "x").await;
        assert_eq!(
            answer.json(),
            json!({"code": 507, "message": "not enough inodes available"})
        );
    }
}
