//! Byte streams to services that listen on the guest's loopback only (contract §8).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use agent_api::{ENVD_PORT, HOST_PORT, TUNNEL_PROTOCOL};
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::server::{Body, Failed, empty};

/// Memory per direction of a tunnel.
const BUFFER: usize = 32 * 1024;

/// Connects to the port and turns the request's connection into the tunnel.
pub(crate) async fn open(
    agent: &Arc<Agent>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Failed> {
    let upgrade = request.headers().get(UPGRADE);
    if upgrade.is_none_or(|protocol| protocol != TUNNEL_PROTOCOL) {
        return Err(Failed::bad_request(format!(
            "upgrade to {TUNNEL_PROTOCOL} is required"
        )));
    }
    let port = port(request.uri().query().unwrap_or_default())
        .ok_or_else(|| Failed::bad_request("query parameter port is required"))?;
    // The agent's own ports would be open to everyone a second time.
    if [ENVD_PORT, HOST_PORT].contains(&port) {
        return Err(Failed::bad_request(format!(
            "port {port} belongs to the agent"
        )));
    }
    let service = dial(port).await.ok_or_else(|| {
        let message = format!("nothing listens on port {port}");
        Failed::new(StatusCode::BAD_GATEWAY, message)
    })?;

    let upgrade = hyper::upgrade::on(&mut request);
    let agent = Arc::clone(agent);
    // Owned by its two sockets: ends with them, or when a new execution begins.
    tokio::spawn(async move {
        let Ok(client) = upgrade.await else { return };
        copy(&agent, TokioIo::new(client), service).await;
    });
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(TUNNEL_PROTOCOL));
    Ok(response)
}

/// IPv4 before IPv6. The host has tried the address of the network card itself.
async fn dial(port: u16) -> Option<TcpStream> {
    for address in [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        if let Ok(stream) = TcpStream::connect((address, port)).await {
            let _best_effort = stream.set_nodelay(true);
            return Some(stream);
        }
    }
    None
}

async fn copy(
    agent: &Agent,
    mut client: TokioIo<hyper::upgrade::Upgraded>,
    mut service: TcpStream,
) {
    let registration = agent.clients.register();
    let copied =
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut service, BUFFER, BUFFER);
    tokio::select! {
        // How the two ended is for them to know.
        _ended = copied => {}
        () = registration.hangup.requested() => {}
    }
}

fn port(query: &str) -> Option<u16> {
    let value = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("port="))?;
    value.parse().ok().filter(|port| *port != 0)
}
