//! Traffic resumes a sandbox that was made for it.

use async_trait::async_trait;
use e2b_client::Problem;
use futures_util::future::join_all;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{At, Scenario};
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const RESUMED: Promise = Promise::required(
    "auto-resume",
    "requests to a port of a paused sandbox with autoResume are held and answered by one resume, \
     and so is a command",
);

/// Requests at once.
const CLIENTS: u64 = 4;

#[derive(Debug, Deserialize)]
struct State {
    counter: u64,
}

/// `autoResume`.
pub(super) struct AutoResume;

#[async_trait]
impl Scenario for AutoResume {
    fn name(&self) -> &'static str {
        "resume by traffic"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![RESUMED]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let request = json!({ "autoPause": true, "autoResume": { "enabled": true } });
        let (sandbox, _holder) = suite.create_holding(&request).await?;
        let view = suite.view(&sandbox);
        let boot_id = view.agent.boot_id().await?;

        at("by requests to a port");
        suite.api.pause(&sandbox.id).await?;
        let requests = (1..=CLIENTS).map(async |number| {
            view.guest
                .ask("acknowledged.add", &json!({ "number": number }))
                .await
        });
        for answer in join_all(requests).await {
            answer?.expect("a request to the paused sandbox", StatusCode::OK)?;
        }
        let state: State = view.guest.call("acknowledged.state", json!({})).await?;
        // A second resume of the same image would have forgotten some.
        require(state.counter == CLIENTS, || {
            format!("of {CLIENTS} requests {} were counted", state.counter)
        })?;

        at("by a command");
        suite.api.pause(&sandbox.id).await?;
        let now = view.agent.boot_id().await?;
        require(now == boot_id, || "the command met another boot".to_owned())?;
        let state = suite.api.state(&sandbox.id).await?;
        require(state == "running", || {
            format!("after a command was answered it is {state}")
        })?;
        let seen = format!("{CLIENTS} requests at once and a command, all answered");
        findings.note(RESUMED, Ok(seen));
        suite.api.kill(&sandbox.id).await
    }
}
