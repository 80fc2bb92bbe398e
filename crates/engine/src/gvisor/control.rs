//! Calls of a sentry over its control socket, without a `runsc` process between.
//!
//! A `runsc` command costs some 8 ms of start-up, several times that on a busy host, to send one line
//! of JSON: `{"method": …, "arg": …}`, answered by `{"success": …, "err": …, "result": …}` (gVisor's
//! `pkg/urpc`). Only calls whose form has not changed for years are made here. A sentry that knows no
//! such socket or method has not been asked anything, and the caller asks `runsc` instead.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::paths::Paths;
use crate::{EngineError, ExecutionId};

/// Stops all tasks and returns when they stand. Calls nest.
pub(super) const PAUSE: &str = "containerManager.Pause";
/// Undoes one `PAUSE`. One too many ends the sentry.
pub(super) const RESUME: &str = "containerManager.Resume";
/// Returns when a restored image is loaded.
pub(super) const WAIT_RESTORE: &str = "containerManager.WaitRestore";
/// Answers the stacks of all goroutines as text.
pub(super) const STACKS: &str = "debug.Stacks";

/// What a sentry says to a method it does not have.
const UNKNOWN_METHOD: &str = "unknown method";
const CHUNK: usize = 64 << 10;
/// The longest answers that are taken, in bytes. The stacks of a guest with many tasks are long; any
/// other answer is a line.
const LONGEST_STACKS: usize = 256 << 20;
const LONGEST_LINE: usize = 1 << 20;

/// The control socket of one sentry.
pub(super) struct Control {
    socket: PathBuf,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// Nothing was asked: there is no such socket or method.
    NotAsked(String),
    /// It was asked; whether it was done is not known.
    Failed(EngineError),
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    err: String,
    #[serde(default)]
    result: Value,
}

impl Control {
    pub(super) fn of(id: &ExecutionId, paths: &Paths) -> Self {
        Self {
            socket: paths.control_socket(id),
        }
    }

    /// Makes one call and answers its result.
    pub(super) async fn call(&self, method: &str, limit: Duration) -> Result<Value, CallError> {
        let step = || format!("{method} over {}", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| CallError::NotAsked(error.to_string()))?;
        let answer = match tokio::time::timeout(limit, exchange(stream, method)).await {
            Ok(answer) => answer.map_err(super::failed(step())),
            Err(_) => Err(EngineError::Timeout {
                step: step(),
                limit,
            }),
        };
        let answer = answer.map_err(CallError::Failed)?;
        if answer.success {
            return Ok(answer.result);
        }
        if answer.err == UNKNOWN_METHOD {
            return Err(CallError::NotAsked(format!("{method}: {}", answer.err)));
        }
        Err(CallError::Failed(EngineError::Failed {
            step: step(),
            detail: answer.err,
        }))
    }
}

async fn exchange(mut stream: UnixStream, method: &str) -> io::Result<Answer> {
    let request = serde_json::to_vec(&json!({ "method": method, "arg": null }))?;
    stream.write_all(&request).await?;
    let longest = if method == STACKS {
        LONGEST_STACKS
    } else {
        LONGEST_LINE
    };
    // Nothing marks the end of an answer but that it is complete.
    let mut text = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        text.extend_from_slice(&chunk[..read]);
        if text.len() > longest {
            let problem = format!("the answer is longer than {longest} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        // Trying each time would take quadratic time.
        if !matches!(text.last(), Some(b'}' | b'\n')) {
            continue;
        }
        match serde_json::from_slice(&text) {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_eof() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A sentry that gives `answers` to one call, piece by piece.
    fn sentry(folder: &std::path::Path, answers: Vec<&'static str>) -> Control {
        let socket = folder.join("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            for answer in answers {
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Control { socket }
    }

    #[tokio::test]
    async fn an_answer_in_pieces_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let pieces = vec![r#"{"success":true,"err":"","resu"#, r#"lt":"text"}"#];
        let answer = sentry(folder.path(), pieces).call(STACKS, LIMIT).await;
        assert_eq!(answer.unwrap(), json!("text"));
    }

    #[tokio::test]
    async fn an_answer_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(LONGEST_LINE);
        let long = format!(r#"{{"success":true,"err":"","result":"{long}"}}"#);
        let answer = sentry(folder.path(), vec![long.leak()]);
        let answer = answer.call(PAUSE, LIMIT).await;
        assert!(matches!(answer, Err(CallError::Failed(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_sentry_without_the_method_was_not_asked() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = vec![r#"{"success":false,"err":"unknown method","result":null}"#];
        let answer = sentry(folder.path(), refusal).call(PAUSE, LIMIT).await;
        assert!(matches!(answer, Err(CallError::NotAsked(_))), "{answer:?}");
        let nobody = Control {
            socket: folder.path().join("nobody.sock"),
        };
        let answer = nobody.call(PAUSE, LIMIT).await;
        assert!(matches!(answer, Err(CallError::NotAsked(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_call_cut_off_may_have_been_done() {
        let folder = tempfile::tempdir().unwrap();
        let answer = sentry(folder.path(), vec![r#"{"succ"#]);
        let answer = answer.call(PAUSE, LIMIT).await;
        assert!(matches!(answer, Err(CallError::Failed(_))), "{answer:?}");
    }
}
