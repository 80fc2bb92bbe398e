//! SIGKILL of the server at random moments, with clients at work.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::Rng;

use crate::support::{FAST, PREPARED, Server};

const CLIENTS: usize = 3;
/// After the last kill the clients check everything once more.
const END_LIMIT: Duration = Duration::from_secs(180);

fn kills() -> usize {
    if std::env::var_os("SANDBASE_TEST_LONG").is_some() {
        100
    } else {
        30
    }
}

#[test]
fn no_moment_of_a_sigkill_loses_or_sticks_a_sandbox() {
    for speed in [FAST, PREPARED] {
        for told in kill_at_random(Server::start(speed)) {
            println!("a client finished {told}");
        }
    }
}

/// Answers what the clients told at their end.
fn kill_at_random(mut server: Server) -> Vec<String> {
    let stop = server.data_dir().with_file_name("stop");
    let mut clients: Vec<Child> = (0..CLIENTS)
        .map(|_| {
            let mut program = server.program("churn.py");
            program
                .arg(&stop)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut rng = rand::rng();
    for number in 0..kills() {
        std::thread::sleep(Duration::from_millis(rng.random_range(20..1500)));
        server.kill();
        server.restart();
        for client in &mut clients {
            let ended = client.try_wait().unwrap();
            if let Some(status) = ended {
                let mut output = String::new();
                let mut stderr = client.stderr.take().unwrap();
                std::io::Read::read_to_string(&mut stderr, &mut output).unwrap();
                panic!(
                    "a client ended after kill {number} ({status}):\n{output}\n{}",
                    server.log()
                );
            }
        }
    }
    std::fs::write(&stop, b"").unwrap();
    let started = Instant::now();
    let mut told = Vec::new();
    for mut client in clients {
        while client.try_wait().unwrap().is_none() {
            assert!(
                started.elapsed() < END_LIMIT,
                "a client does not end\n{}",
                server.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let output = client.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{stdout}{stderr}\n{}",
            server.log()
        );
        told.push(stdout.into_owned());
    }
    server.assert_nothing_left();
    told
}
