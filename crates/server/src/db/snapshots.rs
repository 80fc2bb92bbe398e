//! One row per snapshot.

use rusqlite::{Connection, Transaction, params};

use super::sandboxes::{nanoseconds, update};
use super::{Db, DbError};
use crate::sandbox::Record;
use crate::snapshots::{Snapshot, SnapshotId, SnapshotUse};

impl Db {
    /// Commits a snapshot: its row and the next generation of its source, which stands on other
    /// disks from now on, in one transaction. An older snapshot of the same name and tag is marked
    /// for deletion.
    pub async fn commit_snapshot(&self, record: Record, snapshot: Snapshot) -> Result<(), DbError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            release_name(&transaction, &snapshot)?;
            insert(&transaction, &snapshot)?;
            update(&transaction, &record)?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// Writes the row of a snapshot that is about to get its files, as one that is to be removed: that
    /// is what becomes of it after a crash.
    pub async fn announce_snapshot(&self, snapshot: Snapshot) -> Result<(), DbError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let announced = Snapshot {
                usage: SnapshotUse::Deleting,
                ..snapshot
            };
            insert(&transaction, &announced)?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// Commits an announced snapshot: from now on callers see it. An older one of the same name and
    /// tag is marked for deletion.
    pub async fn list_snapshot(&self, snapshot: Snapshot) -> Result<(), DbError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            release_name(&transaction, &snapshot)?;
            let listed = transaction.execute(
                "UPDATE snapshots SET usage = 'listed' WHERE id = ?1 AND usage = 'deleting'",
                [snapshot.id.as_str()],
            )?;
            if listed != 1 {
                return Err(DbError::Outdated(snapshot.id.to_string()));
            }
            Ok(transaction.commit()?)
        })
        .await
    }

    /// Whether callers see this snapshot.
    pub async fn is_snapshot_listed(&self, id: SnapshotId) -> Result<bool, DbError> {
        self.run(move |connection| {
            let found = connection.query_row(
                "SELECT count(*) FROM snapshots WHERE id = ?1 AND usage = 'listed'",
                [id.as_str()],
                |row| row.get::<_, i64>(0),
            )?;
            Ok(found == 1)
        })
        .await
    }

    /// From now on the snapshot is nobody's to use; its files can go.
    pub async fn mark_snapshot_deleting(&self, id: SnapshotId) -> Result<(), DbError> {
        self.run(move |connection| {
            connection.execute(
                "UPDATE snapshots SET usage = 'deleting' WHERE id = ?1",
                [id.as_str()],
            )?;
            Ok(())
        })
        .await
    }

    /// Forgets a snapshot. An unknown one is success.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), DbError> {
        self.run(move |connection| {
            connection.execute("DELETE FROM snapshots WHERE id = ?1", [id.as_str()])?;
            Ok(())
        })
        .await
    }

    /// Every snapshot. One that cannot be read fails the call: starting without it would lose it.
    pub async fn load_snapshots(&self) -> Result<Vec<Snapshot>, DbError> {
        self.run(|connection| load(connection)).await
    }
}

/// Marks what has the name of `snapshot` for deletion.
fn release_name(transaction: &Transaction<'_>, snapshot: &Snapshot) -> Result<(), DbError> {
    if let Some(name) = &snapshot.name {
        transaction.execute(
            "UPDATE snapshots SET usage = 'deleting'
             WHERE name = ?1 AND tag = ?2 AND usage = 'listed'",
            params![name.name, name.tag],
        )?;
    }
    Ok(())
}

fn insert(transaction: &Transaction<'_>, snapshot: &Snapshot) -> Result<(), DbError> {
    let spec = serde_json::to_string(snapshot).map_err(|error| DbError::Unreadable {
        id: snapshot.id.to_string(),
        what: error.to_string(),
    })?;
    let name = snapshot.name.as_ref();
    transaction.execute(
        "INSERT INTO snapshots (id, created_at, source, name, tag, usage, spec)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            snapshot.id.as_str(),
            nanoseconds(snapshot.created_at),
            snapshot.source.as_str(),
            name.map(|name| &name.name),
            name.map(|name| &name.tag),
            usage_name(snapshot),
            spec,
        ],
    )?;
    Ok(())
}

fn usage_name(snapshot: &Snapshot) -> &'static str {
    use crate::snapshots::SnapshotUse::{Deleting, Fork, Listed};
    match snapshot.usage {
        Listed => "listed",
        Fork => "fork",
        Deleting => "deleting",
    }
}

fn load(connection: &Connection) -> Result<Vec<Snapshot>, DbError> {
    let mut statement = connection.prepare("SELECT id, usage, spec FROM snapshots")?;
    let mut rows = statement.query([])?;
    let mut snapshots = Vec::new();
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let usage: String = row.get(1)?;
        let spec: String = row.get(2)?;
        let unreadable = |error: serde_json::Error| DbError::Unreadable {
            id: id.clone(),
            what: error.to_string(),
        };
        let mut snapshot: Snapshot = serde_json::from_str(&spec).map_err(unreadable)?;
        // The column is what changes; the rest never does.
        snapshot.usage = serde_json::from_value(usage.into()).map_err(unreadable)?;
        snapshots.push(snapshot);
    }
    Ok(snapshots)
}
