//! A kill while a pause is in flight.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use e2b_client::Problem;
use http::StatusCode;
use serde_json::{Value, json};

use super::{At, Scenario};
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const KILLED: Promise = Promise::required(
    "kill-during-pause",
    "a kill while a pause is in flight is answered 204 and the sandbox is gone for good",
);

/// When the kill is sent, counted from the pause.
const DELAYS_MS: [u64; 5] = [0, 5, 20, 80, 200];
/// Makes the pause long enough to be met.
const MEMORY_MIB: u64 = 128;

/// Kills at several moments.
pub(super) struct KillDuringPause;

#[async_trait]
impl Scenario for KillDuringPause {
    fn name(&self) -> &'static str {
        "kill during a pause"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![KILLED]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let mut met = 0;
        for delay in DELAYS_MS {
            at(&format!("{delay} ms after the pause"));
            if kill_after(suite, Duration::from_millis(delay)).await? {
                met += 1;
            }
        }
        require(met > 0, || {
            "no kill met a pause in flight: nothing was shown".to_owned()
        })?;
        let times = DELAYS_MS.len();
        let seen = format!("gone after each of {times} kills, {met} of them met a pause in flight");
        findings.note(KILLED, Ok(seen));
        Ok(())
    }
}

/// Whether the pause was in flight when the kill was sent.
async fn kill_after(suite: &Suite, delay: Duration) -> Result<bool, Problem> {
    let (sandbox, _holder) = suite.create_holding(&json!({})).await?;
    let id = &sandbox.id;
    let view = suite.view(&sandbox);
    let mib = json!({ "mib": MEMORY_MIB });
    let _made: Value = view.guest.call("blob.start", mib).await?;
    let started = Instant::now();
    let pause = async {
        let answer = suite.api.try_pause(id, &json!({})).await;
        (answer, started.elapsed())
    };
    let kill = async {
        tokio::time::sleep(delay).await;
        (started.elapsed(), suite.api.try_kill(id).await)
    };
    let ((paused, paused_after), (killed_after, killed)) = tokio::join!(pause, kill);
    let after = |problem: Problem| Problem::Broken(format!("after {delay:?}: {problem}"));
    killed
        .and_then(|answer| answer.expect("kill", StatusCode::NO_CONTENT).map(|_| ()))
        .map_err(after)?;
    let paused = paused.map_err(after)?;
    // It may have been first, or have found the kill under way.
    let allowed = [
        StatusCode::NO_CONTENT,
        StatusCode::NOT_FOUND,
        StatusCode::CONFLICT,
    ];
    require(allowed.contains(&paused.status), || {
        after(paused.unwanted("the pause")).to_string()
    })?;
    let state = suite.api.state(id).await?;
    let listed = suite.api.listed_state(id, &suite.mark).await?;
    require(state == "gone" && listed == "gone", || {
        format!("after {delay:?}: killed, but get says {state} and the list {listed}")
    })?;
    let connected = suite.api.try_connect(id).await?;
    require(connected.status == StatusCode::NOT_FOUND, || {
        connected.unwanted("connect to the killed one").to_string()
    })?;
    Ok(paused.status == StatusCode::NO_CONTENT && paused_after > killed_after)
}
