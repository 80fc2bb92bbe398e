//! import: a stream becomes a listed snapshot.
//!
//! ```text
//! read into snapshots/.staging-<id>/ ─ verify ─ fsync ─┐
//!    layers and build that are new get their names ────┤ one import at a time
//!    row (as one to be deleted) ─ rename ─ row (listed)┘ the commit point
//! ```
//!
//! Before the commit point everything is undone by a failure, and by the next start after a crash.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{EngineBuild, EngineError};
use time::OffsetDateTime;

use super::archive::{self, Member, MemberKind, cut_short, read_exactly, unreadable};
use super::error::{damaged, io_error};
use super::format::{
    ENGINE, FileEntry, LAYERS, LayerEntry, MANIFEST, MANIFEST_LIMIT, Manifest, Place,
};
use super::unpack::{Unpacking, skip};
use super::{EngineBuilds, ImportRequest, TransferError, Transfers, layers, sparse, tree};
use crate::sandbox::{Step, remove_tree};
use crate::snapshots::{Snapshot, SnapshotFiles, SnapshotId, SnapshotName, SnapshotUse};

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Most memory that paths and access lists of layers take together, enough for half a million entries.
const MOST_KEPT: usize = 128 << 20;
const PRIVATE: u32 = 0o600;
const PROGRAM: u32 = 0o755;

/// A verified import that is not a snapshot yet. Whoever holds it removes its files or commits it.
pub(super) struct Staged {
    files: SnapshotFiles,
    snapshot: Snapshot,
    /// Layers that are new here, in the staging directory: where, and what they will be called.
    new_layers: Vec<(PathBuf, PathBuf)>,
    /// The engine build, when it is new here: where it is staged.
    new_build: Option<(EngineBuild, PathBuf)>,
}

/// Reads and verifies an export. A failure leaves nothing.
pub(super) fn stage(
    transfers: &Transfers,
    input: impl Read,
    request: ImportRequest,
) -> Result<Staged, TransferError> {
    let id = SnapshotId::random();
    let files = transfers.snapshots.files(&id);
    let staged = Stage::read_all(transfers, &files, input, &request)
        .and_then(|stage| stage.finish(id, request.name.clone(), transfers.engine.build()));
    if staged.is_err() {
        discard(&files);
    }
    staged
}

fn discard(files: &SnapshotFiles) {
    if let Err(error) = files.remove() {
        tracing::error!(path = %files.root().display(), %error, "what a failed import left could not be removed");
    }
}

/// What is known once the manifest was read.
struct Stage<'a> {
    files: &'a SnapshotFiles,
    manifest: Manifest,
    /// Where the layers are that are here already.
    layers: Vec<Option<PathBuf>>,
    unpacking: BTreeMap<usize, Unpacking>,
    /// Whether the memory image is taken.
    takes_memory: bool,
    /// Whether the engine's files are kept.
    keeps_build: bool,
    /// Files that have come, in the order of the manifest.
    next_file: usize,
    /// The layer whose entries are coming.
    at_layer: usize,
}

impl<'a> Stage<'a> {
    fn read_all(
        transfers: &Transfers,
        files: &'a SnapshotFiles,
        input: impl Read,
        request: &ImportRequest,
    ) -> Result<Self, TransferError> {
        let mut stage: Option<Self> = None;
        let each = |member: Member, data: &mut dyn Read| match &mut stage {
            Some(stage) => stage.add(member, data),
            None => {
                let manifest = read_manifest(&member, data)?;
                stage = Some(Self::begin(transfers, files, manifest, request)?);
                Ok(())
            }
        };
        read_either(input, each)?;
        let stage = stage.ok_or_else(|| TransferError::NotAnExport("it is empty".to_owned()))?;
        if let Some(missing) = stage.manifest.files.get(stage.next_file) {
            return Err(damaged(format!("{} is missing in it", missing.path)));
        }
        Ok(stage)
    }

    /// Checks everything that can be checked before anything is written.
    fn begin(
        transfers: &Transfers,
        files: &'a SnapshotFiles,
        manifest: Manifest,
        request: &ImportRequest,
    ) -> Result<Self, TransferError> {
        check_memory(manifest.snapshot.limits.memory_bytes)?;
        let mut keeps_build = false;
        if let Some(build) = manifest.build.as_ref().filter(|_| request.memory)
            && !transfers.engine.has_build(&build.id)
        {
            let EngineBuild {
                engine,
                version,
                id,
            } = build.clone();
            if request.builds == EngineBuilds::Refuse {
                return Err(TransferError::BuildRefused {
                    engine,
                    version,
                    build: id.0,
                });
            }
            keeps_build = true;
        }
        let mut layers = Vec::new();
        let mut bytes = 0_u64;
        let mut known = layers::Known::new(&transfers.data_dir, &transfers.template_layers);
        for layer in &manifest.layers {
            let found = known.find(&layer.hash)?;
            if found.is_none() {
                bytes = bytes.saturating_add(layer.size_bytes);
            }
            layers.push(found);
        }
        for file in &manifest.files {
            bytes = bytes.saturating_add(file.stored_bytes);
        }
        transfers.check_free_space(bytes)?;
        private_directory(&files.staging())?;
        Ok(Self {
            files,
            manifest,
            layers,
            unpacking: BTreeMap::new(),
            takes_memory: request.memory,
            keeps_build,
            next_file: 0,
            at_layer: 0,
        })
    }

    fn add(&mut self, member: Member, data: &mut dyn Read) -> Result<(), TransferError> {
        if let Some((number, path)) = layer_path(&member.path) {
            let path = path.to_vec();
            return self.add_to_layer(number, &path, member, data);
        }
        let Some(entry) = self.manifest.files.get(self.next_file).cloned() else {
            return Err(damaged(format!("{} is too much in it", member.shown())));
        };
        if member.path != entry.path.as_bytes() {
            let (found, expected) = (member.shown(), &entry.path);
            return Err(damaged(format!("{found} is where {expected} should be")));
        }
        self.next_file += 1;
        self.add_file(&entry, &member, data)
    }

    fn add_file(
        &mut self,
        entry: &FileEntry,
        member: &Member,
        data: &mut dyn Read,
    ) -> Result<(), TransferError> {
        let path = &entry.path;
        let MemberKind::File {
            stored_bytes,
            sparse,
        } = member.kind
        else {
            return Err(damaged(format!("{path} is no file in it")));
        };
        let size_bytes = sparse.unwrap_or(stored_bytes);
        if stored_bytes != entry.stored_bytes || size_bytes != entry.size_bytes {
            return Err(damaged(format!("{path} has another length in it")));
        }
        let mut data = HashingReader {
            inner: data,
            hasher: blake3::Hasher::new(),
        };
        match self.target(path)? {
            Some(target) => {
                let mode = if path.starts_with(ENGINE) {
                    PROGRAM
                } else {
                    PRIVATE
                };
                write_file(&target, mode, &mut data, stored_bytes, sparse)?;
            }
            None => skip(&mut data, stored_bytes)?,
        }
        if data.hasher.finalize().to_hex().as_str() != entry.blake3 {
            return Err(damaged(format!("{path} has another content in it")));
        }
        Ok(())
    }

    /// Where a file is staged; `None` for what is here already, or not wanted.
    fn target(&self, path: &str) -> Result<Option<PathBuf>, TransferError> {
        let snapshot = &self.manifest.snapshot;
        let place = self.manifest.place(path);
        Ok(
            match place.ok_or_else(|| damaged(format!("{path} has no place in it")))? {
                Place::Image(_) if !self.takes_memory => None,
                Place::Image(name) => {
                    let image = snapshot.image.as_ref();
                    let image = image.ok_or_else(|| damaged("it has memory without an image"))?;
                    Some(self.files.staged_images().path(image).join(name))
                }
                Place::Disk(disk, name) => Some(self.files.staged_disks().path(disk).join(name)),
                Place::Engine(name) => self.keeps_build.then(|| self.staged_build().join(name)),
            },
        )
    }

    fn staged_build(&self) -> PathBuf {
        self.files.staging().join(ENGINE)
    }

    fn add_to_layer(
        &mut self,
        number: usize,
        path: &[u8],
        mut member: Member,
        data: &mut dyn Read,
    ) -> Result<(), TransferError> {
        let missing = self.manifest.files.get(self.next_file);
        if let Some(missing) = missing {
            return Err(damaged(format!("{} is missing in it", missing.path)));
        }
        let Some(layer) = self.manifest.layers.get(number).cloned() else {
            return Err(damaged(format!("{} is too much in it", member.shown())));
        };
        // One after the other: what comes after a layer's last entry is none of it.
        if number < self.at_layer {
            return Err(damaged(format!("{} is out of order in it", member.shown())));
        }
        self.at_layer = number;
        if self.layers[number].is_some() {
            return match member.kind {
                MemberKind::File { stored_bytes, .. } => skip(data, stored_bytes),
                MemberKind::Directory
                | MemberKind::SymbolicLink { .. }
                | MemberKind::HardLink { .. }
                | MemberKind::CharacterDevice(_)
                | MemberKind::BlockDevice(_)
                | MemberKind::Fifo => Ok(()),
            };
        }
        if let MemberKind::HardLink { first } = &mut member.kind {
            match layer_path(first) {
                Some((of, path)) if of == number => *first = path.to_vec(),
                Some(_) | None => {
                    let problem = format!("{} links to outside of its layer", member.shown());
                    return Err(damaged(problem));
                }
            }
        }
        let folder = self.files.staging().join(LAYERS);
        private_directory(&folder)?;
        let root = folder.join(number.to_string());
        let unpacking = self.unpacking.entry(number);
        let unpacking = unpacking.or_insert_with(|| Unpacking::new(root, layer));
        unpacking.add(path, member, data)?;
        let kept: usize = self.unpacking.values().map(Unpacking::kept_bytes).sum();
        if kept > MOST_KEPT {
            return Err(damaged("it has too many entries in its layers"));
        }
        Ok(())
    }

    /// Verifies what was staged as a whole and makes it durable.
    fn finish(
        mut self,
        id: SnapshotId,
        name: Option<SnapshotName>,
        build_here: &EngineBuild,
    ) -> Result<Staged, TransferError> {
        let mut new_layers = Vec::new();
        let mut names = Vec::new();
        for (number, layer) in self.manifest.layers.iter().enumerate() {
            if let Some(known) = &self.layers[number] {
                names.push(known.clone());
                continue;
            }
            let unpacking = self.unpacking.remove(&number);
            let unpacking = unpacking.ok_or_else(|| damaged("a layer is missing in it"))?;
            let root = unpacking.finish()?;
            verify_layer(&root, layer)?;
            let name = layers::imported_name(&layer.hash);
            names.push(name.clone());
            new_layers.push((root, name));
        }
        let mut of_file = self.manifest.snapshot.clone();
        if !self.takes_memory {
            of_file.image = None;
        }
        if of_file.image.is_none() {
            of_file.build = build_here.id.clone();
        }
        if let Some(image) = &of_file.image {
            let images = self.files.staged_images();
            let manifest = images
                .check(image)
                .map_err(|error| damaged(format!("its memory image is not whole: {error}")))?;
            if manifest.engine.build != of_file.build.0 {
                return Err(damaged("its memory was written by another engine build"));
            }
        }
        let staging = self.files.staging();
        let synced = File::open(&staging).map_err(io_error("open", &staging))?;
        rustix::fs::syncfs(&synced).map_err(|error| io_error("sync", &staging)(error.into()))?;
        let new_build = match &self.manifest.build {
            Some(build) if self.keeps_build => Some((build.clone(), self.staged_build())),
            Some(_) | None => None,
        };
        Ok(Staged {
            files: self.files.clone(),
            snapshot: Snapshot {
                id,
                name,
                usage: SnapshotUse::Listed,
                created_at: OffsetDateTime::now_utc(),
                layers: names,
                ..of_file
            },
            new_layers,
            new_build,
        })
    }
}

/// A sandbox made of an import has its limits, and one with more memory than the host has could take
/// the host down.
fn check_memory(wanted: u64) -> Result<(), TransferError> {
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).map_err(io_error("read", path))?;
    let total = text.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    match total {
        Some(kib) if wanted >> 10 > kib => Err(TransferError::TooLarge {
            wanted_mib: wanted >> 20,
            total_mib: kib >> 10,
        }),
        Some(_) | None => Ok(()),
    }
}

/// What is on disk now must be what was exported: a file system may be unable to keep a time, an
/// owner or an attribute.
fn verify_layer(root: &Path, promised: &LayerEntry) -> Result<(), TransferError> {
    let found = tree::measure(root).map_err(io_error("read back the layer", root))?;
    if found.hash == promised.hash {
        return Ok(());
    }
    Err(damaged(
        "a layer in it has another content than its manifest says (or this file system cannot keep \
         its times, owners or attributes)",
    ))
}

impl Staged {
    /// Has the engine look at the disks before anything can mount them. Removes everything when one of
    /// them is refused.
    pub(super) async fn check_disks(self, transfers: &Transfers) -> Result<Self, TransferError> {
        for disk in &self.snapshot.disks {
            let path = self.files.staged_disks().path(disk);
            if let Err(error) = transfers.engine.check_given_disk(&path).await {
                let files = self.files.clone();
                super::blocking(move || discard(&files)).await;
                return Err(match error {
                    EngineError::DiskDamaged { detail } => {
                        damaged(format!("disk {disk} cannot be taken: {detail}"))
                    }
                    other => other.into(),
                });
            }
        }
        Ok(self)
    }

    /// Makes it a snapshot. A failure leaves nothing.
    pub(super) async fn commit(
        self,
        transfers: &Transfers,
    ) -> Result<Arc<Snapshot>, TransferError> {
        // So that nobody relies on a layer that a failing import takes away again.
        let _one_at_a_time = transfers.publishing.lock().await;
        let mut published = Vec::new();
        let _turn = transfers.snapshots.turn().await;
        let prepared = self.prepare(transfers, &mut published).await;
        let committed = match prepared {
            Ok(()) => list(transfers, &self.snapshot).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            self.take_back(transfers, published).await;
            return Err(error);
        }
        let snapshot = Arc::new(self.snapshot);
        transfers.snapshots.committed(Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// First the row, then the files: a commit that was told as failed might turn up after a crash,
    /// and then its files must be there.
    async fn take_back(self, transfers: &Transfers, published: Vec<PathBuf>) {
        let id = &self.snapshot.id;
        if let Err(error) = transfers.db.delete_snapshot(id.clone()).await {
            tracing::error!(snapshot.id = %id, %error, "a failed import is left for the next start, which removes it");
            return;
        }
        let (data_dir, files) = (transfers.data_dir.clone(), self.files);
        super::blocking(move || {
            discard(&files);
            for layer in published {
                if let Err(error) = layers::remove(&data_dir, &layer) {
                    tracing::warn!(path = %layer.display(), %error, "a layer of a failed import is left for the next start");
                }
            }
        })
        .await;
    }

    /// Everything before the commit.
    async fn prepare(
        &self,
        transfers: &Transfers,
        published: &mut Vec<PathBuf>,
    ) -> Result<(), TransferError> {
        let staging = self.files.staging();
        transfers.faults.reach(Step::ImportPublish).await?;
        for (root, name) in &self.new_layers {
            let (data_dir, root, layer) = (transfers.data_dir.clone(), root.clone(), name.clone());
            let new = super::blocking(move || layers::publish(&data_dir, &root, &layer)).await?;
            if new {
                published.push(name.clone());
            }
        }
        for layer in &self.snapshot.layers {
            if !transfers.data_dir.join(layer).is_dir() {
                let problem = format!("the layer {} has gone meanwhile", layer.display());
                return Err(TransferError::Source(problem));
            }
        }
        if let Some((build, from)) = &self.new_build {
            transfers.engine.keep_build(&build.id, from).await?;
        }
        let temporary = [staging.join(LAYERS), staging.join(ENGINE)];
        super::blocking(move || temporary.iter().try_for_each(|path| remove_tree(path)))
            .await
            .map_err(io_error("clean up", &staging))?;
        transfers.faults.reach(Step::ImportAnnounce).await?;
        // Until it is listed, a start of the server removes both the row and the files.
        transfers
            .db
            .announce_snapshot(self.snapshot.clone())
            .await?;
        transfers.faults.reach(Step::ImportFinish).await?;
        let (files, snapshot) = (self.files.clone(), self.snapshot.clone());
        super::blocking(move || files.finish(&snapshot))
            .await
            .map_err(io_error("finish", self.files.root()))?;
        Ok(transfers.faults.reach(Step::ImportCommit).await?)
    }
}

/// The commit. One that was told as failed and is there all the same has worked.
async fn list(transfers: &Transfers, snapshot: &Snapshot) -> Result<(), TransferError> {
    let listed = match transfers.db.list_snapshot(snapshot.clone()).await {
        Ok(()) => {
            let told = transfers.faults.reach(Step::ImportCommitted).await;
            told.map_err(TransferError::from)
        }
        Err(error) => Err(error.into()),
    };
    match listed {
        Err(error) => match transfers.db.is_snapshot_listed(snapshot.id.clone()).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(error),
        },
        Ok(()) => Ok(()),
    }
}

fn read_manifest(member: &Member, data: &mut dyn Read) -> Result<Manifest, TransferError> {
    let refused = |problem: &str| TransferError::NotAnExport(problem.to_owned());
    let MemberKind::File {
        stored_bytes,
        sparse: None,
    } = member.kind
    else {
        return Err(refused("it does not begin with a manifest"));
    };
    if member.path != MANIFEST.as_bytes() {
        return Err(refused("it does not begin with a manifest"));
    }
    if stored_bytes > MANIFEST_LIMIT {
        return Err(refused("its manifest is too long"));
    }
    let mut text = Vec::new();
    read_exactly(data, stored_bytes, &mut text)?;
    Manifest::parse(&text)
}

/// Reads an archive, compressed or not.
fn read_either(
    mut input: impl Read,
    mut each: impl FnMut(Member, &mut dyn Read) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let mut magic = Vec::new();
    let first = input.by_ref().take(ZSTD_MAGIC.len() as u64);
    { first }.read_to_end(&mut magic).map_err(unreadable)?;
    if magic.is_empty() {
        return Err(TransferError::NotAnExport("it is empty".to_owned()));
    }
    let compressed = magic == ZSTD_MAGIC;
    let whole = (&magic[..]).chain(input);
    let mut begun = false;
    let each = |member: Member, data: &mut dyn Read| {
        begun = true;
        each(member, data)
    };
    let read = if compressed {
        archive::read(zstd::Decoder::new(whole).map_err(unreadable)?, each)
    } else {
        archive::read(whole, each)
    };
    match read {
        // Something else altogether fails at its first entry.
        Err(TransferError::Damaged(problem)) if !begun => Err(TransferError::NotAnExport(problem)),
        other => other,
    }
}

/// Takes `layers/<number>/<path>` apart; the path is empty for the layer itself.
fn layer_path(path: &[u8]) -> Option<(usize, &[u8])> {
    let rest = path.strip_prefix(LAYERS.as_bytes())?.strip_prefix(b"/")?;
    let (number, path) = match rest.iter().position(|byte| *byte == b'/') {
        Some(slash) => (&rest[..slash], &rest[slash + 1..]),
        None => (rest, &[][..]),
    };
    let text = std::str::from_utf8(number).ok()?;
    let number: usize = text.parse().ok()?;
    // "+1" and "01" are read as numbers, too.
    (number.to_string() == text).then_some((number, path))
}

fn private_directory(path: &Path) -> Result<(), TransferError> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(path);
    made.map_err(io_error("create", path))
}

fn write_file(
    target: &Path,
    mode: u32,
    data: &mut dyn Read,
    stored_bytes: u64,
    sparse: Option<u64>,
) -> Result<(), TransferError> {
    if let Some(parent) = target.parent() {
        private_directory(parent)?;
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(PRIVATE);
    let file = options.open(target).map_err(io_error("create", target))?;
    let failed = |error| io_error("write", target)(error);
    let written = sparse::restore(data, stored_bytes, sparse, &file, failed)?;
    if written != sparse.unwrap_or(stored_bytes) {
        return Err(cut_short());
    }
    let permitted = file.set_permissions(fs::Permissions::from_mode(mode));
    permitted.map_err(io_error("set the mode of", target))?;
    file.sync_all().map_err(io_error("fsync", target))
}

struct HashingReader<'a> {
    inner: &'a mut dyn Read,
    hasher: blake3::Hasher,
}

impl Read for HashingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        assert!(check_memory(1 << 20).is_ok());
        let refused = check_memory(1 << 50);
        assert!(matches!(refused, Err(TransferError::TooLarge { .. })));
    }
}
