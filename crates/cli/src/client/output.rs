//! What the client verbs print.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use serde_json::Value;
use time::OffsetDateTime;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Tables and sentences.
    People,
    /// What the server answered.
    Json,
}

/// Rows that line up under their headings.
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(headings: [&'static str; N]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    fn text(&self) -> String {
        let headings = self.headings.iter().map(|heading| (*heading).to_owned());
        let headings: Vec<String> = headings.collect();
        let all = || std::iter::once(&headings).chain(&self.rows);
        let width = |column: usize| {
            let cells = all().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut text = String::new();
        for row in all() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                line.push_str(&format!("{cell:width$}  ", width = width(column)));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        print(&self.text())
    }
}

/// One fact a line, names on the left.
pub(super) fn print_facts(facts: &[(&str, String)]) -> anyhow::Result<()> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in facts {
        text.push_str(format!("{name:width$}  {value}").trim_end());
        text.push('\n');
    }
    print(&text)
}

/// What the server answered, for programs.
pub(super) fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("write JSON")?;
    text.push('\n');
    print(&text)
}

pub(super) fn print_line(line: &str) -> anyhow::Result<()> {
    print(&format!("{line}\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("print the result")
}

/// An instant without fractions, in UTC.
pub(super) fn instant(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    format!(
        "{}-{:02}-{:02} {:02}:{:02}:{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// A number of bytes, for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = count;
    while whole >= 10 << 10 && unit + 1 < UNITS.len() {
        whole >>= 10;
        unit += 1;
    }
    format!("{whole} {}", UNITS[unit])
}

/// Counts bytes of a long transfer, on terminals only.
pub(super) struct Progress {
    what: &'static str,
    total: Option<u64>,
    done: u64,
    started: std::time::Instant,
    shown: Option<std::time::Instant>,
    terminal: bool,
}

impl Progress {
    /// Between two looks.
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

    pub(super) fn new(what: &'static str, total: Option<u64>) -> Self {
        Self {
            what,
            total,
            done: 0,
            started: std::time::Instant::now(),
            shown: None,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// So many bytes more.
    pub(super) fn add(&mut self, count: usize) {
        self.done += count as u64;
        let now = std::time::Instant::now();
        let due = self.shown.is_none_or(|last| now - last >= Self::PAUSE);
        if self.terminal && due {
            self.shown = Some(now);
            // Best effort: it is only decoration.
            let _ = write!(io::stderr(), "\r\x1b[2K{}", self.line());
        }
    }

    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs().max(1);
        let of = match self.total {
            Some(total) => format!(" of {}", bytes(total)),
            None => String::new(),
        };
        let speed = bytes(self.done / seconds);
        format!("{} {}{of}, {speed}/s", self.what, bytes(self.done))
    }

    /// Takes the line away and answers how much it was.
    pub(super) fn finish(self) -> u64 {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_with_their_last_cell() {
        let mut table = Table::new(["ID", "STATE"]);
        table.row(["i1".to_owned(), "running".to_owned()]);
        table.row(["äöü longer".to_owned(), String::new()]);
        let expected = "ID          STATE\ni1          running\näöü longer\n";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn sizes_have_at_least_two_digits() {
        let shown = [0, 10_239, 10_240, 5 << 30, 100 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "10239 B", "10 KiB", "5120 MiB", "100 GiB"]);
    }

    #[test]
    fn instants_are_utc_without_fractions() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_999_999_999).unwrap();
        assert_eq!(instant(at), "2023-11-14 22:13:20Z");
    }
}
