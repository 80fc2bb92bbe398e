//! The report as a table that lines up.

use std::fmt::Write;

use super::{Report, Row, Verdict};

/// Widths of the two columns of prose.
const PROMISED: usize = 44;
const SEEN: usize = 56;

/// Whether verdicts are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// For terminals.
    Yes,
    /// For files and pipes.
    No,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed => "FAIL",
            Self::NotSupported => "not supported",
            Self::Measured => "measured",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Passed => "\x1b[32m",
            Self::Failed => "\x1b[31m",
            Self::NotSupported => "\x1b[33m",
            Self::Measured => "\x1b[36m",
        }
    }

    /// The word, padded to `width`, in its colour.
    pub(crate) fn paint(self, width: usize, colours: Colours) -> String {
        let word = self.word();
        match colours {
            Colours::Yes => format!("{}{word:width$}\x1b[0m", self.colour()),
            Colours::No => format!("{word:width$}"),
        }
    }
}

/// The whole report, ending in a line that sums it up.
pub fn table(report: &Report, colours: Colours) -> String {
    let name_width = width("row", report.rows.iter().map(|row| row.name));
    let verdict_width = width("result", report.rows.iter().map(|row| row.verdict.word()));
    let mut text = String::new();
    line(
        &mut text,
        &format!("{:name_width$}", "row"),
        &format!("{:verdict_width$}", "result"),
        "promised",
        "seen",
    );
    for row in &report.rows {
        write_row(&mut text, row, name_width, verdict_width, colours);
    }
    text.push('\n');
    let counts = [
        Verdict::Passed,
        Verdict::Failed,
        Verdict::NotSupported,
        Verdict::Measured,
    ];
    let counts = counts.map(|verdict| format!("{} {}", report.count(verdict), verdict.word()));
    let sum = format!(
        "{} in {:.0} s, {} rounds, {}\n",
        counts.join(", "),
        report.seconds,
        report.rounds,
        report.server
    );
    text.push_str(&sum);
    text
}

fn write_row(text: &mut String, row: &Row, names: usize, verdicts: usize, colours: Colours) {
    let promised = wrap(row.promised, PROMISED);
    let seen = wrap(&row.seen, SEEN);
    for number in 0..promised.len().max(seen.len()) {
        let (name, verdict) = if number == 0 {
            (row.name, row.verdict.paint(verdicts, colours))
        } else {
            ("", " ".repeat(verdicts))
        };
        let part = |column: &[String]| column.get(number).cloned().unwrap_or_default();
        let name = format!("{name:names$}");
        line(text, &name, &verdict, &part(&promised), &part(&seen));
    }
}

fn line(text: &mut String, name: &str, verdict: &str, promised: &str, seen: &str) {
    let whole = format!("{name}  {verdict}  {promised:PROMISED$}  {seen}");
    let _never_fails = writeln!(text, "{}", whole.trim_end());
}

fn width<'a>(title: &str, cells: impl Iterator<Item = &'a str>) -> usize {
    cells.map(str::len).fold(title.len(), usize::max)
}

/// Lines of at most `width` characters; a longer word is cut.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut letters: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + letters.len() > width {
            lines.push(String::new());
            used = 0;
        }
        while letters.len() > width {
            let rest = letters.split_off(width);
            lines.last_mut().expect("one at least").extend(&letters);
            lines.push(String::new());
            letters = rest;
        }
        let line = lines.last_mut().expect("one at least");
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.extend(&letters);
        used += letters.len();
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            server: "http://s".to_owned(),
            rounds: 2,
            seconds: 61.4,
            rows: vec![
                Row {
                    name: "memory",
                    verdict: Verdict::Passed,
                    promised: "memory comes back",
                    seen: "same".to_owned(),
                },
                Row {
                    name: "snapshot-state",
                    verdict: Verdict::NotSupported,
                    promised: "a child of a snapshot has the memory and the files of its source",
                    seen: "w".repeat(SEEN + 3),
                },
            ],
        }
    }

    #[test]
    fn columns_line_up_over_all_lines() {
        let text = table(&report(), Colours::No);
        let lines: Vec<&str> = text.lines().collect();
        let promised = lines[0].find("promised").unwrap();
        let seen = lines[0].find("seen").unwrap();
        assert_eq!(lines[1].find("memory comes back"), Some(promised));
        assert_eq!(lines[1].find("same"), Some(seen));
        assert_eq!(lines[2].find("a child of"), Some(promised));
        assert_eq!(lines[3].find("files of its source"), Some(promised));
        assert_eq!(lines[3].rfind("www"), Some(seen));
        assert_eq!(
            lines.last().copied(),
            Some("1 pass, 0 FAIL, 1 not supported, 0 measured in 61 s, 2 rounds, http://s")
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let plain = table(&report(), Colours::No);
        let mut coloured = table(&report(), Colours::Yes);
        assert_ne!(plain, coloured);
        for code in ["\x1b[32m", "\x1b[33m", "\x1b[0m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(plain, coloured);
    }

    #[test]
    fn long_words_are_cut_and_short_ones_kept_whole() {
        assert_eq!(wrap("ab cd ef", 5), ["ab cd", "ef"]);
        assert_eq!(wrap("abcdefg hi", 3), ["abc", "def", "g", "hi"]);
        assert_eq!(wrap("", 3), [""]);
    }
}
