//! The stream of a process that a client listens to.

use std::time::Duration;

use async_trait::async_trait;
use e2b_client::{Event, Next, Problem};

use super::{Kept, Round};
use crate::guest::Holder;
use crate::problem::require;
use crate::report::Promise;

/// An open stream must break within this.
const BREAK_LIMIT: Duration = Duration::from_secs(20);

/// Open since the start of the holder, or the connect after the last resume.
pub(super) struct Streams {
    holder: Option<Holder>,
}

impl Streams {
    pub(super) fn new(holder: Option<Holder>) -> Self {
        Self { holder }
    }

    fn holder(&mut self) -> Result<&mut Holder, Problem> {
        let holder = self.holder.as_mut();
        holder.ok_or_else(|| Problem::Broken("no process to listen to".to_owned()))
    }
}

#[async_trait]
impl Kept for Streams {
    fn promise(&self) -> Promise {
        Promise::required(
            "streams",
            "the stream of a process breaks at the pause (SDKs tell that from an end), the process \
             is listed with its pid, and connect listens to it again",
        )
    }

    async fn while_paused(&mut self, _round: &Round<'_>) -> Result<(), Problem> {
        let stream = &mut self.holder()?.stream;
        loop {
            match stream.next(BREAK_LIMIT).await? {
                Next::Broken(_) => return Ok(()),
                // On their way before the pause.
                Next::Event(Event::Output(_) | Event::KeepAlive) => {}
                other => {
                    return Err(Problem::Broken(format!(
                        "the stream did not break at the pause: {other:?}"
                    )));
                }
            }
        }
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let holder = self.holder()?;
        let listed = round.agent.processes().await?;
        require(listed.contains(&holder.pid), || {
            format!("pid {} is not among the processes {listed:?}", holder.pid)
        })?;
        holder.stream = round.agent.connect(holder.pid).await?;
        Ok(format!("broke, and pid {} is heard again", holder.pid))
    }
}
