//! Where a request goes, decided from its head alone.
//!
//! One listener serves the control plane and the ports of all sandboxes:
//!
//! 1. a host `<port>-<sandbox id>[-<client id>].<anything>` names a port of a sandbox, and wins;
//! 2. on the few hosts that an operator gives to clients as `E2B_SANDBOX_URL`, the two headers
//!    `E2b-Sandbox-Id` and `E2b-Sandbox-Port` do. Never on other hosts: a page in a browser could
//!    steer its requests from one sandbox to another. Nor do they turn calls of the control plane
//!    into calls of an agent;
//! 3. a signed file URL names no sandbox at all; the signature tells (see `signature`);
//! 4. everything else is for the control plane.

use std::borrow::Cow;
use std::net::IpAddr;

use agent_api::ENVD_PORT;
use http::{HeaderMap, HeaderValue, Method, Uri, header};

use super::signature::SignedFile;
use crate::api::query::{pairs, percent_decode};
use crate::sandbox::SandboxId;

const ID_HEADER: &str = "e2b-sandbox-id";
const PORT_HEADER: &str = "e2b-sandbox-port";
/// Routes with which upstream's orchestrator talks to its agent. Ours has them elsewhere; whatever
/// an agent does with these paths, `/init` from outside could replace the access token.
const RESERVED: [&str; 7] = [
    "/init",
    "/collapse",
    "/freeze",
    "/unfreeze",
    "/fsfreeze",
    "/fsthaw",
    "/upgrade",
];

/// Servers decode a path once, careless ones twice.
const DECODING_ROUNDS: usize = 3;
/// Longest path to an agent. Its routes are short; long values are in queries and bodies.
const LONGEST_AGENT_PATH: usize = 8 << 10;

/// Linux knows no longer path.
const LONGEST_SIGNED_PATH: usize = 4096;
/// User and time of expiry of a signed URL together.
const LONGEST_SIGNED_REST: usize = 512;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// To the control plane.
    Api,
    /// To a port of a sandbox.
    Sandbox(Target),
    /// To the agent of the sandbox that the signature fits.
    SignedFile(SignedFile),
    /// Nowhere.
    Refuse(Refusal),
}

/// A port of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) id: SandboxId,
    pub(crate) port: u16,
}

/// Why a request goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// More than one Host header, or an unreadable one.
    InvalidHost,
    /// The host or a header has something else where a sandbox id belongs.
    InvalidSandboxId,
    /// The host or a header has something else where a port belongs.
    InvalidPort,
    /// One of the two headers came without this other one.
    MissingHeader(&'static str),
    /// A route of the agent that is not for clients.
    ReservedRoute(String),
    /// A path to an agent, or a signed file URL, that is longer than any that has a meaning.
    TooLong,
    /// A tunnel was asked for; sandbox ports speak HTTP.
    Connect,
}

/// The hosts of this server.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// On these the headers are honoured, besides localhost and IP addresses. Lower case, no port.
    by_header: Vec<String>,
    /// Never a sandbox, even if it looks like one: `2024-api.example.org`.
    domain: String,
}

impl Hosts {
    pub(crate) fn new(domain: &str, extra_hosts: &[String]) -> Self {
        let domain = bare(domain).into_owned();
        let mut by_header = vec![format!("sandbox.{domain}")];
        by_header.extend(extra_hosts.iter().map(|host| bare(host).into_owned()));
        Self { by_header, domain }
    }

    fn honours_headers(&self, host: &str) -> bool {
        host == "localhost" || is_address(host) || self.by_header.iter().any(|own| own == host)
    }

    fn is_own(&self, host: &str) -> bool {
        host == self.domain || self.by_header.iter().any(|own| own == host)
    }
}

/// Decides where a request goes.
pub(crate) fn decide(method: &Method, uri: &Uri, headers: &HeaderMap, hosts: &Hosts) -> Decision {
    match target(uri, headers, hosts) {
        Err(refusal) => Decision::Refuse(refusal),
        Ok(Some(_)) if method == Method::CONNECT => Decision::Refuse(Refusal::Connect),
        Ok(Some(target)) if target.port == ENVD_PORT && uri.path().len() > LONGEST_AGENT_PATH => {
            Decision::Refuse(Refusal::TooLong)
        }
        Ok(Some(target)) if target.port == ENVD_PORT && is_reserved(uri.path()) => {
            Decision::Refuse(Refusal::ReservedRoute(uri.path().to_owned()))
        }
        Ok(Some(target)) => Decision::Sandbox(target),
        Ok(None) => match signed_file(method, uri) {
            Some(signed) if is_too_long(&signed) => Decision::Refuse(Refusal::TooLong),
            Some(signed) => Decision::SignedFile(signed),
            None => Decision::Api,
        },
    }
}

fn target(uri: &Uri, headers: &HeaderMap, hosts: &Hosts) -> Result<Option<Target>, Refusal> {
    let Some(host) = host(uri, headers)? else {
        return Ok(None);
    };
    let host = bare(&host);
    if !hosts.is_own(&host)
        && let Some(target) = target_of_name(&host)?
    {
        return Ok(Some(target));
    }
    if !hosts.honours_headers(&host) {
        return Ok(None);
    }
    let target = target_of_headers(headers)?;
    Ok(target.filter(|target| !(target.port == ENVD_PORT && is_control_plane(uri.path()))))
}

/// Python SDKs from 2.7 to 2.28 name the agent in the headers of a call to the control plane:
/// `Sandbox.connect`. The agent has no such paths.
fn is_control_plane(path: &str) -> bool {
    path.strip_prefix("/v2")
        .unwrap_or(path)
        .starts_with("/sandboxes/")
}

/// The host of a request: of its target if that has one (proxies, HTTP/2), else of the header.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Option<Cow<'a, str>>, Refusal> {
    if let Some(authority) = uri.authority() {
        return Ok(Some(Cow::Borrowed(authority.as_str())));
    }
    let mut values = headers.get_all(header::HOST).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Refusal::InvalidHost);
    }
    value
        .to_str()
        .map(|text| Some(Cow::Borrowed(text)))
        .map_err(|_| Refusal::InvalidHost)
}

/// A host in lower case without user, port, brackets and the dot of a full name.
fn bare(host: &str) -> Cow<'_, str> {
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(address, _)| address),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

fn is_address(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
}

/// `<port>-<id>[-<anything>].<domain>`; `None` for names of another form.
fn target_of_name(host: &str) -> Result<Option<Target>, Refusal> {
    let Some((label, domain)) = host.split_once('.') else {
        return Ok(None);
    };
    let Some((port, rest)) = label.split_once('-') else {
        return Ok(None);
    };
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if domain.is_empty() || !digits {
        return Ok(None);
    }
    let port = port_number(port)?;
    let id = rest.split_once('-').map_or(rest, |(id, _)| id);
    let id = SandboxId::parse(id).ok_or(Refusal::InvalidSandboxId)?;
    Ok(Some(Target { id, port }))
}

fn target_of_headers(headers: &HeaderMap) -> Result<Option<Target>, Refusal> {
    let id = single(headers, ID_HEADER).ok_or(Refusal::InvalidSandboxId)?;
    let port = single(headers, PORT_HEADER).ok_or(Refusal::InvalidPort)?;
    match (id, port) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(Refusal::MissingHeader(PORT_HEADER)),
        (None, Some(_)) => Err(Refusal::MissingHeader(ID_HEADER)),
        (Some(id), Some(port)) => {
            let id = id.to_str().ok().and_then(SandboxId::parse);
            let id = id.ok_or(Refusal::InvalidSandboxId)?;
            let port = port_number(port.to_str().map_err(|_| Refusal::InvalidPort)?)?;
            Ok(Some(Target { id, port }))
        }
    }
}

/// The only value of a header; `None` when there are several.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<Option<&'a HeaderValue>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    values.next().is_none().then_some(first)
}

fn port_number(text: &str) -> Result<u16, Refusal> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or(Refusal::InvalidPort)
}

/// True if any server could take `path` for a reserved route: decoded as often as anybody would, with
/// empty, `.` and `..` segments resolved. One that is still encoded after that counts as reserved:
/// decoding it to the end would take a caller without a key a time that grows with the square of the
/// path.
fn is_reserved(path: &str) -> bool {
    let mut path = Cow::Borrowed(path);
    for _round in 0..DECODING_ROUNDS {
        if !path.contains('%') {
            break;
        }
        match percent_decode(&path) {
            Some(decoded) => path = Cow::Owned(decoded),
            None => break,
        }
    }
    if is_encoded(&path) {
        return true;
    }
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let cleaned = format!("/{}", segments.join("/"));
    RESERVED.contains(&cleaned.as_str())
}

fn is_encoded(path: &str) -> bool {
    let is_escape = |bytes: &[u8]| match bytes {
        [b'%', high, low] => high.is_ascii_hexdigit() && low.is_ascii_hexdigit(),
        _ => false,
    };
    path.as_bytes().windows(3).any(is_escape)
}

/// Callers need no key for a look-up of a signature, so what it has to hash is bounded.
fn is_too_long(signed: &SignedFile) -> bool {
    let expiration = signed.expiration.as_ref().map_or(0, String::len);
    signed.path.len() > LONGEST_SIGNED_PATH || signed.user.len() + expiration > LONGEST_SIGNED_REST
}

fn signed_file(method: &Method, uri: &Uri) -> Option<SignedFile> {
    if uri.path() != "/files" {
        return None;
    }
    let operation = match *method {
        Method::GET => "read",
        Method::POST => "write",
        _ => return None,
    };
    let mut signed = SignedFile {
        operation,
        ..SignedFile::default()
    };
    let mut has_signature = false;
    for (name, value) in pairs(uri.query()?)? {
        match name.as_str() {
            "path" => signed.path = value,
            "username" => signed.user = value,
            "signature_expiration" => signed.expiration = Some(value),
            "signature" => {
                has_signature = true;
                signed.signature = value;
            }
            _ => {}
        }
    }
    has_signature.then_some(signed)
}

#[cfg(test)]
mod tests;
