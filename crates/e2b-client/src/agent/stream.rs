//! What a process tells, as it comes.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::Instant;

use super::envelope;
use crate::problem::Problem;

/// What one message of the stream said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The process exists.
    Start {
        /// Its id.
        pid: u64,
    },
    /// It wrote.
    Output(Bytes),
    /// It ended.
    End {
        /// As the contract tells it: -1 for a signal.
        exit_code: i64,
    },
    /// Nothing, to keep the connection open.
    KeepAlive,
}

/// How a stream went on.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// By a message.
    Event(Event),
    /// It ended in order; with an error when there was one.
    Finished(Option<String>),
    /// The connection broke.
    Broken(String),
    /// Not within the time given.
    Silent,
}

/// The open stream of one process.
#[derive(Debug)]
pub struct Stream {
    body: Incoming,
    received: BytesMut,
}

impl Stream {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            received: BytesMut::new(),
        }
    }

    /// Waits for the next message.
    pub async fn next(&mut self, limit: Duration) -> Result<Next, Problem> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(frame) = envelope::take(&mut self.received)? {
                return if frame.last {
                    Ok(Next::Finished(failure(&frame.payload)?))
                } else {
                    Ok(Next::Event(event(&frame.payload)?))
                };
            }
            match tokio::time::timeout_at(deadline, self.body.frame()).await {
                Err(_) => return Ok(Next::Silent),
                Ok(None) => return Ok(Next::Broken("it ended without its last frame".to_owned())),
                Ok(Some(Err(error))) => return Ok(Next::Broken(error.to_string())),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.received.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// Waits for the first message, which names the process.
    pub(super) async fn pid(&mut self, limit: Duration) -> Result<u64, Problem> {
        match self.next(limit).await? {
            Next::Event(Event::Start { pid }) => Ok(pid),
            other => Err(Problem::Broken(format!(
                "a process's stream began with {other:?}"
            ))),
        }
    }

    /// Reads output until `done` says that all of it is there.
    pub async fn read_until(
        &mut self,
        limit: Duration,
        done: impl Fn(&str) -> bool,
    ) -> Result<String, Problem> {
        let deadline = Instant::now() + limit;
        let mut output = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next(left).await? {
                Next::Event(Event::Output(bytes)) => {
                    output.extend_from_slice(&bytes);
                    let text = String::from_utf8_lossy(&output);
                    if done(&text) {
                        return Ok(text.into_owned());
                    }
                }
                Next::Event(Event::Start { .. } | Event::KeepAlive) => {}
                other => {
                    let text = String::from_utf8_lossy(&output);
                    return Err(Problem::Broken(format!(
                        "waited for output, had {text:?}, then: {other:?}"
                    )));
                }
            }
        }
    }
}

fn unreadable(payload: &[u8]) -> Problem {
    let text = String::from_utf8_lossy(payload);
    Problem::Broken(format!("a stream carries an unknown message: {text}"))
}

fn event(payload: &[u8]) -> Result<Event, Problem> {
    let message: Value = serde_json::from_slice(payload).map_err(|_| unreadable(payload))?;
    let event = &message["event"];
    if let Some(start) = event.get("start") {
        let pid = start["pid"].as_u64().ok_or_else(|| unreadable(payload))?;
        return Ok(Event::Start { pid });
    }
    if let Some(data) = event.get("data") {
        let output = ["stdout", "stderr", "pty"]
            .iter()
            .find_map(|name| data.get(name)?.as_str())
            .ok_or_else(|| unreadable(payload))?;
        let bytes = STANDARD.decode(output).map_err(|_| unreadable(payload))?;
        return Ok(Event::Output(bytes.into()));
    }
    if let Some(end) = event.get("end") {
        // Left out when it is 0.
        let exit_code = end.get("exitCode").map_or(Some(0), Value::as_i64);
        let exit_code = exit_code.ok_or_else(|| unreadable(payload))?;
        return Ok(Event::End { exit_code });
    }
    if event.get("keepalive").is_some() {
        return Ok(Event::KeepAlive);
    }
    Err(unreadable(payload))
}

fn failure(payload: &[u8]) -> Result<Option<String>, Problem> {
    let end: Value = serde_json::from_slice(payload).map_err(|_| unreadable(payload))?;
    Ok(end.get("error").map(Value::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_of_the_contract_is_understood() {
        let read = |text: &str| event(text.as_bytes()).unwrap();
        assert_eq!(
            read(r#"{"event":{"start":{"pid":7}}}"#),
            Event::Start { pid: 7 }
        );
        for name in ["stdout", "stderr", "pty"] {
            let text = format!(r#"{{"event":{{"data":{{"{name}":"aGk="}}}}}}"#);
            assert_eq!(read(&text), Event::Output(Bytes::from_static(b"hi")));
        }
        assert_eq!(
            read(r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#),
            Event::End { exit_code: 0 }
        );
        assert_eq!(
            read(r#"{"event":{"end":{"exitCode":-1,"status":"signal: killed"}}}"#),
            Event::End { exit_code: -1 }
        );
        assert_eq!(read(r#"{"event":{"keepalive":{}}}"#), Event::KeepAlive);
    }

    #[test]
    fn anything_else_is_a_problem() {
        for text in [
            "",
            "{}",
            r#"{"event":{"start":{}}}"#,
            r#"{"event":{"data":{"stdout":"%"}}}"#,
            r#"{"event":{"new":{}}}"#,
        ] {
            assert!(event(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_end_of_a_stream_tells_its_error() {
        assert_eq!(failure(b"{}").unwrap(), None);
        let error = failure(br#"{"error":{"code":"not_found"}}"#).unwrap();
        assert_eq!(error.as_deref(), Some(r#"{"code":"not_found"}"#));
        assert!(failure(b"").is_err());
    }
}
