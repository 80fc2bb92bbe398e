//! The deadline comes while a client writes.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use e2b_client::{Problem, Sandbox};
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;

use super::{At, Scenario};
use crate::guest::DIRECTORY;
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const MEMORY: Promise = Promise::required(
    "auto-pause",
    "at the deadline a sandbox with autoPause is paused with the last acknowledged write in memory \
     and file, again after a resume",
);
const FILES: Promise = Promise::required(
    "auto-pause-files",
    "with autoPauseMemory:false the last acknowledged write before the deadline is in its file \
     after the boot",
);

/// Long enough for some writes.
const DEADLINE_SECONDS: u64 = 3;
/// The deadline must have had its effect within this (contract §5.11).
const EFFECT_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// What the program inside has.
#[derive(Debug, Deserialize)]
struct State {
    counter: u64,
    numbers: Vec<u64>,
}

/// With memory.
pub(super) struct AutoPause;

/// Files only.
pub(super) struct AutoPauseFiles;

#[async_trait]
impl Scenario for AutoPause {
    fn name(&self) -> &'static str {
        "pause at the deadline"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![MEMORY]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let (mut sandbox, _holder) = suite.create_holding(&json!({ "autoPause": true })).await?;
        let mut acknowledged = 0;
        for time in ["once", "twice"] {
            at(&format!("writing towards the deadline, {time}"));
            acknowledged = write_until_paused(suite, &sandbox, acknowledged).await?;
            sandbox = suite.api.resume(&sandbox.id).await?;
            let view = suite.view(&sandbox);
            let state: State = view.guest.call("acknowledged.state", json!({})).await?;
            let same = usize::try_from(state.counter) == Ok(state.numbers.len());
            require(same, || {
                format!(
                    "{} writes in memory, {} in the file",
                    state.counter,
                    state.numbers.len()
                )
            })?;
            acknowledged = has_all(&state.numbers, acknowledged)?;
        }
        findings.note(
            MEMORY,
            Ok(format!("two deadlines, all of {acknowledged} writes")),
        );
        suite.api.kill(&sandbox.id).await
    }
}

#[async_trait]
impl Scenario for AutoPauseFiles {
    fn name(&self) -> &'static str {
        "pause of the files at the deadline"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![FILES]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let request = json!({ "autoPause": true, "autoPauseMemory": false });
        let (sandbox, _holder) = suite.create_holding(&request).await?;
        let boot_id = suite.view(&sandbox).agent.boot_id().await?;
        at("writing towards the deadline");
        let acknowledged = write_until_paused(suite, &sandbox, 0).await?;
        let sandbox = suite.api.resume(&sandbox.id).await?;
        let agent = suite.view(&sandbox).agent;
        let now = agent.boot_id().await?;
        require(now != boot_id, || {
            "memory was kept: the boot_id is the same".to_owned()
        })?;
        let file = agent.read(&format!("{DIRECTORY}/acknowledged")).await?;
        let text = String::from_utf8_lossy(&file);
        let numbers: Result<Vec<u64>, _> = text.lines().map(str::parse).collect();
        let numbers = numbers.map_err(|error| {
            Problem::Broken(format!("the file has a line that is no number: {error}"))
        })?;
        let all = has_all(&numbers, acknowledged)?;
        findings.note(FILES, Ok(format!("booted, all of {all} writes")));
        suite.api.kill(&sandbox.id).await
    }
}

/// Writes one number after the other until the sandbox stops answering and says that it is paused.
/// Returns the last that was acknowledged.
async fn write_until_paused(
    suite: &Suite,
    sandbox: &Sandbox,
    mut acknowledged: u64,
) -> Result<u64, Problem> {
    let guest = suite.view(sandbox).guest;
    let first = acknowledged + 1;
    suite.api.set_timeout(&sandbox.id, DEADLINE_SECONDS).await?;
    let started = Instant::now();
    loop {
        let number = acknowledged + 1;
        let answer = guest
            .ask("acknowledged.add", &json!({ "number": number }))
            .await;
        match answer {
            Ok(answer) if answer.status == StatusCode::OK => acknowledged = number,
            // Cut off or refused: this is the end, or the state below says that it is not.
            Ok(_) | Err(_) => break,
        }
        require(started.elapsed() < EFFECT_LIMIT, || {
            format!("it still runs {EFFECT_LIMIT:?} after a deadline of {DEADLINE_SECONDS} s")
        })?;
    }
    require(acknowledged >= first, || "no write was answered".to_owned())?;
    loop {
        let state = suite.api.state(&sandbox.id).await?;
        if state == "paused" {
            return Ok(acknowledged);
        }
        require(
            state == "running" && started.elapsed() < EFFECT_LIMIT,
            || format!("after the deadline it is {state}, not paused"),
        )?;
        tokio::time::sleep(POLL).await;
    }
}

/// That the numbers are 1, 2, 3, ... up to the acknowledged one, or the one after it, which was on
/// its way.
fn has_all(numbers: &[u64], acknowledged: u64) -> Result<u64, Problem> {
    let last = numbers.last().copied().unwrap_or_default();
    let in_order = numbers.iter().copied().eq(1..=last);
    require(in_order, || {
        format!("numbers are missing or doubled up to {last}")
    })?;
    require(last == acknowledged || last == acknowledged + 1, || {
        format!("{acknowledged} writes were acknowledged, {last} are there")
    })?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_write_on_its_way_may_be_there_or_not() {
        assert_eq!(has_all(&[1, 2, 3], 3).unwrap(), 3);
        assert_eq!(has_all(&[1, 2, 3], 2).unwrap(), 3);
        for (numbers, acknowledged) in [
            (&[1, 2][..], 3),
            (&[1, 3], 3),
            (&[1, 2, 2, 3], 3),
            (&[1, 2, 3, 4], 2),
            (&[], 1),
        ] {
            assert!(has_all(numbers, acknowledged).is_err(), "{numbers:?}");
        }
    }
}
