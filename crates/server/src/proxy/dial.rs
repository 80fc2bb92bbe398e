//! Reaching a port inside a sandbox.
//!
//! A service that listens on the guest's network interface is dialled. One that listens on
//! 127.0.0.1 or ::1 only refuses that; the agent then opens a tunnel to it from the inside.

use std::io;
use std::time::Duration;

use agent_api::{ENVD_PORT, HOST_PORT};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};

use crate::guest::Guest;

/// Services that are just starting, or thawing after a resume, get this many chances.
const ATTEMPTS: u32 = 5;
/// Grows with each attempt: 100, 200, 300, 400 ms.
const BACK_OFF: Duration = Duration::from_millis(100);
/// For one attempt. A guest that drops packets must not hold a request for ever.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// A byte stream to a port inside a sandbox.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Nothing listens on the port.
#[derive(Debug)]
pub(super) struct Closed;

/// Connects to `port`, trying again for about a second while nothing listens.
pub(super) async fn dial(guest: &Guest, port: u16) -> Result<Box<dyn Stream>, Closed> {
    // The host's channel to the agent is not for anybody else.
    if port == HOST_PORT {
        return Err(Closed);
    }
    for attempt in 0..ATTEMPTS {
        sleep(BACK_OFF * attempt).await;
        match timeout(ATTEMPT_LIMIT, dial_once(guest, port)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, port, attempt, "could not connect into a sandbox");
            }
            Err(_) => {
                tracing::debug!(port, "connecting into a sandbox took too long");
                return Err(Closed);
            }
        }
    }
    Err(Closed)
}

async fn dial_once(guest: &Guest, port: u16) -> io::Result<Box<dyn Stream>> {
    match guest.dial(port).await {
        Ok(stream) => {
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        // The agent's own port is never reached from the inside: there, peers are trusted more.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && port != ENVD_PORT => {
            let host_channel = guest.dial(HOST_PORT).await?;
            host_channel.set_nodelay(true)?;
            let tunnel = agent_api::client::tunnel(host_channel, port);
            Ok(Box::new(tunnel.await.map_err(io::Error::other)?))
        }
        Err(error) => Err(error),
    }
}
