//! Where packets of a guest get to.

use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::Command;

use engine::{Engine, NetworkPolicy};
use serde_json::{Value, json};

use crate::host::Host;

/// A piece of internet: a namespace with a public (documentation) address, behind the host.
struct Internet {
    name: String,
}

/// Its address and the host's. Of the range for documentation that no guest is denied.
const PUBLIC: &str = "203.0.113.130";
const HOST_SIDE: &str = "203.0.113.129";

impl Internet {
    fn new() -> Self {
        let name = format!("sbtest{}", std::process::id());
        let internet = Self { name };
        let name = &internet.name;
        let run = |command: String| {
            let mut words = command.split(' ');
            let status = Command::new(words.next().unwrap())
                .args(words)
                .status()
                .unwrap();
            assert!(status.success(), "{command}");
        };
        run(format!("ip netns add {name}"));
        run(format!(
            "ip link add {name} type veth peer name public netns {name}"
        ));
        run(format!("ip addr add {HOST_SIDE}/30 dev {name}"));
        run(format!("ip link set {name} up"));
        run(format!("ip -n {name} addr add {PUBLIC}/30 dev public"));
        run(format!("ip -n {name} link set public up"));
        internet
    }

    /// A listener in it that accepts as the kernel does: it has a backlog.
    fn listen(&self, port: u16) -> TcpListener {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::spawn(move || {
            use std::os::fd::AsFd;
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind)).unwrap();
            TcpListener::bind((PUBLIC, port)).unwrap()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        let _ = Command::new("ip")
            .args(["link", "del", &self.name])
            .status();
    }
}

/// `connected`, or the name of the error.
async fn try_from_guest(host: &Host, id: &engine::ExecutionId, address: &str, port: u16) -> Value {
    let code = format!(
        "try:\n    socket.create_connection(({address:?}, {port}), 3).close(); r = 'connected'\n\
         except OSError as error: r = repr(error)"
    );
    host.run(id, &code).await
}

/// Which of these a guest can connect to. All at once: a denial may be three seconds of silence.
async fn reached_of(host: &Host, id: &engine::ExecutionId, targets: &[(String, u16)]) -> Value {
    let targets = serde_json::to_string(targets).unwrap();
    let code = format!(
        "import concurrent.futures\n\
         def probe(target):\n    \
             try:\n        socket.create_connection(tuple(target), 3).close(); return True\n    \
             except OSError: return False\n\
         targets = json.loads('{targets}')\n\
         with concurrent.futures.ThreadPoolExecutor(64) as pool:\n    \
             r = [target for target, reached in zip(targets, pool.map(probe, targets)) if reached]"
    );
    host.run(id, &code).await
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_reach_the_internet_but_neither_host_nor_neighbour() {
    let host = Host::new();
    let internet = Internet::new();
    let public = internet.listen(7000);
    // The host listens on every address it has.
    let local = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = local.local_addr().unwrap().port();
    let spec = host.boot("disk").await;
    let neighbour = host.boot("neighbour").await;
    let mut closed = host.spec("closed");
    closed.network = NetworkPolicy::Closed;
    host.boot_with(&closed).await;

    assert_eq!(
        try_from_guest(&host, &spec.id, PUBLIC, 7000).await,
        json!("connected")
    );
    // What arrives there comes from the host's address.
    let (_, peer) = public.accept().unwrap();
    assert_eq!(peer.ip(), HOST_SIDE.parse::<IpAddr>().unwrap());
    assert_ne!(
        try_from_guest(&host, &closed.id, PUBLIC, 7000).await,
        json!("connected")
    );

    let mut denied: Vec<(String, u16)> = vec![
        (HOST_SIDE.to_owned(), port),
        ("169.254.0.22".to_owned(), port),
        ("169.254.169.254".to_owned(), 80),
        ("10.0.0.1".to_owned(), 80),
        ("192.168.0.1".to_owned(), 80),
    ];
    denied.extend(addresses("").into_iter().map(|address| (address, port)));
    // The gateways' ends of the uplinks, and through one the neighbour's own server.
    for address in addresses(&format!("sb{}", host.tag())) {
        denied.push((address.clone(), port));
        let mut octets: Vec<u8> = address
            .split('.')
            .map(|octet| octet.parse().unwrap())
            .collect();
        octets[3] += 1;
        let text: Vec<String> = octets.iter().map(u8::to_string).collect();
        denied.push((text.join("."), 9000));
    }
    assert!(denied.len() >= 10, "{denied:?}");
    // One that can be reached shows that the others are looked at.
    denied.push((PUBLIC.to_owned(), 7000));
    let reached = reached_of(&host, &spec.id, &denied).await;
    assert_eq!(reached, json!([[PUBLIC, 7000]]));
    // The denied listener works: the host itself reaches it.
    std::net::TcpStream::connect((HOST_SIDE, port)).unwrap();
    host.answers(&neighbour.id).await;

    // Nobody outside reaches into a sandbox: only the gateway does.
    for address in addresses(&format!("sb{}", host.tag())) {
        let socket = UdpSocket::bind((address.as_str(), 0)).unwrap();
        drop(socket);
        let gateway = address.parse::<std::net::Ipv4Addr>().unwrap();
        let gateway = std::net::Ipv4Addr::from(u32::from(gateway) + 1);
        let limit = std::time::Duration::from_millis(100);
        let address = std::net::SocketAddr::from((gateway, 9000));
        assert!(std::net::TcpStream::connect_timeout(&address, limit).is_err());
    }
    host.close().await;
}

/// Addresses of this machine on interfaces whose names begin so; without the loopback ones.
fn addresses(prefix: &str) -> Vec<String> {
    let output = Command::new("ip")
        .args(["-4", "-o", "addr"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.nth(1)?;
            let address = words.nth(1)?.split('/').next()?;
            (name.starts_with(prefix) && name != "lo").then(|| address.to_owned())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dialing_finds_listeners_and_refusals() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let error = host.engine.dial(&spec.id, 9002).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    host.run(&spec.id, "late = socket.create_server(('0.0.0.0', 9002))")
        .await;
    host.engine.dial(&spec.id, 9002).await.unwrap();
    // The guest sees the gateway as its peer.
    host.run(&spec.id, "peer = late.accept()[1][0]; r = peer")
        .await;
    assert_eq!(host.run(&spec.id, "r = peer").await, json!("169.254.0.22"));
    let interface = "r = [open('/proc/net/dev').read().count('eth0'), \
                     open('/proc/net/if_inet6').read().count('eth0')]";
    let _ = host.run(&spec.id, "r = 1").await;
    assert_eq!(host.run(&spec.id, interface).await[0], json!(1));

    host.engine.destroy(&spec.id).await.unwrap();
    let error = host.engine.dial(&spec.id, 9000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    host.close().await;
}
