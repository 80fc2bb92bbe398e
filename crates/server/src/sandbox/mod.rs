//! The heart: what a sandbox is, which state it is in, and what may happen to it.

mod error;
mod id;
mod registry;
mod view;

pub use error::SandboxError;
pub use id::SandboxId;
pub use registry::{Connected, Sandboxes};
pub use view::{
    CreateRequest, Lifecycle, OnTimeout, PauseMode, PublicState, ResumeFrom, Route, SandboxView,
};
