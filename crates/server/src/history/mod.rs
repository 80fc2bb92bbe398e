//! What sandboxes used and did: samples of their resource use, the logs of their agents, and the
//! events of their lifecycle.
//!
//! ```text
//! every 5 s ── engine::usage ──► samples ─┐
//! agent's log, as it grows ───► entries ──┼─► history.db ─► api
//! journal, when it was written ─► events ─┘
//! ```
//!
//! Usage is read from outside and the log is waited for, so that an idle guest is not woken up. Both
//! are kept while the sandbox exists; events stay for some days after its end, which is when people
//! ask for them. It is a database of its own: losing it harms nothing, so it is not worth a sync to
//! disk for each sample.

mod events;
mod logs;
mod metrics;
mod recorder;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use crate::sandbox::{Events, SandboxId};

pub use events::{EventQuery, StoredEvent};
pub use logs::{Direction, Level, LogEntry, LogQuery};
pub use metrics::Sample;
pub use recorder::record;

/// Samples and entries older than this are deleted.
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS samples (
    sandbox    TEXT    NOT NULL,
    at         INTEGER NOT NULL, -- seconds since the epoch
    cpu_count  INTEGER NOT NULL,
    cpu_pct    REAL    NOT NULL,
    mem_used   INTEGER NOT NULL, -- this and the following in bytes
    mem_total  INTEGER NOT NULL,
    mem_cache  INTEGER NOT NULL,
    disk_used  INTEGER NOT NULL,
    disk_total INTEGER NOT NULL,
    PRIMARY KEY (sandbox, at)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log_entries (
    id      INTEGER NOT NULL PRIMARY KEY,
    sandbox TEXT    NOT NULL,
    at      INTEGER NOT NULL, -- milliseconds since the epoch
    level   INTEGER NOT NULL,
    line    TEXT    NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS log_entries_of_sandbox ON log_entries (sandbox, at);
CREATE TABLE IF NOT EXISTS log_positions (
    sandbox TEXT    NOT NULL PRIMARY KEY,
    boot    TEXT    NOT NULL,
    number  INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    number    INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- their order
    id        TEXT    NOT NULL,
    sandbox   TEXT    NOT NULL,
    at        INTEGER NOT NULL, -- nanoseconds since the epoch
    kind      TEXT    NOT NULL,
    execution TEXT,
    template  TEXT    NOT NULL,
    data      TEXT    NOT NULL  -- a JSON object
) STRICT;
CREATE INDEX IF NOT EXISTS events_of_sandbox ON events (sandbox, number);
";

/// A failed use of the history.
#[derive(Debug, thiserror::Error)]
#[error("use the database of metrics, logs and events")]
pub struct HistoryError(#[from] rusqlite::Error);

/// The open history. Cheap to clone.
#[derive(Clone)]
pub struct History {
    connection: Arc<Mutex<Connection>>,
    events: Events,
}

impl History {
    /// Opens or makes the database. One that cannot be read is put aside: it is not worth keeping the
    /// server from starting.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let connection = match connect(path) {
            Ok(connection) => connection,
            Err(error) => {
                let aside = path.with_extension("db.unreadable");
                tracing::warn!(%error, aside = %aside.display(), "metrics and logs cannot be read; beginning anew");
                for extension in ["db", "db-wal", "db-shm"] {
                    let from = path.with_extension(extension);
                    let to = if extension == "db" {
                        Some(&aside)
                    } else {
                        None
                    };
                    let _may_not_exist = match to {
                        Some(aside) => std::fs::rename(from, aside),
                        None => std::fs::remove_file(from),
                    };
                }
                connect(path)?
            }
        };
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            events: Events::default(),
        })
    }

    /// Sandboxes of which anything is kept.
    async fn known(&self) -> Result<HashSet<String>, HistoryError> {
        self.run(|connection| {
            let mut statement = connection.prepare(
                "SELECT DISTINCT sandbox FROM samples UNION SELECT sandbox FROM log_positions
                 UNION SELECT DISTINCT sandbox FROM log_entries",
            )?;
            let ids = statement.query_map([], |row| row.get(0))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Deletes everything of a sandbox.
    async fn forget(&self, id: String) -> Result<(), HistoryError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            for table in ["samples", "log_entries", "log_positions"] {
                transaction.execute(&format!("DELETE FROM {table} WHERE sandbox = ?1"), [&id])?;
            }
            Ok(transaction.commit()?)
        })
        .await
    }

    /// Runs `work` on the connection where blocking is allowed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await
            .expect("database work does not panic and is not cancelled")
    }
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A crash of the host may lose the newest samples and entries, and nothing else.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.execute_batch(SCHEMA)?;
    Ok(connection)
}

fn text(id: &SandboxId) -> String {
    id.as_str().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unreadable_database_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.db");
        std::fs::write(
            &path,
            "this is no database, and longer than a header would be".repeat(9),
        )
        .unwrap();
        let history = History::open(&path).unwrap();
        assert!(history.known().await.unwrap().is_empty());
        assert!(folder.path().join("history.db.unreadable").exists());
    }
}
