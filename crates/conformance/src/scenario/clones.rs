//! Sandboxes that came from the memory of another one, by snapshot or fork.

use std::collections::BTreeMap;

use e2b_client::{Agent, Problem, Sandbox};
use serde_json::{Value, json};

use crate::guest::Holder;
use crate::kept::{
    Counts, Stored, Tree, clock_error, clock_is_right, database_is_whole, log_is_whole,
};
use crate::problem::{difference, require};
use crate::suite::Suite;

/// A sandbox with memory, files and writers, and what is known of it.
pub(super) struct Source {
    pub(super) sandbox: Sandbox,
    pub(super) holder: Holder,
    blob: Value,
    tree: Tree,
    family: Value,
    boot_id: String,
    end_at: String,
    /// What its writers knew to be done before the snapshot was asked for.
    counts: Counts,
}

impl Source {
    pub(super) async fn create(suite: &Suite) -> Result<Self, Problem> {
        let (sandbox, holder) = suite.create_holding(&json!({})).await?;
        let view = suite.view(&sandbox);
        let blob = view.guest.call("blob.start", json!({ "mib": 32 })).await?;
        let tree = Tree::make(&view.guest).await?;
        let family = view.guest.call("family.start", json!({})).await?;
        let _none_yet: Counts = view.guest.call("load.start", json!({})).await?;
        let boot_id = view.agent.boot_id().await?;
        let end_at = view.api.detail(&sandbox.id).await?.end_at;
        let counts = Counts::under_way(&view.guest).await?;
        Ok(Self {
            holder,
            blob,
            tree,
            family,
            boot_id,
            end_at,
            counts,
            sandbox,
        })
    }

    /// That a sandbox has the memory, the processes and the files of the source.
    pub(super) async fn is_seen_by(
        &self,
        suite: &Suite,
        sandbox: &Sandbox,
    ) -> Result<String, Problem> {
        let view = suite.view(sandbox);
        let states = [
            ("memory", "blob.digest", &self.blob),
            ("processes", "family.tree", &self.family),
        ];
        for (what, function, expected) in states {
            let seen: Value = view.guest.call(function, json!({})).await?;
            require(seen == *expected, || {
                format!("{what} of {}: {}", sandbox.id, difference(expected, &seen))
            })?;
        }
        Tree::of(&view.guest).await?.is_still(&self.tree)?;
        let boot_id = view.agent.boot_id().await?;
        require(boot_id == self.boot_id, || {
            "it was booted: another boot_id".to_owned()
        })?;
        Ok("memory, processes and files of the source".to_owned())
    }

    /// That a sandbox has everything that was written before the snapshot, and writes on.
    pub(super) async fn writes_are_in(
        &self,
        suite: &Suite,
        sandbox: &Sandbox,
    ) -> Result<String, Problem> {
        let guest = suite.view(sandbox).guest;
        let Stored(rows) = database_is_whole(&guest, self.counts.committed).await?;
        let Stored(lines) = log_is_whole(&guest, self.counts.appended).await?;
        let first = json!({ "rows": self.counts.committed, "lines": self.counts.appended });
        let prefix: String = guest.call("load.prefix", first.clone()).await?;
        let source = suite.view(&self.sandbox).guest;
        let expected: String = source.call("load.prefix", first).await?;
        require(prefix == expected, || {
            "what was written before the snapshot differs from the source's".to_owned()
        })?;
        Counts::of(&guest).await?.grow(&guest).await?;
        Ok(format!(
            "integrity ok, {rows} rows, {lines} lines, the first {} and {} as the source's",
            self.counts.committed, self.counts.appended
        ))
    }

    /// That nothing has happened to the source.
    pub(super) async fn goes_on(&self, suite: &Suite) -> Result<String, Problem> {
        let view = suite.view(&self.sandbox);
        let detail = view.api.detail(&self.sandbox.id).await?;
        require(detail.state == "running", || {
            format!("the source is {}", detail.state)
        })?;
        require(detail.end_at == self.end_at, || {
            format!("its deadline was {}, is {}", self.end_at, detail.end_at)
        })?;
        self.is_seen_by(suite, &self.sandbox).await?;
        let listed = view.agent.processes().await?;
        require(listed.contains(&self.holder.pid), || {
            format!("its process {} is not listed", self.holder.pid)
        })?;
        database_is_whole(&view.guest, self.counts.committed).await?;
        log_is_whole(&view.guest, self.counts.appended).await?;
        Counts::of(&view.guest).await?.grow(&view.guest).await?;
        Ok("same memory, processes and deadline, writers go on".to_owned())
    }
}

/// That no two of the sandboxes are taken for each other, from outside or inside.
pub(super) async fn names_differ(suite: &Suite, sandboxes: &[&Sandbox]) -> Result<String, Problem> {
    let mut names = Vec::new();
    for sandbox in sandboxes {
        let view = suite.view(sandbox);
        let hostname: String = view.guest.call("surroundings.hostname", json!({})).await?;
        let inside = view.agent.run("echo \"$E2B_SANDBOX_ID\"").await?.text;
        require(inside == sandbox.id, || {
            format!("{} is told inside that it is '{inside}'", sandbox.id)
        })?;
        let token = sandbox.token.clone();
        let token = token.ok_or_else(|| Problem::Broken("no access token".to_owned()))?;
        names.push(BTreeMap::from([
            ("id", sandbox.id.clone()),
            ("token", token),
            ("hostname", hostname),
        ]));
    }
    for (number, one) in names.iter().enumerate() {
        for other in &names[..number] {
            for (what, value) in one {
                require(other.get(what) != Some(value), || {
                    format!("two of {} have the same {what}", sandboxes.len())
                })?;
            }
        }
    }
    // The token of one does not open another one.
    let [first, .., last] = sandboxes else {
        return Err(Problem::Broken("nothing to compare".to_owned()));
    };
    let stranger = Sandbox {
        token: first.token.clone(),
        ..(*last).clone()
    };
    let status = Agent::new(&suite.api, &stranger).command_status().await?;
    require(status == http::StatusCode::UNAUTHORIZED, || {
        format!(
            "the source's token is answered {} by its clone, not 401",
            status.as_u16()
        )
    })?;
    Ok(format!(
        "{} different ids, tokens and hostnames; a stranger's token is refused",
        sandboxes.len()
    ))
}

/// That no two of the sandboxes have the same randomness.
pub(super) async fn entropy_differs(
    suite: &Suite,
    sandboxes: &[&Sandbox],
) -> Result<String, Problem> {
    let mut drawn: Vec<BTreeMap<String, String>> = Vec::new();
    for sandbox in sandboxes {
        let guest = suite.view(sandbox).guest;
        let random: BTreeMap<String, String> =
            guest.call("surroundings.entropy", json!({})).await?;
        for other in &drawn {
            for (source, value) in &random {
                require(other.get(source) != Some(value), || {
                    format!("{source} gave the same bytes in two sandboxes")
                })?;
            }
        }
        drawn.push(random);
    }
    let sources: Vec<&String> = drawn.iter().take(1).flat_map(BTreeMap::keys).collect();
    Ok(format!("{sources:?} differ in {} sandboxes", drawn.len()))
}

/// That the clocks are right.
pub(super) async fn clocks_are_right(
    suite: &Suite,
    sandboxes: &[&Sandbox],
) -> Result<String, Problem> {
    let mut worst = 0.0_f64;
    for sandbox in sandboxes {
        let error = clock_error(&suite.view(sandbox).guest).await?;
        clock_is_right(error)?;
        worst = worst.max(error);
    }
    Ok(format!("at most {worst:.3} s off"))
}
