//! Commands and terminals.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::agent::{Agent, encode, eventually};

fn by_pid(pid: u64) -> Value {
    json!({"process": {"pid": pid}})
}

/// A zombie still has its folder.
fn exists(pid: u64) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_command_gives_its_output_and_exit_code() {
    let agent = Agent::start().await;
    let mut events = agent.shell("echo hi; echo err >&2; exit 3").await;
    let pid = events.started().await;
    let finished = events.finish().await;
    assert_eq!(
        (finished.stdout, finished.stderr),
        (b"hi\n".to_vec(), b"err\n".to_vec())
    );
    let text = "exit status 3";
    let end = json!({"exitCode": 3, "exited": true, "status": text, "error": text});
    assert_eq!((finished.end, finished.terminator), (end, json!({})));
    assert!(!exists(pid), "the child is a zombie");
}

#[tokio::test]
async fn bytes_are_delivered_raw() {
    let agent = Agent::start().await;
    let events = agent
        .shell(r"head -c 100000 /dev/zero | tr '\0' a; printf '\xe2'")
        .await;
    let finished = events.finish().await;
    assert_eq!(finished.stdout.len(), 100_001);
    assert_eq!(finished.stdout.last(), Some(&0xe2));
}

#[tokio::test]
async fn a_missing_program_exits_with_127_and_one_that_cannot_run_with_126() {
    let agent = Agent::start().await;
    for (program, code) in [("no-such-program", 127), ("/etc/passwd", 126)] {
        let message = json!({"process": {"cmd": program}});
        let finished = agent.start_process(&[], &message).await.finish().await;
        assert_eq!(finished.end["exitCode"], code, "{program}");
        assert!(!finished.stderr.is_empty());
    }
}

#[tokio::test]
async fn the_environment_is_built_and_not_inherited() {
    let agent = Agent::start().await;
    let process = json!({"cmd": "env", "envs": {"MINE": "1", "E2B_SANDBOX": "over"}});
    let message = json!({"process": process});
    let finished = agent.start_process(&[], &message).await.finish().await;
    let text = String::from_utf8(finished.stdout).unwrap();
    let mut names: Vec<_> = text
        .lines()
        .map(|line| line.split('=').next().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["E2B_SANDBOX", "HOME", "LOGNAME", "MINE", "PATH", "USER"]
    );
    assert!(text.contains("E2B_SANDBOX=over\n") && text.contains("USER=root\n"));
}

#[tokio::test]
async fn another_user_is_really_another_user() {
    let agent = Agent::start().await;
    let header = [("authorization", format!("Basic {}", encode(b"nobody:")))];
    let header = header
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let script = "id -un; id -u; cat /proc/self/oom_score_adj";
    let process = json!({"cmd": "bash", "args": ["-c", script], "cwd": "/"});
    let message = json!({"process": process});
    let finished = agent.start_process(&header, &message).await.finish().await;
    assert_eq!(
        String::from_utf8_lossy(&finished.stdout),
        "nobody\n65534\n100\n"
    );

    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let process = json!({"cmd": "true", "cwd": closed.path().to_str().unwrap()});
    let finished = agent
        .start_process(&header, &json!({"process": process}))
        .await
        .finish()
        .await;
    assert_eq!(finished.terminator["error"]["code"], "invalid_argument");
    assert!(
        finished.terminator["error"]["message"]
            .as_str()
            .unwrap()
            .contains("starting process")
    );
}

#[tokio::test]
async fn failures_of_a_start_are_in_the_stream() {
    let agent = Agent::start().await;
    let message = json!({"process": {"cmd": "true", "cwd": "/no/such/place"}});
    let finished = agent.start_process(&[], &message).await.finish().await;
    let error = json!({"error": {"code": "invalid_argument",
                                 "message": "cwd '/no/such/place' does not exist"}});
    assert_eq!(finished.terminator, error);

    let header = [("authorization", "Basic bm9ib2R5LWF0LWFsbDo=")];
    let finished = agent.start_process(&header, &message).await.finish().await;
    assert_eq!(
        finished.terminator["error"]["message"],
        "invalid username: 'nobody-at-all'"
    );

    let finished = agent.connect(4_000_000).await.finish().await;
    assert_eq!(
        finished.terminator["error"]["message"],
        "process with pid 4000000 not found"
    );
}

#[tokio::test]
async fn a_killed_process_ends_with_minus_one_and_is_gone_for_everyone() {
    let agent = Agent::start().await;
    let mut events = agent.shell("sleep 1000 & exec sleep 1000").await;
    let pid = events.started().await;
    let kill = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    agent.call("/process.Process/SendSignal", &kill).await;
    let finished = events.finish().await;
    let text = "signal: killed";
    assert_eq!(
        finished.end,
        json!({"exitCode": -1, "status": text, "error": text})
    );
    assert!(agent.live_pids().await.is_empty());
    assert!(!exists(pid));
    let again = agent.rpc("/process.Process/SendSignal", &kill).await;
    assert_eq!(
        (again.status, again.json()["code"].as_str()),
        (StatusCode::NOT_FOUND, Some("not_found"))
    );
}

#[tokio::test]
async fn the_end_waits_for_background_jobs_that_hold_the_output() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("gate");
    let gate = gate.to_str().unwrap();
    let mut events = agent
        .shell(&format!(
            "mkfifo {gate}; (read < {gate}; echo late) & echo early"
        ))
        .await;
    let pid = events.started().await;
    events.until("early").await;
    eventually("the end of the shell", async || !exists(pid)).await;
    assert_eq!(agent.live_pids().await, [pid]);
    std::fs::write(gate, "go\n").unwrap();
    let finished = events.finish().await;
    assert_eq!(finished.stdout, b"late\n");
    assert_eq!(finished.end["exited"], true);
}

#[tokio::test]
async fn the_deadline_kills_and_tells_starter_and_observer_apart() {
    let agent = Agent::start().await;
    let begun = Instant::now();
    let header = [("connect-timeout-ms", "700.0")];
    let message = json!({"process": {"cmd": "sleep", "args": ["1000"]}});
    let mut starter = agent.start_process(&header, &message).await;
    let pid = starter.started().await;
    let observer = agent.connect(pid).await;
    let finished = starter.finish().await;
    assert_eq!(finished.terminator["error"]["code"], "deadline_exceeded");
    assert!(finished.end.is_null());
    assert!(begun.elapsed() >= Duration::from_millis(700));
    assert_eq!(observer.finish().await.end["status"], "signal: killed");
    assert!(!exists(pid));
}

#[tokio::test]
async fn a_second_subscriber_sees_what_comes_and_a_late_one_how_it_ended() {
    let agent = Agent::start().await;
    let message = json!({"process": {"cmd": "cat"}, "tag": "the-cat"});
    let mut first = agent.start_process(&[], &message).await;
    let pid = first.started().await;
    let selector = json!({"process": {"tag": "the-cat"}});
    let mut second = agent
        .stream("/process.Process/Connect", &[], &selector)
        .await;
    assert_eq!(second.started().await, pid);
    let list = agent.call("/process.Process/List", &json!({})).await;
    assert_eq!(
        list["processes"][0],
        json!({"config": {"cmd": "cat"}, "pid": pid, "tag": "the-cat"})
    );

    let input = json!({"process": {"pid": pid}, "input": {"stdin": encode(b"hello\n")}});
    agent.call("/process.Process/SendInput", &input).await;
    first.until("hello").await;
    drop(first);
    second.until("hello").await;
    agent
        .call("/process.Process/CloseStdin", &by_pid(pid))
        .await;
    assert_eq!(second.finish().await.end["status"], "exit status 0");

    let late = agent
        .stream("/process.Process/Connect", &[], &selector)
        .await
        .finish()
        .await;
    assert_eq!(late.end["status"], "exit status 0");
    assert_eq!((late.stdout, late.terminator), (Vec::new(), json!({})));
    let input = agent.rpc("/process.Process/SendInput", &input).await;
    assert_eq!(input.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_tag_is_found_among_several() {
    let agent = Agent::start().await;
    let mut streams = Vec::new();
    for tag in ["a", "b", "c"] {
        let message = json!({"process": {"cmd": "cat"}, "tag": tag});
        let mut events = agent.start_process(&[], &message).await;
        let pid = events.started().await;
        streams.push((tag, pid, events));
    }
    for (tag, pid, _events) in &streams {
        let selector = json!({"process": {"tag": tag}});
        let mut found = agent
            .stream("/process.Process/Connect", &[], &selector)
            .await;
        assert_eq!(found.started().await, *pid);
    }
}

#[tokio::test]
async fn commands_that_have_ended_take_no_memory() {
    let agent = Agent::start().await;
    // Each is remembered for half a minute, but not what was run.
    let arguments = vec!["x".repeat(100_000); 15];
    for number in 0..80 {
        let tag = number.to_string();
        let process = json!({"cmd": "true", "args": arguments});
        let message = json!({"process": process, "tag": tag});
        let finished = agent.start_process(&[], &message).await.finish().await;
        assert_eq!(finished.end["exited"], true);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: u64 = line
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(kibibytes < 64 * 1024, "{kibibytes} KiB");
    let selector = json!({"process": {"tag": "79"}});
    let late = agent
        .stream("/process.Process/Connect", &[], &selector)
        .await;
    assert_eq!(late.finish().await.end["status"], "exit status 0");
}

#[tokio::test]
async fn without_stdin_the_process_reads_nothing() {
    let agent = Agent::start().await;
    assert_eq!(
        agent.shell("read line").await.finish().await.end["exitCode"],
        1
    );

    let mut events = agent.shell("sleep 1000").await;
    let pid = events.started().await;
    let input = json!({"process": {"pid": pid}, "input": {"stdin": "eA=="}});
    let refused = agent.rpc("/process.Process/SendInput", &input).await;
    let message = "error writing to stdin: stdin not enabled or closed";
    assert_eq!(
        refused.json(),
        json!({"code": "internal", "message": message})
    );
}

#[tokio::test]
async fn input_larger_than_the_pipe_arrives_whole() {
    let agent = Agent::start().await;
    let process = json!({"process": {"cmd": "wc", "args": ["-c"]}});
    let mut events = agent.start_process(&[], &process).await;
    let pid = events.started().await;
    let input = json!({"process": {"pid": pid}, "input": {"stdin": encode(&[b'x'; 300_000])}});
    agent.call("/process.Process/SendInput", &input).await;
    agent
        .call("/process.Process/CloseStdin", &by_pid(pid))
        .await;
    assert_eq!(events.finish().await.stdout, b"300000\n");
}

#[tokio::test]
async fn closing_stdin_releases_input_that_waits_for_room() {
    let agent = Agent::start().await;
    let message = json!({"process": {"cmd": "sleep", "args": ["1000"]}});
    let mut events = agent.start_process(&[], &message).await;
    let pid = events.started().await;
    let input = json!({"process": {"pid": pid}, "input": {"stdin": encode(&[b'x'; 300_000])}});
    let closed = by_pid(pid);
    let close = async {
        // Not before the writer has filled the pipe, which only its file knows.
        eventually("a full pipe", async || pipe_is_full(pid)).await;
        agent.call("/process.Process/CloseStdin", &closed).await
    };
    let (written, _) = tokio::join!(agent.rpc("/process.Process/SendInput", &input), close);
    assert_eq!(written.json()["code"], "internal");
    let again = agent.call("/process.Process/CloseStdin", &closed).await;
    assert_eq!(again, json!({}));
}

/// Whether nothing more fits into the standard input of a process.
fn pipe_is_full(pid: u64) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/{pid}/fd/0"));
    file.is_ok_and(|file| rustix::io::ioctl_fionread(&file).is_ok_and(|waiting| waiting >= 65_536))
}

#[tokio::test]
async fn a_terminal_has_a_size_that_can_change() {
    let agent = Agent::start().await;
    let process = json!({"cmd": "bash", "args": ["--norc", "-i"], "envs": {"PS1": ""}});
    let message = json!({"process": process, "pty": {"size": {"cols": 80, "rows": 24}}});
    let mut events = agent.start_process(&[], &message).await;
    let pid = events.started().await;
    let send = async |text: &str| {
        let input = json!({"process": {"pid": pid}, "input": {"pty": encode(text.as_bytes())}});
        agent.call("/process.Process/SendInput", &input).await;
    };
    send("stty size\n").await;
    events.until("24 80").await;
    let size = json!({"process": {"pid": pid}, "pty": {"size": {"cols": 100, "rows": 30}}});
    agent.call("/process.Process/Update", &size).await;
    send("stty size; echo done > $(tty)\n").await;
    events.until("30 100").await;
    let refused = agent.rpc("/process.Process/CloseStdin", &by_pid(pid)).await;
    assert_eq!(refused.json()["code"], "unknown");
    send("exit 4\n").await;
    assert_eq!(events.finish().await.end["exitCode"], 4);
}

#[tokio::test]
async fn a_pipe_has_no_size() {
    let agent = Agent::start().await;
    let mut events = agent.shell("sleep 1000").await;
    let pid = events.started().await;
    let size = json!({"process": {"pid": pid}, "pty": {"size": {"cols": 1, "rows": 1}}});
    let refused = agent.rpc("/process.Process/Update", &size).await;
    let message = "error resizing tty: tty not assigned to process";
    assert_eq!(
        refused.json(),
        json!({"code": "internal", "message": message})
    );
}

#[tokio::test]
async fn input_can_be_streamed() {
    let agent = Agent::start().await;
    let mut events = agent
        .start_process(&[], &json!({"process": {"cmd": "cat"}}))
        .await;
    let pid = events.started().await;
    // One envelope is enough to select; data without selection is refused.
    let start = json!({"start": {"process": {"pid": pid}}});
    let finished = agent
        .stream("/process.Process/StreamInput", &[], &start)
        .await
        .finish()
        .await;
    assert_eq!(finished.terminator, json!({}));
    let data = json!({"data": {"input": {"stdin": "eA=="}}});
    let finished = agent
        .stream("/process.Process/StreamInput", &[], &data)
        .await
        .finish()
        .await;
    assert_eq!(finished.terminator["error"]["code"], "invalid_argument");
}

#[tokio::test]
async fn unwatched_output_is_dropped_and_the_process_goes_on() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done");
    let command = format!("head -c 3000000 /dev/zero; touch {}", done.display());
    let mut events = agent.shell(&command).await;
    events.started().await;
    drop(events);
    eventually("the end of the command", async || done.exists()).await;
}

#[tokio::test]
async fn a_subscriber_that_reads_nothing_is_dropped_and_others_go_on() {
    let agent = Agent::start_with(&["--stall-limit-ms", "300"]).await;
    let process = json!({"process": {"cmd": "cat", "args": ["/dev/zero"]}});
    let mut slow = agent.start_process(&[], &process).await;
    let pid = slow.started().await;
    let mut quick = agent.connect(pid).await;
    assert_eq!(quick.started().await, pid);
    // More than all buffers between the agent and the slow one can hold.
    let mut seen = 0;
    while seen < 60_000_000 {
        let event = quick.event().await;
        seen += event["data"]["stdout"].as_str().map_or(0, str::len);
    }
    while slow.next().await.is_some() {}
    assert_eq!(agent.live_pids().await, [pid]);
}

#[tokio::test]
async fn quiet_streams_show_that_they_are_alive() {
    let agent = Agent::start().await;
    let header = [("keepalive-ping-interval", "1")];
    let message = json!({"process": {"cmd": "sleep", "args": ["1000"]}});
    let mut events = agent.start_process(&header, &message).await;
    events.started().await;
    assert_eq!(events.event().await, json!({"keepalive": {}}));
}

#[tokio::test]
async fn orphans_are_collected() {
    let agent = Agent::start().await;
    let script = "(setsid sleep 0.05 >/dev/null 2>&1 & echo $!)";
    let finished = agent.shell(script).await.finish().await;
    let orphan = String::from_utf8(finished.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    eventually("the end of the orphan", async || !exists(orphan)).await;
    assert!(Path::new(&format!("/proc/{}", agent.pid())).exists());
}

#[tokio::test]
async fn many_short_processes_all_end() {
    let agent = Agent::start().await;
    let runs = (0..50).map(async |number: u8| {
        let finished = agent.shell(&format!("exit {number}")).await.finish().await;
        assert_eq!(
            finished.end["exitCode"].as_u64().unwrap_or(0),
            u64::from(number)
        );
    });
    futures_util::future::join_all(runs).await;
    assert!(agent.live_pids().await.is_empty());
}

/// The children of all threads of a process.
fn children(pid: u32) -> Vec<u64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = threads.map(|thread| {
        let path = thread.unwrap().path().join("children");
        std::fs::read_to_string(path).unwrap_or_default()
    });
    let text: String = lists.collect();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

#[tokio::test]
async fn clients_that_leave_at_once_leave_no_process_without_owner() {
    let agent = Agent::start().await;
    let payload = json!({"process": {"cmd": "sleep", "args": ["1000"]}}).to_string();
    let head = format!(
        "POST /process.Process/Start HTTP/1.1\r\nhost: x\r\n\
         content-type: application/connect+json\r\ncontent-length: {}\r\n\r\n",
        payload.len() + 5
    );
    let mut request = head.into_bytes();
    request.extend([0, 0, 0, 0, u8::try_from(payload.len()).unwrap()]);
    request.extend(payload.as_bytes());
    for _ in 0..20 {
        let mut stream = TcpStream::connect(agent.envd).await.unwrap();
        stream.write_all(&request).await.unwrap();
        drop(stream);
        // Whether it came to a start or not: both sides have to agree on it.
        eventually("agreement on the processes", async || {
            let mut listed = agent.live_pids().await;
            listed.sort_unstable();
            let mut started = children(agent.pid());
            started.sort_unstable();
            listed == started
        })
        .await;
    }
}

#[tokio::test]
async fn processes_get_the_limits_the_agent_was_started_with() {
    let agent = Agent::start().await;
    let limit = async |pid: &str| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap();
        line.split_whitespace().nth(3).unwrap().to_owned()
    };
    let mut events = agent.shell("sleep 1000").await;
    let pid = events.started().await;
    assert_eq!(limit(&pid.to_string()).await, limit("self").await);
}
