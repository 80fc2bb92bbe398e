//! One row per sandbox that is not gone.

use rusqlite::{Connection, params};
use time::OffsetDateTime;

use super::{Db, DbError};
use crate::sandbox::{Record, Run, SandboxId};

impl Db {
    /// Adds a sandbox with its first generation.
    pub async fn insert(&self, record: Record) -> Result<(), DbError> {
        self.run(move |connection| {
            connection.execute(
                "INSERT INTO sandboxes (id, generation, state, spec, disks, started_at, end_at,
                                        memory_lost, agent_silent)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    record.id.as_str(),
                    record.generation,
                    encode(&record, &record.state)?,
                    encode(&record, &record.spec)?,
                    encode(&record, &record.disks)?,
                    nanoseconds(record.run.started_at),
                    nanoseconds(record.run.end_at),
                    record.run.memory_lost,
                    record.run.agent_silent,
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Writes state, disks and times of a record whose generation is one above the stored one.
    pub async fn update(&self, record: Record) -> Result<(), DbError> {
        self.run(move |connection| update(connection, &record))
            .await
    }

    /// Gives a sandbox that was prepared before anybody asked for it its spec and run.
    pub async fn assign(&self, record: Record) -> Result<(), DbError> {
        self.run(move |connection| {
            let changed = connection.execute(
                "UPDATE sandboxes SET generation = ?2, spec = ?3, started_at = ?4, end_at = ?5
                 WHERE id = ?1 AND generation = ?2 - 1",
                params![
                    record.id.as_str(),
                    record.generation,
                    encode(&record, &record.spec)?,
                    nanoseconds(record.run.started_at),
                    nanoseconds(record.run.end_at),
                ],
            )?;
            match changed {
                1 => Ok(()),
                _ => Err(DbError::Outdated(record.id.to_string())),
            }
        })
        .await
    }

    /// Forgets a sandbox. An unknown one is success.
    pub async fn delete(&self, id: SandboxId) -> Result<(), DbError> {
        self.run(move |connection| {
            connection.execute("DELETE FROM sandboxes WHERE id = ?1", [id.as_str()])?;
            Ok(())
        })
        .await
    }

    /// Every record. One that cannot be read fails the call: starting without it would lose it.
    pub async fn load_all(&self) -> Result<Vec<Record>, DbError> {
        self.run(|connection| load(connection)).await
    }
}

/// See [`Db::update`].
pub(super) fn update(connection: &Connection, record: &Record) -> Result<(), DbError> {
    let changed = connection.execute(
        "UPDATE sandboxes SET generation = ?2, state = ?3, disks = ?4, started_at = ?5, end_at = ?6,
                              memory_lost = ?7, agent_silent = ?8
         WHERE id = ?1 AND generation = ?2 - 1",
        params![
            record.id.as_str(),
            record.generation,
            encode(record, &record.state)?,
            encode(record, &record.disks)?,
            nanoseconds(record.run.started_at),
            nanoseconds(record.run.end_at),
            record.run.memory_lost,
            record.run.agent_silent,
        ],
    )?;
    if changed == 1 || is_stored(connection, record)? {
        Ok(())
    } else {
        Err(DbError::Outdated(record.id.to_string()))
    }
}

/// Whether this very generation is there already: an earlier try may have worked and been told as
/// failed.
fn is_stored(connection: &Connection, record: &Record) -> Result<bool, DbError> {
    let (state, disks) = (
        encode(record, &record.state)?,
        encode(record, &record.disks)?,
    );
    let found = connection.query_row(
        "SELECT count(*) FROM sandboxes
         WHERE id = ?1 AND generation = ?2 AND state = ?3 AND disks = ?4",
        params![record.id.as_str(), record.generation, state, disks],
        |row| row.get::<_, i64>(0),
    )?;
    Ok(found == 1)
}

fn load(connection: &Connection) -> Result<Vec<Record>, DbError> {
    let mut statement = connection.prepare(
        "SELECT id, generation, state, spec, disks, started_at, end_at, memory_lost,
                agent_silent
         FROM sandboxes",
    )?;
    let mut rows = statement.query([])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let unreadable = |what: &str| DbError::Unreadable {
            id: id.clone(),
            what: what.to_owned(),
        };
        let state: String = row.get(2)?;
        let spec: String = row.get(3)?;
        let disks: String = row.get(4)?;
        records.push(Record {
            id: SandboxId::parse(&id).ok_or_else(|| unreadable("its id"))?,
            generation: row.get(1)?,
            state: serde_json::from_str(&state).map_err(|e| unreadable(&e.to_string()))?,
            spec: serde_json::from_str(&spec).map_err(|e| unreadable(&e.to_string()))?,
            disks: serde_json::from_str(&disks).map_err(|e| unreadable(&e.to_string()))?,
            run: Run {
                started_at: instant(row.get(5)?).ok_or_else(|| unreadable("its start"))?,
                end_at: instant(row.get(6)?).ok_or_else(|| unreadable("its deadline"))?,
                memory_lost: row.get(7)?,
                agent_silent: row.get(8)?,
            },
        });
    }
    Ok(records)
}

fn encode(record: &Record, part: &impl serde::Serialize) -> Result<String, DbError> {
    serde_json::to_string(part).map_err(|error| DbError::Unreadable {
        id: record.id.to_string(),
        what: error.to_string(),
    })
}

pub(super) fn nanoseconds(instant: OffsetDateTime) -> i64 {
    i64::try_from(instant.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

fn instant(nanoseconds: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds)).ok()
}
