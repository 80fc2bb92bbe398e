//! Client of the API inside a sandbox: processes by Connect with JSON, files by plain HTTP.

mod envelope;
mod stream;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::api::{Api, Sandbox};
use crate::problem::Problem;
use crate::transport::{Answer, Call};

pub use stream::{Event, Next, Stream};

/// Port of the API inside, fixed by the SDKs.
const PORT: u16 = 49983;
/// A process must be there, and a short command must have ended, within this.
const PROCESS_LIMIT: Duration = Duration::from_secs(60);

/// The API inside one sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Agent<'a> {
    api: &'a Api,
    sandbox: &'a Sandbox,
}

/// What a command left.
#[derive(Debug)]
pub struct Output {
    /// As the contract tells it: -1 for a signal.
    pub exit_code: i64,
    /// Both streams, without white space at the end.
    pub text: String,
}

/// Columns and rows.
#[derive(Clone, Copy, Debug)]
pub struct WindowSize {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl WindowSize {
    fn pty(self) -> Value {
        json!({ "size": { "cols": self.columns, "rows": self.rows } })
    }
}

impl<'a> Agent<'a> {
    /// With the token of the sandbox, when it has one.
    pub fn new(api: &'a Api, sandbox: &'a Sandbox) -> Self {
        Self { api, sandbox }
    }

    fn call(&self, method: Method, path: &str) -> Result<Call, Problem> {
        let call = self.api.sandbox_call(method, self.sandbox, PORT, path)?;
        Ok(match &self.sandbox.token {
            Some(token) => call.header("x-access-token", token.as_str()),
            None => call,
        })
    }

    /// A unary call, whatever it answers.
    async fn try_unary(&self, method: &str, message: &Value) -> Result<Answer, Problem> {
        let path = format!("/process.Process/{method}");
        let call = self.call(Method::POST, &path)?;
        let call = call.header("connect-protocol-version", "1").json(message);
        self.api.transport.send(call).await
    }

    async fn unary(&self, method: &str, message: &Value) -> Result<Value, Problem> {
        let answer = self.try_unary(method, message).await?;
        answer.expect(method, StatusCode::OK)?.decode(method)
    }

    async fn open(&self, method: &str, message: &Value) -> Result<(Stream, u64), Problem> {
        let mut call = self
            .call(Method::POST, &format!("/process.Process/{method}"))?
            .header("content-type", "application/connect+json")
            .header("connect-protocol-version", "1");
        call.body = envelope::enclose(message.to_string().as_bytes());
        let response = tokio::time::timeout(PROCESS_LIMIT, self.api.transport.open(call)).await;
        let response = response
            .map_err(|_| Problem::Broken(format!("{method}: no answer in {PROCESS_LIMIT:?}")))??;
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            return Err(Problem::Broken(format!("{method} answered {status}")));
        }
        let mut stream = Stream::new(response.into_body());
        let pid = stream.pid(PROCESS_LIMIT).await?;
        Ok((stream, pid))
    }

    /// Starts a process without a deadline.
    pub async fn start(
        &self,
        command: &[&str],
        environment: &Value,
        directory: &str,
    ) -> Result<(Stream, u64), Problem> {
        let (program, arguments) = command.split_first().expect("a program to start");
        let process = json!({
            "cmd": program, "args": arguments, "envs": environment, "cwd": directory,
        });
        let message = json!({ "process": process, "stdin": false });
        self.open("Start", &message).await
    }

    /// Starts an interactive shell on a terminal.
    pub async fn start_shell(&self, size: WindowSize) -> Result<(Stream, u64), Problem> {
        let process = json!({
            "cmd": "/bin/bash", "args": ["--norc", "--noprofile", "-i"],
            "envs": { "TERM": "xterm", "PS1": "$ " },
        });
        let message = json!({ "process": process, "pty": size.pty() });
        self.open("Start", &message).await
    }

    /// Listens to a process that runs.
    pub async fn connect(&self, pid: u64) -> Result<Stream, Problem> {
        let (stream, _) = self
            .open("Connect", &json!({ "process": { "pid": pid } }))
            .await?;
        Ok(stream)
    }

    /// Runs a command of the shell to its end.
    pub async fn run(&self, command: &str) -> Result<Output, Problem> {
        let (mut stream, _) = self
            .start(&["/bin/bash", "-l", "-c", command], &json!({}), "")
            .await?;
        let mut text = Vec::new();
        loop {
            match stream.next(PROCESS_LIMIT).await? {
                Next::Event(Event::Output(bytes)) => text.extend_from_slice(&bytes),
                Next::Event(Event::End { exit_code }) => {
                    return Ok(Output {
                        exit_code,
                        text: String::from_utf8_lossy(&text).trim_end().to_owned(),
                    });
                }
                Next::Event(Event::Start { .. } | Event::KeepAlive) => {}
                other => {
                    return Err(Problem::Broken(format!("`{command}` went on by {other:?}")));
                }
            }
        }
    }

    /// Ids of all processes that clients started.
    pub async fn processes(&self) -> Result<Vec<u64>, Problem> {
        let listed = self.unary("List", &json!({})).await?;
        let processes = listed["processes"].as_array().cloned().unwrap_or_default();
        let ids = processes.iter().map(|process| process["pid"].as_u64());
        let ids: Option<Vec<u64>> = ids.collect();
        ids.ok_or_else(|| Problem::Broken(format!("a process without pid: {listed}")))
    }

    /// What the edge answers to a command: 502 when nothing runs.
    pub async fn command_status(&self) -> Result<StatusCode, Problem> {
        Ok(self.try_unary("List", &json!({})).await?.status)
    }

    /// Types into a terminal.
    pub async fn type_in(&self, pid: u64, text: &str) -> Result<(), Problem> {
        let message = json!({
            "process": { "pid": pid }, "input": { "pty": STANDARD.encode(text) },
        });
        self.unary("SendInput", &message).await?;
        Ok(())
    }

    /// Changes the size of a terminal.
    pub async fn resize(&self, pid: u64, size: WindowSize) -> Result<(), Problem> {
        let message = json!({ "process": { "pid": pid }, "pty": size.pty() });
        self.unary("Update", &message).await?;
        Ok(())
    }

    /// Writes a file, and the directories above it.
    pub async fn write(&self, path: &str, content: &str) -> Result<(), Problem> {
        let call = self.call(Method::POST, &format!("/files?path={path}"))?;
        let mut call = call.header("content-type", "application/octet-stream");
        call.body = Bytes::from(content.to_owned());
        let answer = self.api.transport.send(call).await?;
        answer.expect("upload", StatusCode::OK)?;
        Ok(())
    }

    /// Reads a file.
    pub async fn read(&self, path: &str) -> Result<Bytes, Problem> {
        let call = self.call(Method::GET, &format!("/files?path={path}"))?;
        let answer = self.api.transport.send(call).await?;
        Ok(answer.expect("download", StatusCode::OK)?.body.clone())
    }

    /// Writes a large file.
    pub async fn upload(&self, path: &str, content: Bytes, limit: Duration) -> Result<(), Problem> {
        let call = self.call(Method::POST, &format!("/files?path={path}"))?;
        let mut call = call.header("content-type", "application/octet-stream");
        call.body = content;
        let answer = self.api.transport.send_within(call, limit).await?;
        answer.expect("upload", StatusCode::OK)?;
        Ok(())
    }

    /// Reads a large file; the body is for the caller to read.
    pub async fn download(&self, path: &str) -> Result<Incoming, Problem> {
        let call = self.call(Method::GET, &format!("/files?path={path}"))?;
        let response = self.api.transport.open(call).await?;
        match response.status() {
            StatusCode::OK => Ok(response.into_body()),
            status => Err(Problem::Broken(format!(
                "download answered {}",
                status.as_u16()
            ))),
        }
    }

    /// Differs between boots.
    pub async fn boot_id(&self) -> Result<String, Problem> {
        // Through a process: servers differ in how they serve pseudo files for download.
        let output = self.run("cat /proc/sys/kernel/random/boot_id").await?;
        if output.exit_code != 0 || output.text.is_empty() {
            return Err(Problem::Broken(format!("no boot id: {}", output.text)));
        }
        Ok(output.text)
    }
}
