use super::*;

const ID: &str = "i7h2k9d0s4l1p8q3w6e5r";

fn ask(method: &Method, uri: &str, headers: &[(&str, &str)]) -> Decision {
    let hosts = Hosts::new(
        "sbx.example.org:3000",
        &["gate.example.org:3000".to_owned()],
    );
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = http::HeaderName::try_from(*name).unwrap();
        map.append(name, value.parse().unwrap());
    }
    decide(method, &uri.parse().unwrap(), &map, &hosts)
}

fn get(host: &str, headers: &[(&str, &str)]) -> Decision {
    let mut all = vec![("host", host)];
    all.extend_from_slice(headers);
    ask(&Method::GET, "/health", &all)
}

fn to(port: u16) -> Decision {
    Decision::Sandbox(Target {
        id: SandboxId::parse(ID).unwrap(),
        port,
    })
}

const BOTH: [(&str, &str); 2] = [("E2b-Sandbox-Id", ID), ("E2b-Sandbox-Port", "49983")];

#[test]
fn a_name_of_a_port_of_a_sandbox_wins_over_everything() {
    for host in [
        format!("8080-{ID}.localhost:3000"),
        format!("8080-{ID}.localhost"),
        format!("8080-{ID}.sbx.example.org"),
        format!("8080-{ID}-6532622b.sbx.example.org:3000"),
        format!("8080-{ID}-a-b-c.any.where"),
        format!("8080-{}.LocalHost.", ID.to_uppercase()),
    ] {
        assert_eq!(get(&host, &[]), to(8080), "{host}");
        assert_eq!(get(&host, &BOTH), to(8080), "{host}");
        assert_eq!(
            get(&host, &BOTH[..1]),
            to(8080),
            "{host}: one header does not matter"
        );
    }
}

#[test]
fn the_target_of_a_request_wins_over_its_host_header() {
    let uri = format!("http://8080-{ID}.localhost:3000/x");
    assert_eq!(
        ask(&Method::GET, &uri, &[("host", "localhost:3000")]),
        to(8080)
    );
    let elsewhere = format!("8080-{ID}.localhost");
    let plain = ask(
        &Method::GET,
        "http://localhost:3000/x",
        &[("host", &elsewhere)],
    );
    assert_eq!(plain, Decision::Api);
}

#[test]
fn headers_are_honoured_on_the_hosts_of_operators_only() {
    for host in [
        "localhost",
        "localhost:3000",
        "LOCALHOST:3000",
        "127.0.0.1:3000",
        "10.1.2.3",
        "[::1]:3000",
        "[::1]",
        "sandbox.sbx.example.org",
        "sandbox.sbx.example.org:3000",
        "gate.example.org",
        "gate.example.org:8443",
    ] {
        assert_eq!(get(host, &BOTH), to(49983), "{host}");
        assert_eq!(get(host, &[]), Decision::Api, "{host}");
    }
    for host in [
        "sbx.example.org",
        "example.org",
        "evil.localhost",
        "sandbox.localhost",
        "sandbox.other.org",
        "localhost.example.org",
        "127.0.0.1.example.org",
    ] {
        assert_eq!(get(host, &BOTH), Decision::Api, "{host}");
        assert_eq!(get(host, &BOTH[..1]), Decision::Api, "{host}");
    }
    assert_eq!(
        ask(&Method::GET, "/health", &BOTH),
        Decision::Api,
        "no host at all"
    );
}

#[test]
fn one_header_without_the_other_is_refused() {
    let missing = |name| Decision::Refuse(Refusal::MissingHeader(name));
    assert_eq!(get("localhost", &BOTH[..1]), missing("e2b-sandbox-port"));
    assert_eq!(get("localhost", &BOTH[1..]), missing("e2b-sandbox-id"));
}

#[test]
fn names_of_another_form_are_for_the_api() {
    for host in [
        "localhost:3000",
        "api.example.org",
        "my-api.example.org",
        "-abc.example.org",
        "8080.example.org",
        "8080-abc",
        "8080x-abc.example.org",
        "sbx.example.org",
    ] {
        assert_eq!(get(host, &[]), Decision::Api, "{host}");
    }
    let hosts = Hosts::new("2024-api.example.org", &[]);
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("2024-api.example.org"));
    let own = decide(&Method::GET, &"/x".parse().unwrap(), &headers, &hosts);
    assert_eq!(
        own,
        Decision::Api,
        "the server's own domain is never a sandbox"
    );
}

#[test]
fn bad_ids_and_ports_are_refused() {
    let bad_id = Decision::Refuse(Refusal::InvalidSandboxId);
    let bad_port = Decision::Refuse(Refusal::InvalidPort);
    assert_eq!(get("8080-.localhost", &[]), bad_id);
    assert_eq!(get("8080-a_b.localhost", &[]), bad_id);
    assert_eq!(get("0-abc.localhost", &[]), bad_port);
    assert_eq!(get("65536-abc.localhost", &[]), bad_port);
    for (id, port, expected) in [
        ("Abc", "80", &bad_id),
        ("", "80", &bad_id),
        ("a-b-c", "80", &bad_id),
        ("abc", "0", &bad_port),
        ("abc", "+80", &bad_port),
        ("abc", "", &bad_port),
        ("abc", "65536", &bad_port),
        ("abc", "80 ", &bad_port),
    ] {
        let headers = [("e2b-sandbox-id", id), ("e2b-sandbox-port", port)];
        // Outer white space is no part of a header's value on the wire.
        if port.trim() == port {
            assert_eq!(get("localhost", &headers), *expected, "{id} {port}");
        }
    }
    let twice = [BOTH[0], BOTH[0], BOTH[1]];
    assert_eq!(get("localhost", &twice), bad_id);
    let old = [
        ("e2b-sandbox-id", &*format!("{ID}-6532622b")),
        ("e2b-sandbox-port", "80"),
    ];
    assert_eq!(get("localhost", &old), to(80));
}

#[test]
fn several_hosts_are_refused() {
    let hosts = [("host", "localhost"), ("host", "8080-abc.localhost")];
    let decision = ask(&Method::GET, "/", &hosts);
    assert_eq!(decision, Decision::Refuse(Refusal::InvalidHost));
}

#[test]
fn routes_of_the_agent_that_are_not_for_clients_are_refused_in_any_spelling() {
    let agent = format!("49983-{ID}.localhost");
    for path in [
        "/init",
        "/init/",
        "//init",
        "/./init",
        "/x/../init",
        "/%69nit",
        "/%2569nit",
        "/%2finit",
        "/x%2f..%2finit",
        "/freeze?maxWaitMs=1",
        "/unfreeze",
        "/collapse",
        "/fsfreeze",
        "/fsthaw",
        "/upgrade",
    ] {
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            let decision = ask(&method, path, &[("host", &agent)]);
            let refused = matches!(decision, Decision::Refuse(Refusal::ReservedRoute(_)));
            assert!(refused, "{path}: {decision:?}");
        }
    }
    for path in [
        "/initial",
        "/files/init",
        "/INIT",
        "/health",
        "/%zzinit",
        "/init%",
    ] {
        assert_eq!(
            ask(&Method::GET, path, &[("host", &agent)]),
            to(49983),
            "{path}"
        );
    }
    let user = format!("8080-{ID}.localhost");
    assert_eq!(ask(&Method::POST, "/init", &[("host", &user)]), to(8080));
}

#[test]
fn a_path_to_an_agent_is_decoded_a_fixed_number_of_times() {
    let agent = format!("49983-{ID}.localhost");
    let encoded = |times: usize| format!("/%{}41", "25".repeat(times - 1));
    for times in 1..=DECODING_ROUNDS {
        let decision = ask(&Method::GET, &encoded(times), &[("host", &agent)]);
        assert_eq!(decision, to(49983), "{times}");
    }
    for times in [DECODING_ROUNDS + 1, DECODING_ROUNDS * 2, 1000] {
        let path = encoded(times);
        let decision = ask(&Method::GET, &path, &[("host", &agent)]);
        let refused = Decision::Refuse(Refusal::ReservedRoute(path));
        assert_eq!(decision, refused, "{times}");
    }
}

#[test]
fn a_path_to_an_agent_and_a_signed_url_have_a_longest_length() {
    let agent = format!("49983-{ID}.localhost");
    let too_long = Decision::Refuse(Refusal::TooLong);
    let longest = "x".repeat(LONGEST_AGENT_PATH - 1);
    for (path, expected) in [
        (format!("/{longest}?{longest}"), to(49983)),
        (format!("/{longest}x"), too_long.clone()),
    ] {
        assert_eq!(ask(&Method::GET, &path, &[("host", &agent)]), expected);
        // Services have limits of their own.
        let user = format!("8080-{ID}.localhost");
        assert_eq!(ask(&Method::GET, &path, &[("host", &user)]), to(8080));
    }
    let local = [("host", "localhost:3000")];
    for (path, fits) in [
        ("x".repeat(LONGEST_SIGNED_PATH), true),
        ("x".repeat(LONGEST_SIGNED_PATH + 1), false),
        ("%20".repeat(LONGEST_SIGNED_PATH), true),
        ("%20".repeat(LONGEST_SIGNED_PATH + 1), false),
    ] {
        let uri = format!("/files?path={path}&signature=v1_x");
        let decision = ask(&Method::GET, &uri, &local);
        assert_eq!(matches!(decision, Decision::SignedFile(_)), fits);
        assert_eq!(decision == too_long, !fits);
    }
    let user = "u".repeat(LONGEST_SIGNED_PATH);
    let uri = format!("/files?path=a&username={user}&signature=v1_x");
    assert_eq!(ask(&Method::GET, &uri, &local), too_long);
}

#[test]
fn a_signed_file_url_without_a_sandbox_is_told_by_its_signature() {
    let uri = "/files?path=%2Fa+b%20c&username=root&signature=v1_x%2By/z&signature_expiration=17";
    let local = [("host", "localhost:3000")];
    let expected = SignedFile {
        operation: "read",
        path: "/a b c".into(),
        user: "root".into(),
        expiration: Some("17".into()),
        signature: "v1_x+y/z".into(),
    };
    assert_eq!(
        ask(&Method::GET, uri, &local),
        Decision::SignedFile(expected.clone())
    );
    let write = SignedFile {
        operation: "write",
        ..expected
    };
    assert_eq!(ask(&Method::POST, uri, &local), Decision::SignedFile(write));
    assert_eq!(ask(&Method::DELETE, uri, &local), Decision::Api);
    assert_eq!(ask(&Method::GET, "/files?path=a", &local), Decision::Api);
    assert_eq!(ask(&Method::GET, "/files", &local), Decision::Api);
    let named = format!("49983-{ID}.localhost");
    assert_eq!(ask(&Method::GET, uri, &[("host", &named)]), to(49983));
    assert_eq!(
        ask(&Method::GET, uri, &[local[0], BOTH[0], BOTH[1]]),
        to(49983)
    );
}

#[test]
fn a_call_of_the_control_plane_stays_one_with_the_headers_of_an_agent() {
    let local = ("host", "localhost:3000");
    let with_port = |port| [local, ("e2b-sandbox-id", ID), ("e2b-sandbox-port", port)];
    for version in ["", "/v2"] {
        let path = format!("{version}/sandboxes/{ID}/connect");
        let decision = ask(&Method::POST, &path, &with_port("49983"));
        assert_eq!(decision, Decision::Api, "{path}");
        // A program of the user may have any path.
        let decision = ask(&Method::POST, &path, &with_port("8080"));
        assert_eq!(decision, to(8080), "{path}");
    }
    let decision = ask(&Method::POST, "/process.Process/List", &with_port("49983"));
    assert_eq!(decision, to(49983));
}

#[test]
fn tunnels_are_refused() {
    let uri = format!("8080-{ID}.localhost:443");
    let decision = ask(&Method::CONNECT, &uri, &[]);
    assert_eq!(decision, Decision::Refuse(Refusal::Connect));
}
