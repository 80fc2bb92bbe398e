//! Names of sandboxes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Name of a sandbox: `i` and 20 characters of `[a-z0-9]` when made here, a valid piece of a DNS
/// label without a dash, so that `<port>-<id>.<domain>` can be taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(String);

impl SandboxId {
    /// A new random id.
    pub fn random() -> Self {
        Self(format!("i{}", crate::random::lowercase(20)))
    }

    /// Accepts `[a-z0-9]+`, at most 64 characters, and the old spelling `<id>-<client id>`, of
    /// which the part behind the dash is dropped. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let id = match text.split_once('-') {
            Some((id, client)) if !client.is_empty() && !client.contains('-') => id,
            Some(_) => return None,
            None => text,
        };
        let valid = !id.is_empty()
            && text.len() <= 64
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        valid.then(|| Self(id.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
