//! The way into one running execution: TCP to its ports, and its agent.

use std::io;
use std::sync::Arc;

use engine::{Engine, ExecutionId};
use tokio::net::TcpStream;

/// Opens connections to the ports of one execution.
#[derive(Clone)]
pub struct Guest {
    engine: Arc<dyn Engine>,
    execution: ExecutionId,
}

impl Guest {
    /// The way into `execution`.
    pub fn new(engine: Arc<dyn Engine>, execution: ExecutionId) -> Self {
        Self { engine, execution }
    }

    /// Connects to a port on the guest's network interface.
    pub async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        self.engine.dial(&self.execution, port).await
    }
}
