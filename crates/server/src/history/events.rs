//! Events of sandboxes: what became of them, also of those that are gone.
//!
//! A transition queues its event when the journal has it, and one task writes the queue. So the
//! events of a server that is not killed are complete. One that is killed loses those of its last
//! moment; [`catch_up`](History::catch_up) then adds what the journal says, so that the newest event
//! of a sandbox never contradicts what it is, and a sandbox that is gone has an end.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, Transaction, params, params_from_iter};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{History, HistoryError, KEPT};
use crate::sandbox::{Event, EventKind, Events, Record, SandboxId};

/// Events of one sandbox that are kept: somebody may pause and resume one all day long.
const KEPT_OF_ONE: u32 = 1_000;
/// Events that are kept in all.
const KEPT_OF_ALL: u32 = 100_000;
/// When events could not be written, it is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Only those of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only these kinds; all when empty.
    pub kinds: Vec<EventKind>,
    /// Oldest first, instead of newest first.
    pub ascending: bool,
    /// So many are passed over.
    pub offset: u32,
    /// At most so many.
    pub limit: u32,
}

/// An event with its name in the history.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Its own name, a UUID.
    pub id: String,
    /// When, in nanoseconds since the epoch.
    pub at: i64,
    /// What, by name.
    pub kind: String,
    /// To which sandbox.
    pub sandbox: String,
    /// The execution that began or ended.
    pub execution: Option<String>,
    /// Raw id of the sandbox's template.
    pub template_id: String,
    /// More about it.
    pub data: Map<String, Value>,
}

impl History {
    /// Where events are queued.
    pub fn queue(&self) -> &Events {
        &self.events
    }

    /// Writes what is queued. What cannot be written stays queued.
    pub async fn write_events(&self) -> Result<(), HistoryError> {
        let events = self.events.clone();
        self.run(move |connection| write(connection, &events)).await
    }

    /// Events in the order of the query, those included that are still queued.
    pub async fn events(&self, query: EventQuery) -> Result<Vec<StoredEvent>, HistoryError> {
        let events = self.events.clone();
        self.run(move |connection| {
            write(connection, &events)?;
            read(connection, &query)
        })
        .await
    }

    /// Adds what the events do not say of the sandboxes in the journal, and the ends of those that
    /// are not in it any more. To be called before anything happens to them.
    pub async fn catch_up(&self, records: &[Record]) -> Result<(), HistoryError> {
        let mut last = self.run(last_states).await?;
        for record in records {
            let known = last.remove(record.id.as_str());
            let missing = Event::missing(record, known.map(|(kind, _)| kind));
            missing.into_iter().for_each(|event| self.events.add(event));
        }
        for (id, (kind, template_id)) in last {
            if let Some(id) = SandboxId::parse(&id).filter(|_| kind != EventKind::Killed) {
                self.events.add(Event::missing_end(id, template_id));
            }
        }
        self.write_events().await
    }

    /// Deletes old events, and the oldest where there are too many.
    pub(super) async fn thin_out_events(&self) -> Result<(), HistoryError> {
        let oldest = nanoseconds(OffsetDateTime::now_utc() - KEPT);
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM events WHERE at < ?1", [oldest])?;
            transaction.execute(
                "DELETE FROM events WHERE number <=
                   (SELECT number FROM events ORDER BY number DESC LIMIT 1 OFFSET ?1)",
                [KEPT_OF_ALL],
            )?;
            Ok(transaction.commit()?)
        })
        .await
    }
}

/// Writes events as they come, until `stop`.
pub(super) async fn keep(history: &History, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = history.events.added() => {}
        }
        while let Err(error) = history.write_events().await {
            tracing::warn!(error = ?error, "events could not be written, trying again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

fn write(connection: &mut Connection, queue: &Events) -> Result<(), HistoryError> {
    let events = queue.take();
    if events.is_empty() {
        return Ok(());
    }
    let written = write_all(connection, &events);
    if written.is_err() {
        queue.put_back(events);
    }
    written
}

fn write_all(connection: &mut Connection, events: &[Event]) -> Result<(), HistoryError> {
    let transaction = connection.transaction()?;
    for event in events {
        insert(&transaction, event)?;
    }
    Ok(transaction.commit()?)
}

fn insert(transaction: &Transaction<'_>, event: &Event) -> Result<(), HistoryError> {
    transaction.execute(
        "INSERT INTO events (id, sandbox, at, kind, execution, template, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            crate::random::uuid(),
            event.sandbox.as_str(),
            nanoseconds(event.at),
            event.kind.name(),
            event.execution.as_ref().map(|execution| execution.as_str()),
            event.template_id,
            Value::Object(event.data.clone()).to_string(),
        ],
    )?;
    transaction.execute(
        "DELETE FROM events WHERE sandbox = ?1 AND number <=
           (SELECT number FROM events WHERE sandbox = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
        params![event.sandbox.as_str(), KEPT_OF_ONE],
    )?;
    Ok(())
}

fn read(connection: &Connection, query: &EventQuery) -> Result<Vec<StoredEvent>, HistoryError> {
    let order = if query.ascending { "ASC" } else { "DESC" };
    // The names are our own.
    let kinds: Vec<_> = query.kinds.iter().map(|kind| kind.name()).collect();
    let of_kind = match kinds.is_empty() {
        true => String::new(),
        false => format!("AND kind IN ('{}')", kinds.join("', '")),
    };
    let mut statement = connection.prepare(&format!(
        "SELECT id, at, kind, sandbox, execution, template, data FROM events
         WHERE (?1 IS NULL OR sandbox = ?1) {of_kind}
         ORDER BY number {order} LIMIT ?2 OFFSET ?3"
    ))?;
    let sandbox = query.sandbox.as_ref().map(|id| id.as_str());
    let rows = statement.query_map(params![sandbox, query.limit, query.offset], |row| {
        let data: String = row.get(6)?;
        Ok(StoredEvent {
            id: row.get(0)?,
            at: row.get(1)?,
            kind: row.get(2)?,
            sandbox: row.get(3)?,
            execution: row.get(4)?,
            template_id: row.get(5)?,
            data: serde_json::from_str(&data).unwrap_or_default(),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The newest event of each sandbox that says whether it runs, and its template.
fn last_states(
    connection: &mut Connection,
) -> Result<HashMap<String, (EventKind, String)>, HistoryError> {
    use EventKind::{Created, Killed, Paused, Resumed};
    let kinds = [Created, Paused, Resumed, Killed].map(EventKind::name);
    let mut statement = connection.prepare(
        "SELECT sandbox, kind, template FROM events WHERE number IN
           (SELECT max(number) FROM events WHERE kind IN (?1, ?2, ?3, ?4) GROUP BY sandbox)",
    )?;
    let rows = statement.query_map(params_from_iter(kinds), |row| {
        Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?))
    })?;
    let mut last = HashMap::new();
    for row in rows {
        let (sandbox, kind, template) = row?;
        if let Some(kind) = EventKind::parse(&kind) {
            last.insert(sandbox, (kind, template));
        }
    }
    Ok(last)
}

fn nanoseconds(instant: OffsetDateTime) -> i64 {
    i64::try_from(instant.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}
