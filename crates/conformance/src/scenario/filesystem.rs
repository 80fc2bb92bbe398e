//! A pause that keeps the files only: the resume is a boot.

use async_trait::async_trait;
use e2b_client::Problem;
use serde_json::json;

use super::{At, Scenario};
use crate::guest::Guest;
use crate::kept::{Counts, Entries, Identity, Stored, Tree, database_is_whole, log_is_whole};
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::Suite;

const BOOT: Promise = Promise::required(
    "filesystem-boot",
    "after a pause with memory:false connect boots: another boot_id, no process of before",
);
const FILES: Promise = Promise::required(
    "filesystem-files",
    "after a pause with memory:false the file tree is the same, but for named pipes",
);
const PIPES: Promise = Promise::required(
    "filesystem-pipes",
    "after a pause with memory:false the named pipes of the file tree are the same",
);
const LOAD: Promise = Promise::required(
    "filesystem-load",
    "after a pause with memory:false under write load SQLite passes integrity_check, and no row \
     and no log line from before is missing",
);
const IDENTITY: Promise = Promise::required(
    "filesystem-identity",
    "after a pause with memory:false id, access token, metadata, variables, user and directory \
     are the same",
);

/// `memory: false`.
pub(super) struct Filesystem;

#[async_trait]
impl Scenario for Filesystem {
    fn name(&self) -> &'static str {
        "pause of the files only"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![BOOT, FILES, PIPES, LOAD, IDENTITY]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let (before, holder) = suite.create_holding(&json!({})).await?;
        let was = suite.view(&before);
        Tree::make(&was.guest).await?;
        let tree = Tree::change(&was.guest).await?;
        let _none_yet: Counts = was.guest.call("load.start", json!({})).await?;
        let boot_id = was.agent.boot_id().await?;
        let identity = Identity::of(&was).await?;
        let counts = Counts::under_way(&was.guest).await?;

        at("pausing");
        suite.api.pause_files(&before.id).await?;
        let after = suite.api.resume(&before.id).await?;
        let is = suite.view(&after);

        let booted = async {
            let now = is.agent.boot_id().await?;
            require(now != boot_id, || format!("boot_id is still {now}"))?;
            let processes = is.agent.processes().await?;
            require(!processes.contains(&holder.pid), || {
                format!("process {} of before the boot is listed", holder.pid)
            })?;
            Ok("another boot_id, the process is gone".to_owned())
        };
        findings.note(BOOT, booted.await);
        let same = async {
            Identity::of(&is).await?.is_still(&identity)?;
            Ok("all the same".to_owned())
        };
        findings.note(IDENTITY, same.await);

        at("looking at the files");
        let _holder = Guest::restart(&suite.api, &after).await?;
        for (promise, wanted) in [(FILES, Entries::Files), (PIPES, Entries::Pipes)] {
            let same = async {
                let now = Tree::of(&is.guest).await?;
                now.only(wanted).is_still(&tree.only(wanted))
            };
            findings.note(promise, same.await);
        }
        let whole = async {
            let Stored(rows) = database_is_whole(&is.guest, counts.committed).await?;
            let Stored(lines) = log_is_whole(&is.guest, counts.appended).await?;
            Ok(format!("integrity ok, all of {rows} rows, {lines} lines"))
        };
        findings.note(LOAD, whole.await);
        suite.api.kill(&after.id).await
    }
}
