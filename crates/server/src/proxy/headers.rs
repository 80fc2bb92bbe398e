//! Headers that belong to one connection and are not passed on.

use http::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};

/// Takes away what concerned the connection that the message came on. `Trailer` stays: it says what
/// follows the body, and the HTTP library only sends trailers that were announced.
pub(super) fn strip(headers: &mut HeaderMap) {
    let wants_trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        .collect();
    for name in named.iter().filter(|name| **name != HOST) {
        headers.remove(name);
    }
    for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes away what the edge has answered itself: `100 Continue` is sent when the body is asked for.
pub(super) fn strip_answered(headers: &mut HeaderMap) {
    headers.remove(EXPECT);
}

/// The protocol that a request or an answer wants to switch to.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if wanted {
        headers.get(UPGRADE).cloned()
    } else {
        None
    }
}

/// Asks for, or confirms, the switch.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(pairs: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_concerns_the_connection_is_taken_away() {
        let left = stripped(&[
            ("host", "x"),
            ("connection", "keep-alive, X-Hop, host"),
            ("connection", "close"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers, gzip"),
            ("trailer", "x-sum"),
            ("authorization", "Basic x"),
            ("x-access-token", "t"),
            ("e2b-sandbox-id", "i"),
        ]);
        let expected = [
            "authorization",
            "e2b-sandbox-id",
            "host",
            "te",
            "trailer",
            "x-access-token",
        ];
        assert_eq!(left, expected);
    }

    #[test]
    fn a_switch_is_only_wanted_when_the_connection_says_so() {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        assert_eq!(upgrade(&headers), None);
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert_eq!(
            upgrade(&headers),
            Some(HeaderValue::from_static("websocket"))
        );
    }
}
