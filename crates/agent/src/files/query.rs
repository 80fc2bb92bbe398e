//! Query parameters of `/files`, signatures, and whom a request acts as (contract §3.1, §3.5).

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderMap, Uri};
use sha2::{Digest, Sha256};

use crate::agent::Agent;
use crate::envd::{has_token, same, token_header};
use crate::paths;
use crate::server::Failed;
use crate::users::{self, User};

/// Parameters as received after URL decoding.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    expiration: Option<i64>,
}

/// What a signature allows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    /// Download.
    Read,
    /// Upload.
    Write,
}

impl Query {
    /// Reads the parameters of an address.
    pub(crate) fn parse(uri: &Uri) -> Result<Self, Failed> {
        let mut query = Self::default();
        for pair in uri.query().unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode(value);
            match percent_decode(key).as_str() {
                "path" => query.path = query.path.or(Some(value)),
                "username" => query.username = query.username.or(Some(value)),
                "signature" => query.signature = query.signature.or(Some(value)),
                "signature_expiration" if query.expiration.is_none() => {
                    query.expiration = Some(value.parse().map_err(|_| {
                        Failed::bad_request("invalid format for parameter signature_expiration")
                    })?);
                }
                _ => {}
            }
        }
        Ok(query)
    }

    /// Checks token or signature, then finds the user.
    pub(crate) fn authorize(
        &self,
        agent: &Agent,
        headers: &HeaderMap,
        operation: Operation,
    ) -> Result<User, Failed> {
        let token = agent.settings().access_token.clone();
        if let Some(token) = token {
            self.check_signature(&token, headers, operation)?;
        }
        find_user(agent, self.username.as_deref())
    }

    fn check_signature(
        &self,
        token: &str,
        headers: &HeaderMap,
        operation: Operation,
    ) -> Result<(), Failed> {
        if token_header(headers).is_some() {
            return match has_token(headers, token) {
                true => Ok(()),
                false => Err(Failed::unauthorized(
                    "access token present in header but does not match",
                )),
            };
        }
        let Some(signature) = &self.signature else {
            return Err(Failed::unauthorized("missing signature query parameter"));
        };
        if !same(signature.as_bytes(), self.sign(token, operation).as_bytes()) {
            return Err(Failed::unauthorized("invalid signature"));
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        if self
            .expiration
            .is_some_and(|end| end < i64::try_from(now).unwrap_or(i64::MAX))
        {
            return Err(Failed::unauthorized("signature is already expired"));
        }
        Ok(())
    }

    fn sign(&self, token: &str, operation: Operation) -> String {
        let operation = match operation {
            Operation::Read => "read",
            Operation::Write => "write",
        };
        let path = self.path.as_deref().unwrap_or_default();
        let user = self.username.as_deref().unwrap_or_default();
        let mut text = format!("{path}:{operation}:{user}:{token}");
        if let Some(expiration) = self.expiration {
            text.push_str(&format!(":{expiration}"));
        }
        format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
    }
}

/// The named user, or the default one.
pub(crate) fn find_user(agent: &Agent, name: Option<&str>) -> Result<User, Failed> {
    let name = match name.filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => agent.settings().default_user.clone(),
    };
    users::find(&name).ok().flatten().ok_or_else(|| {
        let message = format!("error looking up user '{name}': user: unknown user {name}");
        Failed::unauthorized(message)
    })
}

/// What a path means for `user`.
pub(crate) fn resolve(agent: &Agent, path: &str, user: &User) -> Result<String, Failed> {
    let workdir = agent.settings().default_workdir.clone();
    paths::resolve(path, user, &workdir).map_err(|error| {
        Failed::bad_request(format!(
            "error expanding and resolving path '{path}': {error}"
        ))
    })
}

/// Decodes `%XX` and `+`; what is malformed stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let digit = |byte: &u8| (*byte as char).to_digit(16);
        match (byte, tail) {
            (b'+', _) => decoded.push(b' '),
            (b'%', [high, low, after @ ..]) => match (digit(high), digit(low)) {
                (Some(high), Some(low)) => {
                    decoded.push((high * 16 + low) as u8);
                    rest = after;
                }
                _ => decoded.push(b'%'),
            },
            _ => decoded.push(*byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(uri: &str) -> Query {
        Query::parse(&uri.parse().unwrap()).unwrap()
    }

    #[test]
    fn signatures_match_the_vectors_of_the_contract() {
        let plain = query("/files?path=hello.txt&username=user");
        let token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
        let expected = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
        assert_eq!(plain.sign(token, Operation::Read), expected);

        let expiring = query("/files?path=%2Fhome/user/a+b.txt&signature_expiration=1700000000");
        let expected = "v1_WPwdJg54o69JkISVaFhu8VQx0aUIWtJkgiefjPOjxzw";
        assert_eq!(expiring.sign("tok123", Operation::Write), expected);
        let endless = query("/files?path=/home/user/a%20b.txt");
        let expected = "v1_7GVeMTBibFdyYOxMv7Dgk7eE52Ovf/1xehm2Stkl85w";
        assert_eq!(endless.sign("tok123", Operation::Write), expected);
    }

    #[test]
    fn a_signature_holds_until_its_expiration() {
        let headers = HeaderMap::new();
        for (expiration, accepted) in [(1_700_000_000, false), (i64::MAX, true)] {
            let mut query = Query {
                expiration: Some(expiration),
                ..Query::default()
            };
            query.signature = Some(query.sign("t", Operation::Read));
            let checked = query.check_signature("t", &headers, Operation::Read);
            assert_eq!(checked.is_ok(), accepted);
            let other = query
                .check_signature("t", &headers, Operation::Write)
                .unwrap_err();
            assert_eq!(other.message, "invalid signature");
        }
    }

    #[test]
    fn malformed_escapes_stay_as_they_are() {
        assert_eq!(percent_decode("a%2"), "a%2");
        assert_eq!(percent_decode("%zz%41"), "%zzA");
    }
}
