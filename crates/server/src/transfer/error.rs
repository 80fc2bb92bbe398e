//! Why an export or an import failed.

use std::io;
use std::path::{Path, PathBuf};

use engine::EngineError;
use snapshot::ImageError;

use super::format::FORMAT_VERSION;
use crate::db::DbError;
use crate::sandbox::{Fault, InjectedFault};

/// A refused or failed export or import. A failed import has left nothing behind.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// What came in is no export at all.
    #[error("this is not an export of SandBase: {0}")]
    NotAnExport(String),
    /// A newer SandBase wrote it.
    #[error(
        "the export has format {found}, this server reads up to {FORMAT_VERSION}; upgrade SandBase"
    )]
    Newer {
        /// Its format.
        found: u32,
    },
    /// It is cut short, altered, or not what its manifest says.
    #[error("the export is damaged: {0}; export it again, or copy it again from where it is whole")]
    Damaged(String),
    /// Its memory needs an engine build that is not kept here and that may not be brought along.
    #[error(
        "its memory was written by {engine} {version} (build {build}), which is not kept here, and \
         programs of the engine are only taken from exports with `import.engine_builds = true` in \
         the configuration, because they run as root; `memory=false` \
         (--files-only) imports the files alone"
    )]
    BuildRefused {
        /// Which engine.
        engine: String,
        /// What the build calls itself.
        version: String,
        /// Its id.
        build: String,
    },
    /// Its sandboxes would have more memory than the host.
    #[error(
        "its sandboxes have {wanted_mib} MiB of memory, and this host has {total_mib} MiB; import it on \
         a larger host"
    )]
    TooLarge {
        /// Their memory.
        wanted_mib: u64,
        /// The host's.
        total_mib: u64,
    },
    /// As many imports as may run are under way.
    #[error("{0} imports are under way, which is the most at once; try again when one has ended")]
    Busy(usize),
    /// Too little space; nothing was changed.
    #[error("not enough free disk space on the host: {0}")]
    NoSpace(String),
    /// The snapshot that is to be exported is not as it was committed.
    #[error("the snapshot cannot be exported: {0}")]
    Source(String),
    /// Its memory image cannot be used.
    #[error("the memory image cannot be used")]
    Image(#[from] ImageError),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(EngineError),
    /// The database cannot be written.
    #[error("the database cannot be written")]
    Db(#[from] DbError),
    /// The file system failed.
    #[error("{step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which path.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
}

impl From<EngineError> for TransferError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::NoSpace { .. } => Self::NoSpace(error.to_string()),
            EngineError::Unknown(_)
            | EngineError::Timeout { .. }
            | EngineError::DiskDamaged { .. }
            | EngineError::Failed { .. } => Self::Engine(error),
        }
    }
}

impl From<InjectedFault> for TransferError {
    /// As the real failure that it stands for would be told.
    fn from(injected: InjectedFault) -> Self {
        match injected.fault {
            Fault::NoSpace => Self::NoSpace(injected.to_string()),
            Fault::Fail | Fault::Io | Fault::Stop | Fault::None => Self::Io {
                step: "an injected failure at",
                path: PathBuf::from(format!("{:?}", injected.step)),
                source: io::Error::other(injected),
            },
        }
    }
}

/// For `map_err`: the file system failed at `step`; a full disk is told apart.
pub(super) fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TransferError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            TransferError::NoSpace(format!("{step} {}: {source}", path.display()))
        }
        _ => TransferError::Io { step, path, source },
    }
}

/// For `?` on something wrong with the file that is read.
pub(super) fn damaged(what: impl Into<String>) -> TransferError {
    TransferError::Damaged(what.into())
}
