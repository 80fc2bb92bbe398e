//! How fast a server that speaks E2B's API is, and how near to what its engine allows.
//!
//! A [`group`] of rows makes sandboxes through the API and takes times, sizes and use. The [`floor`]
//! is the same work done by bare `runsc`, or in a chroot, by this program: in turns with the server,
//! in the same run, on the same machine. What the [`host`] knows (page cache, memory, CPU time) is
//! read where the server is local. All of it becomes the [`report`]: rows with ratios, and the
//! [`goals`] beside them. docs/performance.md says what each figure means.
//!
//! [`group`]: crate::group
//! [`floor`]: crate::floor
//! [`host`]: crate::host
//! [`report`]: crate::report
//! [`goals`]: crate::goals

mod floor;
mod goals;
mod group;
mod guest;
mod host;
mod report;
mod run;
mod samples;

pub use e2b_client::{Problem, Target};
pub use floor::FloorOptions;
pub use goals::{Goal, Verdict};
pub use group::GROUPS;
pub use host::Machine;
pub use report::{FloorFigure, Report, Row, Unit, plot, table};
pub use run::{Bench, Options, Progress};
pub use samples::Summary;
