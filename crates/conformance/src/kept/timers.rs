//! Timers that run over a pause.

use std::collections::BTreeMap;

use async_trait::async_trait;
use e2b_client::Problem;
use serde::Deserialize;
use serde_json::json;

use super::{Kept, Round};
use crate::problem::require;
use crate::report::Promise;

/// Longer than a pause should take, so that they fire after the resume.
const SECONDS: f64 = 3.0;
/// For the clock's error and for a busy machine.
const TOLERANCE: f64 = 1.0;
/// Wait this long for one that should have fired.
const OVERDUE: f64 = 15.0;

#[derive(Deserialize)]
struct Results {
    fired: BTreeMap<String, f64>,
    armed: usize,
}

/// One-shot timers.
pub(super) struct Timers;

#[async_trait]
impl Kept for Timers {
    fn promise(&self) -> Promise {
        Promise::required(
            "timers",
            "timerfds, sleeps and waits with a limit fire after their time, not early, and not \
             later than by the time spent paused, each within 1 s",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        round.guest.call("timers.start", json!({})).await
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        let seconds = json!({ "seconds": SECONDS });
        round.guest.call("timers.arm", seconds).await
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        // Servers differ in whether the time spent paused counts; both are allowed.
        let latest = SECONDS + round.down.as_secs_f64() + TOLERANCE;
        let limit = json!({ "limit": SECONDS + OVERDUE });
        let results: Results = round.guest.call("timers.results", limit).await?;
        require(results.fired.len() == results.armed, || {
            let names: Vec<&String> = results.fired.keys().collect();
            format!("of {} timers fired only {names:?}", results.armed)
        })?;
        for (name, after) in &results.fired {
            require((SECONDS - TOLERANCE..=latest).contains(after), || {
                format!(
                    "{name}: armed for {SECONDS} s, paused for {:.2} s, fired after {after:.2} s",
                    round.down.as_secs_f64()
                )
            })?;
        }
        let first = results.fired.values().copied().fold(f64::MAX, f64::min);
        let last = results.fired.values().copied().fold(0.0, f64::max);
        Ok(format!(
            "{} timers of {SECONDS} s fired after {first:.2} to {last:.2} s, {:.2} s of it paused",
            results.armed,
            round.down.as_secs_f64()
        ))
    }
}

/// A timer that fires again and again.
pub(super) struct Periodic;

#[async_trait]
impl Kept for Periodic {
    fn promise(&self) -> Promise {
        Promise::required("periodic-timer", "a periodic timerfd goes on ticking")
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let ticks: Vec<u64> = round.guest.call("timers.periodic", json!({})).await?;
        let ticking = ticks.len() == 2 && ticks.iter().all(|ticks| *ticks > 0);
        require(ticking, || format!("ticks of two readings: {ticks:?}"))?;
        Ok("it ticks".to_owned())
    }
}
