//! The layers of this data directory, by their content.
//!
//! Hashing a layer of some hundred megabytes takes seconds, so hashes are remembered beside the
//! layers, with a fingerprint of what the file system says of every entry. Change times cannot be set
//! by anybody: as long as the fingerprint is the same, so is the content.
//!
//! ```text
//! layers/<name>/                     made here
//! layers/imported-<first of hash>/   came with an export; gone at the next start once unused
//! layers/.hashes/<hash of path>      what is remembered of either, and of layers elsewhere
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::TransferError;
use super::error::io_error;
use super::format::LAYERS;
use super::tree::{self, Measure, Node};

const IMPORTED: &str = "imported-";
const REMEMBERED: &str = ".hashes";
/// Digits of a hash that make a name.
const NAME_LENGTH: usize = 32;
/// A change so shortly before the look may have been followed by another with the same time.
const SETTLED: Duration = Duration::from_secs(2);

/// What is remembered of a layer.
#[derive(Serialize, Deserialize)]
struct Memory {
    fingerprint: String,
    hash: String,
    entries: u64,
    size_bytes: u64,
}

/// The folder of all layers.
pub(super) fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(LAYERS)
}

/// Name of an imported layer, relative to the data directory.
pub(super) fn imported_name(hash: &str) -> PathBuf {
    let digits = hash.get(..NAME_LENGTH).unwrap_or(hash);
    Path::new(LAYERS).join(format!("{IMPORTED}{digits}"))
}

/// Hashes the layer at `path`, or remembers its hash.
pub(super) fn measure(data_dir: &Path, path: &Path) -> Result<Measure, TransferError> {
    let nodes = tree::list(path).map_err(io_error("list the layer", path))?;
    measure_listed(data_dir, path, &nodes)
}

/// The same for one that was just listed.
pub(super) fn measure_listed(
    data_dir: &Path,
    path: &Path,
    nodes: &[Node],
) -> Result<Measure, TransferError> {
    let looked_at = SystemTime::now();
    let name = blake3::hash(path.as_os_str().as_bytes()).to_hex();
    let memory = folder(data_dir).join(REMEMBERED).join(name.as_str());
    let print = fingerprint(path, nodes).map_err(io_error("look at the layer", path))?;
    if let Some(remembered) = remembered(&memory)
        && remembered.fingerprint == print.hash
    {
        return Ok(Measure {
            hash: remembered.hash,
            entries: remembered.entries,
            size_bytes: remembered.size_bytes,
        });
    }
    let measure = tree::measure_listed(path, nodes).map_err(io_error("read the layer", path))?;
    let settled = looked_at.duration_since(print.newest);
    if settled.is_ok_and(|age| age > SETTLED) {
        let remembered = Memory {
            fingerprint: print.hash,
            hash: measure.hash.clone(),
            entries: measure.entries,
            size_bytes: measure.size_bytes,
        };
        if let Err(error) = remember(&memory, &remembered) {
            tracing::warn!(path = %memory.display(), %error, "the hash of a layer could not be remembered");
        }
    }
    Ok(measure)
}

struct Fingerprint {
    hash: String,
    newest: SystemTime,
}

/// Changes with every change of any entry, and needs to read none.
fn fingerprint(root: &Path, nodes: &[Node]) -> io::Result<Fingerprint> {
    let mut hasher = blake3::Hasher::new();
    let mut newest = SystemTime::UNIX_EPOCH;
    for node in nodes {
        let metadata = root.join(&node.path).symlink_metadata()?;
        let (seconds, nanoseconds) = (metadata.ctime(), metadata.ctime_nsec());
        hasher.update(&(node.path.as_os_str().len() as u64).to_le_bytes());
        hasher.update(node.path.as_os_str().as_bytes());
        for number in [metadata.dev(), metadata.ino(), metadata.len()] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&seconds.to_le_bytes());
        hasher.update(&nanoseconds.to_le_bytes());
        let since = Duration::new(
            u64::try_from(seconds).unwrap_or(0),
            u32::try_from(nanoseconds).unwrap_or(0),
        );
        newest = newest.max(SystemTime::UNIX_EPOCH + since);
    }
    Ok(Fingerprint {
        hash: hasher.finalize().to_hex().to_string(),
        newest,
    })
}

/// Anything that cannot be read is as good as nothing.
fn remembered(path: &Path) -> Option<Memory> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn remember(path: &Path, memory: &Memory) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let partial = path.with_extension(format!("{:016x}", rand::random::<u64>()));
    fs::write(&partial, serde_json::to_vec(memory)?)?;
    fs::rename(partial, path)
}

/// The layers that are here, each measured at most once however many are looked for.
pub(super) struct Known<'a> {
    data_dir: &'a Path,
    elsewhere: &'a [PathBuf],
    /// Once one was looked for that no imported layer is.
    measured: Option<HashMap<String, PathBuf>>,
}

impl<'a> Known<'a> {
    /// Those of the data directory and those `elsewhere`.
    pub(super) fn new(data_dir: &'a Path, elsewhere: &'a [PathBuf]) -> Self {
        Self {
            data_dir,
            elsewhere,
            measured: None,
        }
    }

    /// The layer with this content, as snapshots name it.
    pub(super) fn find(&mut self, hash: &str) -> Result<Option<PathBuf>, TransferError> {
        let imported = imported_name(hash);
        if self.data_dir.join(&imported).is_dir() {
            return Ok(Some(imported));
        }
        let measured = match self.measured.take() {
            Some(measured) => measured,
            None => self.measure_all()?,
        };
        let found = measured.get(hash).cloned();
        self.measured = Some(measured);
        Ok(found)
    }

    fn measure_all(&self) -> Result<HashMap<String, PathBuf>, TransferError> {
        let mut measured = HashMap::new();
        for layer in named(self.data_dir)?.iter().chain(self.elsewhere) {
            // Imported ones have their hash for a name.
            if is_imported(layer) {
                continue;
            }
            let path = self.data_dir.join(layer);
            if path.is_dir() {
                let hash = measure(self.data_dir, &path)?.hash;
                measured.entry(hash).or_insert_with(|| layer.clone());
            }
        }
        Ok(measured)
    }
}

/// All complete layers of the data directory, relative to it.
fn named(data_dir: &Path) -> Result<Vec<PathBuf>, TransferError> {
    let folder = folder(data_dir);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("list", &folder))?,
    };
    let mut layers = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("list", &folder))?.file_name();
        let text = name.to_string_lossy();
        // What is being built, or was given up, has an extension.
        if !text.starts_with('.') && !text.contains('.') {
            layers.push(Path::new(LAYERS).join(name));
        }
    }
    layers.sort();
    Ok(layers)
}

fn is_imported(layer: &Path) -> bool {
    let name = layer.file_name().unwrap_or_default();
    layer.starts_with(LAYERS) && name.as_bytes().starts_with(IMPORTED.as_bytes())
}

/// Gives a verified layer its name. One that has it already is the same and stays. Answers whether
/// it is new.
pub(super) fn publish(data_dir: &Path, staged: &Path, name: &Path) -> Result<bool, TransferError> {
    let target = data_dir.join(name);
    if target.is_dir() {
        return Ok(false);
    }
    let folder = folder(data_dir);
    fs::create_dir_all(&folder).map_err(io_error("create", &folder))?;
    fs::rename(staged, &target).map_err(io_error("rename to", &target))?;
    let synced = File::open(&folder).and_then(|folder| folder.sync_all());
    synced.map_err(io_error("fsync", &folder))?;
    Ok(true)
}

/// Removes a layer that an import brought.
pub(super) fn remove(data_dir: &Path, name: &Path) -> io::Result<()> {
    crate::sandbox::remove_tree(&data_dir.join(name))
}

/// Removes imported layers that nothing stands on any more. Nothing may be importing.
pub(crate) fn sweep(data_dir: &Path, used: &BTreeSet<PathBuf>) {
    for layer in named(data_dir).unwrap_or_default() {
        if !is_imported(&layer) || used.contains(&layer) {
            continue;
        }
        match remove(data_dir, &layer) {
            Ok(()) => {
                tracing::info!(path = %layer.display(), "removed an imported layer that nothing uses")
            }
            Err(error) => {
                tracing::warn!(path = %layer.display(), %error, "an unused layer could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(data_dir: &Path, name: &str, content: &[u8]) -> PathBuf {
        let layer = Path::new(LAYERS).join(name);
        fs::create_dir_all(data_dir.join(&layer)).unwrap();
        fs::write(data_dir.join(&layer).join("file"), content).unwrap();
        layer
    }

    #[test]
    fn layers_are_found_by_content_and_not_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path();
        let first = layer(data_dir, "rootfs-1", b"1");
        let unfinished = layer(data_dir, "rootfs-2.partial", b"2");
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), b"3").unwrap();
        let elsewhere = [outside.path().to_owned()];
        let hash = |path: &Path| measure(data_dir, path).unwrap().hash;
        let find = |hash: &str| Known::new(data_dir, &elsewhere).find(hash).unwrap();
        assert_eq!(find(&hash(&data_dir.join(&first))), Some(first));
        assert_eq!(find(&hash(&data_dir.join(unfinished))), None);
        let of_outside = hash(outside.path());
        assert_eq!(find(&of_outside), Some(outside.path().to_owned()));
        // Another content under the same name is another layer.
        fs::write(outside.path().join("file"), b"4").unwrap();
        assert_eq!(find(&of_outside), None);
    }

    #[test]
    fn a_remembered_hash_is_used_until_something_changes() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path();
        let path = data_dir.join(layer(data_dir, "a", b"1"));
        let fresh = measure(data_dir, &path).unwrap();
        let remembered = data_dir.join(LAYERS).join(REMEMBERED);
        assert!(
            !remembered.exists(),
            "what changed a moment ago is not remembered"
        );
        let nodes = tree::list(&path).unwrap();
        let print = fingerprint(&path, &nodes).unwrap();
        let name = blake3::hash(path.as_os_str().as_bytes()).to_hex();
        let memory = Memory {
            fingerprint: print.hash,
            hash: "remembered".to_owned(),
            entries: 1,
            size_bytes: 1,
        };
        remember(&remembered.join(name.as_str()), &memory).unwrap();
        assert_eq!(measure(data_dir, &path).unwrap().hash, "remembered");
        let file = path.join("file");
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, b"2").unwrap();
        File::open(&file).unwrap().set_modified(modified).unwrap();
        let changed = measure(data_dir, &path).unwrap().hash;
        assert!(changed != "remembered" && changed != fresh.hash);
    }

    #[test]
    fn only_imported_layers_that_nothing_uses_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path();
        let made = layer(data_dir, "rootfs-1", b"");
        let used = layer(data_dir, "imported-1", b"");
        let unused = layer(data_dir, "imported-2", b"");
        sweep(data_dir, &BTreeSet::from([used.clone()]));
        let exists = [made, used, unused].map(|layer| data_dir.join(layer).exists());
        assert_eq!(exists, [true, true, false]);
    }
}
