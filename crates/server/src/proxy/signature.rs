//! Signed file URLs, which name no sandbox: the one whose token made the signature is meant.
//!
//! This needs a different token in every sandbox. The agent checks the signature and its expiry
//! again; here it only chooses.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

/// What a signed file URL says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SignedFile {
    /// `read` for a download, `write` for an upload.
    pub(crate) operation: &'static str,
    /// As in the query, decoded; empty when absent.
    pub(crate) path: String,
    /// As in the query, decoded; empty when absent.
    pub(crate) user: String,
    /// As in the query; seconds since 1970.
    pub(crate) expiration: Option<String>,
    /// As in the query, decoded.
    pub(crate) signature: String,
}

impl SignedFile {
    /// Checks tokens against the signature; `None` for what no token can make.
    pub(crate) fn check(&self) -> Option<SignatureCheck> {
        let Self {
            operation,
            path,
            user,
            expiration,
            signature,
        } = self;
        let expected = STANDARD_NO_PAD.decode(signature.strip_prefix("v1_")?);
        let expected = expected.ok()?.try_into().ok()?;
        let before_token = Sha256::new_with_prefix(format!("{path}:{operation}:{user}:"));
        let expiration = expiration.as_ref();
        Some(SignatureCheck {
            before_token,
            after_token: expiration.map_or_else(String::new, |time| format!(":{time}")),
            expected,
        })
    }
}

/// A signature that tokens are tried on. What comes before the token is hashed once for all of them:
/// callers without a key must not have their bytes hashed for each sandbox.
pub(crate) struct SignatureCheck {
    before_token: Sha256,
    after_token: String,
    expected: [u8; 32],
}

impl SignatureCheck {
    /// True if `token` made the signature.
    pub(crate) fn is_signed_with(&self, token: &str) -> bool {
        let mut hash = self.before_token.clone();
        hash.update(token);
        hash.update(&self.after_token);
        same(&self.expected, &hash.finalize())
    }
}

/// Compares in a time that does not depend on where the difference is.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(operation: &'static str, path: &str, user: &str, signature: &str) -> SignedFile {
        SignedFile {
            operation,
            path: path.into(),
            user: user.into(),
            expiration: None,
            signature: signature.into(),
        }
    }

    fn is_signed_with(file: &SignedFile, token: &str) -> bool {
        file.check()
            .is_some_and(|check| check.is_signed_with(token))
    }

    #[test]
    fn the_vectors_of_the_contract_match() {
        let token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
        let sdk = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
        assert!(is_signed_with(
            &file("read", "hello.txt", "user", sdk),
            token
        ));
        let path = "/home/user/a b.txt";
        let plain = "v1_7GVeMTBibFdyYOxMv7Dgk7eE52Ovf/1xehm2Stkl85w";
        assert!(is_signed_with(&file("write", path, "", plain), "tok123"));
        let mut expiring = file(
            "write",
            path,
            "",
            "v1_WPwdJg54o69JkISVaFhu8VQx0aUIWtJkgiefjPOjxzw",
        );
        expiring.expiration = Some("1700000000".into());
        assert!(is_signed_with(&expiring, "tok123"));
    }

    #[test]
    fn anything_else_does_not() {
        let right = "v1_7GVeMTBibFdyYOxMv7Dgk7eE52Ovf/1xehm2Stkl85w";
        let path = "/home/user/a b.txt";
        assert!(!is_signed_with(&file("write", path, "", right), "tok124"));
        assert!(!is_signed_with(&file("read", path, "", right), "tok123"));
        assert!(!is_signed_with(
            &file("write", path, "root", right),
            "tok123"
        ));
        assert!(!is_signed_with(&file("write", path, "", ""), "tok123"));
        let mut expiring = file("write", path, "", right);
        expiring.expiration = Some("1700000000".into());
        assert!(!is_signed_with(&expiring, "tok123"));
    }
}
