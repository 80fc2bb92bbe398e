//! Snapshots of a sandbox that writes all the time, and their children.

use async_trait::async_trait;
use e2b_client::{Problem, Sandbox, Snapshot};
use http::StatusCode;
use serde_json::json;

use super::clones::{Source, clocks_are_right, entropy_differs, names_differ};
use super::{At, Scenario};
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const STATE: Promise = Promise::required(
    "snapshot-state",
    "sandboxes created from a snapshot have the memory, processes and files of its source",
);
const CONSISTENT: Promise = Promise::required(
    "snapshot-consistent",
    "a snapshot taken under write load is consistent: SQLite passes integrity_check, all rows and \
     lines from before it are there as in the source, and the writers go on",
);
const SOURCE: Promise = Promise::required(
    "snapshot-source",
    "the source goes on with the same memory, processes, files and deadline",
);
const IDENTITY: Promise = Promise::required(
    "snapshot-identity",
    "source and children differ in id, access token and hostname, know their own id inside, and \
     refuse each other's token",
);
const ENTROPY: Promise = Promise::required(
    "snapshot-entropy",
    "source and children draw different random numbers from the kernel",
);
const CLOCK: Promise = Promise::required(
    "snapshot-clock",
    "the clock of a child is right within 1 s as soon as create has answered",
);
const LIST: Promise = Promise::required(
    "snapshot-list",
    "a snapshot is listed under its source, and one with a name serves creates by that name",
);
const OUTLIVES: Promise = Promise::required(
    "snapshot-outlives-source",
    "a snapshot serves creates after its source was killed",
);
const DELETE: Promise = Promise::required(
    "snapshot-delete",
    "a deleted snapshot (204) is not listed, cannot be deleted again (404) and serves no create (404)",
);
const REFUSALS: Promise = Promise::required(
    "snapshot-refusals",
    "a snapshot of a killed sandbox is answered 404, one with a malformed name 400",
);

/// One snapshot, two children, and what else there is to snapshots.
pub(super) struct Snapshots;

#[async_trait]
impl Scenario for Snapshots {
    fn name(&self) -> &'static str {
        "snapshots"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![
            STATE, CONSISTENT, SOURCE, IDENTITY, ENTROPY, CLOCK, LIST, OUTLIVES, DELETE, REFUSALS,
        ]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let api = &suite.api;
        let source = Source::create(suite).await?;
        let id = source.sandbox.id.clone();
        at("taking a snapshot");
        let snapshot = api.snapshot(&id, &json!({})).await?;
        findings.note(SOURCE, source.goes_on(suite).await);

        at("creating children");
        let children = [
            child(suite, &snapshot.id).await?,
            child(suite, &snapshot.id).await?,
        ];
        let [first, second] = &children;
        findings.note(CLOCK, clocks_are_right(suite, &[second]).await);
        for child in &children {
            findings.note(STATE, source.is_seen_by(suite, child).await);
            findings.note(CONSISTENT, source.writes_are_in(suite, child).await);
        }
        let all = [&source.sandbox, first, second];
        findings.note(IDENTITY, names_differ(suite, &all).await);
        findings.note(ENTROPY, entropy_differs(suite, &all).await);
        findings.note(LIST, list(suite, &id, &snapshot).await);
        findings.note(REFUSALS, malformed(suite, &id).await);

        at("without the source");
        api.kill(&id).await?;
        let killed = api.try_snapshot(&id, &json!({})).await?;
        let refused = require(killed.status == StatusCode::NOT_FOUND, || {
            killed
                .unwanted("a snapshot of a killed sandbox")
                .to_string()
        });
        findings.note(REFUSALS, refused.map(|()| "404 and 400".to_owned()));
        let late = child(suite, &snapshot.id).await;
        let outlives = match &late {
            Ok(late) => source.is_seen_by(suite, late).await,
            Err(problem) => Err(problem.clone()),
        };
        findings.note(OUTLIVES, outlives);

        at("deleting");
        for child in children.iter().chain(late.as_ref().ok()) {
            api.kill(&child.id).await?;
        }
        findings.note(DELETE, delete(suite, &id, &snapshot).await);
        Ok(())
    }
}

async fn child(suite: &Suite, snapshot: &str) -> Result<Sandbox, Problem> {
    let request = suite.create_request(snapshot, &json!({}));
    suite.api.create(&request).await
}

async fn list(suite: &Suite, source: &str, snapshot: &Snapshot) -> Result<String, Problem> {
    let listed = suite.api.snapshots(source).await?;
    require(listed.iter().any(|listed| listed.id == snapshot.id), || {
        format!("{} is not among {listed:?}", snapshot.id)
    })?;
    let name = format!("conformance-{}", suite.mark);
    let named = json!({ "name": name });
    let named = suite.api.snapshot(source, &named).await?;
    // Under a name of the caller's, before which the server may put a space of names.
    let known = named.names.iter().find(|known| known.ends_with(&name));
    let known = known.ok_or_else(|| {
        Problem::Broken(format!("{name} is not among its names {:?}", named.names))
    })?;
    let by_name = child(suite, known).await?;
    suite.api.kill(&by_name.id).await?;
    let deleted = suite.api.try_delete_snapshot(&named.id).await?;
    deleted.expect("deletion of the named one", StatusCode::NO_CONTENT)?;
    Ok("listed, and created by name".to_owned())
}

async fn malformed(suite: &Suite, source: &str) -> Result<String, Problem> {
    for name in ["not a name!", "a/b/c", ":"] {
        let named = json!({ "name": name });
        let answer = suite.api.try_snapshot(source, &named).await?;
        require(answer.status == StatusCode::BAD_REQUEST, || {
            let what = format!("a snapshot named '{name}'");
            answer.unwanted(&what).to_string()
        })?;
    }
    Ok("400".to_owned())
}

async fn delete(suite: &Suite, source: &str, snapshot: &Snapshot) -> Result<String, Problem> {
    let deleted = suite.api.try_delete_snapshot(&snapshot.id).await?;
    deleted.expect("deletion", StatusCode::NO_CONTENT)?;
    let again = suite.api.try_delete_snapshot(&snapshot.id).await?;
    require(again.status == StatusCode::NOT_FOUND, || {
        again.unwanted("a second deletion").to_string()
    })?;
    let listed = suite.api.snapshots(source).await?;
    require(
        !listed.iter().any(|listed| listed.id == snapshot.id),
        || "the deleted snapshot is still listed".to_owned(),
    )?;
    let request = suite.create_request(&snapshot.id, &json!({}));
    let created = suite.api.try_create(&request).await?;
    require(created.status == StatusCode::NOT_FOUND, || {
        created.unwanted("a create from it").to_string()
    })?;
    Ok("204, then 404 to all".to_owned())
}
