//! What the engine adds to a memory image: which build wrote it, and with which specification.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{BuildId, EngineError};

const FILE: &str = "engine.json";
const FORMAT: u32 = 1;
/// Where runsc puts the pages of memory.
const PAGES: &str = "pages.img";

/// Contents of `engine.json` in an image.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    format: u32,
    /// The build that wrote the image, the only one that can load it.
    pub(super) build: BuildId,
    /// What that build calls itself.
    pub(super) version: String,
    /// The OCI specification that the checkpointed execution ran with.
    pub(super) oci_spec: Value,
}

impl ImageRecord {
    pub(super) fn new(build: BuildId, version: String, oci_spec: Value) -> Self {
        Self {
            format: FORMAT,
            build,
            version,
            oci_spec,
        }
    }

    /// Adds the record to an image that has none.
    pub(super) fn write(&self, image: &Path) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(image.join(FILE))?;
        serde_json::to_writer(file, self).map_err(io::Error::from)
    }

    /// Reads the record and checks that `build` may load the image.
    pub(super) fn read_for(image: &Path, build: &BuildId) -> Result<Self, EngineError> {
        let refuse = |detail: String| EngineError::Failed {
            step: format!("read the memory image {}", image.display()),
            detail,
        };
        let text = std::fs::read(image.join(FILE)).map_err(|e| refuse(format!("{FILE}: {e}")))?;
        let record: Self =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("{FILE}: {e}")))?;
        if record.format != FORMAT {
            return Err(refuse(format!(
                "its format is {}, not {FORMAT}",
                record.format
            )));
        }
        if record.build != *build {
            return Err(refuse(format!(
                "it was written by the gvisor build {} ({}) and restores with no other, not with {}",
                record.build.0, record.version, build.0
            )));
        }
        super::spec::check_saved(&record.oci_spec)
            .map_err(|problem| refuse(format!("its specification is not ours: {problem}")))?;
        Ok(record)
    }
}

/// Whether the pages of an image are better read past the page cache: when they are not in it, and the
/// file system can. Filling the cache first takes about twice as long; what is in it already, such as
/// the image of a template in use, is read from there at no cost to the disk.
pub(super) fn reads_directly(image: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let pages = image.join(PAGES);
    let mut direct = std::fs::OpenOptions::new();
    direct.read(true).custom_flags(libc::O_DIRECT);
    direct.open(&pages).is_ok() && !is_cached(&pages).unwrap_or(true)
}

/// Whether most of a file is in the page cache, from a look at some of its pages.
fn is_cached(path: &Path) -> io::Result<bool> {
    const SAMPLES: u64 = 32;
    let file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut missing = 0;
    for sample in 0..SAMPLES {
        let offset = length / SAMPLES * sample;
        let mut byte = [0];
        let read = rustix::io::preadv2(
            &file,
            &mut [io::IoSliceMut::new(&mut byte)],
            offset,
            rustix::io::ReadWriteFlags::NOWAIT,
        );
        match read {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => missing += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(missing <= SAMPLES / 2)
}

/// Empties the directory of an image that was not completed. Files are cut to nothing first: the
/// sentry keeps those of a failed checkpoint open for some time, and the disk may be full.
pub(super) fn discard(image: &Path) {
    for entry in std::fs::read_dir(image).into_iter().flatten().flatten() {
        let cut = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(entry.path());
        if let Err(error) = cut.and_then(|_| std::fs::remove_file(entry.path())) {
            tracing::warn!(%error, "a file of an incomplete memory image was left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_cached_is_read_directly() {
        // On a disk: a tmpfs is all cache.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        assert!(!reads_directly(folder.path()), "there are no pages");
        let pages = folder.path().join(PAGES);
        std::fs::write(&pages, vec![1; 16 << 20]).unwrap();
        assert!(!reads_directly(folder.path()), "it was just written");
        let file = std::fs::File::open(&pages).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert!(reads_directly(folder.path()), "it is on the disk only");
        std::fs::read(&pages).unwrap();
        assert!(!reads_directly(folder.path()), "it was just read");
    }
}
