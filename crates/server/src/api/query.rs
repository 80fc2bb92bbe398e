//! Query strings and percent encoding, decoded strictly.

/// Decodes `%xx`; `None` when an escape is cut short, is not hex, or the result is not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let [high, low, tail @ ..] = tail else {
            return None;
        };
        bytes.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// Decodes one key or value of a form: `+` is a space, then [`percent_decode`].
fn form_decode(text: &str) -> Option<String> {
    percent_decode(&text.replace('+', " "))
}

/// The pairs of a form or query string, in order; `None` when one of them cannot be decoded.
pub(crate) fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((form_decode(key)?, form_decode(value)?))
        })
        .collect()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(
            percent_decode("a%20b%2Fc%252F").as_deref(),
            Some("a b/c%2F")
        );
        assert_eq!(percent_decode("%c3%A4+").as_deref(), Some("ä+"));
        for broken in ["%", "%2", "%zz", "%+1", "%ff"] {
            assert_eq!(percent_decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn pairs_keep_order_and_repetition() {
        let expected = [("a", "1 2"), ("b", ""), ("a", "x=y")];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        assert_eq!(pairs("a=1+2&b&&a=x%3Dy"), Some(expected.clone()));
        assert_eq!(pairs("a=1%202&b=&a=x=y"), Some(expected));
        assert_eq!(pairs("a=%"), None);
    }
}
