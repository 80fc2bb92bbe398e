//! Templates: what sandboxes are made from. A template is layers, a disk, and a memory image with
//! the agent up; a new sandbox is a copy of the disk and a restore of the image.
//!
//! ```text
//! layers/rootfs-<recipe>/      a Debian tree, read-only
//! layers/agent-<hash>/         the agent's binary, on top of it
//! templates/<id>/disk/         the disk the image belongs to
//! templates/<id>/images/<id>/  the memory image
//! templates/<id>/template.json what it is; written last
//! ```

mod base;
pub mod rootfs;

use std::path::PathBuf;
use std::sync::Arc;

use engine::Limits;
use snapshot::{Images, Manifest};

pub use base::{BaseOptions, TemplateError, ensure_base};

/// Something sandboxes can be made from. Immutable.
#[derive(Clone, Debug)]
pub struct Template {
    /// Raw id, 20 characters of `[a-z0-9]`.
    pub id: String,
    /// Name that callers use.
    pub alias: String,
    /// Layers below the disk, topmost first, relative to the data directory.
    pub layers: Vec<PathBuf>,
    /// The disk to copy.
    pub disk: PathBuf,
    /// Where its image is kept.
    pub images: Images,
    /// Checked manifest of the image.
    pub manifest: Manifest,
    /// What its sandboxes may use.
    pub limits: Limits,
}

impl Template {
    /// Directory of the memory image.
    pub fn image(&self) -> PathBuf {
        self.images.path(&self.manifest.id)
    }
}

/// All templates, by reference.
#[derive(Clone, Debug, Default)]
pub struct Templates {
    all: Vec<Arc<Template>>,
}

impl Templates {
    /// These templates.
    pub fn new(all: Vec<Arc<Template>>) -> Self {
        Self { all }
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Template>] {
        &self.all
    }

    /// The layers of all of them.
    pub fn layers(&self) -> Vec<PathBuf> {
        let layers = self.all.iter().flat_map(|template| &template.layers);
        layers.cloned().collect()
    }

    /// The template that `reference` names: an id or an alias, perhaps with the tag `:default`.
    pub fn find(&self, reference: &str) -> Option<Arc<Template>> {
        let name = reference.strip_suffix(":default").unwrap_or(reference);
        let found = self
            .all
            .iter()
            .find(|template| template.id == name || template.alias == name);
        found.cloned()
    }
}
