//! Uploads that are cut off: no such upload counts as done, and the agent lives.
//!
//! The contract has no atomic uploads: what was there is gone, and the file holds the start of what
//! was sent.

use std::fs;
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, LIMIT, eventually, request};

const OLD: &[u8] = b"what was there";
const OCTETS: &str = "application/octet-stream";
const FORM: &str = "multipart/form-data; boundary=xyz";
const FORM_HEAD: &[u8] =
    b"--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";

/// How an upload is broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The client says that it sends no more, and would read an answer.
    Closed,
    /// The connection is reset.
    Reset,
}

/// Bytes that gzip cannot make smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn chunk(data: &[u8]) -> Vec<u8> {
    let mut framed = format!("{:x}\r\n", data.len()).into_bytes();
    framed.extend_from_slice(data);
    framed.extend_from_slice(b"\r\n");
    framed
}

/// Files the agent has open at `path`.
fn is_open(agent: &Agent, path: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
    open.flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// Sends head and body, breaks off, and returns what the agent answered.
async fn broken_off(agent: &Agent, head: &str, body: &[u8], path: &Path, cut: Cut) -> String {
    let mut stream = TcpStream::connect(agent.envd).await.unwrap();
    let uri = format!("/files?path={}", path.display());
    let head = format!("POST {uri} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    // Once it is open, the upload is under way.
    eventually("an open file", async || is_open(agent, path)).await;
    let mut answer = Vec::new();
    match cut {
        Cut::Closed => {
            stream.shutdown().await.unwrap();
            let read = stream.read_to_end(&mut answer);
            let _reset = tokio::time::timeout(LIMIT, read).await.unwrap();
        }
        Cut::Reset => {
            let stream = stream.into_std().unwrap();
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
            let _gone = stream.shutdown(Shutdown::Read);
            drop(stream);
        }
    }
    eventually("the end of the upload", async || !is_open(agent, path)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn an_upload_that_is_cut_off_is_never_answered_as_done() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let content = noise(700_000);
    let zipped = gzip(&content);
    let form = [FORM_HEAD, &content].concat();
    let zipped_form = {
        let whole = [&form[..], b"\r\n--xyz--\r\n"].concat();
        gzip(&whole)
    };
    let part = |data: &[u8]| data[..500_000].to_vec();
    let cases = [
        ("raw", OCTETS, "", part(&content)),
        ("form", FORM, "", part(&form)),
        (
            "raw-gzip",
            OCTETS,
            "content-encoding: gzip\r\n",
            part(&zipped),
        ),
        (
            "form-gzip",
            FORM,
            "content-encoding: gzip\r\n",
            part(&zipped_form),
        ),
    ];
    for (name, kind, encoding, sent) in &cases {
        for chunked in [false, true] {
            for cut in [Cut::Closed, Cut::Reset] {
                let path: PathBuf = folder.path().join(format!("{name}-{chunked}-{cut:?}"));
                fs::write(&path, OLD).unwrap();
                let (length, body) = match chunked {
                    // Neither a full chunk nor the last one.
                    true => {
                        let mut body = chunk(&sent[..300_000]);
                        body.extend(&chunk(&sent[300_000..])[..150_000]);
                        ("transfer-encoding: chunked".to_owned(), body)
                    }
                    false => ("content-length: 700000".to_owned(), sent.clone()),
                };
                let head = format!("content-type: {kind}\r\n{encoding}{length}");
                let answer = broken_off(&agent, &head, &body, &path, cut).await;
                assert!(!answer.starts_with("HTTP/1.1 2"), "{path:?}: {answer}");
                let left = fs::read(&path).unwrap();
                assert!(content.starts_with(&left), "{path:?}");
                assert!(left.len() < content.len(), "{path:?}");
            }
        }
    }
    assert_eq!(agent.get("/health").await.status, 204);
}

#[tokio::test]
async fn a_body_that_ends_too_early_by_itself_is_refused() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let content = noise(300_000);
    let zipped = gzip(&content);
    let form = [FORM_HEAD, &content].concat();
    let zipped_form = gzip(&[&form[..], b"\r\n--xyz--\r\n"].concat());
    for (name, kind, encoding, body, status) in [
        // The last byte of the checksum is missing.
        ("a", OCTETS, "gzip", &zipped[..zipped.len() - 1], 400),
        ("b", OCTETS, "gzip", &zipped[..100_000], 400),
        ("c", OCTETS, "gzip", &zipped[..5], 400),
        ("d", FORM, "gzip", &zipped_form[..100_000], 400),
        // All of the form is there, but not the checksum.
        (
            "h",
            FORM,
            "gzip",
            &zipped_form[..zipped_form.len() - 1],
            400,
        ),
        ("e", FORM, "identity", &form[..100_000], 500),
        ("f", FORM, "identity", &form[..20], 500),
        ("g", FORM, "identity", &b""[..], 500),
    ] {
        let path = folder.path().join(name);
        let uri = format!("/files?path={}", path.display());
        let headers = [("content-type", kind), ("content-encoding", encoding)];
        let answer = agent
            .send(request(http::Method::POST, &uri, &headers, body.to_vec()))
            .await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(answer.json()["code"], status, "{name}");
    }
}
