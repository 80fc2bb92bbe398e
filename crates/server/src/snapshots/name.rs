//! Names that callers give to snapshots.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The namespace of all names: this server has one tenant.
pub const NAMESPACE: &str = "sandbase";
const DEFAULT_TAG: &str = "default";
/// Longest name and longest tag.
const LONGEST: usize = 128;

/// `<name>:<tag>` in the one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SnapshotName {
    /// The name without namespace and tag.
    pub name: String,
    /// Which of the snapshots of that name.
    pub tag: String,
}

/// Why a text is no name of a snapshot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadName {
    /// Not of the right form.
    #[error(
        "'{0}' is not a snapshot name: use letters, digits, '-' and '_', with a letter or digit \
         first, at most {LONGEST} characters, and an optional ':tag' of the same kind"
    )]
    Malformed(String),
    /// Somebody else's namespace.
    #[error("namespace '{0}' is not yours: use '{NAMESPACE}/<name>' or the name alone")]
    Namespace(String),
}

impl SnapshotName {
    /// Reads `[<namespace>/]<name>[:<tag>]`, in lower case. The tag is `None` when it is left out.
    pub fn parse_parts(text: &str) -> Result<(String, Option<String>), BadName> {
        let malformed = || BadName::Malformed(text.chars().take(LONGEST).collect());
        let text = text.trim().to_lowercase();
        let rest = match text.split_once('/') {
            Some((NAMESPACE, rest)) => rest,
            Some((other, _)) if is_word(other) => {
                return Err(BadName::Namespace(other.to_owned()));
            }
            Some(_) => return Err(malformed()),
            None => text.as_str(),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if !is_word(name) || !tag.is_none_or(is_word) {
            return Err(malformed());
        }
        Ok((name.to_owned(), tag.map(str::to_owned)))
    }

    /// Reads a name for a new snapshot; without a tag it gets the tag `default`.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let (name, tag) = Self::parse_parts(text)?;
        let tag = tag.unwrap_or_else(|| DEFAULT_TAG.to_owned());
        Ok(Self { name, tag })
    }

    /// `<namespace>/<name>`: all tags of it.
    pub fn without_tag(&self) -> String {
        format!("{NAMESPACE}/{}", self.name)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAMESPACE}/{}:{}", self.name, self.tag)
    }
}

fn is_word(text: &str) -> bool {
    let first = text.bytes().next();
    first.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && text.len() <= LONGEST
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_namespace_and_tag() {
        for (text, shown) in [
            ("foo", "sandbase/foo:default"),
            ("foo:v1", "sandbase/foo:v1"),
            ("sandbase/foo", "sandbase/foo:default"),
            ("Sandbase/A-b_c9:V1", "sandbase/a-b_c9:v1"),
        ] {
            assert_eq!(SnapshotName::parse(text).unwrap().to_string(), shown);
        }
        let name = SnapshotName::parse("foo:v1").unwrap();
        assert_eq!(name.without_tag(), "sandbase/foo");
    }

    #[test]
    fn anything_else_is_refused() {
        let long = "a".repeat(LONGEST + 1);
        for text in [
            "", ":", "foo:", ":v1", "a.b", "a b", "../x", "a/b/c", "/a", "a:b:c", "-a", "a\0",
            &long,
        ] {
            assert!(SnapshotName::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(
            SnapshotName::parse("other/foo"),
            Err(BadName::Namespace("other".to_owned()))
        );
    }
}
