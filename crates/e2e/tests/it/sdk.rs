//! What users do, by the published SDKs.

use crate::support::Server;

/// Small limits, so that hitting them is quick.
const SMALL: &str = "[sandbox]\nmemory_mib = 512\ndisk_mib = 1024\nfree_space_reserve_mib = 64";

#[test]
fn the_story_of_the_readme_is_true_in_three_flavours() {
    let server = Server::start("");
    server.run("story.py", &[]);
    server.run("story_async.py", &[]);
    server.run("story.mjs", &[]);
    server.assert_nothing_left();
}

#[test]
fn everything_a_program_holds_comes_back_in_every_round() {
    let server = Server::start("");
    let told = server.run("persistence.py", &["20"]);
    println!("{told}");
    server.assert_nothing_left();
}

#[test]
fn each_limit_stops_its_own_sandbox_only() {
    let server = Server::start(SMALL);
    server.run("limits.py", &[]);
    server.assert_nothing_left();
}

#[test]
fn a_sandbox_reaches_neither_host_nor_neighbours() {
    let server = Server::start("");
    // A listener on every address of the host, the sandboxes' uplinks included.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = std::process::Command::new("hostname").arg("-I").output().unwrap();
    let own = String::from_utf8_lossy(&own.stdout).into_owned();
    let mut targets: Vec<_> = own
        .split_whitespace()
        .filter(|address| address.contains('.'))
        .map(|address| format!("{address}:{port}"))
        .collect();
    targets.extend((0..4).flat_map(|slot| {
        let base = slot * 4;
        [format!("10.219.0.{}:{port}", base + 1), format!("10.219.0.{}:8000", base + 2)]
    }));
    let targets: Vec<_> = targets.iter().map(String::as_str).collect();
    server.run("network.py", &targets);
    server.assert_nothing_left();
}

#[test]
fn an_orderly_stop_leaves_running_sandboxes_to_the_next_server() {
    let mut server = Server::start("");
    let id = server.run("leave_running.py", &["create"]);
    server.stop();
    server.restart();
    server.run("leave_running.py", &["check", id.trim()]);
    server.assert_nothing_left();
}
