use super::*;

const FILES: Promise = Promise::required("files", "files are kept");
const SPEED: Promise = Promise::measured("speed", "how long it takes");

fn broken(text: &str) -> Problem {
    Problem::Broken(text.to_owned())
}

fn missing(text: &str) -> Problem {
    Problem::NotSupported(text.to_owned())
}

/// The one row of findings about `FILES`.
fn row(seen: Vec<Result<String, Problem>>, ended: Result<(), Problem>) -> (Verdict, String) {
    let mut findings = Findings::new([FILES]);
    for seen in seen {
        findings.note(FILES, seen);
    }
    let row = findings.rows(ended).remove(0);
    (row.verdict, row.seen)
}

#[test]
fn a_promise_seen_kept_every_time_passes() {
    let kept = || Ok("same".to_owned());
    assert_eq!(
        row(vec![kept()], Ok(())),
        (Verdict::Passed, "same".to_owned())
    );
    assert_eq!(
        row(vec![kept(), kept()], Ok(())),
        (Verdict::Passed, "2 times; same".to_owned())
    );
}

#[test]
fn one_broken_round_fails_the_row_and_the_first_is_told() {
    let seen = vec![
        Ok("same".to_owned()),
        Err(broken("lost a.txt")),
        Err(broken("lost b.txt")),
    ];
    assert_eq!(
        row(seen, Ok(())),
        (Verdict::Failed, "2 of 3 times: lost a.txt".to_owned())
    );
}

#[test]
fn what_was_never_looked_at_does_not_pass() {
    assert_eq!(row(vec![], Ok(())).0, Verdict::Failed);
    assert_eq!(row(vec![], Err(broken("no answer"))).0, Verdict::Failed);
}

#[test]
fn a_scenario_that_breaks_off_passes_nothing() {
    let (verdict, seen) = row(
        vec![Ok("same".to_owned())],
        Err(broken("pause answered 500")),
    );
    assert_eq!(verdict, Verdict::Failed);
    assert!(seen.contains("pause answered 500"), "{seen}");
}

#[test]
fn what_the_server_lacks_is_neither_passed_nor_failed() {
    let (verdict, _) = row(vec![], Err(missing("snapshot answered 404")));
    assert_eq!(verdict, Verdict::NotSupported);
    let (verdict, _) = row(vec![Err(missing("fork answered 404"))], Ok(()));
    assert_eq!(verdict, Verdict::NotSupported);
}

#[test]
fn a_report_passes_only_when_every_row_does() {
    let report = |verdicts: &[Verdict]| Report {
        server: String::new(),
        rounds: 1,
        seconds: 0.0,
        rows: verdicts
            .iter()
            .map(|verdict| Row {
                name: "n",
                verdict: *verdict,
                promised: "",
                seen: String::new(),
            })
            .collect(),
    };
    assert!(report(&[Verdict::Passed, Verdict::Measured]).passed(false));
    assert!(!report(&[Verdict::Passed, Verdict::Failed]).passed(true));
    assert!(!report(&[Verdict::Passed, Verdict::NotSupported]).passed(false));
    assert!(report(&[Verdict::Passed, Verdict::NotSupported]).passed(true));
}

#[test]
fn a_figure_is_measured_and_not_passed() {
    let mut findings = Findings::new([SPEED]);
    findings.note(SPEED, Ok("3 s".to_owned()));
    assert_eq!(findings.rows(Ok(())).remove(0).verdict, Verdict::Measured);
}

#[test]
fn the_json_has_the_words_that_the_documents_use() {
    let mut findings = Findings::new([FILES]);
    findings.note(FILES, Err(missing("x")));
    let report = Report {
        server: "http://s".to_owned(),
        rounds: 3,
        seconds: 1.5,
        rows: findings.rows(Ok(())),
    };
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        serde_json::json!({
            "server": "http://s", "rounds": 3, "seconds": 1.5,
            "rows": [{
                "name": "files", "verdict": "notSupported",
                "promised": "files are kept", "seen": "x",
            }],
        })
    );
}
