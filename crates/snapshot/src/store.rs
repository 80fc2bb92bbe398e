//! The directory that holds the images of one owner.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::manifest::{
    EngineIdentity, FORMAT_VERSION, FileEntry, ImageId, Manifest, PLAIN_VERSION, Subject,
};

pub(crate) const STAGING_PREFIX: &str = ".staging-";
pub(crate) const MANIFEST: &str = "manifest.json";
/// Files up to this size are hashed at commit: the engine's metadata, not its pages.
const HASHED_UP_TO: u64 = 16 << 20;

/// A failed operation on an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It does not exist.
    #[error("image {0} does not exist")]
    Missing(ImageId),
    /// It was written by a newer SandBase.
    #[error(
        "image {id} has format {found}, this build reads up to {FORMAT_VERSION}; upgrade SandBase"
    )]
    Newer {
        /// Which image.
        id: ImageId,
        /// Its format.
        found: u32,
    },
    /// What is there is not what was committed.
    #[error("image {id} is damaged: {what}")]
    Damaged {
        /// Which image.
        id: ImageId,
        /// What differs.
        what: String,
    },
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

impl ImageError {
    /// Whether the cause is a full disk.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull
            || source.kind() == io::ErrorKind::QuotaExceeded)
    }
}

pub(crate) fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { step, path, source }
}

/// The images of one owner. All calls block; run them where blocking is allowed.
#[derive(Clone, Debug)]
pub struct Images {
    directory: PathBuf,
}

/// An image being written. Dropping it without [`commit`](Staging::commit) leaves rubbish that
/// [`Images::sweep`] removes.
#[derive(Debug)]
pub struct Staging {
    id: ImageId,
    staging: PathBuf,
    target: PathBuf,
    parent: PathBuf,
}

impl Images {
    /// The images below `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a new image under a name not used before.
    pub fn stage(&self, id: &ImageId) -> Result<Staging, ImageError> {
        fs::create_dir_all(&self.directory).map_err(io_error("create", &self.directory))?;
        let staging = self.staging(id);
        fs::create_dir(&staging).map_err(io_error("create", &staging))?;
        Ok(Staging {
            id: id.clone(),
            staging,
            target: self.directory.join(id.as_str()),
            parent: self.directory.clone(),
        })
    }

    /// Where an image is until its commit.
    pub(crate) fn staging(&self, id: &ImageId) -> PathBuf {
        self.directory.join(format!("{STAGING_PREFIX}{id}"))
    }

    /// Whether the image was committed.
    pub fn is_committed(&self, id: &ImageId) -> bool {
        self.directory.join(id.as_str()).join(MANIFEST).is_file()
    }

    /// Where a committed image is.
    pub fn path(&self, id: &ImageId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    /// Reads the manifest and looks at nothing else: what it tells of an image is true whatever became
    /// of the engine's files.
    pub fn manifest(&self, id: &ImageId) -> Result<Manifest, ImageError> {
        let path = self.path(id).join(MANIFEST);
        match fs::read(&path) {
            Ok(text) => parse(id, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ImageError::Missing(id.clone()))
            }
            Err(source) => Err(io_error("read", &path)(source)),
        }
    }

    /// Reads the manifest and checks all that can be checked quickly: format, sizes of all files,
    /// hashes of the small ones.
    pub fn check(&self, id: &ImageId) -> Result<Manifest, ImageError> {
        let directory = self.path(id);
        let manifest = self.manifest(id)?;
        let damaged = |what: String| ImageError::Damaged {
            id: id.clone(),
            what,
        };
        for file in &manifest.files {
            let name = file.stored_name();
            let path = directory.join(&name);
            // What the manifest names may come from elsewhere: a link or a pipe is no file of an image.
            let size = match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_file() => metadata.len(),
                Ok(_) => return Err(damaged(format!("{name} is no file"))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(damaged(format!("{name} is missing")));
                }
                Err(error) => return Err(io_error("look at", &path)(error)),
            };
            let expected = file.packed_bytes.unwrap_or(file.size_bytes);
            if size != expected {
                return Err(damaged(format!(
                    "{name} has {size} bytes, {expected} were committed"
                )));
            }
            // A packed one is compared when it is unpacked.
            if file.packed_bytes.is_none()
                && let Some(expected) = &file.blake3
                && hash(&path)? != *expected
            {
                return Err(damaged(format!("{} has another content", file.name)));
            }
        }
        Ok(manifest)
    }

    /// Gives a committed image a name in `to`, too, without copying it: both are the same files, and
    /// each can be deleted without harm to the other. One that is there already stays.
    pub fn share(&self, id: &ImageId, to: &Images) -> Result<(), ImageError> {
        if to.is_committed(id) {
            return Ok(());
        }
        let manifest = self.check(id)?;
        let staging = to.stage(id)?;
        let directory = staging.staging.clone();
        let names = manifest.files.iter().map(FileEntry::stored_name);
        let linked = names.chain([MANIFEST.to_owned()]).try_for_each(|name| {
            let target = directory.join(&name);
            fs::hard_link(self.path(id).join(&name), &target).map_err(io_error("link", &target))
        });
        let shared = linked.and_then(|()| staging.publish());
        if shared.is_err() {
            // Best effort: the error that is told is the first one.
            let _ = remove(&directory);
        }
        shared
    }

    /// Bytes of all files of a committed image.
    pub fn size_bytes(&self, id: &ImageId) -> Result<u64, ImageError> {
        Ok(self
            .check(id)?
            .files
            .iter()
            .map(|file| file.size_bytes)
            .sum())
    }

    /// Deletes an image. A missing one is success.
    pub fn delete(&self, id: &ImageId) -> Result<(), ImageError> {
        remove(&self.path(id))
    }

    /// Takes back a commit that was told as failed, without breaking the image: it gets the name of
    /// an unfinished one again, durably, and a sweep removes it. False when that cannot be done: then
    /// it is there, whole, and counts, because a crash from here on would find it so.
    pub fn withdraw(&self, id: &ImageId) -> bool {
        if !self.is_committed(id) {
            return true;
        }
        let (target, staging) = (self.path(id), self.staging(id));
        if fs::rename(&target, &staging).is_err() {
            return false;
        }
        // Its name might come back with the next start of the host. If it cannot keep it either, it
        // is at least not there now.
        sync(&self.directory).is_ok() || fs::rename(&staging, &target).is_err()
    }

    /// Makes the names of the images durable: what a commit ends with, for one that was told as failed
    /// there.
    pub fn sync_names(&self) -> Result<(), ImageError> {
        sync(&self.directory)
    }

    /// Every committed image.
    pub fn list(&self) -> Result<Vec<ImageId>, ImageError> {
        let names = self.names()?;
        let ids = names.iter().filter_map(|name| ImageId::parse(name));
        Ok(ids.filter(|id| self.is_committed(id)).collect())
    }

    /// Deletes what unfinished pauses left, and no committed image.
    pub fn sweep_staging(&self) -> Result<(), ImageError> {
        for name in self
            .names()?
            .iter()
            .filter(|name| name.starts_with(STAGING_PREFIX))
        {
            remove(&self.directory.join(name))?;
        }
        Ok(())
    }

    /// Deletes all staging directories and every image but these: what crashes leave behind. No
    /// execution may be reading one of them.
    pub fn sweep(&self, keep: &[ImageId]) -> Result<(), ImageError> {
        for name in self
            .names()?
            .iter()
            .filter(|name| keep.iter().all(|id| *name != id.as_str()))
        {
            remove(&self.directory.join(name))?;
        }
        Ok(())
    }

    pub(crate) fn names(&self) -> Result<Vec<String>, ImageError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => {
                let path = self.directory.clone();
                return Err(ImageError::Io {
                    step: "list",
                    path,
                    source,
                });
            }
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &self.directory))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}

impl Staging {
    /// Where the engine writes its files.
    pub fn path(&self) -> &Path {
        &self.staging
    }

    /// Makes everything durable, writes the manifest and renames: the image exists when this
    /// returns, whatever happens to the machine afterwards.
    pub fn commit(self, engine: EngineIdentity, subject: Subject) -> Result<Manifest, ImageError> {
        let mut files = Vec::new();
        let entries = fs::read_dir(&self.staging).map_err(io_error("list", &self.staging))?;
        for entry in entries {
            let entry = entry.map_err(io_error("list", &self.staging))?;
            let path = entry.path();
            let file = File::open(&path).map_err(io_error("open", &path))?;
            file.sync_all().map_err(io_error("fsync", &path))?;
            let size_bytes = file.metadata().map_err(io_error("look at", &path))?.len();
            let name = entry.file_name().to_string_lossy().into_owned();
            let blake3 = if size_bytes <= HASHED_UP_TO {
                Some(hash(&path)?)
            } else {
                None
            };
            files.push(FileEntry {
                name,
                size_bytes,
                blake3,
                packed_bytes: None,
            });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let manifest = Manifest {
            format_version: PLAIN_VERSION,
            id: self.id.clone(),
            engine,
            subject,
            files,
        };
        let path = self.staging.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| io_error("encode", &path)(io::Error::other(error)))?;
        fs::write(&path, text).map_err(io_error("write", &path))?;
        sync(&path)?;
        self.publish()?;
        Ok(manifest)
    }

    /// The commit point.
    fn publish(self) -> Result<(), ImageError> {
        sync(&self.staging)?;
        fs::rename(&self.staging, &self.target).map_err(io_error("rename to", &self.target))?;
        sync(&self.parent)
    }

    /// Gives up and removes what was written.
    pub fn discard(self) -> Result<(), ImageError> {
        remove(&self.staging)
    }
}

fn parse(id: &ImageId, text: &[u8]) -> Result<Manifest, ImageError> {
    #[derive(serde::Deserialize)]
    struct Version {
        format_version: u32,
    }
    let damaged = |error: serde_json::Error| ImageError::Damaged {
        id: id.clone(),
        what: format!("{MANIFEST} is unreadable: {error}"),
    };
    let version: Version = serde_json::from_slice(text).map_err(damaged)?;
    if version.format_version > FORMAT_VERSION {
        return Err(ImageError::Newer {
            id: id.clone(),
            found: version.format_version,
        });
    }
    let manifest: Manifest = serde_json::from_slice(text).map_err(damaged)?;
    let plain = |name: &str| {
        let mut components = Path::new(name).components();
        let first = components.next();
        matches!(first, Some(Component::Normal(_)) if components.next().is_none())
            && !name.contains('/')
            && name != MANIFEST
    };
    if let Some(file) = manifest.files.iter().find(|file| !plain(&file.name)) {
        return Err(ImageError::Damaged {
            id: id.clone(),
            what: format!(
                "{MANIFEST} names '{}', which is no file of an image",
                file.name
            ),
        });
    }
    if manifest.id != *id {
        let what = format!("its manifest names {}", manifest.id);
        return Err(ImageError::Damaged {
            id: id.clone(),
            what,
        });
    }
    Ok(manifest)
}

pub(crate) fn sync(path: &Path) -> Result<(), ImageError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    file.sync_all().map_err(io_error("fsync", path))
}

fn hash(path: &Path) -> Result<String, ImageError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(io_error("read", path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

pub(crate) fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ImageError::Io {
            step: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> EngineIdentity {
        EngineIdentity {
            engine: "test".into(),
            version: "1".into(),
            build: "b".into(),
        }
    }

    fn subject() -> Subject {
        Subject {
            owner: "i1".into(),
            layers: vec!["layers/a".into()],
            memory_bytes: 1,
            cpu_milli: 1000,
            frozen_at_ns: 5,
        }
    }

    fn committed(images: &Images) -> ImageId {
        let id = ImageId::random();
        let staging = images.stage(&id).unwrap();
        fs::write(staging.path().join("checkpoint.img"), b"graph").unwrap();
        staging.commit(identity(), subject()).unwrap();
        id
    }

    #[test]
    fn an_image_exists_only_after_its_commit() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().join("images"));
        let id = ImageId::random();
        let staging = images.stage(&id).unwrap();
        fs::write(staging.path().join("checkpoint.img"), b"graph").unwrap();
        assert!(!images.is_committed(&id));
        assert!(matches!(images.check(&id), Err(ImageError::Missing(_))));
        staging.commit(identity(), subject()).unwrap();
        assert!(images.is_committed(&id));
        assert_eq!(images.check(&id).unwrap().subject, subject());
    }

    #[test]
    fn a_changed_or_cut_file_is_reported_as_damage() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        let id = committed(&images);
        let file = images.path(&id).join("checkpoint.img");
        fs::write(&file, b"grapX").unwrap();
        assert!(matches!(images.check(&id), Err(ImageError::Damaged { .. })));
        fs::write(&file, b"gra").unwrap();
        assert!(matches!(images.check(&id), Err(ImageError::Damaged { .. })));
    }

    #[test]
    fn a_manifest_names_files_of_the_image_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        let id = committed(&images);
        let path = images.path(&id).join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        let file = "checkpoint.img";
        assert!(text.contains(file));
        for name in ["/dev/zero", "../x", "a/b", ".", "..", "", MANIFEST] {
            fs::write(&path, text.replace(file, name)).unwrap();
            let refused = images.check(&id);
            assert!(matches!(refused, Err(ImageError::Damaged { .. })), "{name}");
        }
        fs::write(&path, &text).unwrap();
        images.check(&id).unwrap();
        let file = images.path(&id).join(file);
        fs::remove_file(&file).unwrap();
        assert!(matches!(images.check(&id), Err(ImageError::Damaged { .. })));
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert!(matches!(images.check(&id), Err(ImageError::Damaged { .. })));
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        let id = committed(&images);
        let path = images.path(&id).join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(
            &path,
            text.replace("\"format_version\": 1", "\"format_version\": 3"),
        )
        .unwrap();
        assert!(matches!(
            images.check(&id),
            Err(ImageError::Newer { found: 3, .. })
        ));
    }

    #[test]
    fn sweeping_keeps_only_the_image_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        let (kept, old) = (committed(&images), committed(&images));
        let abandoned = images.stage(&ImageId::random()).unwrap();
        images.sweep(std::slice::from_ref(&kept)).unwrap();
        assert!(images.is_committed(&kept));
        assert!(!images.is_committed(&old));
        assert!(!abandoned.path().exists());
    }

    #[test]
    fn a_commit_is_taken_back_as_a_whole_or_counts() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        assert!(images.withdraw(&ImageId::random()), "it never got its name");

        let id = committed(&images);
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let whole = names(&images.path(&id));
        assert!(images.withdraw(&id));
        assert!(!images.is_committed(&id));
        // A file that cannot be deleted must not leave half an image under its name.
        assert_eq!(names(&images.staging(&id)), whole);
        images.sweep_staging().unwrap();
        assert!(!images.staging(&id).exists());

        let id = committed(&images);
        fs::create_dir_all(images.staging(&id).join("in the way")).unwrap();
        assert!(!images.withdraw(&id));
        images.check(&id).unwrap();
    }

    #[test]
    fn a_shared_image_outlives_its_first_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = Images::new(folder.path().join("a"));
        let second = Images::new(folder.path().join("b"));
        let id = committed(&first);
        first.share(&id, &second).unwrap();
        first.share(&id, &second).unwrap();
        first.delete(&id).unwrap();
        second.check(&id).unwrap();
        let missing = first.share(&id, &Images::new(folder.path().join("c")));
        assert!(matches!(missing, Err(ImageError::Missing(_))));
    }
}
