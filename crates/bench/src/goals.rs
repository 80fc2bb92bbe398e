//! What is aimed at, and how far a run reaches it.

use serde::Serialize;

use crate::report::Row;

/// Whether a goal is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It is.
    Ok,
    /// It is not.
    Over,
    /// The run has no figure for it.
    NotMeasured,
}

/// One goal and what was seen of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Goal {
    /// What it is about.
    pub what: &'static str,
    /// The limits.
    pub aim: &'static str,
    /// The medians of this run.
    pub seen: String,
    /// How it came out.
    pub verdict: Verdict,
}

/// A figure and its limit; `None` where a run has none of it.
type Reached = Option<(String, bool)>;

/// All goals, judged by the rows of a run.
pub(crate) fn judge(rows: &[Row]) -> Vec<Goal> {
    let figures = Figures(rows);
    let goal = |what, aim, parts: Vec<Reached>| {
        let parts: Option<Vec<(String, bool)>> = parts.into_iter().collect();
        let Some(parts) = parts.filter(|parts| !parts.is_empty()) else {
            return Goal {
                what,
                aim,
                seen: "-".to_owned(),
                verdict: Verdict::NotMeasured,
            };
        };
        let reached = parts.iter().all(|(_, reached)| *reached);
        let seen: Vec<String> = parts.into_iter().map(|(seen, _)| seen).collect();
        Goal {
            what,
            aim,
            seen: seen.join(", "),
            verdict: if reached { Verdict::Ok } else { Verdict::Over },
        }
    };
    vec![
        goal(
            "create to agent answering, pool hot",
            "<= 60 ms, <= 1.3 x restore into a prepared sandbox",
            vec![
                figures.below("create", 60.0, "ms"),
                figures.ratio("create", 1.3),
            ],
        ),
        goal(
            "create, no pool",
            "<= 1.3 x runsc create + restore, + 20 ms",
            vec![figures.unpooled()],
        ),
        goal(
            "pause, nothing resident",
            "<= 100 ms",
            vec![figures.below("pause-0", 100.0, "ms")],
        ),
        goal(
            "pause, 1 GiB resident",
            "<= 1.15 x runsc checkpoint, direct",
            vec![figures.ratio("pause-1024", 1.15)],
        ),
        goal(
            "connect to first command, warm tier",
            "<= 15 ms, any size",
            figures.by_number("connect-warm-", 15.0, "ms"),
        ),
        goal(
            "connect to first command, from disk",
            "<= 80 ms",
            vec![figures.below("connect-disk-0", 80.0, "ms")],
        ),
        goal(
            "same, 4 GiB, page cache dropped",
            "<= 3 x the small one + 300 ms",
            vec![figures.large_connect()],
        ),
        goal(
            "50 creates at once, per create",
            "<= 1.2 x the engine's limit",
            vec![figures.ratio("creates-50", 1.2)],
        ),
        goal(
            "idle sandbox, host memory beyond guest pages",
            "<= 25 MiB",
            figures.by_number("idle-memory-", 25.0, "MiB"),
        ),
        goal(
            "idle sandbox, CPU",
            "<= 0.1 % of a core",
            figures.by_number("idle-cpu-", 0.1, "%"),
        ),
        goal(
            "200 idle sandboxes",
            "all answer, create <= 2 x that beside the fewest",
            vec![figures.all_answer(200), figures.crowded_create(200)],
        ),
        goal(
            "idle sandbox stored cold",
            "<= 10 MiB beyond the template",
            vec![figures.below("stored-0", 10.0, "MiB")],
        ),
        goal(
            "commands.run(\"true\") through the edge",
            "<= 10 ms",
            vec![figures.below("command", 10.0, "ms")],
        ),
        goal(
            "file work",
            "each <= 3 x the chroot",
            figures.each("files-", |figures, id| {
                let (seen, reached) = figures.ratio(id, 3.0)?;
                Some((
                    format!("{} {seen}", id.trim_start_matches("files-")),
                    reached,
                ))
            }),
        ),
    ]
}

struct Figures<'a>(&'a [Row]);

impl Figures<'_> {
    fn row(&self, id: &str) -> Option<&Row> {
        self.0.iter().find(|row| row.id == id)
    }

    fn median(&self, id: &str) -> Option<f64> {
        Some(self.row(id)?.figure?.median)
    }

    fn below(&self, id: &str, limit: f64, unit: &str) -> Reached {
        let median = self.median(id)?;
        let digits = if limit < 1.0 { 3 } else { 1 };
        Some((format!("{median:.digits$} {unit}"), median <= limit))
    }

    fn ratio(&self, id: &str, limit: f64) -> Reached {
        let ratio = self.row(id)?.floor.as_ref()?.ratio?;
        Some((format!("{ratio:.2} x"), ratio <= limit))
    }

    /// One part for each row of a family.
    fn each(&self, family: &str, part: impl Fn(&Self, &str) -> Reached) -> Vec<Reached> {
        let rows = self.0.iter().filter(|row| row.id.starts_with(family));
        let taken = rows.filter(|row| row.figure.is_some());
        taken.map(|row| part(self, &row.id)).collect()
    }

    /// One part for each row of a family, told with the number behind its id.
    fn by_number(&self, family: &str, limit: f64, unit: &str) -> Vec<Reached> {
        self.each(family, |figures, id| {
            let (seen, reached) = figures.below(id, limit, unit)?;
            Some((
                format!("{}: {seen}", id.trim_start_matches(family)),
                reached,
            ))
        })
    }

    fn unpooled(&self) -> Reached {
        let row = self.row("create-unpooled")?;
        let (median, floor) = (row.figure?.median, row.floor.as_ref()?.figure.median);
        let limit = 1.3 * floor + 20.0;
        Some((format!("{median:.1} ms of {limit:.1}"), median <= limit))
    }

    fn large_connect(&self) -> Reached {
        let large = self.median("connect-cold-4096")?;
        let limit = 3.0 * self.median("connect-disk-0")? + 300.0;
        Some((format!("{large:.0} ms of {limit:.0}"), large <= limit))
    }

    fn all_answer(&self, count: u32) -> Reached {
        let answered = self.row(&format!("idle-answers-{count}"))?.figure?;
        // The fewest of all looks.
        let all = answered.min >= f64::from(count);
        Some((format!("{:.0} answer", answered.min), all))
    }

    fn crowded_create(&self, count: u32) -> Reached {
        let crowded = self.median(&format!("idle-create-{count}"))?;
        let mut others = self
            .0
            .iter()
            .filter(|row| row.id.starts_with("idle-create-"));
        let alone = others.find_map(|row| Some(row.figure?.median))?;
        let ratio = crowded / alone;
        Some((format!("create {ratio:.2} x"), ratio <= 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FloorFigure, Unit};
    use crate::samples::Summary;

    fn row(id: &str, median: f64, floor: Option<f64>) -> Row {
        let figure = Summary::of(&[median]).unwrap();
        Row {
            group: "g",
            id: id.to_owned(),
            what: String::new(),
            unit: Unit::Milliseconds,
            figure: Some(figure),
            floor: floor.map(|floor| FloorFigure {
                what: String::new(),
                figure: Summary::of(&[floor]).unwrap(),
                ratio: Some(median / floor),
            }),
            missing: None,
            failed: false,
        }
    }

    fn verdict(rows: &[Row], what: &str) -> Verdict {
        let goals = judge(rows);
        goals.iter().find(|goal| goal.what == what).unwrap().verdict
    }

    #[test]
    fn without_figures_nothing_is_reached_or_missed() {
        let goals = judge(&[]);
        assert!(
            goals
                .iter()
                .all(|goal| goal.verdict == Verdict::NotMeasured)
        );
        // A limit that is a ratio needs the floor.
        let rows = [row("create", 50.0, None)];
        let what = "create to agent answering, pool hot";
        assert_eq!(verdict(&rows, what), Verdict::NotMeasured);
    }

    #[test]
    fn every_limit_of_a_goal_counts() {
        let what = "create to agent answering, pool hot";
        assert_eq!(
            verdict(&[row("create", 50.0, Some(40.0))], what),
            Verdict::Ok
        );
        assert_eq!(
            verdict(&[row("create", 50.0, Some(30.0))], what),
            Verdict::Over
        );
        assert_eq!(
            verdict(&[row("create", 70.0, Some(60.0))], what),
            Verdict::Over
        );
    }

    #[test]
    fn limits_that_depend_on_other_rows_are_computed_from_them() {
        let large = "same, 4 GiB, page cache dropped";
        let small = row("connect-disk-0", 50.0, None);
        let rows = [small.clone(), row("connect-cold-4096", 450.0, None)];
        assert_eq!(verdict(&rows, large), Verdict::Ok);
        let rows = [small, row("connect-cold-4096", 451.0, None)];
        assert_eq!(verdict(&rows, large), Verdict::Over);

        let unpooled = "create, no pool";
        let rows = [row("create-unpooled", 150.0, Some(100.0))];
        assert_eq!(verdict(&rows, unpooled), Verdict::Ok);
        let rows = [row("create-unpooled", 151.0, Some(100.0))];
        assert_eq!(verdict(&rows, unpooled), Verdict::Over);
    }

    #[test]
    fn one_of_a_family_over_its_limit_is_enough() {
        let rows = [
            row("files-untar", 20.0, Some(10.0)),
            row("files-git-clone", 40.0, Some(10.0)),
        ];
        assert_eq!(verdict(&rows, "file work"), Verdict::Over);
        assert_eq!(verdict(&rows[..1], "file work"), Verdict::Ok);
    }

    #[test]
    fn two_hundred_must_all_answer() {
        let what = "200 idle sandboxes";
        let creates = [
            row("idle-create-1", 50.0, None),
            row("idle-create-200", 90.0, None),
        ];
        let mut rows = vec![row("idle-answers-200", 200.0, None)];
        rows.extend(creates.clone());
        assert_eq!(verdict(&rows, what), Verdict::Ok);
        rows[0] = row("idle-answers-200", 199.0, None);
        assert_eq!(verdict(&rows, what), Verdict::Over);
    }
}
