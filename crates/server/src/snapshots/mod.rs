//! Snapshots: committed, immutable states of sandboxes that others are made from.
//!
//! A snapshot is a directory with everything it needs (its disks are hard links, so nothing else
//! has to be kept for it) and a row in the database. **The row is the commit point**: it is written
//! in the same transaction in which the source moves on to a fresh disk. A directory without a row
//! is rubbish of a crash.
//!
//! ```text
//! snapshots/<id>/snapshot.json   what it is: the directory describes itself
//! snapshots/<id>/disks/<disk>/   sealed disks
//! snapshots/<id>/images/<image>/ the memory image, if it has one
//! ```

mod files;
mod lease;
mod name;
mod page;
mod record;
mod store;

pub use files::SnapshotFiles;
pub use lease::Lease;
pub use name::{BadName, NAMESPACE, SnapshotName};
pub use page::{Listed, Position, SnapshotPage};
pub use record::{Snapshot, SnapshotId, SnapshotUse};
pub use store::{DeleteError, Snapshots};
