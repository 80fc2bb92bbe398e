//! What happened in the sandbox, for its owner: one JSON object per entry (contract §9).
//!
//! Entries wait here, bounded, until the host has read them; what had to make room is counted and
//! said. What processes write is never part of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

/// Bytes of entries that are kept.
const KEPT: usize = 256 * 1024;
/// Longest text of one field; commands may be as long as they like.
const FIELD_LIMIT: usize = 1024;

/// How much an entry matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
}

/// The entries that are kept.
#[derive(Debug, Default)]
pub(crate) struct Log {
    kept: Mutex<Kept>,
    /// Number of the newest entry.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    entries: VecDeque<(u64, Bytes)>,
    bytes: usize,
    newest: u64,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
        }
    }
}

impl Log {
    /// Adds an entry. `logger` is the part of the agent that speaks; `fields` is a JSON object of
    /// plain values.
    pub(crate) fn add(&self, level: Level, logger: &str, message: &str, fields: Value) {
        let mut entry = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        for value in entry.values_mut() {
            if let Value::String(text) = value {
                cut(text);
            }
        }
        let now = OffsetDateTime::now_utc().format(&Rfc3339);
        for (key, value) in [
            ("level", level.name()),
            ("logger", logger),
            ("message", message),
            ("timestamp", now.as_deref().unwrap_or_default()),
        ] {
            entry.insert(key.to_owned(), value.into());
        }
        let newest = self.lock().push(&Value::Object(entry));
        self.newest.send_replace(newest);
    }

    /// Forgets all entries: they are another sandbox's, of whose memory this one was made.
    pub(crate) fn clear(&self) {
        *self.lock() = Kept::default();
        self.newest.send_replace(0);
    }

    /// Entries after number `after` as lines of JSON, now and as they come. What was dropped before
    /// it could be read is an entry of its own.
    pub(crate) fn follow(self: &Arc<Self>, after: u64) -> impl Stream<Item = Bytes> + use<> {
        let state = (Arc::clone(self), self.newest.subscribe(), after);
        futures_util::stream::unfold(state, |(log, mut newest, mut after)| async move {
            // The sender is part of the log that is held here.
            let _never_closed = newest.wait_for(|newest| *newest > after).await.map(drop);
            let lines = log.lock().after(&mut after);
            Some((lines, (log, newest, after)))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, entry: &Value) -> u64 {
        self.newest += 1;
        let line = numbered(self.newest, entry);
        self.bytes += line.len();
        self.entries.push_back((self.newest, line));
        while self.bytes > KEPT
            && let Some((_, oldest)) = self.entries.pop_front()
        {
            self.bytes -= oldest.len();
        }
        self.newest
    }

    /// All entries after number `after`, which moves to the newest.
    fn after(&self, after: &mut u64) -> Bytes {
        let mut lines = Vec::new();
        let oldest = self
            .entries
            .front()
            .map_or(self.newest, |(number, _)| *number);
        let lost = oldest.saturating_sub(*after + 1);
        if lost > 0 {
            let now = OffsetDateTime::now_utc().format(&Rfc3339);
            let entry = json!({
                "level": "warn", "logger": "envd", "timestamp": now.unwrap_or_default(),
                "message": "log entries were dropped before they were read", "lost": lost,
            });
            lines.extend_from_slice(&numbered(oldest - 1, &entry));
        }
        for (_, line) in self.entries.iter().filter(|(number, _)| *number > *after) {
            lines.extend_from_slice(line);
        }
        *after = self.newest;
        lines.into()
    }
}

fn numbered(number: u64, entry: &Value) -> Bytes {
    format!("{}\n", json!({"number": number, "entry": entry})).into()
}

/// Shortens a text that is too long, at the border of a character.
fn cut(text: &mut String) {
    if text.len() > FIELD_LIMIT {
        let end = (0..=FIELD_LIMIT)
            .rev()
            .find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    async fn read(log: &Arc<Log>, after: u64) -> Vec<Value> {
        let lines = Box::pin(log.follow(after)).next().await.unwrap();
        let lines = String::from_utf8(lines.to_vec()).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn entries_are_read_after_a_number_and_later_ones_are_waited_for() {
        let log = Arc::new(Log::default());
        log.add(
            Level::Info,
            "process",
            "one",
            json!({"pid": 7, "text": "ä".repeat(2000)}),
        );
        log.add(Level::Warn, "envd", "two", json!({}));
        let both = read(&log, 0).await;
        assert_eq!(both.len(), 2);
        assert_eq!(both[0]["entry"]["pid"], 7);
        assert!(both[0]["entry"]["text"].as_str().unwrap().len() < 1100);
        assert_eq!(both[1]["number"], 2);
        assert_eq!(both[1]["entry"]["level"], "warn");

        let adding = Arc::clone(&log);
        let (later, ()) = tokio::join!(read(&log, 2), async move {
            adding.add(Level::Info, "envd", "three", json!({}));
        });
        assert_eq!(later[0]["entry"]["message"], "three");
    }

    #[tokio::test]
    async fn the_log_is_bounded_and_says_what_it_lost() {
        let log = Arc::new(Log::default());
        for _ in 0..1000 {
            log.add(
                Level::Info,
                "process",
                "x",
                json!({"command": "y".repeat(1000)}),
            );
        }
        assert!(log.lock().bytes <= KEPT);
        let entries = read(&log, 0).await;
        let lost = entries[0]["entry"]["lost"].as_u64().unwrap();
        assert_eq!(usize::try_from(lost).unwrap() + entries.len() - 1, 1000);
        assert_eq!(entries.last().unwrap()["number"], 1000);
        assert_eq!(
            entries[0]["number"].as_u64().unwrap() + 1,
            entries[1]["number"].as_u64().unwrap()
        );
    }
}
