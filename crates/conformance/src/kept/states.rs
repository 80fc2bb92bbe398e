//! The words that the server uses for a sandbox.

use async_trait::async_trait;
use e2b_client::Problem;

use super::{Kept, Round};
use crate::problem::require;
use crate::report::Promise;

/// As the single and the list tell it.
pub(super) struct States;

impl States {
    async fn look(round: &Round<'_>, expected: &str) -> Result<(), Problem> {
        let id = &round.sandbox.id;
        let got = round.api.state(id).await?;
        let listed = round.api.listed_state(id, round.mark).await?;
        require(got == expected && listed == expected, || {
            format!("it is {expected}, get says {got}, the list {listed}")
        })
    }
}

#[async_trait]
impl Kept for States {
    fn promise(&self) -> Promise {
        Promise::required(
            "state-words",
            "get and list say running after create and connect and paused after pause, at once",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        Self::look(round, "running").await
    }

    async fn while_paused(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        Self::look(round, "paused").await
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        Self::look(round, "running").await?;
        Ok("paused, then running, by both".to_owned())
    }
}
