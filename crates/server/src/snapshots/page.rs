//! Snapshots as a caller lists them: one entry per name, newest first, in pages.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Snapshot, SnapshotId, SnapshotName};
use crate::sandbox::SandboxId;

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct SnapshotPage {
    /// Only those of this sandbox.
    pub source: Option<SandboxId>,
    /// Only the one of this name, or of this id.
    pub name: Option<String>,
    /// Entries on the page.
    pub limit: usize,
    /// Only those behind this one.
    pub after: Option<Position>,
}

/// Place of a snapshot in the list: pages stay right when snapshots come and go between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// When it was made, in nanoseconds since the epoch.
    pub created_at: i128,
    /// Which it is.
    pub id: SnapshotId,
}

impl Position {
    /// Where a snapshot is in the list.
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            created_at: snapshot.created_at.unix_timestamp_nanos(),
            id: snapshot.id.clone(),
        }
    }
}

/// One page.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The entries.
    pub snapshots: Vec<Arc<Snapshot>>,
    /// Whether more follow.
    pub more: bool,
}

impl SnapshotPage {
    /// Chooses among all snapshots, in any order.
    pub fn of(&self, mut all: Vec<Arc<Snapshot>>) -> Listed {
        all.sort_by_key(|snapshot| std::cmp::Reverse(Position::of(snapshot)));
        all.retain(|snapshot| {
            self.source.as_ref().is_none_or(|id| snapshot.source == *id)
                && self
                    .name
                    .as_ref()
                    .is_none_or(|name| is_named(snapshot, name))
        });
        // Only the newest of each name: its tags are versions of one thing.
        let mut seen = HashSet::new();
        all.retain(|snapshot| match &snapshot.name {
            Some(name) => seen.insert(name.name.clone()),
            None => true,
        });
        if let Some(after) = &self.after {
            all.retain(|snapshot| Position::of(snapshot) < *after);
        }
        let more = all.len() > self.limit;
        all.truncate(self.limit);
        Listed {
            snapshots: all,
            more,
        }
    }
}

/// Whether a reference of any form means this snapshot.
pub(super) fn is_named(snapshot: &Snapshot, reference: &str) -> bool {
    let Ok((word, tag)) = SnapshotName::parse_parts(reference) else {
        return false;
    };
    match &snapshot.name {
        Some(name) if name.name == word => tag.is_none_or(|tag| tag == name.tag),
        Some(_) | None => snapshot.id.as_str() == word && tag.is_none_or(|tag| tag == "default"),
    }
}
