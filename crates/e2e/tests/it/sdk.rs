//! What users do, by the published SDKs.

use crate::support::{FAST, PREPARED, Server};

/// Small limits, so that hitting them is quick.
const SMALL: &str = "[sandbox]\nmemory_mib = 512\ndisk_mib = 1024\nfree_space_reserve_mib = 64";

#[test]
fn the_story_of_the_readme_is_true_in_three_flavours() {
    let server = Server::start(FAST);
    server.run("story.py", &[]);
    server.run("story_async.py", &[]);
    server.run("story.mjs", &[]);
    server.assert_nothing_left();
}

#[test]
fn everything_a_program_holds_comes_back_in_every_round() {
    for (speed, rounds) in [("", "20"), (FAST, "10"), (PREPARED, "10")] {
        let server = Server::start(speed);
        let told = server.run("persistence.py", &[rounds]);
        println!("{told}");
        server.assert_nothing_left();
    }
}

#[test]
fn what_was_written_right_before_a_pause_is_on_the_disk() {
    let server = Server::start("");
    server.run("written.py", &[]);
    server.assert_nothing_left();
}

#[test]
fn hooks_run_around_a_pause_and_their_failure_is_told() {
    for failure in ["ignore", "fatal"] {
        let server = Server::start(&format!(
            "[sandbox]\nhook_seconds = 1\npre_pause_hook_failure = \"{failure}\""
        ));
        server.run("hooks.py", &[failure]);
        for name in ["15-bad", "30-hangs", "20-bad"] {
            let log = server.log();
            let told = log.lines().filter(|line| line.contains(name)).count();
            assert!(told > 0, "the log does not tell of {name}:\n{log}");
        }
        assert!(
            !server.log().contains("the database is busy"),
            "output of a hook is in the log"
        );
        server.assert_nothing_left();
    }
}

#[test]
fn snapshots_forks_and_rollbacks_are_what_they_claim_to_be() {
    let server = Server::start("");
    server.run("snapshots.py", &[]);
    server.assert_nothing_left();
}

#[test]
fn one_that_was_paused_for_long_takes_less_and_comes_back() {
    for speed in ["", PREPARED] {
        let server = Server::start(&format!("{speed}\n[cold]\nseconds = 1"));
        println!("{}", server.run("cold.py", &[]));
        server.assert_nothing_left();
    }
}

#[test]
fn a_start_that_was_prepared_brings_back_what_was_paused_and_nothing_depends_on_it() {
    let mut server = Server::start(PREPARED);
    let executions = server.run_dir().join("executions");
    let run = |server: &Server, arguments: &[&str]| {
        let all = [&[executions.to_str().unwrap()], arguments].concat();
        server.run("prepared.py", &all).trim().to_owned()
    };
    let id = run(&server, &["create"]);
    for _ in 0..3 {
        let prepared = run(&server, &["pause", &id]);
        run(&server, &["connect", &id, &prepared]);
    }
    run(&server, &["hurry", &id]);
    // Its engine dies, as for want of memory.
    let prepared = run(&server, &["pause", &id]);
    let pid = std::fs::read_to_string(executions.join(&prepared).join("pid")).unwrap();
    let sentry = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(sentry, rustix::process::Signal::KILL).unwrap();
    run(&server, &["connect", &id]);
    // The server dies.
    let prepared = run(&server, &["pause", &id]);
    server.kill();
    assert!(executions.join(&prepared).exists());
    server.restart();
    assert!(!executions.join(&prepared).exists());
    run(&server, &["connect", &id]);
    // It is stopped.
    run(&server, &["pause", &id]);
    server.stop();
    server.assert_nothing_runs();
    server.restart();
    run(&server, &["connect", &id]);
    run(&server, &["kill", &id]);
    server.assert_nothing_left();
}

#[test]
fn each_limit_stops_its_own_sandbox_only() {
    let server = Server::start(SMALL);
    server.run("limits.py", &[]);
    server.assert_nothing_left();
}

#[test]
fn a_sandbox_that_sleeps_costs_nothing_and_guards_its_memory_all_the_same() {
    let server = Server::start(SMALL);
    println!("{}", server.run("idle.py", &[]));
    server.assert_nothing_left();
}

#[test]
fn a_sandbox_reaches_neither_host_nor_neighbours() {
    let server = Server::start("");
    // A listener on every address of the host, the sandboxes' uplinks included.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let port = port.to_string();
    server.run("network.py", &[&port]);
    server.assert_nothing_left();
}

#[test]
fn an_orderly_stop_leaves_running_sandboxes_to_the_next_server() {
    let mut server = Server::start("");
    let id = server.run("leave_running.py", &["create"]);
    server.stop();
    server.restart();
    server.run("leave_running.py", &["check", id.trim(), "running"]);
    server.assert_nothing_left();
}

#[test]
fn sandboxes_go_on_when_the_data_directory_is_moved() {
    let mut server = Server::start("");
    let ids = [(); 3].map(|()| {
        server
            .run("leave_running.py", &["create"])
            .trim()
            .to_owned()
    });
    let [running, frozen_later, paused] = &ids;
    server.verb(&["sandbox", "pause", paused]).unwrap();
    server.stop();
    server.move_data_dir();
    server.restart();
    server.run("leave_running.py", &["check", running, "running"]);
    server.verb(&["sandbox", "pause", frozen_later]).unwrap();
    for id in [frozen_later, paused] {
        server.run("leave_running.py", &["check", id, "paused"]);
    }
    server.assert_nothing_left();
}

#[test]
fn an_orderly_stop_pauses_running_sandboxes_where_that_is_wanted() {
    let mut server = Server::start("[sandbox]\non_shutdown = \"pause\"");
    let id = server.run("leave_running.py", &["create"]);
    server.stop();
    server.assert_nothing_runs();
    server.restart();
    server.run("leave_running.py", &["check", id.trim(), "paused"]);
    server.assert_nothing_left();
}

#[test]
fn bulk_and_nonsense_are_answered_and_the_agent_lives() {
    let server = Server::start(SMALL);
    server.run("agent.py", &[]);
    server.assert_nothing_left();
}
