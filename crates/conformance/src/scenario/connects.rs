//! Many clients connect to one paused sandbox at once.

use std::collections::BTreeSet;

use async_trait::async_trait;
use e2b_client::{Problem, Sandbox};
use futures_util::future::join_all;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{At, Scenario};
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const PARALLEL: Promise = Promise::required(
    "parallel-connects",
    "8 connects at once to a paused sandbox all succeed, each sees it running, by one resume",
);

const CLIENTS: u64 = 8;

#[derive(Debug, Deserialize)]
struct State {
    counter: u64,
}

/// Eight at once.
pub(super) struct Connects;

/// What one client met.
struct Met {
    status: StatusCode,
    started_at: String,
}

#[async_trait]
impl Scenario for Connects {
    fn name(&self) -> &'static str {
        "connects at once"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![PARALLEL]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let (sandbox, _holder) = suite.create_holding(&json!({})).await?;
        suite.api.pause(&sandbox.id).await?;
        at("connecting");
        let clients = (1..=CLIENTS).map(|number| connect(suite, &sandbox, number));
        let met: Result<Vec<Met>, Problem> = join_all(clients).await.into_iter().collect();
        let met = met?;
        let created = StatusCode::CREATED;
        let resumed = met.iter().filter(|met| met.status == created).count();
        require(resumed > 0, || "nobody was answered 201".to_owned())?;
        let starts: BTreeSet<&str> = met.iter().map(|met| met.started_at.as_str()).collect();
        require(starts.len() == 1, || {
            format!("it was started several times: {starts:?}")
        })?;
        let guest = suite.view(&sandbox).guest;
        let state: State = guest.call("acknowledged.state", json!({})).await?;
        // A second resume of the same image would have forgotten some.
        require(state.counter == CLIENTS, || {
            format!("of {CLIENTS} clients' writes {} are there", state.counter)
        })?;
        let seen = format!("{resumed} answered 201, the others 200, one start");
        findings.note(PARALLEL, Ok(seen));
        suite.api.kill(&sandbox.id).await
    }
}

/// Connects, looks at once, and leaves a trace in the memory of what it met.
async fn connect(suite: &Suite, sandbox: &Sandbox, number: u64) -> Result<Met, Problem> {
    let answer = suite.api.try_connect(&sandbox.id).await?;
    if answer.status != StatusCode::OK {
        answer.expect("connect", StatusCode::CREATED)?;
    }
    let connected: Sandbox = answer.decode("connect")?;
    let detail = suite.api.detail(&connected.id).await?;
    require(detail.state == "running", || {
        format!("right after connect it is {}", detail.state)
    })?;
    let guest = suite.view(&connected).guest;
    let number = json!({ "number": number });
    let _count: u64 = guest.call("acknowledged.add", number).await?;
    Ok(Met {
        status: answer.status,
        started_at: detail.started_at,
    })
}
