//! Why something did not come out as it should.

/// What was met instead of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Something else than promised.
    #[error("{0}")]
    Broken(String),
    /// The server says that it does not have this.
    #[error("{0}")]
    NotSupported(String),
}
