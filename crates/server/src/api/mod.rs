//! The control plane's HTTP interface: requests in, one call to [`crate::sandbox`], answers out.
//!
//! ```text
//! call ─ CORS ─ task that outlives the client ─ router ─ key ─ handler ─► answer or ApiError
//! ```
//!
//! Start at `router` for the list of routes and at `handlers` for what each does.
//! [`error`] is the only place that chooses a status.

pub mod auth;
mod cors;
mod create_request;
pub mod error;
mod events;
mod extract;
mod handlers;
mod history;
mod list_query;
mod network;
mod openapi;
pub(crate) mod query;
mod router;
mod snapshot_query;
mod snapshots;
mod state;
mod timing;
mod transfers;
mod view;

pub use auth::ApiKey;
pub use error::ApiError;
pub use openapi::document;
pub use router::Api;
pub use state::HttpState;
