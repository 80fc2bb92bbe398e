//! Directories made on a user's behalf.

use std::fs::{DirBuilder, metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use crate::users::User;

/// Mode of new directories, before the umask.
const MODE: u32 = 0o755;

/// Why a directory was not made.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub(crate) struct CreateError {
    path: PathBuf,
    #[source]
    pub(crate) source: io::Error,
}

/// Makes a directory and its missing parents, all owned by `user`. What exists stays as it is, and
/// somebody else making the same directory at the same time is fine.
pub(crate) fn create_all(path: &Path, user: &User) -> Result<(), CreateError> {
    let failed = |path: &Path, source| CreateError {
        path: path.to_owned(),
        source,
    };
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match metadata(ancestor) {
            Ok(existing) if existing.is_dir() => break,
            Ok(_) => return Err(failed(ancestor, io::ErrorKind::NotADirectory.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(failed(ancestor, error)),
        }
    }
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().mode(MODE).create(directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(failed(directory, error)),
        }
        let owned = chown(directory, Some(user.uid), Some(user.gid));
        owned.map_err(|error| failed(directory, error))?;
    }
    Ok(())
}
