//! The journal: SQLite in the data directory, written before every side effect.

mod sandboxes;
mod snapshots;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;

/// Version of the tables, in SQLite's `user_version`.
const SCHEMA_VERSION: i32 = 2;

const SCHEMA: &str = "
CREATE TABLE sandboxes (
    id         TEXT    NOT NULL PRIMARY KEY,
    generation INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    spec       TEXT    NOT NULL,
    disks      TEXT    NOT NULL,
    started_at INTEGER NOT NULL, -- nanoseconds since the epoch
    end_at     INTEGER NOT NULL, -- nanoseconds since the epoch
    agent_silent INTEGER NOT NULL, -- whether its pause was done without the agent
    memory_lost TEXT             -- why this run was booted, if nobody asked for that
) STRICT;
CREATE TABLE snapshots (
    id         TEXT    NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL, -- nanoseconds since the epoch
    source     TEXT    NOT NULL, -- a sandbox, which may be gone
    name       TEXT,
    tag        TEXT,
    usage      TEXT    NOT NULL, -- listed, fork, deleting
    spec       TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX snapshot_names ON snapshots (name, tag) WHERE usage = 'listed';
";

/// From version 1: sandboxes have rules for their ports, which are open in those that are there. The
/// tables are the same; the version keeps older builds, which know no such rules, from opening private ports.
const TO_VERSION_2: &str = "UPDATE sandboxes SET spec = json_set(spec, '$.ingress', json('{}'));";

/// A failed use of the journal.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// SQLite failed.
    #[error("use the database")]
    Sqlite(#[from] rusqlite::Error),
    /// What is stored cannot be read; the row is left alone.
    #[error("the database holds an unreadable record of sandbox {id}: {what}")]
    Unreadable {
        /// Whose record.
        id: String,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody else wrote the record since it was read.
    #[error("the record of sandbox {0} was changed by another writer")]
    Outdated(String),
    /// A newer SandBase wrote it.
    #[error(
        "the database has version {0}, this build reads up to {SCHEMA_VERSION}; upgrade SandBase"
    )]
    Newer(i32),
}

/// The open journal. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    connection: Arc<Mutex<Connection>>,
}

impl Db {
    /// Opens or makes the journal. Every commit is on disk when it returns (`synchronous=FULL`).
    pub fn open(path: &Path) -> Result<Self, DbError> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", "ON")?;
        let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(DbError::Newer(version));
        }
        let step = match version {
            0 => Some(SCHEMA),
            1 => Some(TO_VERSION_2),
            _ => None,
        };
        if let Some(step) = step {
            let transaction = connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            transaction.commit()?;
        }
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Runs `work` on the connection where blocking is allowed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T, DbError> {
        let connection = Arc::clone(&self.connection);
        crate::blocking::run(move || {
            work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
    }
}
