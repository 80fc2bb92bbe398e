//! The way into one running execution: TCP to its ports, and its agent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use agent_api::{
    ClientError, HOST_PORT, HooksReply, InitReply, InitRequest, LogReader, MemoryWatch,
    PrepareReply, PrepareRequest, RunHooks,
};
use engine::{Engine, EngineError, ExecutionId, Usage};
use tokio::net::TcpStream;

/// One request to the agent is given this long; a start repeats it.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Opens connections to the ports of one execution.
#[derive(Clone)]
pub struct Guest {
    engine: Arc<dyn Engine>,
    execution: ExecutionId,
}

/// A failed request to the agent.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Nothing could be reached inside.
    #[error("connect to the agent")]
    Dial(#[from] io::Error),
    /// The agent did not do it.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The agent took too long.
    #[error("the agent did not answer within {REQUEST_LIMIT:?}")]
    Slow,
}

impl Guest {
    /// The way into `execution`.
    pub fn new(engine: Arc<dyn Engine>, execution: ExecutionId) -> Self {
        Self { engine, execution }
    }

    /// Which execution it leads into; a new run of a sandbox has another one.
    pub fn execution(&self) -> &ExecutionId {
        &self.execution
    }

    /// Connects to a port on the guest's network interface.
    pub async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        self.engine.dial(&self.execution, port).await
    }

    /// Tells the agent which sandbox it is in.
    pub async fn init(&self, request: &InitRequest) -> Result<InitReply, GuestError> {
        let call = async {
            let stream = self.dial(HOST_PORT).await?;
            Ok(agent_api::client::init(stream, request).await?)
        };
        tokio::time::timeout(REQUEST_LIMIT, call)
            .await
            .unwrap_or(Err(GuestError::Slow))
    }

    /// Asks whether the agent answers.
    pub async fn health(&self) -> Result<(), GuestError> {
        let call = async {
            let stream = self.dial(HOST_PORT).await?;
            Ok(agent_api::client::health(stream).await?)
        };
        tokio::time::timeout(REQUEST_LIMIT, call)
            .await
            .unwrap_or(Err(GuestError::Slow))
    }

    /// What the execution uses, as the engine sees it.
    pub async fn usage(&self) -> Result<Usage, EngineError> {
        self.engine.usage(&self.execution).await
    }

    /// Bytes of memory the guest uses now, as the engine sees it.
    pub fn memory(&self) -> Result<u64, EngineError> {
        self.engine.memory_in_use(&self.execution)
    }

    /// Lets the agent rely on the host for watching the memory. The caller bounds the time.
    pub async fn watch_memory(&self) -> Result<MemoryWatch, GuestError> {
        let stream = self.dial(HOST_PORT).await?;
        Ok(MemoryWatch::begin(stream).await?)
    }

    /// The agent's log after line `after` of a boot, and as it grows.
    pub async fn log(&self, boot: &str, after: u64) -> Result<LogReader, GuestError> {
        let call = async {
            let stream = self.dial(HOST_PORT).await?;
            Ok(LogReader::open(stream, boot, after).await?)
        };
        tokio::time::timeout(REQUEST_LIMIT, call)
            .await
            .unwrap_or(Err(GuestError::Slow))
    }

    /// Lets the agent trim, and write back what the host does not, before a pause. The caller bounds the
    /// time.
    pub async fn prepare(&self, request: &PrepareRequest) -> Result<PrepareReply, GuestError> {
        let stream = self.dial(HOST_PORT).await?;
        Ok(agent_api::client::prepare(stream, request).await?)
    }

    /// Lets the agent run hooks of the sandbox's owner. The caller bounds the time.
    pub async fn run_hooks(&self, request: &RunHooks) -> Result<HooksReply, GuestError> {
        let stream = self.dial(HOST_PORT).await?;
        Ok(agent_api::client::run_hooks(stream, request).await?)
    }
}
