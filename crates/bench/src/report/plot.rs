//! Times as a picture: medians with whiskers, floors beside them, by group.

use std::fmt::Write;

use super::table::number;
use super::{Report, Row, Unit};
use crate::samples::Summary;

const WIDTH: f64 = 1180.0;
/// Where the axis begins and how long it is.
const LEFT: f64 = 470.0;
const LENGTH: f64 = 560.0;
const LINE: f64 = 30.0;
const TITLE: f64 = 44.0;
const TOP: f64 = 96.0;
const OURS: &str = "#1f6fb2";
const FLOOR: &str = "#c0641c";

/// An SVG of all rows in milliseconds.
pub fn plot(report: &Report) -> String {
    let rows: Vec<(&Row, Summary)> = report
        .rows
        .iter()
        .filter(|row| row.unit == Unit::Milliseconds)
        .filter_map(|row| Some((row, row.figure?)))
        .collect();
    let axis = Axis::over(&rows);
    let mut body = String::new();
    let mut y = TOP;
    let mut group = "";
    for (row, figure) in &rows {
        if row.group != group {
            group = row.group;
            y += TITLE;
            text(&mut body, 16.0, y - 14.0, "start", "bold", group);
        }
        draw(&mut body, &axis, y, row, figure);
        y += LINE;
    }
    let height = y + 24.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title =
        "milliseconds, logarithmic: medians, whiskers from the least to the 95th percentile";
    text(&mut svg, 16.0, 26.0, "start", "bold", title);
    text(
        &mut svg,
        16.0,
        46.0,
        "start",
        "normal",
        &report.machine.to_string(),
    );
    legend(&mut svg);
    axis.draw(&mut svg, height);
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

/// Whole powers of ten around all values.
struct Axis {
    first: i32,
    last: i32,
}

impl Axis {
    fn over(rows: &[(&Row, Summary)]) -> Self {
        let floors = rows
            .iter()
            .filter_map(|(row, _)| Some(row.floor.as_ref()?.figure));
        let all: Vec<Summary> = rows
            .iter()
            .map(|(_, figure)| *figure)
            .chain(floors)
            .collect();
        let least = all.iter().map(|it| it.min).fold(f64::INFINITY, f64::min);
        let most = all.iter().map(|it| it.p95).fold(0.0, f64::max);
        // Truncation is meant: the exponents of times are small.
        let exponent = |value: f64, round: fn(f64) -> f64| match value {
            value if value.is_finite() && value > 0.0 => round(value.log10()) as i32,
            _ => 0,
        };
        let first = exponent(least, f64::floor);
        Self {
            first,
            last: exponent(most, f64::ceil).max(first + 1),
        }
    }

    fn x(&self, value: f64) -> f64 {
        let (first, last) = (f64::from(self.first), f64::from(self.last));
        let place = (value.max(1e-6).log10() - first) / (last - first);
        LEFT + place.clamp(0.0, 1.0) * LENGTH
    }

    fn draw(&self, svg: &mut String, height: f64) {
        for exponent in self.first..=self.last {
            let value = 10_f64.powi(exponent);
            let x = self.x(value);
            line(svg, (x, TOP), (x, height - 20.0), "#bbb", 1.0);
            let label = if value >= 1.0 {
                format!("{value:.0}")
            } else {
                value.to_string()
            };
            text(svg, x, TOP - 6.0, "middle", "normal", &label);
            for step in 2..10 {
                let between = self.x(value * f64::from(step));
                if exponent < self.last {
                    line(svg, (between, TOP), (between, height - 20.0), "#eee", 1.0);
                }
            }
        }
    }
}

fn draw(svg: &mut String, axis: &Axis, y: f64, row: &Row, figure: &Summary) {
    text(svg, LEFT - 14.0, y + 4.0, "end", "normal", &row.what);
    whisker(svg, axis, y - 4.0, figure, OURS, "fill");
    let mut told = format!("{} ms", number(figure.median));
    if let Some(floor) = &row.floor {
        whisker(svg, axis, y + 6.0, &floor.figure, FLOOR, "hollow");
        if let Some(ratio) = floor.ratio {
            told.push_str(&format!(" = {ratio:.2} x"));
        }
    }
    text(svg, LEFT + LENGTH + 14.0, y + 4.0, "start", "normal", &told);
}

fn whisker(svg: &mut String, axis: &Axis, y: f64, figure: &Summary, colour: &str, dot: &str) {
    let (from, to) = (axis.x(figure.min), axis.x(figure.p95));
    line(svg, (from, y), (to, y), colour, 1.5);
    for end in [from, to] {
        line(svg, (end, y - 3.0), (end, y + 3.0), colour, 1.5);
    }
    let fill = if dot == "fill" { colour } else { "white" };
    let x = axis.x(figure.median);
    let _never_fails = writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{fill}\" stroke=\"{colour}\" \
         stroke-width=\"1.5\"/>"
    );
}

fn legend(svg: &mut String) {
    for (x, colour, fill, name) in [
        (16.0, OURS, OURS, "the server"),
        (
            120.0,
            FLOOR,
            "white",
            "its floor, in turns: bare runsc, or a chroot",
        ),
    ] {
        let _never_fails = writeln!(
            svg,
            "<circle cx=\"{}\" cy=\"66\" r=\"4\" fill=\"{fill}\" stroke=\"{colour}\" \
             stroke-width=\"1.5\"/>",
            x + 4.0
        );
        text(svg, x + 14.0, 70.0, "start", "normal", name);
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    let _never_fails = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, weight: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _never_fails = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_order_on_the_axis_and_stay_on_it() {
        let axis = Axis { first: 0, last: 3 };
        let places = [0.5, 1.0, 10.0, 100.0, 1000.0, 5000.0].map(|value| axis.x(value));
        assert!(places.is_sorted(), "{places:?}");
        assert!((axis.x(1.0) - LEFT).abs() < 1e-9);
        assert!((axis.x(1000.0) - LEFT - LENGTH).abs() < 1e-9);
    }

    #[test]
    fn words_cannot_break_the_picture() {
        let mut svg = String::new();
        text(&mut svg, 0.0, 0.0, "start", "normal", "a < b & c");
        assert!(svg.contains("a &lt; b &amp; c"), "{svg}");
    }
}
