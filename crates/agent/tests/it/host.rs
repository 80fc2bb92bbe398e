//! The private channel of the host.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use agent_api::{ClientError, client};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::{Agent, LIMIT, init_of};

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
    client::prepare(dial(&agent).await).await.unwrap();
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
