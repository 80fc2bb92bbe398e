//! Requests that make no sense in the state that a sandbox is in.

use async_trait::async_trait;
use e2b_client::{Answer, Problem};
use http::StatusCode;
use serde_json::json;

use super::{At, Scenario};
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const PAUSED: Promise = Promise::required(
    "pause-of-paused",
    "pausing a paused sandbox is answered 409, a new deadline for it 404; it stays paused and can \
     be resumed",
);
const CONNECT: Promise = Promise::required(
    "connect-to-killed",
    "after a kill, of a running or a paused sandbox, get, connect, pause and kill are answered 404",
);

/// By status.
pub(super) struct Refusals;

#[async_trait]
impl Scenario for Refusals {
    fn name(&self) -> &'static str {
        "refusals"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![PAUSED, CONNECT]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let api = &suite.api;
        at("of a paused sandbox");
        let sandbox = suite.create(&json!({})).await?;
        api.pause(&sandbox.id).await?;
        let refused = async {
            let again = api.try_pause(&sandbox.id, &json!({})).await?;
            refused("a second pause", &again, StatusCode::CONFLICT)?;
            let deadline = api.try_set_timeout(&sandbox.id, 60).await?;
            refused("a new deadline", &deadline, StatusCode::NOT_FOUND)?;
            let state = api.state(&sandbox.id).await?;
            require(state == "paused", || format!("after that it is {state}"))?;
            api.resume(&sandbox.id).await?;
            Ok("409 and 404, then resumed".to_owned())
        };
        findings.note(PAUSED, refused.await);

        at("of a killed sandbox");
        api.kill(&sandbox.id).await?;
        let other = suite.create(&json!({})).await?;
        api.pause(&other.id).await?;
        api.kill(&other.id).await?;
        for id in [&sandbox.id, &other.id] {
            findings.note(CONNECT, killed_is_gone(suite, id).await);
        }
        Ok(())
    }
}

async fn killed_is_gone(suite: &Suite, id: &str) -> Result<String, Problem> {
    let api = &suite.api;
    let gone = StatusCode::NOT_FOUND;
    let state = api.state(id).await?;
    require(state == "gone", || format!("after the kill it is {state}"))?;
    refused("connect", &api.try_connect(id).await?, gone)?;
    refused("pause", &api.try_pause(id, &json!({})).await?, gone)?;
    refused("kill", &api.try_kill(id).await?, gone)?;
    Ok("404 to all of them".to_owned())
}

fn refused(what: &str, answer: &Answer, wanted: StatusCode) -> Result<(), Problem> {
    require(answer.status == wanted, || {
        answer.unwanted(what).to_string()
    })
}
