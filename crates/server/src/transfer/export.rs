//! export: a snapshot as one stream.
//!
//! Everything is opened and hashed before the first byte is written, so that what cannot be read is
//! an answer and not half a file. The open files keep their content when the snapshot is deleted
//! meanwhile.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use snapshot::ImageError;

use super::archive::{Member, MemberKind, Writer};
use super::error::io_error;
use super::format::{
    DISKS, ENGINE, FORMAT_VERSION, FileEntry, IMAGE, Kind, LAYERS, LayerEntry, MANIFEST, Manifest,
};
use super::sparse::Layout;
use super::tree::{self, Node, TreeHash};
use super::{Compression, TransferError, Transfers, layers};
use crate::snapshots::{Snapshot, SnapshotId};

/// Fast enough to keep up with a disk; higher ones save little on memory and programs.
pub(super) const ZSTD_LEVEL: i32 = 1;
const PRIVATE: u32 = 0o600;
const PROGRAM: u32 = 0o755;

/// All of a snapshot, open and hashed.
pub(super) struct Export {
    manifest: Manifest,
    files: Vec<Layout>,
    layers: Vec<Layer>,
}

struct Layer {
    root: PathBuf,
    nodes: Vec<Node>,
}

/// Opens and hashes a snapshot.
pub(super) fn open(transfers: &Transfers, snapshot: &Snapshot) -> Result<Export, TransferError> {
    let of_snapshot = transfers.snapshots.files(&snapshot.id);
    let kept = match &snapshot.image {
        Some(_) => Some(transfers.engine.kept_build(&snapshot.build).ok_or_else(|| {
            let id = &snapshot.build.0;
            TransferError::Source(format!(
                "the engine build {id}, which wrote its memory, is not kept on this host any more"
            ))
        })?),
        None => None,
    };
    let mut found = Vec::new();
    if let Some(image) = &snapshot.image {
        let images = of_snapshot.images();
        images.check(image).map_err(damaged_source)?;
        walk(&images.path(image), IMAGE, &mut found)?;
    }
    for disk in &snapshot.disks {
        let path = of_snapshot.disks().path(disk);
        walk(&path, &format!("{DISKS}/{disk}"), &mut found)?;
    }
    if let Some(directory) = kept.as_ref().and_then(|kept| kept.files.as_ref()) {
        walk(directory, ENGINE, &mut found)?;
    }
    let mut files = Vec::new();
    let mut entries = Vec::new();
    for (path, file) in found {
        let shown = Path::new(&path).to_owned();
        let layout = Layout::of(file).map_err(io_error("look at", &shown))?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(layout.stored())
            .map_err(io_error("read", &shown))?;
        entries.push(FileEntry {
            path,
            size_bytes: layout.size_bytes(),
            stored_bytes: layout.stored_bytes(),
            blake3: hasher.finalize().to_hex().to_string(),
        });
        files.push(layout);
    }
    let mut layers = Vec::new();
    let mut layer_entries = Vec::new();
    for layer in &snapshot.layers {
        let root = transfers.data_dir.join(layer);
        let nodes = tree::list(&root).map_err(io_error("list the layer", &root))?;
        let measure = layers::measure_listed(&transfers.data_dir, &root, &nodes)?;
        layer_entries.push(LayerEntry {
            hash: measure.hash,
            entries: measure.entries,
            size_bytes: measure.size_bytes,
        });
        layers.push(Layer { root, nodes });
    }
    Ok(Export {
        manifest: Manifest {
            format_version: FORMAT_VERSION,
            kind: Kind::Snapshot,
            written_by: format!("sandbase {}", env!("CARGO_PKG_VERSION")),
            snapshot: snapshot.clone(),
            build: kept.map(|kept| kept.build),
            files: entries,
            layers: layer_entries,
        },
        files,
        layers,
    })
}

/// Opens all files below a directory, in the order of their names.
fn walk(
    directory: &Path,
    name: &str,
    found: &mut Vec<(String, File)>,
) -> Result<(), TransferError> {
    let entries = fs::read_dir(directory).map_err(io_error("list", directory))?;
    let mut entries = entries
        .collect::<Result<Vec<_>, _>>()
        .map_err(io_error("list", directory))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let file_name = entry.file_name();
        let file_name = file_name.to_str().ok_or_else(|| {
            let problem = format!("{} has a name that is no text", path.display());
            TransferError::Source(problem)
        })?;
        let name = format!("{name}/{file_name}");
        let file_type = entry.file_type().map_err(io_error("look at", &path))?;
        if file_type.is_dir() {
            walk(&path, &name, found)?;
        } else if file_type.is_file() {
            let file = File::open(&path).map_err(io_error("open", &path))?;
            found.push((name, file));
        } else {
            let problem = format!("{} is no plain file", path.display());
            return Err(TransferError::Source(problem));
        }
    }
    Ok(())
}

fn damaged_source(error: ImageError) -> TransferError {
    match error {
        ImageError::Damaged { .. } | ImageError::Missing(_) | ImageError::Newer { .. } => {
            TransferError::Source(error.to_string())
        }
        ImageError::Io { .. } => TransferError::Image(error),
    }
}

impl Export {
    pub(super) fn snapshot(&self) -> &SnapshotId {
        &self.manifest.snapshot.id
    }

    /// Writes all of it.
    pub(super) fn write<W: Write>(&self, output: W, compression: Compression) -> io::Result<W> {
        match compression {
            Compression::None => self.write_archive(output),
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                self.write_archive(encoder)?.finish()
            }
        }
    }

    fn write_archive<W: Write>(&self, output: W) -> io::Result<W> {
        let mut writer = Writer::new(output);
        let text = serde_json::to_vec_pretty(&self.manifest)?;
        let member = Member::plain(MANIFEST, 0o644, text.len() as u64, None);
        writer.append(&member, &text[..])?;
        for (entry, layout) in self.manifest.files.iter().zip(&self.files) {
            let mode = if entry.path.starts_with(ENGINE) {
                PROGRAM
            } else {
                PRIVATE
            };
            let member = Member::plain(&entry.path, mode, entry.stored_bytes, layout.sparse());
            let mut content = HashingReader::new(layout.stored());
            writer.append(&member, &mut content)?;
            if content.hash().to_hex().as_str() != entry.blake3 {
                return Err(changed(&entry.path));
            }
        }
        for (number, layer) in self.layers.iter().enumerate() {
            let hash = write_layer(&mut writer, number, layer)?;
            if hash != self.manifest.layers[number].hash {
                return Err(changed(&layer.root.to_string_lossy()));
            }
        }
        writer.finish()
    }
}

/// Writes a layer and answers the hash of what was written.
fn write_layer(
    writer: &mut Writer<impl Write>,
    number: usize,
    layer: &Layer,
) -> io::Result<String> {
    let mut hash = TreeHash::default();
    let folder = format!("{LAYERS}/{number}");
    for node in &layer.nodes {
        let member = member(&folder, node);
        if let tree::Kind::File { .. } = node.kind {
            let file = File::open(layer.root.join(&node.path))?;
            let mut content = HashingReader::new(file);
            writer.append(&member, &mut content)?;
            hash.add(node, Some(&content.hash()));
        } else {
            writer.append(&member, io::empty())?;
            hash.add(node, None);
        }
    }
    Ok(hash.finish().hash)
}

pub(super) fn member(folder: &str, node: &Node) -> Member {
    let mut path = folder.as_bytes().to_vec();
    if !node.path.as_os_str().is_empty() {
        path.push(b'/');
        path.extend_from_slice(node.path.as_os_str().as_encoded_bytes());
    }
    let kind = match &node.kind {
        tree::Kind::Directory => MemberKind::Directory,
        tree::Kind::File { size_bytes } => MemberKind::File {
            stored_bytes: *size_bytes,
            sparse: None,
        },
        tree::Kind::SymbolicLink { target } => MemberKind::SymbolicLink {
            target: target.clone(),
        },
        // From the top of the archive, as every tar expects it.
        tree::Kind::HardLink { first } => MemberKind::HardLink {
            first: Path::new(folder)
                .join(first)
                .into_os_string()
                .into_encoded_bytes(),
        },
        tree::Kind::CharacterDevice(device) => MemberKind::CharacterDevice(*device),
        tree::Kind::BlockDevice(device) => MemberKind::BlockDevice(*device),
        tree::Kind::Fifo => MemberKind::Fifo,
    };
    Member {
        path,
        kind,
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        modified: node.modified,
        attributes: node.attributes.clone(),
    }
}

fn changed(what: &str) -> io::Error {
    io::Error::other(format!("{what} changed while it was exported"))
}

/// Hashes what is read through it.
struct HashingReader<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: io::Read> HashingReader<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: blake3::Hasher::new(),
        }
    }

    fn hash(&self) -> blake3::Hash {
        self.hasher.finalize()
    }
}

impl<R: io::Read> io::Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}
