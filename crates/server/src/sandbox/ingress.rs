//! Rules for the ports that programs in a sandbox listen on. The agent's port is none of them.

use http::HeaderValue;
use http::uri::Authority;
use serde::{Deserialize, Serialize};

/// What [`HostMask`] replaces by the number of the port.
const PORT: &str = "${PORT}";

/// Rules for traffic from outside, fixed at create and kept through every pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// What a request must bring in `E2b-Traffic-Access-Token`; `None` lets everybody in. Different in
    /// every sandbox, and the same for its whole life.
    pub traffic_token: Option<String>,
    /// What services see as `Host`; `None` shows them what the client asked for.
    pub host_mask: Option<HostMask>,
}

impl Ingress {
    /// By these rules, with a new token if one is needed.
    pub fn new(rules: IngressRules) -> Self {
        Self {
            traffic_token: rules.private.then(|| crate::random::hex(32)),
            host_mask: rules.host_mask,
        }
    }

    /// The same rules for another sandbox, with a token that only fits there.
    pub fn for_another(&self) -> Self {
        Self::new(IngressRules {
            private: self.traffic_token.is_some(),
            host_mask: self.host_mask.clone(),
        })
    }
}

/// What a create asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngressRules {
    /// Whether requests need a token.
    pub private: bool,
    /// What services see as `Host`.
    pub host_mask: Option<HostMask>,
}

/// A host, perhaps with a port, in which `${PORT}` stands for the port that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMask(String);

impl HostMask {
    /// `None` for what is no host with any port in it.
    pub fn parse(text: &str) -> Option<Self> {
        // The longest port, for all that may be too long with it.
        let authority: Authority = text.replace(PORT, "65535").parse().ok()?;
        let plain = text.is_ascii() && !authority.as_str().contains('@');
        let port = authority.as_str()[authority.host().len()..].strip_prefix(':');
        let whole = authority.port_u16().is_some() || port.is_none();
        (plain && whole && !authority.host().is_empty()).then(|| Self(text.to_owned()))
    }

    /// The header for requests to `port`.
    pub fn host(&self, port: u16) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0.replace(PORT, &port.to_string())).ok()
    }

    /// As given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_host_that_may_have_a_port() {
        for (text, host) in [
            ("localhost", "localhost"),
            ("custom.example.com:${PORT}", "custom.example.com:8080"),
            ("${PORT}.example.com:81", "8080.example.com:81"),
            ("[::1]:${PORT}", "[::1]:8080"),
        ] {
            assert_eq!(HostMask::parse(text).unwrap().host(8080).unwrap(), host);
        }
        for text in [
            "",
            ":80",
            "a b",
            "a:b",
            "a:",
            "a:70000",
            "a:1${PORT}",
            "http://a",
            "a/b",
            "u@a",
            "a?b",
            "b\u{fc}cher.example",
            "a\r\nx: y",
            "a:${OTHER}",
        ] {
            assert_eq!(HostMask::parse(text), None, "{text:?}");
        }
    }
}
