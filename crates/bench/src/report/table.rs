//! The report as tables that line up.

use std::fmt::Write;

use super::{Report, Row};
use crate::goals::Verdict;

const TITLES: [&str; 8] = ["row", "unit", "median", "min", "p95", "n", "floor", "ratio"];
/// Columns that are aligned to the left.
const TEXTS: usize = 2;

/// Rows by group, then goals, ending in a line that sums it up.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut cells = vec![TITLES.map(str::to_owned).to_vec()];
    cells.extend(report.rows.iter().map(row_cells));
    push(&mut text, &cells, TEXTS);
    for row in &report.rows {
        if let Some(missing) = &row.missing {
            let _never_fails = writeln!(text, "  {}: {missing}", row.id);
        }
    }
    let floors = floors(&report.rows);
    if !floors.is_empty() {
        text.push_str("\nfloors, in turns with the rows:\n");
        push(&mut text, &floors, 2);
    }
    text.push('\n');
    let titles = ["goal", "", "aimed at", "seen"];
    let mut cells = vec![titles.map(str::to_owned).to_vec()];
    for goal in &report.goals {
        let verdict = match goal.verdict {
            Verdict::Ok => "ok",
            Verdict::Over => "over",
            Verdict::NotMeasured => "-",
        };
        let parts = [goal.what, verdict, goal.aim, &goal.seen];
        cells.push(parts.map(str::to_owned).to_vec());
    }
    push(&mut text, &cells, 4);
    let count = |verdict| {
        let same = report.goals.iter().filter(|goal| goal.verdict == verdict);
        same.count()
    };
    let _never_fails = writeln!(
        text,
        "\n{} goals ok, {} over, {} not measured; {} rounds in {:.0} s, {}\n{}",
        count(Verdict::Ok),
        count(Verdict::Over),
        count(Verdict::NotMeasured),
        report.rounds,
        report.seconds,
        report.server,
        report.machine
    );
    text
}

fn row_cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.what.clone(), row.unit.name().to_owned()];
    match &row.figure {
        Some(figure) => {
            cells.extend([figure.median, figure.min, figure.p95].map(number));
            cells.push(figure.count.to_string());
        }
        None => cells.extend(["-", "-", "-", "0"].map(str::to_owned)),
    }
    match &row.floor {
        Some(floor) => {
            cells.push(number(floor.figure.median));
            let ratio = floor.ratio.map(|ratio| format!("{ratio:.2}"));
            cells.push(ratio.unwrap_or_else(|| "-".to_owned()));
        }
        None => cells.extend(["-", "-"].map(str::to_owned)),
    }
    cells
}

/// What bounds which rows.
fn floors(rows: &[Row]) -> Vec<Vec<String>> {
    let mut floors: Vec<Vec<String>> = Vec::new();
    for row in rows {
        let Some(floor) = &row.floor else { continue };
        // One line for all sizes.
        let name = row
            .id
            .trim_end_matches(|letter: char| letter.is_ascii_digit());
        let cells = vec![name.trim_end_matches('-').to_owned(), floor.what.clone()];
        if !floors.contains(&cells) {
            floors.push(cells);
        }
    }
    floors
}

/// Three digits that count, at most two behind the point.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn push(text: &mut String, lines: &[Vec<String>], left: usize) {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = lines.iter().map(|cells| cells[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for cells in lines {
        let mut line = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let width = widths[column];
            let cell = if column < left {
                format!("{cell:width$}  ")
            } else {
                format!("{cell:>width$}  ")
            };
            line.push_str(&cell);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_what_counts() {
        for (value, shown) in [
            (1234.5, "1234"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.0123, "0.012"),
        ] {
            assert_eq!(number(value), shown);
        }
    }

    #[test]
    fn columns_line_up() {
        let lines = [["a", "b", "1"], ["long", "b", "100"]];
        let lines = lines.map(|line| line.map(str::to_owned).to_vec());
        let mut text = String::new();
        push(&mut text, &lines, 2);
        assert_eq!(text, "a     b    1\nlong  b  100\n");
    }
}
