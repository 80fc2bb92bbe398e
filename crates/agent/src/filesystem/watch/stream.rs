//! The events of a watched directory as a stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::Watcher;
use super::service::event;
use crate::agent::Agent;
use crate::connect::{Caller, Codec, Frames, RpcError, end_of_stream};
use crate::filesystem::messages::{Nothing, WatchDirResponse, WatchEvent};

/// One `start`, then events and keepalives, until the client leaves or its time is over.
pub(super) struct WatchStream {
    watcher: Arc<Watcher>,
    _registered: Registered,
    codec: Codec,
    include_entry: bool,
    deadline: Option<Instant>,
    keepalive: Duration,
    next_keepalive: Instant,
    state: State,
}

/// Keeps the watcher known to `settle` while the stream lives.
struct Registered {
    agent: Arc<Agent>,
    id: String,
}

enum State {
    Start,
    Running,
    Done,
}

impl WatchStream {
    pub(super) fn start(
        agent: Arc<Agent>,
        watcher: Arc<Watcher>,
        caller: &Caller,
        codec: Codec,
        include_entry: bool,
    ) -> Frames {
        let id = agent.watchers.add(&watcher, None);
        let stream = Self {
            watcher,
            _registered: Registered { agent, id },
            codec,
            include_entry: include_entry && !caller.legacy,
            deadline: caller.deadline,
            keepalive: caller.keepalive,
            next_keepalive: Instant::now() + caller.keepalive,
            state: State::Start,
        };
        futures_util::stream::unfold(stream, |mut stream| async move {
            let frame = stream.next().await?;
            Some((Ok(frame), stream))
        })
        .boxed()
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self.state {
            State::Start => {
                self.state = State::Running;
                Some(self.frame(WatchEvent::Start(Nothing {})))
            }
            State::Running => Some(self.running().await),
            State::Done => None,
        }
    }

    async fn running(&mut self) -> Bytes {
        loop {
            if let Some(frame) = self.unread() {
                return frame;
            }
            let deadline = self.deadline;
            let expired = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expired => return self.fail(&RpcError::deadline()),
                waited = self.watcher.wait() => {
                    if let Err(error) = waited {
                        return self.fail(&RpcError::internal(format!("watcher error: {error}")));
                    }
                }
                () = tokio::time::sleep_until(self.next_keepalive) => {
                    self.next_keepalive = Instant::now() + self.keepalive;
                    return self.frame(WatchEvent::Keepalive(Nothing {}));
                }
            }
        }
    }

    fn unread(&mut self) -> Option<Bytes> {
        let (change, root) = {
            let mut state = self.watcher.lock();
            match state.unread.pop_front() {
                Some(change) => (Ok(change), state.tree.root.clone()),
                None => (Err(state.failure.clone()?), String::new()),
            }
        };
        Some(match change {
            Ok(change) => {
                self.next_keepalive = Instant::now() + self.keepalive;
                self.frame(WatchEvent::Filesystem(event(
                    change,
                    &root,
                    self.include_entry,
                )))
            }
            Err(failure) => self.fail(&RpcError::internal(format!("watcher error: {failure}"))),
        })
    }

    fn fail(&mut self, error: &RpcError) -> Bytes {
        self.state = State::Done;
        end_of_stream(Some(error))
    }

    fn frame(&self, event: WatchEvent) -> Bytes {
        self.codec
            .envelope(&WatchDirResponse { event: Some(event) })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.agent.watchers.remove(&self.id);
    }
}
