//! Placeholder while the builder of the Debian tree is being written beside this.

use std::path::Path;

/// Version of the recipe.
pub const RECIPE: &str = "0";

/// Cannot be built yet.
#[derive(Debug, thiserror::Error)]
#[error("not there yet")]
pub struct RootfsError;

/// See the module.
pub async fn build(
    _dest: &Path,
    _agent: &Path,
    _progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), RootfsError> {
    Err(RootfsError)
}
