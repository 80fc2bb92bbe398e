//! The files of a sandbox that can be read, whatever is wrong with its disk, as a plain tar archive.
//!
//! ```text
//! files/…       the tree as the guest saw it, as far as it can be read
//! missing.json  what could not be read
//! ```
//!
//! Where a part of a file cannot be read there are zeros in its place, so that what is behind it is
//! where it was.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;

use bytes::Bytes;
use engine::{LeftOut, OpenFiles};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::archive::{Member, MemberKind, Writer};
use super::export::{ZSTD_LEVEL, member};
use super::sparse::{Layout, Lost};
use super::tree::{self, Instant, Kind, Node};
use super::{Compression, TransferError, Transfers, pipe};

/// Folder of the archive that holds the guest's tree.
pub const FILES: &str = "files";
/// Name of the archive's last entry.
pub const REPORT: &str = "missing.json";

/// What could not be read. `missing.json` holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Nothing is missing.
    pub complete: bool,
    /// Disks of which nothing could be read, and why. What was written while they were the topmost
    /// one is missing, and older files are in its place.
    pub disks: Vec<String>,
    /// Files and directories that are not there, or not as they were.
    pub missing: Vec<Missing>,
}

/// One thing that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Path in the guest.
    pub path: String,
    /// What of it: `all`, `content`, `entries` (of a directory) or `attributes`.
    pub what: String,
    /// Of `content`: offset and length of what is zeros in the archive, in bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<(u64, u64)>,
    /// Why.
    pub problem: String,
}

/// Files that are open to be read.
pub struct Readable {
    files: OpenFiles,
    tasks: TaskTracker,
}

impl Transfers {
    /// Opens what lies on these disks (topmost first) over these layers of the data directory.
    pub(crate) async fn readable(
        &self,
        layers: &[PathBuf],
        disks: &[PathBuf],
    ) -> Result<Readable, TransferError> {
        let layers = layers.iter().map(|layer| self.data_dir.join(layer));
        let layers: Vec<_> = layers.collect();
        Ok(Readable {
            files: self.engine.open_files(&layers, disks).await?,
            tasks: self.tasks.clone(),
        })
    }
}

impl Readable {
    /// The archive. It ends with an error, and the disks are let go at once, when `stopped` comes,
    /// also while the reader of the stream does not read.
    pub fn stream(
        self,
        compression: Compression,
        stopped: impl Future<Output = ()> + Send + 'static,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (writer, content) = pipe::outgoing();
        let files = self.files;
        self.tasks.spawn_blocking(move || {
            let mut writer = writer;
            let written = write(&files, &mut writer, compression);
            drop(files);
            match written.and_then(|()| writer.flush()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    tracing::debug!("an export of readable files was ended");
                }
                Err(error) => {
                    tracing::error!(%error, "an export of readable files failed half way");
                    writer.fail(error);
                }
            }
        });
        let (sender, receiver) = mpsc::channel(1);
        self.tasks.spawn(pass_on(content, sender, stopped));
        stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        })
    }
}

/// Passes chunks on until `stopped`, or until nobody takes them any more.
async fn pass_on(
    content: impl Stream<Item = io::Result<Bytes>>,
    to: mpsc::Sender<io::Result<Bytes>>,
    stopped: impl Future<Output = ()>,
) {
    let passing = async {
        let mut content = pin!(content);
        while let Some(chunk) = content.next().await {
            if to.send(chunk).await.is_err() {
                return;
            }
        }
    };
    // The content is dropped with the losing future, which ends who writes it.
    let ended_early = tokio::select! {
        () = passing => false,
        () = stopped => true,
        () = to.closed() => false,
    };
    if ended_early {
        let error = io::Error::other("the sandbox is not paused any more");
        // A reader that has gone does not mind.
        let _ = to.send(Err(error)).await;
    }
}

fn write(files: &OpenFiles, output: impl Write, compression: Compression) -> io::Result<()> {
    match compression {
        Compression::None => write_archive(files, output).map(drop),
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL)?;
            encoder.include_checksum(true)?;
            write_archive(files, encoder)?.finish().map(drop)
        }
    }
}

fn write_archive<W: Write>(files: &OpenFiles, output: W) -> io::Result<W> {
    let mut walk = Walk {
        root: files.root(),
        writer: Writer::new(output),
        report: Report {
            disks: files.left_out().iter().map(left_out).collect(),
            ..Report::default()
        },
        first_names: HashMap::new(),
    };
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let children = walk.add(&path)?;
        pending.extend(children.into_iter().rev());
    }
    let mut report = walk.report;
    report.complete = report.disks.is_empty() && report.missing.is_empty();
    let text = serde_json::to_vec_pretty(&report)?;
    let member = Member::plain(REPORT, 0o644, text.len() as u64, None);
    let mut writer = walk.writer;
    writer.append(&member, &text[..])?;
    writer.finish_unmarked()
}

fn left_out(disk: &LeftOut) -> String {
    let name = disk.disk.file_name().unwrap_or_default();
    format!("{}: {}", name.to_string_lossy(), disk.problem)
}

struct Walk<'a, W: Write> {
    root: &'a Path,
    writer: Writer<W>,
    report: Report,
    /// Of files with several names, the one that is in the archive.
    first_names: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Walk<'_, W> {
    /// Adds an entry and answers what is in it, in order. Only a failure to write is an error.
    fn add(&mut self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let full = self.root.join(path);
        let metadata = match full.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) => return self.miss(path, "all", &error),
        };
        if metadata.file_type().is_socket() {
            // Nothing is in it.
            return Ok(Vec::new());
        }
        let kind = match tree::kind(&full, path, &metadata, &mut self.first_names) {
            Ok(kind) => kind,
            Err(error) => return self.miss(path, "all", &error),
        };
        let attributes = match tree::attributes(&full) {
            Ok(attributes) => attributes,
            Err(error) => {
                self.miss(path, "attributes", &error)?;
                Vec::new()
            }
        };
        let node = Node {
            path: path.to_owned(),
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: Instant {
                seconds: metadata.mtime(),
                nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            },
            attributes,
        };
        if let Kind::File { size_bytes } = node.kind {
            let inode = (metadata.dev(), metadata.ino());
            self.add_file(&full, &node, size_bytes, inode)?;
            return Ok(Vec::new());
        }
        let found = member(FILES, &node);
        self.writer.append(&found, io::empty())?;
        if metadata.is_dir() {
            return self.entries(&full, path);
        }
        Ok(Vec::new())
    }

    fn add_file(
        &mut self,
        full: &Path,
        node: &Node,
        size_bytes: u64,
        inode: (u64, u64),
    ) -> io::Result<()> {
        let layout = match open(full).and_then(|file| layout(file, size_bytes)) {
            Ok(layout) => layout,
            Err(error) => {
                // No other name of it may lead here.
                self.first_names.remove(&inode);
                return self.miss(&node.path, "all", &error).map(drop);
            }
        };
        let mut found = member(FILES, node);
        found.kind = MemberKind::File {
            stored_bytes: layout.stored_bytes(),
            sparse: layout.sparse(),
        };
        let mut lost = Lost::default();
        let content = layout.readable(&mut lost).take(layout.stored_bytes());
        self.writer.append(&found, content)?;
        if let Some(problem) = lost.problem {
            let ranges = lost.ranges.iter();
            self.report.missing.push(Missing {
                path: shown(&node.path),
                what: "content".to_owned(),
                ranges: ranges.map(|piece| (piece.offset, piece.length)).collect(),
                problem,
            });
        }
        Ok(())
    }

    fn entries(&mut self, full: &Path, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        match fs::read_dir(full) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => found.push(path.join(entry.file_name())),
                        Err(error) => {
                            self.miss(path, "entries", &error)?;
                            // Asked again, it might answer the same for ever.
                            break;
                        }
                    }
                }
            }
            Err(error) => return self.miss(path, "entries", &error),
        }
        found.sort();
        Ok(found)
    }

    fn miss(&mut self, path: &Path, what: &str, error: &io::Error) -> io::Result<Vec<PathBuf>> {
        self.report.missing.push(Missing {
            path: shown(path),
            what: what.to_owned(),
            ranges: Vec::new(),
            problem: error.to_string(),
        });
        Ok(Vec::new())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32)
        .open(path)
}

/// Where the data are; all of it where that cannot be told.
fn layout(file: File, size_bytes: u64) -> io::Result<Layout> {
    let again = file.try_clone()?;
    Ok(Layout::of(file).unwrap_or_else(|_| Layout::whole(again, size_bytes)))
}

fn shown(path: &Path) -> String {
    format!("/{}", path.to_string_lossy())
}
