//! What was promised and what was seen, row by row.

mod table;

use e2b_client::Problem;
use serde::Serialize;

pub use table::{Colours, table};

/// One thing that a server promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// How the row is called, also by `--only`.
    pub name: &'static str,
    /// What the server promises by speaking the API.
    pub text: &'static str,
    /// Whether a broken promise is a fault.
    pub kind: Kind,
}

/// Whether a row can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It passes or it does not.
    Required,
    /// A figure to read; only being unable to take it is a fault.
    Measured,
}

impl Promise {
    /// One that is kept or broken.
    pub(crate) const fn required(name: &'static str, text: &'static str) -> Self {
        Self {
            name,
            text,
            kind: Kind::Required,
        }
    }

    /// A figure.
    pub(crate) const fn measured(name: &'static str, text: &'static str) -> Self {
        Self {
            name,
            text,
            kind: Kind::Measured,
        }
    }
}

/// How a row came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Seen as promised.
    Passed,
    /// Something else was seen.
    Failed,
    /// The server says that it does not have this.
    NotSupported,
    /// A figure, for reading.
    Measured,
}

/// One row of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// See [`Promise::name`].
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What the server promises.
    pub promised: &'static str,
    /// What was seen.
    pub seen: String,
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// URL of the server.
    pub server: String,
    /// Pauses per sandbox in the rounds.
    pub rounds: usize,
    /// How long it took.
    pub seconds: f64,
    /// One per promise.
    pub rows: Vec<Row>,
}

impl Report {
    /// Rows that came out this way.
    pub fn count(&self, verdict: Verdict) -> usize {
        let same = |row: &&Row| row.verdict == verdict;
        self.rows.iter().filter(same).count()
    }

    /// Whether every promise was seen kept. `allow_missing` forgives what the server says it does
    /// not have.
    pub fn passed(&self, allow_missing: bool) -> bool {
        self.count(Verdict::Failed) == 0
            && (allow_missing || self.count(Verdict::NotSupported) == 0)
    }
}

/// What a scenario has seen of its promises so far.
#[derive(Debug)]
pub(crate) struct Findings {
    rows: Vec<Finding>,
}

#[derive(Debug)]
struct Finding {
    promise: Promise,
    kept: usize,
    seen: String,
    problems: usize,
    first: Option<Problem>,
}

impl Findings {
    pub(crate) fn new(promises: impl IntoIterator<Item = Promise>) -> Self {
        let empty = |promise| Finding {
            promise,
            kept: 0,
            seen: String::new(),
            problems: 0,
            first: None,
        };
        Self {
            rows: promises.into_iter().map(empty).collect(),
        }
    }

    /// Notes what was seen of a promise; may be repeated. One problem outweighs everything else.
    pub(crate) fn note(&mut self, promise: Promise, seen: Result<String, Problem>) {
        let row = self.rows.iter_mut().find(|row| row.promise == promise);
        let row = row.expect("a scenario speaks of its own promises only");
        match seen {
            Ok(seen) => {
                row.kept += 1;
                row.seen = seen;
            }
            Err(problem) => {
                row.problems += 1;
                row.first.get_or_insert(problem);
            }
        }
    }

    /// The rows, after a scenario that ended this way.
    pub(crate) fn rows(self, ended: Result<(), Problem>) -> Vec<Row> {
        let rows = self.rows.into_iter();
        rows.map(|finding| finding.row(ended.as_ref().err()))
            .collect()
    }
}

impl Finding {
    fn row(self, ended: Option<&Problem>) -> Row {
        let (verdict, seen) = match (self.first, ended) {
            (Some(Problem::NotSupported(text)), _) => (Verdict::NotSupported, text),
            (Some(Problem::Broken(text)), _) if self.problems + self.kept > 1 => {
                let all = self.problems + self.kept;
                let seen = format!("{} of {all} times: {text}", self.problems);
                (Verdict::Failed, seen)
            }
            (Some(Problem::Broken(text)), _) => (Verdict::Failed, text),
            // Seen kept before the scenario broke off: what was not seen is not kept.
            (None, Some(Problem::NotSupported(text))) if self.kept == 0 => {
                (Verdict::NotSupported, text.clone())
            }
            (None, Some(problem)) => (Verdict::Failed, format!("broke off: {problem}")),
            (None, None) if self.kept == 0 => (Verdict::Failed, "it was not looked at".to_owned()),
            (None, None) => {
                let verdict = match self.promise.kind {
                    Kind::Required => Verdict::Passed,
                    Kind::Measured => Verdict::Measured,
                };
                let seen = match self.kept {
                    1 => self.seen,
                    times => format!("{times} times; {}", self.seen),
                };
                (verdict, seen)
            }
        };
        Row {
            name: self.promise.name,
            verdict,
            promised: self.promise.text,
            seen,
        }
    }
}

#[cfg(test)]
mod tests;
