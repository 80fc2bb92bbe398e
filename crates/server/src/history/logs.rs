//! Entries of the agents' logs.

use agent_api::LogLine;
use rusqlite::{OptionalExtension, params};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{History, HistoryError, text};
use crate::sandbox::SandboxId;

/// Entries of one sandbox that are kept. A guest that logs without end must not fill the disk.
const ENTRIES_KEPT: u32 = 20_000;
/// Longest entry that is kept, in bytes of JSON.
const LONGEST: usize = 8 * 1024;

/// How much an entry matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Why something happens.
    Debug,
    /// What happens.
    Info,
    /// Something was mended.
    Warn,
    /// Somebody should look.
    Error,
}

/// Which way entries are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first, from the cursor on.
    Forward,
    /// Newest first, up to the cursor.
    Backward,
}

/// Which entries are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// Milliseconds since the epoch; the first or last entry there is when absent.
    pub cursor: Option<i64>,
    /// Which way.
    pub direction: Direction,
    /// At most so many.
    pub limit: u32,
    /// At least this level.
    pub level: Level,
    /// Only those whose message holds this text.
    pub search: Option<String>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// When.
    pub at: OffsetDateTime,
    /// How much it matters.
    pub level: Level,
    /// The whole entry as a line of JSON.
    pub line: String,
    /// The same, parsed.
    pub entry: Map<String, Value>,
}

impl Level {
    /// Its name in entries and queries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// The level of a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Debug, Self::Info, Self::Warn, Self::Error]
            .into_iter()
            .find(|level| level.name() == name)
    }
}

impl LogEntry {
    fn parse(line: String) -> Option<Self> {
        let entry: Map<String, Value> = serde_json::from_str(&line).ok()?;
        let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        Some(Self {
            at: OffsetDateTime::parse(field("timestamp"), &Rfc3339).ok()?,
            level: Level::parse(field("level"))?,
            line,
            entry,
        })
    }

    /// What it says.
    pub fn message(&self) -> &str {
        self.entry
            .get("message")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

impl History {
    /// The boot and number of the last entry that is kept of a sandbox; after it reading goes on.
    pub(super) async fn log_position(&self, id: &SandboxId) -> Result<(String, u64), HistoryError> {
        let id = text(id);
        self.run(move |connection| {
            let found = connection.query_row(
                "SELECT boot, number FROM log_positions WHERE sandbox = ?1",
                [id],
                |row| Ok((row.get(0)?, row.get(1)?)),
            );
            Ok(found.optional()?.unwrap_or_default())
        })
        .await
    }

    /// Keeps entries that an agent gave. Those that are not of the right form are left out: whoever
    /// is root in a sandbox decides what its agent says.
    pub(super) async fn add_log(
        &self,
        id: &SandboxId,
        boot: String,
        lines: Vec<LogLine>,
    ) -> Result<(), HistoryError> {
        let id = text(id);
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            let mut last = None;
            for line in lines {
                last = Some(line.number);
                let json = Value::Object(line.entry).to_string();
                let Some(entry) = LogEntry::parse(json).filter(|entry| entry.line.len() <= LONGEST) else {
                    continue;
                };
                let at = entry.at.unix_timestamp_nanos() / 1_000_000;
                transaction.execute(
                    "INSERT INTO log_entries (sandbox, at, level, line) VALUES (?1, ?2, ?3, ?4)",
                    params![id, i64::try_from(at).unwrap_or(0), entry.level as u8, entry.line],
                )?;
            }
            let Some(last) = last else { return Ok(()) };
            transaction.execute(
                "INSERT OR REPLACE INTO log_positions (sandbox, boot, number) VALUES (?1, ?2, ?3)",
                params![id, boot, last],
            )?;
            transaction.execute(
                "DELETE FROM log_entries WHERE sandbox = ?1 AND id <=
                   (SELECT id FROM log_entries WHERE sandbox = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                params![id, ENTRIES_KEPT],
            )?;
            Ok(transaction.commit()?)
        })
        .await
    }

    /// Entries of a sandbox.
    pub async fn log(
        &self,
        id: &SandboxId,
        query: LogQuery,
    ) -> Result<Vec<LogEntry>, HistoryError> {
        let id = text(id);
        self.run(move |connection| {
            let (condition, order, cursor) = match query.direction {
                Direction::Forward => (">=", "ASC", query.cursor.unwrap_or(0)),
                Direction::Backward => ("<=", "DESC", query.cursor.unwrap_or(i64::MAX)),
            };
            let mut statement = connection.prepare(&format!(
                "SELECT line FROM log_entries WHERE sandbox = ?1 AND at {condition} ?2 AND level >= ?3
                 ORDER BY at {order}, id {order}"
            ))?;
            let mut rows = statement.query(params![id, cursor, query.level as u8])?;
            let mut entries = Vec::new();
            while entries.len() < query.limit as usize
                && let Some(row) = rows.next()?
            {
                let entry = LogEntry::parse(row.get(0)?);
                let wanted = |entry: &LogEntry| {
                    let text = query.search.as_deref();
                    text.is_none_or(|text| entry.message().contains(text))
                };
                entries.extend(entry.filter(wanted));
            }
            Ok(entries)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(number: u64, level: &str, message: &str) -> LogLine {
        let at = OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap()
            + std::time::Duration::from_secs(number);
        let entry = json!({
            "level": level, "message": message, "logger": "process",
            "timestamp": at.format(&Rfc3339).unwrap(),
        });
        let entry = entry.as_object().unwrap().clone();
        LogLine { number, entry }
    }

    fn query(direction: Direction) -> LogQuery {
        LogQuery {
            cursor: None,
            direction,
            limit: 1000,
            level: Level::Debug,
            search: None,
        }
    }

    async fn messages(history: &History, id: &SandboxId, query: LogQuery) -> Vec<String> {
        let entries = history.log(id, query).await.unwrap();
        entries
            .iter()
            .map(|entry| entry.message().to_owned())
            .collect()
    }

    #[tokio::test]
    async fn entries_are_found_by_cursor_level_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(&folder.path().join("history.db")).unwrap();
        let id = SandboxId::random();
        assert_eq!(history.log_position(&id).await.unwrap(), (String::new(), 0));
        let mut broken = line(4, "info", "four");
        broken.entry.remove("level");
        let huge = line(5, "info", &"x".repeat(LONGEST));
        let lines = vec![
            line(1, "info", "one"),
            line(2, "warn", "two"),
            line(3, "info", "three"),
            broken,
            huge,
        ];
        history
            .add_log(&id, "boot".to_owned(), lines)
            .await
            .unwrap();
        assert_eq!(
            history.log_position(&id).await.unwrap(),
            ("boot".to_owned(), 5)
        );

        let all = query(Direction::Backward);
        assert_eq!(
            messages(&history, &id, all.clone()).await,
            ["three", "two", "one"]
        );
        let from_second = LogQuery {
            cursor: Some(1_000_000_002_000),
            ..query(Direction::Forward)
        };
        assert_eq!(
            messages(&history, &id, from_second.clone()).await,
            ["two", "three"]
        );
        let one = LogQuery {
            limit: 1,
            ..from_second
        };
        assert_eq!(messages(&history, &id, one).await, ["two"]);
        let warnings = LogQuery {
            level: Level::Warn,
            ..all.clone()
        };
        assert_eq!(messages(&history, &id, warnings).await, ["two"]);
        let found = LogQuery {
            search: Some("re".to_owned()),
            ..all.clone()
        };
        assert_eq!(messages(&history, &id, found).await, ["three"]);
        assert!(
            messages(&history, &SandboxId::random(), all)
                .await
                .is_empty()
        );
    }

    #[tokio::test]
    async fn the_oldest_entries_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(&folder.path().join("history.db")).unwrap();
        let id = SandboxId::random();
        let lines = (1..=u64::from(ENTRIES_KEPT) + 10).map(|number| line(number, "info", "x"));
        history
            .add_log(&id, "boot".to_owned(), lines.collect())
            .await
            .unwrap();
        let all = LogQuery {
            limit: u32::MAX,
            ..query(Direction::Forward)
        };
        let entries = history.log(&id, all).await.unwrap();
        assert_eq!(entries.len(), ENTRIES_KEPT as usize);
        assert_eq!(entries[0].at.unix_timestamp(), 1_000_000_011);
    }
}
