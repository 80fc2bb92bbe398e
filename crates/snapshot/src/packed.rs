//! Images that nobody has asked for in a long time, compressed.
//!
//! A packed image is the same image under the same name: its manifest has the sizes and hashes of
//! what it was, and the large files are there as `<name>.zst`. The packed directory takes the place of
//! the plain one in one step (`RENAME_EXCHANGE`), so there is a complete image at every moment. To be
//! used it is unpacked beside itself, into a directory that is worth nothing after a crash.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, CWD, RenameFlags, fadvise, renameat_with};

use crate::manifest::{FileEntry, ImageId, Manifest, PACKED_VERSION};
use crate::store::{ImageError, Images, MANIFEST, io_error, remove, sync};

/// What is smaller than this is left as it is: little is won, and others look into it.
const PACKED_FROM: u64 = 1 << 20;
/// Packing has to save a tenth at least.
const WORTH_TENTHS: u64 = 9;
/// Memory is full of repetitions far apart; a longer window finds more of them. Reading needs as much
/// memory (2^27 bytes).
const WINDOW_LOG: u32 = 27;
const LEVEL: i32 = 3;
const BUFFER: usize = 1 << 20;
const UNPACKED_PREFIX: &str = ".unpacked-";

/// How an attempt to pack an image ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// It is packed now.
    Packed {
        /// Bytes of its files before.
        before: u64,
        /// And now.
        after: u64,
    },
    /// It is packed already, or would not become smaller by a tenth.
    NotWorthIt,
    /// The caller did not want to go on; the image is as it was.
    Stopped,
}

impl Images {
    /// Packs an image. Nobody may be reading it. `go_on` is asked every now and then.
    pub fn pack(&self, id: &ImageId, go_on: &dyn Fn() -> bool) -> Result<Packing, ImageError> {
        let manifest = self.check(id)?;
        if manifest.is_packed() || !self.is_promising(&manifest)? {
            return Ok(Packing::NotWorthIt);
        }
        let staging = self.staging(id);
        remove(&staging)?;
        fs::create_dir(&staging).map_err(io_error("create", &staging))?;
        let packed = self.pack_into(&staging, &manifest, go_on);
        match packed {
            Ok(packing @ Packing::Packed { .. }) => {
                let target = self.path(id);
                let exchanged = renameat_with(CWD, &staging, CWD, &target, RenameFlags::EXCHANGE)
                    .map_err(|error| io_error("exchange with", &target)(error.into()))
                    .and_then(|()| sync(self.directory()));
                // One of the two, and each is the image.
                remove(&staging)?;
                exchanged.map(|()| packing)
            }
            other => {
                remove(&staging)?;
                other
            }
        }
    }

    /// Whether packing may win something: a look at samples of the large files. What others have
    /// names of, too, would be there twice.
    fn is_promising(&self, manifest: &Manifest) -> Result<bool, ImageError> {
        let mut samples = (0, 0);
        for file in manifest
            .files
            .iter()
            .filter(|file| file.size_bytes >= PACKED_FROM)
        {
            let path = self.path(&manifest.id).join(&file.name);
            let opened = File::open(&path).map_err(io_error("open", &path))?;
            let links = opened
                .metadata()
                .map_err(io_error("look at", &path))?
                .nlink();
            if links > 1 {
                return Ok(false);
            }
            let (read, packed) =
                sample(&opened, file.size_bytes).map_err(io_error("read", &path))?;
            samples = (samples.0 + read, samples.1 + packed);
        }
        let (read, packed) = samples;
        Ok(read > 0 && packed <= read / 10 * WORTH_TENTHS)
    }

    fn pack_into(
        &self,
        staging: &Path,
        manifest: &Manifest,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Packing, ImageError> {
        let directory = self.path(&manifest.id);
        let (mut before, mut after) = (0, 0);
        let mut packed = manifest.clone();
        packed.format_version = PACKED_VERSION;
        for file in &mut packed.files {
            let from = directory.join(&file.name);
            before += file.size_bytes;
            if file.size_bytes < PACKED_FROM {
                let to = staging.join(&file.name);
                fs::hard_link(&from, &to).map_err(io_error("link", &to))?;
                after += file.size_bytes;
                continue;
            }
            let mut entry = FileEntry {
                packed_bytes: Some(0),
                ..file.clone()
            };
            let to = staging.join(entry.stored_name());
            let Some((hash, bytes)) = compress(&from, &to, go_on)? else {
                return Ok(Packing::Stopped);
            };
            entry.blake3 = Some(hash);
            entry.packed_bytes = Some(bytes);
            after += bytes;
            *file = entry;
        }
        if after > before / 10 * WORTH_TENTHS {
            return Ok(Packing::NotWorthIt);
        }
        let path = staging.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&packed)
            .map_err(|error| io_error("encode", &path)(io::Error::other(error)))?;
        fs::write(&path, text).map_err(io_error("write", &path))?;
        sync(&path)?;
        sync(staging)?;
        Ok(Packing::Packed { before, after })
    }

    /// Where the files of a checked image are for an engine to read: its own directory, or for a packed
    /// one a directory made for this, which [`remove_unpacked`](Self::remove_unpacked) removes.
    pub fn plain(&self, manifest: &Manifest) -> Result<PathBuf, ImageError> {
        let directory = self.path(&manifest.id);
        if !manifest.is_packed() {
            return Ok(directory);
        }
        // A manifest from elsewhere may say anything.
        let most = manifest
            .subject
            .memory_bytes
            .saturating_mul(2)
            .saturating_add(1 << 30);
        if let Some(file) = manifest.files.iter().find(|file| file.size_bytes > most) {
            return Err(ImageError::Damaged {
                id: manifest.id.clone(),
                what: format!("{} cannot have {} bytes", file.name, file.size_bytes),
            });
        }
        let plain = self
            .directory()
            .join(format!("{UNPACKED_PREFIX}{}", manifest.id));
        remove(&plain)?;
        fs::create_dir(&plain).map_err(io_error("create", &plain))?;
        for file in &manifest.files {
            let (from, to) = (directory.join(file.stored_name()), plain.join(&file.name));
            if file.packed_bytes.is_none() {
                fs::hard_link(&from, &to).map_err(io_error("link", &to))?;
                continue;
            }
            let unpacked = decompress(&from, &to, file.size_bytes);
            let damaged = |what: String| ImageError::Damaged {
                id: manifest.id.clone(),
                what,
            };
            let hash = match unpacked {
                Ok(hash) => hash,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    return Err(io_error("write", &to)(error));
                }
                Err(error) if error.raw_os_error().is_some() => {
                    return Err(io_error("unpack", &from)(error));
                }
                // What zstd says of it.
                Err(error) => return Err(damaged(format!("{}: {error}", file.stored_name()))),
            };
            if file.blake3.as_ref() != Some(&hash) {
                return Err(damaged(format!("{} has another content", file.name)));
            }
        }
        Ok(plain)
    }

    /// Whether there is anything that [`plain`](Self::plain) made.
    pub fn is_unpacked(&self) -> bool {
        let names = self.names().unwrap_or_default();
        names.iter().any(|name| name.starts_with(UNPACKED_PREFIX))
    }

    /// Removes what [`plain`](Self::plain) made. No execution may be reading it.
    pub fn remove_unpacked(&self) -> Result<(), ImageError> {
        let names = self.names()?;
        let mut made = names
            .iter()
            .filter(|name| name.starts_with(UNPACKED_PREFIX));
        made.try_for_each(|name| remove(&self.directory().join(name)))
    }
}

/// Bytes of some pieces of a file, and what they would be compressed.
fn sample(file: &File, size: u64) -> io::Result<(u64, u64)> {
    const PIECES: u64 = 16;
    let mut piece = vec![0; 256 << 10];
    let (mut read, mut packed) = (0, 0);
    for at in 0..PIECES {
        let count = file.read_at(&mut piece, size / PIECES * at)?;
        read += count as u64;
        packed += zstd::bulk::compress(&piece[..count], 1)?.len() as u64;
    }
    Ok((read, packed))
}

/// Answers the hash of what was read and the bytes written; `None` when it was stopped.
fn compress(
    from: &Path,
    to: &Path,
    go_on: &dyn Fn() -> bool,
) -> Result<Option<(String, u64)>, ImageError> {
    let mut source = File::open(from).map_err(io_error("open", from))?;
    let target = File::create_new(to).map_err(io_error("create", to))?;
    let writing = io_error("write", to);
    let mut hasher = blake3::Hasher::new();
    let compressed = || -> io::Result<Option<File>> {
        let mut encoder = zstd::Encoder::new(target, LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.window_log(WINDOW_LOG)?;
        encoder.long_distance_matching(true)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            if !go_on() {
                return Ok(None);
            }
            let count = source.read(&mut buffer)?;
            if count == 0 {
                return encoder.finish().map(Some);
            }
            hasher.update(&buffer[..count]);
            encoder.write_all(&buffer[..count])?;
        }
    };
    let compressed = { compressed }();
    let Some(target) = compressed.map_err(writing)? else {
        return Ok(None);
    };
    target.sync_all().map_err(io_error("fsync", to))?;
    let bytes = target.metadata().map_err(io_error("look at", to))?.len();
    // Nobody has asked for it in a long time: others need the page cache more. Advice only.
    let _ = fadvise(&target, 0, None, Advice::DontNeed);
    if let Ok(source) = File::open(from) {
        let _ = fadvise(&source, 0, None, Advice::DontNeed);
    }
    Ok(Some((hasher.finalize().to_hex().to_string(), bytes)))
}

/// Answers the hash of what was written. Fails when it would be more than `limit` bytes.
fn decompress(from: &Path, to: &Path, limit: u64) -> io::Result<String> {
    let mut decoder = zstd::Decoder::new(File::open(from)?)?;
    decoder.window_log_max(WINDOW_LOG)?;
    // One byte more than expected is enough to see that it does not end there.
    let mut decoder = BufReader::with_capacity(BUFFER, decoder).take(limit.saturating_add(1));
    let mut target = File::create_new(to)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = decoder.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..count]);
        target.write_all(&buffer[..count])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{EngineIdentity, Subject};

    fn committed(images: &Images, pages: &[u8]) -> ImageId {
        let id = ImageId::random();
        let staging = images.stage(&id).unwrap();
        fs::write(staging.path().join("pages.img"), pages).unwrap();
        fs::write(staging.path().join("engine.json"), b"{}").unwrap();
        let engine = EngineIdentity {
            engine: "test".into(),
            version: "1".into(),
            build: "b".into(),
        };
        let subject = Subject {
            owner: "i1".into(),
            layers: Vec::new(),
            memory_bytes: 1,
            cpu_milli: 1000,
            frozen_at_ns: 5,
        };
        staging.commit(engine, subject).unwrap();
        id
    }

    /// Three megabytes that compress well, but are not all the same.
    fn pages() -> Vec<u8> {
        (0..3 << 20_u32).map(|at| (at / 1000 % 251) as u8).collect()
    }

    fn go_on() -> bool {
        true
    }

    #[test]
    fn a_packed_image_is_the_same_image_and_smaller() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        let id = committed(&images, &pages());
        let plain = images.check(&id).unwrap();
        let packing = images.pack(&id, &go_on).unwrap();
        let Packing::Packed { before, after } = packing else {
            panic!("{packing:?}")
        };
        assert!(before > 3 << 20 && after < before / 10, "{before} {after}");
        assert_eq!(images.pack(&id, &go_on).unwrap(), Packing::NotWorthIt);
        assert_eq!(images.list().unwrap(), vec![id.clone()]);
        let manifest = images.check(&id).unwrap();
        assert!(manifest.is_packed());
        assert_eq!(manifest.subject, plain.subject);
        assert!(!images.path(&id).join("pages.img").exists());

        let unpacked = images.plain(&manifest).unwrap();
        assert_eq!(fs::read(unpacked.join("pages.img")).unwrap(), pages());
        assert_eq!(fs::read(unpacked.join("engine.json")).unwrap(), b"{}");
        // What an earlier try left is no obstacle.
        images.plain(&manifest).unwrap();
        images.remove_unpacked().unwrap();
        assert!(!unpacked.exists());
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1, "nothing else is left");
    }

    #[test]
    fn a_shared_packed_image_outlives_its_first_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = Images::new(folder.path().join("a"));
        let second = Images::new(folder.path().join("b"));
        let id = committed(&first, &pages());
        first.pack(&id, &go_on).unwrap();
        first.share(&id, &second).unwrap();
        first.delete(&id).unwrap();
        let manifest = second.check(&id).unwrap();
        let plain = second.plain(&manifest).unwrap();
        assert_eq!(fs::read(plain.join("pages.img")).unwrap(), pages());
    }

    #[test]
    fn packing_that_is_stopped_or_wins_nothing_leaves_the_image_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        let id = committed(&images, &pages());
        assert_eq!(images.pack(&id, &|| false).unwrap(), Packing::Stopped);
        let mut noise = vec![0; 2 << 20];
        rand::Rng::fill(&mut rand::rng(), noise.as_mut_slice());
        let noisy = committed(&images, &noise);
        assert_eq!(images.pack(&noisy, &go_on).unwrap(), Packing::NotWorthIt);
        for id in [id, noisy] {
            let manifest = images.check(&id).unwrap();
            assert!(!manifest.is_packed());
            assert_eq!(images.plain(&manifest).unwrap(), images.path(&id));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn damage_of_a_packed_file_is_reported_and_nothing_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::new(folder.path().to_owned());
        let id = committed(&images, &pages());
        images.pack(&id, &go_on).unwrap();
        let path = images.path(&id).join("pages.img.zst");
        let good = fs::read(&path).unwrap();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            fs::write(&path, &bad).unwrap();
            let manifest = images.check(&id).unwrap();
            let refused = images.plain(&manifest);
            assert!(
                matches!(refused, Err(ImageError::Damaged { .. })),
                "{at}: {refused:?}"
            );
        }
        fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(matches!(images.check(&id), Err(ImageError::Damaged { .. })));
        // A packed file that holds more than it says is no bomb.
        fs::write(&path, zstd::encode_all(&vec![0; 16 << 20][..], 1).unwrap()).unwrap();
        let manifest_path = images.path(&id).join(MANIFEST);
        let text = fs::read_to_string(&manifest_path).unwrap();
        let size = fs::metadata(&path).unwrap().len();
        let text = text.replace(&good.len().to_string(), &size.to_string());
        fs::write(&manifest_path, text).unwrap();
        let manifest = images.check(&id).unwrap();
        let refused = images.plain(&manifest);
        assert!(
            matches!(refused, Err(ImageError::Damaged { .. })),
            "{refused:?}"
        );
        let written = folder
            .path()
            .join(format!("{UNPACKED_PREFIX}{id}/pages.img"));
        assert!(fs::metadata(written).unwrap().len() < 4 << 20);
    }
}
