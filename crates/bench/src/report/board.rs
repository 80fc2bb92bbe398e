//! Rows while they are taken.

use e2b_client::Problem;

use super::{FloorFigure, Row, Unit};
use crate::samples::Summary;

/// All rows of one group.
#[derive(Debug)]
pub(crate) struct Board {
    group: &'static str,
    rows: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    id: String,
    what: String,
    unit: Unit,
    /// What its floor is, when it can have one.
    floor_is: Option<&'static str>,
    values: Vec<f64>,
    floor: Vec<f64>,
    problem: Option<Problem>,
}

impl Board {
    pub(crate) fn new(group: &'static str) -> Self {
        Self {
            group,
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn open(
        &mut self,
        id: impl Into<String>,
        what: impl Into<String>,
        unit: Unit,
        floor: Option<&'static str>,
    ) {
        self.rows.push(Open {
            id: id.into(),
            what: what.into(),
            unit,
            floor_is: floor,
            values: Vec::new(),
            floor: Vec::new(),
            problem: None,
        });
    }

    fn row(&mut self, id: &str) -> &mut Open {
        let row = self.rows.iter_mut().find(|open| open.id == id);
        row.expect("a group notes values of its own rows only")
    }

    /// One more value.
    pub(crate) fn note(&mut self, id: &str, value: f64) {
        self.row(id).values.push(value);
    }

    /// One more value of the floor.
    pub(crate) fn note_floor(&mut self, id: &str, value: f64) {
        self.row(id).floor.push(value);
    }

    /// Why a row has no values.
    pub(crate) fn miss(&mut self, id: &str, problem: Problem) {
        self.row(id).problem.get_or_insert(problem);
    }

    /// The same for every row that has no value and no reason yet.
    pub(crate) fn miss_rest(&mut self, problem: &Problem) {
        for open in &mut self.rows {
            if open.values.is_empty() {
                open.problem.get_or_insert_with(|| problem.clone());
            }
        }
    }

    /// The rows, after all values.
    pub(crate) fn rows(self) -> Vec<Row> {
        let group = self.group;
        self.rows
            .into_iter()
            .map(|open| open.close(group))
            .collect()
    }
}

impl Open {
    fn close(self, group: &'static str) -> Row {
        let figure = Summary::of(&self.values);
        let floor = Summary::of(&self.floor).zip(self.floor_is);
        let floor = floor
            .zip(figure)
            .map(|((floor, what), figure)| FloorFigure {
                what: what.to_owned(),
                figure: floor,
                ratio: (floor.median > 0.0).then(|| figure.median / floor.median),
            });
        let (missing, failed) = match (&self.problem, figure) {
            (Some(Problem::Broken(text)), _) => (Some(text.clone()), true),
            (Some(Problem::NotSupported(text)), None) => (Some(text.clone()), false),
            (None, None) => (Some("it was not taken".to_owned()), true),
            (_, Some(_)) => (None, false),
        };
        Row {
            group,
            id: self.id,
            what: self.what,
            unit: self.unit,
            figure,
            floor,
            missing,
            failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let mut board = Board::new("g");
        board.open("a", "A", Unit::Milliseconds, Some("bare"));
        board
    }

    #[test]
    fn a_ratio_is_of_medians() {
        let mut board = board();
        for (value, floor) in [(10.0, 5.0), (30.0, 10.0), (20.0, 40.0)] {
            board.note("a", value);
            board.note_floor("a", floor);
        }
        let row = board.rows().remove(0);
        assert!((row.floor.unwrap().ratio.unwrap() - 2.0).abs() < 1e-9);
        assert!(!row.failed && row.missing.is_none());
    }

    #[test]
    fn nothing_is_a_multiple_of_zero() {
        let mut board = board();
        board.note("a", 1.0);
        board.note_floor("a", 0.0);
        let floor = board.rows().remove(0).floor.unwrap();
        assert_eq!(floor.ratio, None);
    }

    #[test]
    fn a_row_without_values_says_why_and_whether_that_is_a_fault() {
        let mut lacking = board();
        lacking.miss("a", Problem::NotSupported("no such thing".to_owned()));
        let row = lacking.rows().remove(0);
        assert_eq!(row.missing.as_deref(), Some("no such thing"));
        assert!(!row.failed);

        let mut broken = board();
        broken.note("a", 1.0);
        broken.miss("a", Problem::Broken("it broke".to_owned()));
        assert!(broken.rows().remove(0).failed);

        assert!(board().rows().remove(0).failed);
    }
}
