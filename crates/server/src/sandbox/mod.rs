//! The heart: what a sandbox is, which state it is in, and what may happen to it.
//!
//! [`state`] decides, purely. One [`driver`] task per sandbox carries out what is decided and is
//! the only writer of its record; [`registry`] finds the driver of an id. The transitions
//! themselves are in [`create`], [`pause`], [`resume`], [`seal`], [`rollback`] and [`kill`].
//!
//! Invariants, each with a test in `tests/it/lifecycle.rs`:
//!
//! 1. A sandbox has at most one live execution, and a paused one has none that can execute: at most
//!    a frozen one that the next connect thaws or that is being destroyed, or one that was prepared and
//!    has no guest yet (see [`warm`]).
//! 2. The rename of the image is the commit point of a pause: an error before it leaves the
//!    sandbox running, a crash after it leaves it paused.
//! 3. An image is restored only over exactly the disk it was taken with.
//! 4. A failed resume leaves the sandbox paused.
//! 5. Every transient state is journaled before its first side effect, every end after its last.
//! 6. A killed sandbox never comes back and leaves nothing behind.

mod context;
mod create;
mod disks;
mod driver;
mod error;
mod event;
mod faults;
mod files;
mod hooks;
mod id;
mod ingress;
mod keep;
mod kill;
mod launch;
mod memory;
mod pause;
mod pool;
mod record;
mod recovery;
mod registry;
mod resume;
mod rollback;
mod seal;
pub mod state;
mod storage;
mod timings;
mod transition;
mod view;
mod warm;

use crate::snapshots::SnapshotId;
pub use context::Settings;
pub(crate) use context::check_free_space;
pub use disks::{DiskFolder, DiskId, Disks};
pub(crate) use disks::{MAX_SEALED, remove_tree};
pub use error::SandboxError;
pub use event::{Event, EventKind, Events};
pub use faults::{Fault, Faults, InjectedFault, Step};
pub use hooks::{HookFailure, HookSettings};
pub use id::SandboxId;
pub use ingress::{HostMask, Ingress, IngressRules};
pub(crate) use memory::host_memory;
pub use record::{Record, Run, SandboxSpec};
pub use registry::{Connected, ExportError, Parts, Sandboxes};
pub use storage::Storage;
pub use timings::Timings;
pub use view::{
    CreateRequest, Lifecycle, OnTimeout, PauseMode, PauseRequest, PublicState, ResumeFrom, Route,
    SandboxView, SnapshotRequest,
};
pub use warm::WarmSettings;
