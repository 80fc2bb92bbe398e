//! Export and import: a snapshot as one file, and back, on another data directory too.
//!
//! The file is a tar archive, compressed or not: a manifest, the files of the memory image, the
//! disks without their holes, the engine build that wrote the memory, the layers, and an end mark
//! with a hash of all of it. docs/export-format.md describes it for people; [`format`] is the
//! manifest, [`archive`] the container, [`tree`] what a layer's content is.
//!
//! Invariants:
//!
//! 1. An import becomes visible as a whole or not at all: `import` says how.
//! 2. Nothing in the file decides where on the host anything is written, and no link in it is
//!    followed.
//! 3. Memory is bounded, whatever the file says.
//! 4. Programs of the engine, which run as root, are only kept where the configuration allows it.

mod archive;
mod error;
mod export;
mod format;
mod import;
mod layers;
mod pipe;
mod readable;
mod sparse;
mod tree;
mod unpack;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use engine::Engine;
use futures_util::{Stream, StreamExt};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub use error::TransferError;
pub use format::FORMAT_VERSION;
pub(crate) use layers::sweep as sweep_layers;
pub use readable::{FILES, Missing, REPORT, Readable, Report};

use crate::db::Db;
use crate::sandbox::{Faults, Step};
use crate::snapshots::{Snapshot, SnapshotId, SnapshotName, Snapshots};

/// Imports at once: each holds a thread of the pool that the database and the engine work in, and memory.
pub(crate) const MOST_IMPORTS: usize = 4;

/// How an export is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: any `tar` reads it.
    None,
    /// With zstd.
    #[default]
    Zstd,
}

/// What happens to engine builds that come with an export and are not kept here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineBuilds {
    /// The import is refused: whoever may import may not run programs as root.
    #[default]
    Refuse,
    /// They are kept.
    Keep,
}

/// How to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportRequest {
    /// What the snapshot is to be called.
    pub name: Option<SnapshotName>,
    /// Whether its memory is taken. Without, sandboxes made from it boot, on any host.
    pub memory: bool,
    /// What happens to an engine build that its memory needs.
    pub builds: EngineBuilds,
}

/// Exports and imports the snapshots of one data directory. Cheap to clone.
#[derive(Clone)]
pub struct Transfers {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) db: Db,
    pub(crate) data_dir: PathBuf,
    pub(crate) snapshots: Snapshots,
    /// Layers of templates, which may be outside of the data directory.
    pub(crate) template_layers: Vec<PathBuf>,
    /// Bytes that stay free on the data directory's file system.
    pub(crate) free_space_reserve: u64,
    pub(crate) tasks: TaskTracker,
    /// Held while an import is committed.
    pub(crate) publishing: Arc<tokio::sync::Mutex<()>>,
    /// A turn for each import; see [`MOST_IMPORTS`].
    pub(crate) imports: Arc<Semaphore>,
    pub(crate) faults: Faults,
}

/// A snapshot that is open and hashed. It can be deleted now.
pub struct Exported {
    export: export::Export,
    tasks: TaskTracker,
}

impl Transfers {
    /// Opens and hashes everything of a snapshot, or its files alone, which takes seconds.
    pub async fn export(
        &self,
        snapshot: &Snapshot,
        memory: bool,
    ) -> Result<Exported, TransferError> {
        let transfers = self.clone();
        let mut snapshot = snapshot.clone();
        if !memory {
            snapshot.image = None;
        }
        let export = blocking(move || export::open(&transfers, &snapshot)).await?;
        Ok(Exported {
            export,
            tasks: self.tasks.clone(),
        })
    }

    /// Makes a listed snapshot of an export, in place of an older one of the same name. Returns when
    /// it is durable. A failure, or an error or a too early end of the stream, leaves nothing.
    pub async fn import(
        &self,
        input: impl Stream<Item = io::Result<Bytes>>,
        request: ImportRequest,
    ) -> Result<Arc<Snapshot>, TransferError> {
        let turn = Arc::clone(&self.imports).try_acquire_owned();
        let turn = turn.map_err(|_| TransferError::Busy(MOST_IMPORTS))?;
        self.faults.reach(Step::ImportRead).await?;
        let (sender, reader) = pipe::incoming();
        let transfers = self.clone();
        let work = self
            .tasks
            // The turn ends with the work, not with the client: only then its thread is free.
            .spawn_blocking(move || (import::stage(&transfers, reader, request), turn));
        let feed = async {
            let mut input = std::pin::pin!(input);
            while let Some(chunk) = input.next().await {
                if !sender.send(chunk).await {
                    break;
                }
            }
            drop(sender);
        };
        let (staged, ()) = tokio::join!(work, feed);
        let (staged, _turn) = staged.expect("reading an export neither panics nor is cancelled");
        let staged = staged?;
        let staged = staged.check_disks(self).await?;
        let snapshot = staged.commit(self).await?;
        tracing::info!(snapshot.id = %snapshot.id, source = %snapshot.source, "imported a snapshot");
        Ok(snapshot)
    }

    /// Refuses when less than the reserve would stay free after writing `bytes`.
    pub(crate) fn check_free_space(&self, bytes: u64) -> Result<(), TransferError> {
        crate::sandbox::check_free_space(&self.data_dir, self.free_space_reserve, bytes)
            .map_err(TransferError::NoSpace)
    }
}

impl Exported {
    /// The snapshot that is exported.
    pub fn snapshot(&self) -> &SnapshotId {
        self.export.snapshot()
    }

    /// The export as a stream. It ends with an error when something cannot be read; dropping it ends
    /// the work.
    pub fn stream(
        self,
        compression: Compression,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (writer, stream) = pipe::outgoing();
        self.tasks.spawn_blocking(move || {
            // The pipe has to outlive the writers around it, to tell the reader of a failure.
            let mut writer = writer;
            let written = self.export.write(&mut writer, compression);
            let flushed = written.and_then(|writer| writer.flush());
            match flushed {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    tracing::debug!("the client left before the end of an export");
                }
                Err(error) => {
                    tracing::error!(%error, "an export failed half way");
                    writer.fail(error);
                }
            }
        });
        stream
    }
}

/// Runs blocking file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("file work neither panics nor is cancelled")
}
