//! Client of any server that speaks E2B's API, for programs that look at the server itself: no
//! retries, no fallbacks, and every answer can be seen as it came.
//!
//! [`Api`] is the control plane, [`Agent`] the API inside one sandbox. Both go by E2B's contract
//! alone. Sandboxes and snapshots that were made are remembered, so that nothing is left behind.

mod agent;
mod api;
mod problem;
mod transport;

pub use agent::{Agent, Event, Next, Output, Stream, WindowSize};
pub use api::{Api, Detail, Forked, MARK, Sandbox, Snapshot, TIMEOUT_SECONDS, Target};
pub use problem::Problem;
pub use transport::{Answer, Call, Connections, REQUEST_LIMIT, Transport};
