//! One sandbox, paused and resumed again and again, with everything in it that can be kept.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::json;

use super::{At, Scenario};
use crate::agent::Agent;
use crate::api::Sandbox;
use crate::guest::{Guest, Holder};
use crate::kept::{self, Kept, Round};
use crate::problem::Problem;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const SPEED: Promise = Promise::measured(
    "round-speed",
    "the last round takes at most 1.3 times the fifth (to read, never a fault)",
);
/// The round that the last one is compared with: the ones before it are still warming up.
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

fn speed(took: &[(Duration, Duration)]) -> String {
    let milliseconds = |round: &(Duration, Duration)| {
        let (pause, connect) = (round.0.as_millis(), round.1.as_millis());
        format!("{} ms (pause {pause}, connect {connect})", pause + connect)
    };
    let last = took.last().map(milliseconds).unwrap_or_default();
    match took.get(COMPARED - 1) {
        Some(fifth) if took.len() > COMPARED => {
            let sum = |round: &(Duration, Duration)| (round.0 + round.1).as_secs_f64();
            let factor = took.last().map_or(1.0, sum) / sum(fifth);
            format!(
                "last {last}, fifth {}: {factor:.2} times",
                milliseconds(fifth)
            )
        }
        _ => format!("last {last}; too few rounds to compare"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_is_compared_with_the_fifth() {
        let round = |milliseconds| (Duration::from_millis(milliseconds), Duration::ZERO);
        let mut took: Vec<_> = [900, 300, 200, 150, 100].map(round).to_vec();
        assert!(speed(&took).contains("too few"));
        took.push(round(130));
        assert_eq!(
            speed(&took),
            "last 130 ms (pause 130, connect 0), fifth 100 ms (pause 100, connect 0): 1.30 times"
        );
    }
}
