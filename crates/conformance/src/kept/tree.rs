//! A file tree.

use std::collections::BTreeMap;

use async_trait::async_trait;
use e2b_client::Problem;
use serde_json::{Map, Value, json};

use super::{Kept, Round};
use crate::guest::Guest;
use crate::problem::{difference, require};
use crate::report::Promise;

/// Times of files may differ by this: two clocks tell the time of the same write, and the one of
/// most file systems ticks 100 times a second.
const MTIME_TOLERANCE_NS: u64 = 10_000_000;
const FILES: usize = 200;

/// A tree as the program inside describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    /// Everything but the times, by path.
    entries: Map<String, Value>,
    mtimes: BTreeMap<String, u64>,
}

/// Which entries of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entries {
    /// Named pipes.
    Pipes,
    /// Everything else.
    Files,
}

impl Tree {
    fn new(mut entries: Map<String, Value>) -> Result<Self, Problem> {
        let mut mtimes = BTreeMap::new();
        for (path, entry) in &mut entries {
            let mtime = entry
                .as_object_mut()
                .and_then(|entry| entry.remove("mtime"));
            let mtime = mtime.and_then(|mtime| mtime.as_u64());
            let mtime = mtime.ok_or_else(|| Problem::Broken(format!("'{path}' has no time")))?;
            mtimes.insert(path.clone(), mtime);
        }
        Ok(Self { entries, mtimes })
    }

    /// Makes the tree.
    pub(crate) async fn make(guest: &Guest<'_>) -> Result<Self, Problem> {
        Self::new(guest.call("tree.start", json!({ "files": FILES })).await?)
    }

    /// Changes it.
    pub(crate) async fn change(guest: &Guest<'_>) -> Result<Self, Problem> {
        Self::new(guest.call("tree.change", json!({})).await?)
    }

    /// Looks at it.
    pub(crate) async fn of(guest: &Guest<'_>) -> Result<Self, Problem> {
        Self::new(guest.call("tree.describe", json!({})).await?)
    }

    /// Some of its entries.
    pub(crate) fn only(&self, wanted: Entries) -> Self {
        let mut tree = self.clone();
        tree.entries.retain(|_, entry| {
            let pipe = entry.get("fifo").is_some();
            pipe == (wanted == Entries::Pipes)
        });
        let entries = &tree.entries;
        tree.mtimes.retain(|path, _| entries.contains_key(path));
        tree
    }

    /// That it is the same as `before`, and how much the times differ.
    pub(crate) fn is_still(&self, before: &Self) -> Result<String, Problem> {
        require(!before.entries.is_empty(), || "an empty tree".to_owned())?;
        require(self.entries == before.entries, || {
            let (was, is) = (before.entries.clone(), self.entries.clone());
            difference(&Value::Object(was), &Value::Object(is))
        })?;
        let mut worst = 0;
        for (path, mtime) in &self.mtimes {
            let was = before.mtimes.get(path).copied().unwrap_or_default();
            let apart = was.abs_diff(*mtime);
            require(apart <= MTIME_TOLERANCE_NS, || {
                format!("the time of '{path}' was {was} ns, is {mtime} ns")
            })?;
            worst = worst.max(apart);
        }
        let count = self.entries.len();
        let microseconds = worst / 1000;
        Ok(format!(
            "same {count} entries, times at most {microseconds} us apart"
        ))
    }
}

/// Changed before every pause.
#[derive(Default)]
pub(super) struct Files {
    before: Tree,
}

#[async_trait]
impl Kept for Files {
    fn promise(&self) -> Promise {
        Promise::required(
            "files",
            "a file tree (content, names, modes, owners, times within 10 ms, links, named pipes, a \
             sparse file), changed before every pause, is the same",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.before = Tree::make(&round.guest).await?;
        Ok(())
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.before = Tree::change(&round.guest).await?;
        Ok(())
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        Tree::of(&round.guest).await?.is_still(&self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(value: Value) -> Tree {
        Tree::new(value.as_object().cloned().unwrap()).unwrap()
    }

    #[test]
    fn times_may_differ_a_little_and_nothing_else_may() {
        let before = tree(json!({"a": {"mode": "100644", "mtime": 1_000_000_000_u64}}));
        let later = tree(json!({"a": {"mode": "100644", "mtime": 1_000_020_000_u64}}));
        assert_eq!(
            later.is_still(&before).unwrap(),
            "same 1 entries, times at most 20 us apart"
        );
        let wrong = [
            json!({"a": {"mode": "100644", "mtime": 1_020_000_000_u64}}),
            json!({"a": {"mode": "100600", "mtime": 1_000_000_000_u64}}),
            json!({"b": {"mode": "100644", "mtime": 1_000_000_000_u64}}),
            json!({}),
        ];
        for wrong in wrong {
            assert!(tree(wrong.clone()).is_still(&before).is_err(), "{wrong}");
        }
        assert!(tree(json!({})).is_still(&tree(json!({}))).is_err());
    }

    #[test]
    fn pipes_and_files_are_told_apart() {
        let all = tree(json!({"a": {"mtime": 1}, "p": {"mtime": 1, "fifo": true}}));
        let of = |wanted| all.only(wanted).mtimes.into_keys().collect::<Vec<_>>();
        assert_eq!(of(Entries::Files), ["a"]);
        assert_eq!(of(Entries::Pipes), ["p"]);
    }
}
