//! Writers that never stop: nothing that they know to be done may be missing.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use e2b_client::Problem;
use serde::Deserialize;
use serde_json::json;

use super::{Kept, Round};
use crate::guest::Guest;
use crate::problem::require;
use crate::report::Promise;

/// A writer must have gone on within this.
const GOES_ON_LIMIT: Duration = Duration::from_secs(20);
/// Rows and lines that a snapshot or a pause must find.
const ENOUGH_ROWS: u64 = 100;
const POLL: Duration = Duration::from_millis(20);

/// What the writers know to be done.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Counts {
    pub(crate) committed: u64,
    pub(crate) appended: u64,
    failure: Option<String>,
}

/// The database as it is found.
#[derive(Debug, Deserialize)]
struct Found {
    known: u64,
    stored: u64,
    greatest: u64,
    wrong: Vec<u64>,
    integrity: String,
    failure: Option<String>,
}

/// The log as it is found.
#[derive(Debug, Deserialize)]
struct FoundLog {
    known: u64,
    lines: u64,
    wrong: Vec<(u64, String)>,
    count_wrong: u64,
    failure: Option<String>,
}

/// Rows or lines that are there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored(pub(crate) u64);

impl Counts {
    pub(crate) async fn of(guest: &Guest<'_>) -> Result<Self, Problem> {
        let counts: Self = guest.call("load.counts", json!({})).await?;
        no_failure(counts.failure.as_ref())?;
        Ok(counts)
    }

    /// Waits until there is something to lose.
    pub(crate) async fn under_way(guest: &Guest<'_>) -> Result<Self, Problem> {
        let enough = Self {
            committed: ENOUGH_ROWS,
            appended: ENOUGH_ROWS,
            failure: None,
        };
        enough.grow(guest).await?;
        Self::of(guest).await
    }

    /// Waits until both writers have written more than this.
    pub(crate) async fn grow(&self, guest: &Guest<'_>) -> Result<(), Problem> {
        let started = Instant::now();
        loop {
            let now = Self::of(guest).await?;
            if now.committed > self.committed && now.appended > self.appended {
                return Ok(());
            }
            require(started.elapsed() < GOES_ON_LIMIT, || {
                format!("a writer stands still: was {self:?}, is {now:?}")
            })?;
            tokio::time::sleep(POLL).await;
        }
    }
}

fn no_failure(failure: Option<&String>) -> Result<(), Problem> {
    require(failure.is_none(), || {
        format!("a writer failed: {}", failure.cloned().unwrap_or_default())
    })
}

/// That the database is whole and has every row known to be committed.
pub(crate) async fn database_is_whole(
    guest: &Guest<'_>,
    committed: u64,
) -> Result<Stored, Problem> {
    let found: Found = guest.call("load.database", json!({})).await?;
    no_failure(found.failure.as_ref())?;
    require(found.integrity == "ok", || {
        format!("integrity_check: {}", found.integrity)
    })?;
    require(found.wrong.is_empty(), || {
        format!("rows with other content: {:?}", found.wrong)
    })?;
    let least = committed.max(found.known);
    require(
        found.stored == found.greatest && found.stored >= least,
        || {
            format!(
                "{least} rows were committed, {} are stored, the last is number {}",
                found.stored, found.greatest
            )
        },
    )?;
    Ok(Stored(found.stored))
}

/// That the log has every line known to be appended, once, in order, and nothing else.
pub(crate) async fn log_is_whole(guest: &Guest<'_>, appended: u64) -> Result<Stored, Problem> {
    let found: FoundLog = guest.call("load.log", json!({})).await?;
    no_failure(found.failure.as_ref())?;
    require(found.count_wrong == 0, || {
        format!(
            "{} lines are garbled, doubled or out of order: {:?}",
            found.count_wrong, found.wrong
        )
    })?;
    let least = appended.max(found.known);
    require(found.lines >= least, || {
        format!("{least} lines were appended, {} are there", found.lines)
    })?;
    Ok(Stored(found.lines))
}

/// The SQLite database.
#[derive(Default)]
pub(super) struct Database {
    before: Counts,
}

#[async_trait]
impl Kept for Database {
    fn promise(&self) -> Promise {
        Promise::required(
            "sqlite",
            "an SQLite database under write load passes integrity_check and has every committed row",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        let _none_yet: Counts = round.guest.call("load.start", json!({})).await?;
        Ok(())
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.before.grow(&round.guest).await?;
        self.before = Counts::of(&round.guest).await?;
        Ok(())
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let Stored(rows) = database_is_whole(&round.guest, self.before.committed).await?;
        Ok(format!("integrity ok, all of {rows} rows"))
    }
}

/// The append log.
#[derive(Default)]
pub(super) struct AppendLog {
    before: Counts,
}

#[async_trait]
impl Kept for AppendLog {
    fn promise(&self) -> Promise {
        Promise::required(
            "append-log",
            "a log that is appended to all the time has no lost, doubled or garbled line, and the \
             writer goes on",
        )
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.before = Counts::of(&round.guest).await?;
        Ok(())
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let Stored(lines) = log_is_whole(&round.guest, self.before.appended).await?;
        Counts::of(&round.guest).await?.grow(&round.guest).await?;
        Ok(format!("all of {lines} lines, in order"))
    }
}
