//! Reading the agent's log, line by line, as it grows.

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::LOG_PATH;
use crate::client::{ClientError, open};
use crate::messages::LogLine;

/// Longest line that is read.
const LINE_LIMIT: usize = 256 * 1024;

/// The log of one execution being read. Ends with its connection.
pub struct LogReader {
    body: Incoming,
    buffer: BytesMut,
    connection: tokio::task::JoinHandle<()>,
    /// Boot that the lines' numbers belong to.
    pub boot: String,
}

#[derive(Deserialize)]
struct Start {
    boot: String,
}

impl LogReader {
    /// Asks for everything after line `after` of the boot `boot`; for everything, if the guest has
    /// booted since.
    pub async fn open(stream: TcpStream, boot: &str, after: u64) -> Result<Self, ClientError> {
        // A boot id is letters, digits and dashes; anything else matches none.
        let boot: String = boot
            .chars()
            .filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-')
            .collect();
        let path = format!("{LOG_PATH}?boot={boot}&after={after}");
        let (body, connection) = open(stream, &path).await?;
        let mut reader = Self {
            body,
            buffer: BytesMut::new(),
            connection,
            boot: String::new(),
        };
        let start: Option<Start> = reader.read().await?;
        let start = start.ok_or_else(|| ClientError::Answer("the log is empty".to_owned()))?;
        reader.boot = start.boot;
        Ok(reader)
    }

    /// The next line, waiting for it; `None` when the connection has ended.
    pub async fn next(&mut self) -> Result<Option<LogLine>, ClientError> {
        self.read().await
    }

    /// A line that has arrived already.
    pub fn arrived(&mut self) -> Result<Option<LogLine>, ClientError> {
        self.take()
    }

    async fn read<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(line) = self.take()? {
                return Ok(Some(line));
            }
            if self.buffer.len() > LINE_LIMIT {
                return Err(ClientError::Answer(
                    "a line of the log is too long".to_owned(),
                ));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(None),
            }
        }
    }

    fn take<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line = self.buffer.split_to(end + 1);
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| ClientError::Answer(error.to_string()))
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
