//! What came out: rows of figures beside their floors, and the goals.

mod board;
mod plot;
mod table;

use serde::Serialize;

use crate::goals::Goal;
use crate::host::Machine;
use crate::samples::Summary;

pub(crate) use board::Board;
pub use plot::plot;
pub use table::table;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Mebibytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Mebibytes per second; more is better.
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
    /// Percent of one core.
    #[serde(rename = "% of a core")]
    PercentOfCore,
    /// Sandboxes.
    #[serde(rename = "sandboxes")]
    Sandboxes,
}

impl Unit {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
            Self::MebibytesPerSecond => "MiB/s",
            Self::PercentOfCore => "% core",
            Self::Sandboxes => "sandboxes",
        }
    }
}

/// The same work without the server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FloorFigure {
    /// What did it.
    pub what: String,
    /// Its values.
    pub figure: Summary,
    /// The row's median by this one's; `None` where this one's is zero.
    pub ratio: Option<f64>,
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Group that took it, as given to `--only`.
    pub group: &'static str,
    /// For programs: what was measured and, behind a dash, the size or the number at once.
    pub id: String,
    /// For people.
    pub what: String,
    /// What its values count.
    pub unit: Unit,
    /// Its values; `None`: it could not be taken.
    pub figure: Option<Summary>,
    /// What bounds it, taken in turns with it.
    pub floor: Option<FloorFigure>,
    /// Why there is no figure.
    pub missing: Option<String>,
    /// Whether that is a fault, as opposed to something that the server or the host does not have.
    pub failed: bool,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// URL of the server.
    pub server: String,
    /// The machine that the bench ran on: the server's too, when there are floors.
    pub machine: Machine,
    /// RFC 3339; the start.
    pub started_at: String,
    /// How long it took.
    pub seconds: f64,
    /// Values per row, where the row does not need another number.
    pub rounds: usize,
    /// In the order they were taken.
    pub rows: Vec<Row>,
    /// What is aimed at, and how far it is reached.
    pub goals: Vec<Goal>,
}

impl Report {
    /// Whether no figure failed. A goal that is not reached is no failure.
    pub fn is_complete(&self) -> bool {
        self.rows.iter().all(|row| !row.failed)
    }
}
