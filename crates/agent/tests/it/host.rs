//! The private channel of the host.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use agent_api::{ClientError, LogLine, LogReader, MemoryWatch, PrepareRequest, client};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::{Agent, Events, LIMIT, eventually, init_of};

async fn dial(agent: &Agent) -> TcpStream {
    TcpStream::connect(agent.host).await.unwrap()
}

#[tokio::test]
async fn init_is_repeatable_and_reaches_processes() {
    let agent = Agent::start().await;
    client::health(dial(&agent).await).await.unwrap();
    let mut init = init_of("l1");
    init.env_vars = Some(BTreeMap::from([("MINE".to_owned(), "1".to_owned())]));
    init.default_workdir = "/usr".to_owned();
    init.entropy = Some("AAECAwQFBgc=".to_owned());
    let first = agent.init(&init).await;
    assert_eq!(first.envd_version, agent_api::ENVD_VERSION);
    assert_eq!(agent.init(&init).await, first);

    let finished = agent
        .shell("echo $MINE $E2B_SANDBOX_ID $PWD")
        .await
        .finish()
        .await;
    assert_eq!(
        String::from_utf8_lossy(&finished.stdout),
        "1 sandbox1 /usr\n"
    );
    assert_eq!(
        std::fs::read_to_string("/run/e2b/.E2B_SANDBOX").unwrap(),
        "true"
    );

    let mut running = agent.shell("sleep 1000").await;
    running.started().await;
    assert_eq!(agent.init(&init).await.processes, 1);
    let prepare = PrepareRequest::default();
    client::prepare(dial(&agent).await, &prepare).await.unwrap();
    assert!(client::metrics(dial(&agent).await).await.unwrap().mem_total > 0);
}

#[tokio::test]
async fn a_new_lifecycle_cuts_connections_and_keeps_processes() {
    let agent = Agent::start().await;
    agent.init(&init_of("l1")).await;
    let mut events = agent
        .start_process(&[], &json!({"process": {"cmd": "cat"}}))
        .await;
    let pid = events.started().await;
    let mut idle = TcpStream::connect(agent.envd).await.unwrap();
    // A request on it shows that the agent has accepted it.
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(idle.read(&mut [0; 1024]).await.unwrap() > 0);

    agent.init(&init_of("l1")).await;
    assert_eq!(agent.live_pids().await, [pid]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tunnel = client::tunnel(dial(&agent).await, port).await.unwrap();
    agent.init(&init_of("l2")).await;
    let closed = tokio::time::timeout(LIMIT, tunnel.read(&mut [0; 16]))
        .await
        .unwrap();
    assert_eq!(closed.unwrap_or(0), 0);
    assert!(events.next().await.is_none(), "the stream goes on");
    let closed = tokio::time::timeout(LIMIT, idle.read(&mut [0; 16]))
        .await
        .unwrap();
    assert_eq!(closed.unwrap_or(0), 0);
    assert_eq!(agent.live_pids().await, [pid]);
    assert_eq!(agent.connect(pid).await.started().await, pid);
}

#[tokio::test]
async fn other_peers_are_refused() {
    let agent = Agent::start_with(&["--host-peer", "127.0.0.2"]).await;
    // The reset may come before the caller knows that it is connected.
    if let Ok(stream) = TcpStream::connect(agent.host).await {
        assert!(client::health(stream).await.is_err());
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket
        .bind((Ipv4Addr::new(127, 0, 0, 2), 0).into())
        .unwrap();
    client::health(socket.connect(agent.host).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn tunnels_reach_both_loopbacks_and_keep_half_closed_streams() {
    let agent = Agent::start().await;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tunnel = client::tunnel(dial(&agent).await, port).await.unwrap();
        let (mut service, _) = listener.accept().await.unwrap();
        tunnel.write_all(b"question").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut question = String::new();
        service.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        service.write_all(b"answer").await.unwrap();
        drop(service);
        let mut answer = String::new();
        tunnel.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }
}

#[tokio::test]
async fn tunnels_to_nothing_or_to_the_agent_are_refused() {
    let agent = Agent::start().await;
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let refused = client::tunnel(dial(&agent).await, port).await.unwrap_err();
    assert!(matches!(refused, ClientError::PortClosed(closed) if closed == port));
    for port in [agent_api::ENVD_PORT, agent_api::HOST_PORT] {
        let refused = client::tunnel(dial(&agent).await, port).await.unwrap_err();
        assert!(matches!(refused, ClientError::Refused { .. }));
    }
}

/// Reads lines until one has this message.
async fn line_of(log: &mut LogReader, message: &str) -> LogLine {
    loop {
        let line = tokio::time::timeout(LIMIT, log.next()).await.unwrap();
        let line = line.unwrap().expect("the log goes on");
        if line.entry["message"] == message {
            return line;
        }
    }
}

#[tokio::test]
async fn the_log_tells_what_happened_and_goes_on_after_a_number() {
    let agent = Agent::start().await;
    agent.init(&init_of("l1")).await;
    agent.shell("printf 12345; exit 3").await.finish().await;
    let mut log = LogReader::open(dial(&agent).await, "", 0).await.unwrap();
    let started = line_of(&mut log, "process started").await;
    assert_eq!(started.entry["level"], "info");
    assert_eq!(started.entry["logger"], "process");
    assert_eq!(
        started.entry["command"],
        "/bin/bash -c printf 12345; exit 3"
    );
    let ended = line_of(&mut log, "process ended").await;
    assert_eq!(ended.entry["process_result"], "exit status 3");
    assert_eq!(ended.entry["stdout_bytes"], 5);
    assert_eq!(ended.entry["discarded_bytes"], 0);

    // Written before and after somebody waits; read again from where this reader stopped.
    let boot = log.boot.clone();
    agent.shell("exit 4").await.finish().await;
    assert_eq!(
        line_of(&mut log, "process ended").await.entry["process_result"],
        "exit status 4"
    );
    let mut again = LogReader::open(dial(&agent).await, &boot, ended.number)
        .await
        .unwrap();
    assert_eq!(
        line_of(&mut again, "process started").await.number,
        ended.number + 1
    );
    // Numbers of another boot mean nothing.
    let mut other = LogReader::open(dial(&agent).await, "other", 999)
        .await
        .unwrap();
    assert_eq!(line_of(&mut other, "process started").await, started);

    // A sandbox made of this one's memory has a log of its own.
    let mut clone = init_of("l2");
    clone.sandbox_id = "sandbox2".to_owned();
    agent.init(&clone).await;
    agent.shell("exit 5").await.finish().await;
    let mut log = LogReader::open(dial(&agent).await, "", 0).await.unwrap();
    assert_eq!(
        line_of(&mut log, "process ended").await.entry["process_result"],
        "exit status 5"
    );
}

#[tokio::test]
async fn output_that_nobody_heard_is_counted() {
    let agent = Agent::start().await;
    let mut events = agent.shell("while echo again; do sleep 0.01; done").await;
    let pid = events.started().await;
    drop(events);
    let text = "output from before this connection was discarded: nobody was connected";
    let mut log = LogReader::open(dial(&agent).await, "", 0).await.unwrap();
    eventually("output that was discarded", async || {
        agent.connect(pid).await.started().await;
        let told = tokio::time::timeout(Duration::from_millis(200), line_of(&mut log, text));
        told.await
            .is_ok_and(|line| line.entry["discarded_bytes"].as_u64().unwrap() > 0)
    })
    .await;
    let signal = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    agent.call("/process.Process/SendSignal", &signal).await;
    let ended = line_of(&mut log, "process ended").await.entry;
    assert_eq!(ended["process_result"], "signal: killed");
    let bytes = |name: &str| ended[name].as_u64().unwrap();
    assert!(bytes("discarded_bytes") > 0 && bytes("discarded_bytes") <= bytes("stdout_bytes"));
}

#[tokio::test]
async fn the_agent_guards_the_memory_only_while_the_host_does_not() {
    let agent = Agent::start().await;
    // Everything is too much, so that the guard kills whatever it sees.
    let mut init = init_of("l1");
    init.memory_limit_bytes = Some(1);
    agent.init(&init).await;
    let watch = async || MemoryWatch::begin(dial(&agent).await).await.unwrap();
    let out_of_memory = async |events: Events| {
        let end = events.finish().await.end;
        let error = end["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains("out of memory"), "{end}");
    };

    let first = watch().await;
    let mut sleeper = agent.shell("echo begun; sleep 1000").await;
    sleeper.until("begun").await;
    let other = agent.shell("sleep 0.3; echo unharmed").await.finish().await;
    assert_eq!(other.stdout, b"unharmed\n");
    // A new watch takes over without a gap.
    let second = watch().await;
    drop(first);
    let other = agent.shell("sleep 0.3; echo unharmed").await.finish().await;
    assert_eq!(other.stdout, b"unharmed\n");
    drop(second);
    out_of_memory(sleeper).await;

    // A watch of an earlier execution is none.
    let _old = watch().await;
    let mut sleeper = agent.shell("echo begun; sleep 1000").await;
    let pid = sleeper.started().await;
    sleeper.until("begun").await;
    init.lifecycle_id = "l2".to_owned();
    init.timestamp += Duration::from_secs(1);
    agent.init(&init).await;
    eventually("the kill", async || !agent.live_pids().await.contains(&pid)).await;
}
