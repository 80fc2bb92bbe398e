//! Nothing executes in a paused sandbox.

use async_trait::async_trait;
use e2b_client::Problem;
use http::StatusCode;
use serde_json::json;

use super::{Kept, Round};
use crate::problem::require;
use crate::report::Promise;

/// Commands and services.
pub(super) struct Refusal;

#[async_trait]
impl Kept for Refusal {
    fn promise(&self) -> Promise {
        Promise::required(
            "refusal",
            "a paused sandbox answers 502 to commands and on its ports, stays paused by that, and \
             its service answers again after the resume",
        )
    }

    async fn while_paused(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        let status = round.agent.command_status().await?;
        require(status == StatusCode::BAD_GATEWAY, || {
            format!("a command was answered {}", status.as_u16())
        })?;
        let service = round.guest.ask("surroundings.clock", &json!({})).await?;
        require(service.status == StatusCode::BAD_GATEWAY, || {
            service
                .unwanted("the service of a paused sandbox")
                .to_string()
        })?;
        let state = round.api.state(&round.sandbox.id).await?;
        require(state == "paused", || {
            format!("after requests into the paused sandbox it is {state}")
        })
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let service = round.guest.ask("surroundings.clock", &json!({})).await?;
        service.expect("the service after the resume", StatusCode::OK)?;
        Ok("502 for both, then 200".to_owned())
    }
}
