//! What the engine adds to a memory image: which build wrote it, and with which specification.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{BuildId, EngineError};

const FILE: &str = "engine.json";
const FORMAT: u32 = 1;

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
