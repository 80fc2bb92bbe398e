//! An interactive shell on a terminal.

use std::time::Duration;

use async_trait::async_trait;
use e2b_client::{Problem, Stream, WindowSize};

use super::{Kept, Round, token};
use crate::problem::require;
use crate::report::Promise;

/// A shell must have answered within this.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The shell and what it was told.
#[derive(Default)]
pub(super) struct Terminal {
    pid: u64,
    stream: Option<Stream>,
    variable: String,
    rows: u16,
    columns: u16,
}

impl Terminal {
    /// Types a command and waits for what it prints, which may not be in the command itself.
    async fn tell(
        &mut self,
        round: &Round<'_>,
        command: &str,
        printed: &str,
    ) -> Result<(), Problem> {
        round
            .agent
            .type_in(self.pid, &format!("{command}\n"))
            .await?;
        let stream = self.stream.as_mut();
        let stream = stream.ok_or_else(|| Problem::Broken("the shell did not start".to_owned()))?;
        stream
            .read_until(ANSWER_LIMIT, |text| text.contains(printed))
            .await
            .map_err(|problem| {
                Problem::Broken(format!("the shell should print {printed}: {problem}"))
            })?;
        Ok(())
    }
}

#[async_trait]
impl Kept for Terminal {
    fn promise(&self) -> Promise {
        Promise::required(
            "terminal",
            "an interactive shell has its pid, variables, directory, umask and window size",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        let size = WindowSize {
            columns: 80,
            rows: 24,
        };
        let (stream, pid) = round.agent.start_shell(size).await?;
        (self.stream, self.pid) = (Some(stream), pid);
        self.tell(
            round,
            "cd /tmp; umask 013; printf '<%s>\\n' prepared",
            "<prepared>",
        )
        .await
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        let step = u16::try_from(round.number % 100).unwrap_or_default();
        (self.columns, self.rows) = (100 + step, 30 + step);
        let size = WindowSize {
            columns: self.columns,
            rows: self.rows,
        };
        round.agent.resize(self.pid, size).await?;
        self.variable = token();
        let command = format!("X={}; printf '<%s>\\n' \"set $X\"", self.variable);
        let printed = format!("<set {}>", self.variable);
        self.tell(round, &command, &printed).await
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        require(self.pid != 0, || "the shell did not start".to_owned())?;
        self.stream = Some(round.agent.connect(self.pid).await?);
        let printed = format!(
            "<{} {} /tmp 0013 {} {}>",
            self.variable, self.pid, self.rows, self.columns
        );
        let command = "printf '<%s>\\n' \"$X $$ $PWD $(umask) $(stty size)\"";
        self.tell(round, command, &printed).await?;
        Ok(format!(
            "shell {} with all of it, {} rows of {} columns",
            self.pid, self.rows, self.columns
        ))
    }
}
