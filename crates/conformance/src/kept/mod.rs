//! What a pause keeps: one [`Kept`] for each row of the rounds.

mod channels;
mod clock;
mod equal;
mod family;
mod identity;
mod listeners;
mod load;
mod refusal;
mod states;
mod streams;
mod terminal;
mod timers;
mod tree;
mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use e2b_client::{Agent, Api, Problem, Sandbox};

use crate::guest::{Guest, Holder};
use crate::problem::require;
use crate::report::Promise;

pub(crate) use identity::Identity;
pub(crate) use load::{Counts, Stored, database_is_whole, log_is_whole};
pub(crate) use tree::{Entries, Tree};

/// One pause of one sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round<'a> {
    pub(crate) api: &'a Api,
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) guest: Guest<'a>,
    pub(crate) agent: Agent<'a>,
    /// The mark in the metadata of this run's sandboxes.
    pub(crate) mark: &'a str,
    /// Counted from 1; 0 before the first.
    pub(crate) number: usize,
    /// From the request to pause to the answer of connect.
    pub(crate) down: Duration,
}

/// Something that must come back as it was.
#[async_trait]
pub(crate) trait Kept: Send {
    /// The row.
    fn promise(&self) -> Promise;

    /// Once, in a sandbox that was never paused.
    async fn start(&mut self, _round: &Round<'_>) -> Result<(), Problem> {
        Ok(())
    }

    /// Right before a pause.
    async fn before(&mut self, _round: &Round<'_>) -> Result<(), Problem> {
        Ok(())
    }

    /// While it is paused.
    async fn while_paused(&mut self, _round: &Round<'_>) -> Result<(), Problem> {
        Ok(())
    }

    /// Right after the resume: what was seen.
    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem>;
}

/// The rows of [`all`].
pub(crate) fn promises() -> Vec<Promise> {
    all(None).iter().map(|kept| kept.promise()).collect()
}

/// Everything that the rounds look at, in this order; around the holder of a sandbox.
pub(crate) fn all(holder: Option<Holder>) -> Vec<Box<dyn Kept>> {
    let mut all: Vec<Box<dyn Kept>> = vec![
        // First, so that nothing comes between resume and reading.
        Box::new(clock::Clock::default()),
        Box::new(states::States),
        Box::new(refusal::Refusal),
        Box::new(identity::Identity::default()),
        Box::new(identity::BootId::default()),
        Box::new(streams::Streams::new(holder)),
    ];
    all.push(Box::new(tree::Files::default()));
    all.extend(equal::all());
    all.push(Box::new(channels::Shared::default()));
    all.push(Box::new(load::Database::default()));
    all.push(Box::new(load::AppendLog::default()));
    all.push(Box::new(family::Family::default()));
    all.push(Box::new(terminal::Terminal::default()));
    all.push(Box::new(channels::Channels::default()));
    all.push(Box::new(listeners::Listeners::ipv4()));
    all.push(Box::new(listeners::Listeners::ipv6()));
    all.push(Box::new(watch::Watch::default()));
    // Last, so that they are armed right before the pause.
    all.push(Box::new(timers::Timers));
    all.push(Box::new(timers::Periodic));
    all
}

/// Seconds between the guest's clock and ours; what the request took is in the guest's favour.
pub(crate) async fn clock_error(guest: &Guest<'_>) -> Result<f64, Problem> {
    let before = seconds_now();
    let inside: f64 = guest
        .call("surroundings.clock", serde_json::json!({}))
        .await?;
    let after = seconds_now();
    Ok((before - inside).max(inside - after).max(0.0))
}

/// How far off a clock may be after a start.
pub(crate) const CLOCK_TOLERANCE: f64 = 1.0;

/// That a clock is right.
pub(crate) fn clock_is_right(error: f64) -> Result<(), Problem> {
    require(error <= CLOCK_TOLERANCE, || {
        format!("the clock inside is {error:.3} s off")
    })
}

fn seconds_now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

/// Letters and digits that nobody else has.
pub(crate) fn token() -> String {
    let number: u64 = rand::random();
    format!("{number:016x}")
}
