//! Telling the agent that the host watches the guest's memory.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::net::TcpStream;

use crate::MEMORY_WATCH_PATH;
use crate::client::{ClientError, open};

/// While this exists the agent does not look at the guest's memory by itself. Dropping it tells the
/// agent to look at once.
pub struct MemoryWatch {
    body: Incoming,
    connection: tokio::task::JoinHandle<()>,
}

impl MemoryWatch {
    /// Begins. When this returns, the agent relies on the host.
    pub async fn begin(stream: TcpStream) -> Result<Self, ClientError> {
        let (body, connection) = open(stream, MEMORY_WATCH_PATH).await?;
        Ok(Self { body, connection })
    }

    /// Returns when the agent does not rely on it any more.
    pub async fn ended(&mut self) {
        while let Some(Ok(_)) = self.body.frame().await {}
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
