//! One sandbox, paused and resumed again and again, with everything in it that can be kept.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use e2b_client::{Agent, Problem, Sandbox};
use serde_json::json;

use super::{At, Scenario};
use crate::guest::{Guest, Holder};
use crate::kept::{self, Kept, Round};
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const SPEED: Promise = Promise::measured(
    "round-speed",
    "the last rounds take at most 1.3 times the ones around the fifth (to read, never a fault)",
);
/// The first round that counts: the ones before it are still warming up.
const WARM: usize = 2;
/// Rounds whose median is told, so that one that was disturbed does not decide.
const COMPARED: usize = 5;

/// N pauses.
pub(super) struct Rounds;

#[async_trait]
impl Scenario for Rounds {
    fn name(&self) -> &'static str {
        "rounds of pause and connect"
    }

    fn promises(&self) -> Vec<Promise> {
        let rows = kept::promises().into_iter();
        rows.chain([SPEED]).collect()
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let (mut sandbox, holder) = suite.create_holding(&json!({})).await?;
        let mut watched = Watched::new(holder);
        watched.start(&suite.view(&sandbox)).await;
        let mut took = Vec::new();
        for number in 1..=suite.rounds {
            at(&format!("round {number} of {}", suite.rounds));
            watched
                .before(&view(suite, &sandbox, number, Duration::ZERO))
                .await;
            let started = Instant::now();
            suite.api.pause(&sandbox.id).await?;
            let pausing = started.elapsed();
            watched
                .while_paused(&view(suite, &sandbox, number, Duration::ZERO))
                .await;
            let resuming = Instant::now();
            sandbox = suite.api.resume(&sandbox.id).await?;
            took.push((pausing, resuming.elapsed()));
            let round = view(suite, &sandbox, number, started.elapsed());
            watched.after(&round, findings).await;
        }
        findings.note(SPEED, Ok(speed(&took)));
        suite.api.kill(&sandbox.id).await
    }
}

fn view<'a>(suite: &'a Suite, sandbox: &'a Sandbox, number: usize, down: Duration) -> Round<'a> {
    Round {
        api: &suite.api,
        sandbox,
        guest: Guest::new(&suite.api, sandbox),
        agent: Agent::new(&suite.api, sandbox),
        mark: &suite.mark,
        number,
        down,
    }
}

/// Each row with the first problem that it met in this round, or at its start.
struct Watched {
    rows: Vec<(Box<dyn Kept>, Option<Problem>)>,
}

impl Watched {
    fn new(holder: Holder) -> Self {
        let rows = kept::all(Some(holder)).into_iter();
        Self {
            rows: rows.map(|kept| (kept, None)).collect(),
        }
    }

    async fn start(&mut self, round: &Round<'_>) {
        for (kept, problem) in &mut self.rows {
            *problem = kept.start(round).await.err();
        }
    }

    async fn before(&mut self, round: &Round<'_>) {
        for (kept, problem) in &mut self.rows {
            if problem.is_none() {
                *problem = kept.before(round).await.err();
            }
        }
    }

    async fn while_paused(&mut self, round: &Round<'_>) {
        for (kept, problem) in &mut self.rows {
            if problem.is_none() {
                *problem = kept.while_paused(round).await.err();
            }
        }
    }

    async fn after(&mut self, round: &Round<'_>, findings: &mut Findings) {
        for (kept, problem) in &mut self.rows {
            let seen = match problem.take() {
                // What could not even begin is broken in every round.
                Some(problem) => Err(problem),
                None => kept.after(round).await,
            };
            findings.note(
                kept.promise(),
                seen.map_err(|problem| in_round(round.number, &problem)),
            );
        }
    }
}

fn in_round(number: usize, problem: &Problem) -> Problem {
    match problem {
        Problem::Broken(text) => Problem::Broken(format!("round {number}: {text}")),
        Problem::NotSupported(text) => Problem::NotSupported(text.clone()),
    }
}

/// Medians of rounds 3 to 7 and of the last five.
fn speed(took: &[(Duration, Duration)]) -> String {
    if took.len() < WARM + 2 * COMPARED {
        let (pause, connect) = medians(took);
        return format!("pause {pause} ms, connect {connect} ms; too few rounds to compare");
    }
    let early = medians(&took[WARM..WARM + COMPARED]);
    let late = medians(&took[took.len() - COMPARED..]);
    let sum = |(pause, connect): (u128, u128)| (pause + connect).max(1) as f64;
    format!(
        "last five: pause {} ms, connect {} ms; rounds 3 to 7: {} and {} ms; {:.2} times",
        late.0,
        late.1,
        early.0,
        early.1,
        sum(late) / sum(early)
    )
}

/// Of pauses and of connects, in milliseconds.
fn medians(took: &[(Duration, Duration)]) -> (u128, u128) {
    let median = |mut times: Vec<u128>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    let pauses = took.iter().map(|(pause, _)| pause.as_millis()).collect();
    let connects = took.iter().map(|(_, connect)| connect.as_millis());
    (median(pauses), median(connects.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rounds_are_compared_with_warm_ones_and_outliers_do_not_count() {
        let round = |pause| (Duration::from_millis(pause), Duration::from_millis(100));
        let mut took: Vec<_> = [9000, 9000, 100, 100, 5000, 100, 100].map(round).to_vec();
        assert!(speed(&took).ends_with("too few rounds to compare"));
        took.extend([160, 160, 160, 8000, 160].map(round));
        assert_eq!(
            speed(&took),
            "last five: pause 160 ms, connect 100 ms; rounds 3 to 7: 100 and 100 ms; 1.30 times"
        );
    }
}
