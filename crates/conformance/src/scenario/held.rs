//! State that engines find hard to save: through a pause, a pause at the deadline, and a snapshot.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use e2b_client::{Problem, Sandbox};
use serde_json::{Value, json};

use super::{At, Scenario};
use crate::problem::{difference, require};
use crate::report::{Findings, Promise};
use crate::suite::Suite;

/// Long enough for the answer to the request that sets it.
const DEADLINE_SECONDS: u64 = 1;
/// The deadline must have had its effect within this (contract §5.11).
const EFFECT_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// One kind of state, with the name that `held.py` knows.
struct Kind {
    name: &'static str,
    paused: Promise,
    auto_paused: Promise,
    snapshot: Promise,
}

const KINDS: &[Kind] = &[Kind {
    name: "links",
    paused: Promise::required(
        "hard-link",
        "a file that was opened under a name that is gone, while another name stays, is one \
             file after a pause: writes, mappings, locks, inode and links",
    ),
    auto_paused: Promise::required(
        "hard-link-auto-pause",
        "the same after a pause at the deadline",
    ),
    snapshot: Promise::required(
        "hard-link-snapshot",
        "the same in the source of a snapshot and in a sandbox made from it",
    ),
}];

/// Each kind in sandboxes of its own: whatever one does to its sandbox, the others are looked at.
pub(super) struct Held;

#[async_trait]
impl Scenario for Held {
    fn name(&self) -> &'static str {
        "state that is hard to save"
    }

    fn promises(&self) -> Vec<Promise> {
        let rows = KINDS.iter();
        rows.flat_map(|kind| [kind.paused, kind.auto_paused, kind.snapshot])
            .collect()
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        for kind in KINDS {
            at(&format!("{}: a pause", kind.name));
            findings.note(kind.paused, over_a_pause(suite, kind.name).await);
            at(&format!("{}: the deadline", kind.name));
            findings.note(kind.auto_paused, over_the_deadline(suite, kind.name).await);
            at(&format!("{}: a snapshot", kind.name));
            findings.note(kind.snapshot, over_a_snapshot(suite, kind.name).await);
        }
        Ok(())
    }
}

async fn over_a_pause(suite: &Suite, kind: &str) -> Result<String, Problem> {
    let (sandbox, _holder) = suite.create_holding(&json!({})).await?;
    let before = start(suite, &sandbox, kind).await?;
    suite.api.pause(&sandbox.id).await?;
    let resumed = suite.api.resume(&sandbox.id).await?;
    is_still(suite, &resumed, kind, &before).await?;
    suite.api.kill(&sandbox.id).await?;
    Ok("the same after a pause".to_owned())
}

async fn over_the_deadline(suite: &Suite, kind: &str) -> Result<String, Problem> {
    let (sandbox, _holder) = suite.create_holding(&json!({ "autoPause": true })).await?;
    let before = start(suite, &sandbox, kind).await?;
    suite.api.set_timeout(&sandbox.id, DEADLINE_SECONDS).await?;
    let started = Instant::now();
    while suite.api.state(&sandbox.id).await? != "paused" {
        require(started.elapsed() < EFFECT_LIMIT, || {
            format!("it still runs {EFFECT_LIMIT:?} after a deadline of {DEADLINE_SECONDS} s")
        })?;
        tokio::time::sleep(POLL).await;
    }
    let resumed = suite.api.resume(&sandbox.id).await?;
    is_still(suite, &resumed, kind, &before).await?;
    suite.api.kill(&sandbox.id).await?;
    Ok("the same after the deadline".to_owned())
}

async fn over_a_snapshot(suite: &Suite, kind: &str) -> Result<String, Problem> {
    let (source, _holder) = suite.create_holding(&json!({})).await?;
    let before = start(suite, &source, kind).await?;
    let snapshot = suite.api.snapshot(&source.id, &json!({})).await?;
    is_still(suite, &source, kind, &before).await?;
    let request = suite.create_request(&snapshot.id, &json!({}));
    let child = suite.api.create(&request).await?;
    is_still(suite, &child, kind, &before).await?;
    for sandbox in [&source, &child] {
        suite.api.kill(&sandbox.id).await?;
    }
    Ok("the same in source and child".to_owned())
}

async fn start(suite: &Suite, sandbox: &Sandbox, kind: &str) -> Result<Value, Problem> {
    let guest = suite.view(sandbox).guest;
    guest.call("held.start", json!({ "kind": kind })).await
}

/// That the next step of the process inside has the answer that its first one had.
async fn is_still(
    suite: &Suite,
    sandbox: &Sandbox,
    kind: &str,
    before: &Value,
) -> Result<(), Problem> {
    let guest = suite.view(sandbox).guest;
    let now: Value = guest.call("held.step", json!({ "kind": kind })).await?;
    require(now == *before, || difference(before, &now))
}
