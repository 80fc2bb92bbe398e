//! The events of a process as one subscriber sees them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::live::Process;
use super::messages::{DataEvent, Event, EventResponse, Nothing, Output, StartEvent};
use crate::connect::{Caller, Codec, Frames, RpcError, end_of_stream};
use crate::server::BoxError;

/// What this stream has to do with the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It started the process, whose deadline is also its own.
    Starter,
    /// It watches a process others started.
    Observer,
}

struct EventStream {
    process: Arc<Process>,
    output: mpsc::Receiver<Output>,
    codec: Codec,
    role: Role,
    deadline: Option<Instant>,
    keepalive: Duration,
    next_keepalive: Instant,
    state: State,
}

enum State {
    Start,
    Running,
    /// The last event is out, the terminator is not.
    Ended,
    Done,
}

/// One `start`, then data and keepalives, then one `end`, then the terminator.
pub(crate) fn events(
    process: Arc<Process>,
    output: mpsc::Receiver<Output>,
    caller: &Caller,
    codec: Codec,
    role: Role,
) -> Frames {
    let stream = EventStream {
        process,
        output,
        codec,
        role,
        deadline: caller.deadline,
        keepalive: caller.keepalive,
        next_keepalive: Instant::now() + caller.keepalive,
        state: State::Start,
    };
    futures_util::stream::unfold(stream, |mut stream| async move {
        let frame = stream.next().await?;
        Some((frame, stream))
    })
    .boxed()
}

impl EventStream {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        match self.state {
            State::Start => {
                self.state = State::Running;
                Some(Ok(self.frame(Event::Start(StartEvent {
                    pid: self.process.pid,
                }))))
            }
            State::Running => Some(self.running().await),
            State::Ended => {
                self.state = State::Done;
                Some(Ok(end_of_stream(None)))
            }
            State::Done => None,
        }
    }

    async fn running(&mut self) -> Result<Bytes, BoxError> {
        let deadline = self.deadline;
        let expired = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The deadline wins over an end that arrives with it: tests demand the error.
            biased;
            () = expired => Ok(self.expire()),
            output = self.output.recv() => match output {
                Some(output) => {
                    self.next_keepalive = Instant::now() + self.keepalive;
                    Ok(self.frame(Event::Data(DataEvent { output: Some(output) })))
                }
                None => self.end(),
            },
            () = tokio::time::sleep_until(self.next_keepalive) => {
                self.next_keepalive = Instant::now() + self.keepalive;
                Ok(self.frame(Event::Keepalive(Nothing {})))
            }
        }
    }

    fn end(&mut self) -> Result<Bytes, BoxError> {
        let Some(end) = self.process.end.get().cloned() else {
            return Err("subscriber was too slow and has been dropped".into());
        };
        if self.role == Role::Starter && self.process.deadline_passed.load(Ordering::Relaxed) {
            return Ok(self.expire());
        }
        self.state = State::Ended;
        Ok(self.frame(Event::End(end)))
    }

    fn expire(&mut self) -> Bytes {
        self.state = State::Done;
        end_of_stream(Some(&RpcError::deadline()))
    }

    fn frame(&self, event: Event) -> Bytes {
        self.codec.envelope(&EventResponse::from(event))
    }
}
