//! `sandbase bench` against a real server, as short as it can be.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Server, provided};

/// Rows of these short options, by group: each must have a figure and, if it can, a floor.
const WITH_FLOOR: &[&str] = &[
    "create",
    "create-command",
    "create-unpooled",
    "kill",
    "pause-0",
    "pause-64",
    "connect-disk-0",
    "connect-disk-64",
    "connect-cold-0",
    "connect-cold-64",
    "creates-1",
    "create-latency-4",
    "connects-4",
    "command",
    "transfer-up",
    "transfer-down",
    "idle-memory-2",
    "idle-cpu-2",
    "stored-0",
    "stored-64",
];

#[test]
fn a_bench_measures_every_row_beside_its_floor_and_removes_what_it_made() {
    let server = Server::start("");
    let json = server.data_dir().with_file_name("bench.json");
    let svg = server.data_dir().with_file_name("bench.svg");
    let output = server
        .client("bench")
        .args(["--rounds", "2", "--sizes", "0,64", "--at-once", "1,4"])
        .args(["--idle", "2", "--idle-secs", "1", "--transfer-mib", "8"])
        .args(["--pool-secs", "0.1", "--warm-secs", "0", "--only"])
        .arg("create,pause,throughput,command,transfer,idle,storage")
        .arg("--runsc")
        .arg(provided(
            "SANDBASE_RUNSC",
            "/usr/local/lib/sandbase/engine/runsc",
        ))
        .arg("--rootfs")
        .arg(provided(
            "SANDBASE_TEST_ROOTFS",
            "/var/cache/sandbase/rootfs",
        ))
        .arg("--data-dir")
        .arg(server.data_dir())
        .arg("--json")
        .arg(&json)
        .arg("--svg")
        .arg(&svg)
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    println!("{table}");
    assert!(
        output.status.success(),
        "{table}\n{stderr}\n{}",
        server.log()
    );

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let rows: BTreeMap<&str, &Value> = rows
        .iter()
        .map(|row| (row["id"].as_str().unwrap(), row))
        .collect();
    for id in WITH_FLOOR {
        let row = rows
            .get(id)
            .unwrap_or_else(|| panic!("no row {id}: {:?}", rows.keys()));
        let median = row["figure"]["median"].as_f64().unwrap();
        let floor = row["floor"]["figure"]["median"].as_f64().unwrap();
        assert!(row["figure"]["count"].as_u64().unwrap() > 0, "{row}");
        // In so short a time a floor may use no CPU at all.
        match row["floor"]["ratio"].as_f64() {
            Some(ratio) => assert!((ratio - median / floor).abs() < 1e-6 * ratio, "{row}"),
            None => assert!(floor.abs() < 1e-9, "{row}"),
        }
    }
    // An image of 64 MiB of random bytes is larger than they are.
    let stored = rows["stored-64"]["figure"]["median"].as_f64().unwrap();
    assert!((64.0..128.0).contains(&stored), "{stored}");
    assert_eq!(rows["idle-answers-2"]["figure"]["median"], 2.0);
    let text = rows["pause-64"]["what"].as_str().unwrap();
    assert!(table.contains(text), "{table}");
    assert!(std::fs::read_to_string(&svg).unwrap().contains(text));
    let goals = report["goals"].as_array().unwrap();
    let judged = goals.iter().filter(|goal| goal["verdict"] != "notMeasured");
    assert!(judged.count() >= 7, "{goals:#?}");
    server.assert_nothing_left();
}

#[test]
fn file_work_is_measured_beside_a_chroot() {
    let server = Server::start("");
    let output = server
        .client("bench")
        .args(["--rounds", "1", "--only", "files"])
        .arg("--runsc")
        .arg(provided(
            "SANDBASE_RUNSC",
            "/usr/local/lib/sandbase/engine/runsc",
        ))
        .arg("--rootfs")
        .arg(provided(
            "SANDBASE_TEST_ROOTFS",
            "/var/cache/sandbase/rootfs",
        ))
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{table}\n{stderr}\n{}",
        server.log()
    );
    for work in ["untar", "git-clone", "npm-ci", "pip-install", "sqlite"] {
        // Where the goal tells what was seen of each.
        assert!(table.contains(&format!("{work} ")), "{table}");
    }
    server.assert_nothing_left();
}

#[test]
fn a_server_elsewhere_is_measured_without_floors() {
    let server = Server::start("");
    let bench = |arguments: &[&str]| server.client("bench").args(arguments).output().unwrap();
    let output = bench(&["--only", "command", "--rounds", "1"]);
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}");
    assert!(
        table.contains("commands.run(\"true\")") && !table.contains("floors,"),
        "{table}"
    );
    let stranger = bench(&["--only", "command", "--rounds", "1", "--key", "e2b_0000"]);
    let table = String::from_utf8_lossy(&stranger.stdout);
    assert!(!stranger.status.success());
    assert!(table.contains("create answered 401"), "{table}");
    server.assert_nothing_left();
}
