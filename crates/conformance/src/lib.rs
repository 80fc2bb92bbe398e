//! The fidelity suite: does a server that speaks E2B's API keep what it promises?
//!
//! It knows nothing of any server but the API, through [`e2b_client`]. Inside, programs of ours
//! ([`guest`]) hold state of every kind and tell about it.
//!
//! A [`scenario`] makes sandboxes and looks at some promises; the longest one pauses one sandbox
//! again and again and looks at everything that is [`kept`]. What was seen becomes the
//! [`report`]. docs/conformance.md says what each row promises.
//!
//! [`guest`]: crate::guest
//! [`scenario`]: crate::scenario
//! [`kept`]: crate::kept
//! [`report`]: crate::report

mod guest;
mod kept;
mod problem;
mod report;
mod scenario;
mod suite;

pub use e2b_client::{Problem, Target};
pub use report::{Colours, Kind, Promise, Report, Row, Verdict, table};
pub use suite::{Options, Progress, Suite, promises};
