//! Data on their way between processes, and memory they share.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2b_client::Problem;
use rand::RngCore;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Kept, Round, token};
use crate::problem::{difference, require};
use crate::report::Promise;

/// Less than any channel holds.
const IN_FLIGHT: usize = 16384;
/// What fits into one datagram.
const DATAGRAM: usize = 4096;

/// Bytes that were written before the pause and are read after it.
#[derive(Default)]
pub(super) struct Channels {
    data: Vec<u8>,
}

fn sha256(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[async_trait]
impl Kept for Channels {
    fn promise(&self) -> Promise {
        Promise::required(
            "channels",
            "bytes in pipes, FIFOs, socket pairs, unix, TCP and UDP sockets and a process between \
             two pipes arrive, and a unix listener takes connections",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        round.guest.call("channels.start", json!({})).await
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.data = vec![0; IN_FLIGHT];
        rand::rng().fill_bytes(&mut self.data);
        let data = STANDARD.encode(&self.data);
        round
            .guest
            .call("channels.fill", json!({ "data": data }))
            .await
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let drained = json!({ "size": IN_FLIGHT });
        let seen: serde_json::Map<String, Value> =
            round.guest.call("channels.drain", drained).await?;
        require(!seen.is_empty(), || "no channel at all".to_owned())?;
        for (name, digest) in &seen {
            let sent = match name.as_str() {
                "udp" => &self.data[..DATAGRAM],
                _ => &self.data,
            };
            require(digest == &json!(sha256(sent)), || {
                format!("{name}: other bytes came out than went in")
            })?;
        }
        let text = token();
        let sent = json!({ "text": text });
        let echoed: String = round.guest.call("channels.new_connection", sent).await?;
        require(echoed == text, || {
            format!("a new unix connection carried {echoed:?}")
        })?;
        let names: Vec<&str> = seen.keys().map(String::as_str).collect();
        Ok(format!("all bytes arrived: {}", names.join(", ")))
    }
}

/// Memory that two processes share goes on being shared.
#[derive(Default)]
pub(super) struct Shared {
    digests: Value,
}

#[async_trait]
impl Kept for Shared {
    fn promise(&self) -> Promise {
        Promise::required(
            "shared-memory",
            "SysV, memfd and /dev/shm memory has its content, and what one process writes the \
             other reads",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.digests = round.guest.call("shared.start", json!({})).await?;
        Ok(())
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let digests: Value = round.guest.call("shared.digest", json!({})).await?;
        require(digests == self.digests, || {
            format!("the content: {}", difference(&self.digests, &digests))
        })?;
        let text = token();
        let sent = json!({ "text": text });
        let seen: serde_json::Map<String, Value> =
            round.guest.call("shared.through_child", sent).await?;
        for (name, read) in &seen {
            require(read == &json!(text), || {
                format!("{name}: the child wrote {text}, {read} was read")
            })?;
        }
        require(!seen.is_empty(), || "no shared memory at all".to_owned())?;
        let names: Vec<&str> = seen.keys().map(String::as_str).collect();
        Ok(format!("same and shared: {}", names.join(", ")))
    }
}
