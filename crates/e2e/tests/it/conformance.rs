//! The fidelity suite against a real server.

use std::collections::BTreeMap;

use crate::support::{FAST, Server};

/// Rows that may not pass yet, and why. A row that passes must be taken out of here.
const NOT_YET: &[(&str, &str)] = &[
    // gVisor keeps named pipes in its memory, not on the disk.
    ("filesystem-pipes", "failed"),
];

#[test]
fn every_promise_of_the_fidelity_suite_is_kept() {
    println!("{}", is_faithful(&Server::start(""), "3"));
}

#[test]
fn what_makes_it_fast_is_not_to_be_seen() {
    println!("{}", is_faithful(&Server::start(FAST), "2"));
}

/// Answers the table.
fn is_faithful(server: &Server, rounds: &str) -> String {
    let json = server.data_dir().with_file_name("conformance.json");
    let output = server
        .client("conformance")
        .args(["--rounds", rounds, "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report = std::fs::read(&json).unwrap_or_else(|error| panic!("{error}\n{stderr}"));
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let not_yet: BTreeMap<&str, &str> = NOT_YET.iter().copied().collect();
    let mut wrong = Vec::new();
    for row in rows {
        let (name, verdict) = (
            row["name"].as_str().unwrap(),
            row["verdict"].as_str().unwrap(),
        );
        let good = match not_yet.get(name) {
            Some(expected) => verdict == *expected,
            None => matches!(verdict, "passed" | "measured"),
        };
        if !good {
            wrong.push(format!("{name}: {verdict}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{table}\n{}", server.log());
    for name in not_yet.keys() {
        assert!(rows.iter().any(|row| row["name"] == *name), "no row {name}");
    }
    // The exit code tells the same.
    assert_eq!(
        output.status.success(),
        NOT_YET.is_empty(),
        "{}",
        output.status
    );
    server.assert_nothing_left();
    table
}

#[test]
fn only_what_was_asked_for_is_looked_at_and_decides_the_exit_code() {
    let server = Server::start("");
    let run = |arguments: &[&str]| {
        server
            .client("conformance")
            .args(arguments)
            .output()
            .unwrap()
    };
    let good = run(&["--only", "pause-of-paused", "connect-to-killed"]);
    let table = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success(), "{table}");
    assert!(table.contains("2 pass, 0 FAIL, 0 not supported"), "{table}");
    let unknown = run(&["--only", "no-such-row"]);
    assert!(!unknown.status.success());
    let stderr = String::from_utf8_lossy(&unknown.stderr);
    assert!(stderr.contains("there is no row 'no-such-row'"), "{stderr}");
    let stranger = run(&["--only", "pause-of-paused", "--key", "e2b_0000"]);
    let table = String::from_utf8_lossy(&stranger.stdout);
    assert!(!stranger.status.success());
    assert!(table.contains("create answered 401"), "{table}");
    server.assert_nothing_left();
}
