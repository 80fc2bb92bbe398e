//! `manifest.json`: what an image is, so that it can be checked before it is used.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Newest version of the directory format that this build reads. A newer one is refused by name.
pub const FORMAT_VERSION: u32 = PACKED_VERSION;

/// Version of packed images; the others are written as 1, which every build reads.
pub(crate) const PACKED_VERSION: u32 = 2;

/// Version of images as an engine wrote them.
pub(crate) const PLAIN_VERSION: u32 = 1;

/// Name of an image: `m` and 20 characters of `[a-z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(String);

impl ImageId {
    const LENGTH: usize = 21;

    /// A new random name.
    pub fn random() -> Self {
        use rand::Rng;
        const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut rng = rand::rng();
        let letters = (1..Self::LENGTH)
            .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
            .collect::<String>();
        Self(format!("m{letters}"))
    }

    /// Reads a name back from a directory entry.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == Self::LENGTH
            && text.starts_with('m')
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        valid.then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which engine build wrote the image; only the same one can restore it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineIdentity {
    /// Engine, for example `gvisor`.
    pub engine: String,
    /// What the build calls itself.
    pub version: String,
    /// Hash of the build.
    pub build: String,
}

/// What the image is an image of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Sandbox or template it belongs to.
    pub owner: String,
    /// Layers below the disk, topmost first.
    pub layers: Vec<PathBuf>,
    /// Memory limit of the execution in bytes; the same is needed to restore.
    pub memory_bytes: u64,
    /// CPU limit in thousandths.
    pub cpu_milli: u32,
    /// When the guest stood still, in nanoseconds since the epoch. Nothing on the disk it belongs
    /// to was written later, as long as the image fits the disk.
    pub frozen_at_ns: i128,
}

/// One file of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name within the image directory.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// BLAKE3 in hex, for files small enough to be hashed while the guest stands still.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub blake3: Option<String>,
    /// Size of `<name>.zst`, which is there in its place when the image is packed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub packed_bytes: Option<u64>,
}

impl FileEntry {
    /// Name of the file that is there.
    pub fn stored_name(&self) -> String {
        match self.packed_bytes {
            Some(_) => format!("{}.zst", self.name),
            None => self.name.clone(),
        }
    }
}

/// The whole of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the image; equals the directory's.
    pub id: ImageId,
    /// Who can restore it.
    pub engine: EngineIdentity,
    /// What it is.
    pub subject: Subject,
    /// What it consists of.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Whether large files are compressed.
    pub fn is_packed(&self) -> bool {
        self.files.iter().any(|file| file.packed_bytes.is_some())
    }
}
