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
    /// Whether `token` made the signature.
    pub(crate) fn is_signed_with(&self, token: &str) -> bool {
        let Self {
            operation,
            path,
            user,
            expiration,
            signature,
        } = self;
        let mut signed = format!("{path}:{operation}:{user}:{token}");
        if let Some(expiration) = expiration {
            signed.push(':');
            signed.push_str(expiration);
        }
        let expected = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(signed)));
        same(expected.as_bytes(), signature.as_bytes())
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

    #[test]
    fn the_vectors_of_the_contract_match() {
        let token = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
        let sdk = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
        assert!(file("read", "hello.txt", "user", sdk).is_signed_with(token));
        let path = "/home/user/a b.txt";
        let plain = "v1_7GVeMTBibFdyYOxMv7Dgk7eE52Ovf/1xehm2Stkl85w";
        assert!(file("write", path, "", plain).is_signed_with("tok123"));
        let mut expiring = file(
            "write",
            path,
            "",
            "v1_WPwdJg54o69JkISVaFhu8VQx0aUIWtJkgiefjPOjxzw",
        );
        expiring.expiration = Some("1700000000".into());
        assert!(expiring.is_signed_with("tok123"));
    }

    #[test]
    fn anything_else_does_not() {
        let right = "v1_7GVeMTBibFdyYOxMv7Dgk7eE52Ovf/1xehm2Stkl85w";
        let path = "/home/user/a b.txt";
        assert!(!file("write", path, "", right).is_signed_with("tok124"));
        assert!(!file("read", path, "", right).is_signed_with("tok123"));
        assert!(!file("write", path, "root", right).is_signed_with("tok123"));
        assert!(!file("write", path, "", "").is_signed_with("tok123"));
        let mut expiring = file("write", path, "", right);
        expiring.expiration = Some("1700000000".into());
        assert!(!expiring.is_signed_with("tok123"));
    }
}
