//! `manifest.json`, the first entry of an export: what the file holds, so that it can be checked
//! while it is read. docs/export-format.md is the description for people.

use std::collections::BTreeSet;

use engine::EngineBuild;
use serde::{Deserialize, Serialize};
use snapshot::ImageId;

use super::TransferError;
use super::error::damaged;
use crate::sandbox::{DiskId, MAX_SEALED, SandboxId};
use crate::snapshots::Snapshot;

/// Version of the format written by this build. A newer one is refused by name.
pub const FORMAT_VERSION: u32 = 1;

/// Name of the first entry.
pub(super) const MANIFEST: &str = "manifest.json";
/// Folder of the memory image's files.
pub(super) const IMAGE: &str = "image";
/// Folder with one folder per disk.
pub(super) const DISKS: &str = "disks";
/// Folder of the engine build.
pub(super) const ENGINE: &str = "engine";
/// Folder with one numbered folder per layer, 0 topmost.
pub(super) const LAYERS: &str = "layers";

/// Longest manifest that is read.
pub(super) const MANIFEST_LIMIT: u64 = 16 << 20;
/// Most layers. The kernel takes fewer with paths of ordinary length, and no template here has more
/// than some.
const MOST_LAYERS: usize = 64;
/// Most folders above a file. Deeper ones are no work of an engine.
const DEEPEST: usize = 8;

/// What the file is an export of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// A snapshot; a sandbox is exported as one, too.
    Snapshot,
}

/// The whole of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// See [`FORMAT_VERSION`].
    pub(super) format_version: u32,
    pub(super) kind: Kind,
    /// What wrote the file, for people.
    pub(super) written_by: String,
    /// The snapshot as its server described it. Its layers are that server's paths, and only their
    /// number and order mean something elsewhere.
    pub(super) snapshot: Snapshot,
    /// The engine build that wrote the memory; absent when there is no memory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) build: Option<EngineBuild>,
    /// Every file of the image, the disks and the build, in the order in which they follow.
    pub(super) files: Vec<FileEntry>,
    /// Every layer, topmost first.
    pub(super) layers: Vec<LayerEntry>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    /// Where it is in the archive.
    pub(super) path: String,
    /// Its length.
    pub(super) size_bytes: u64,
    /// Bytes it takes in the archive: without its holes, with the map of them.
    pub(super) stored_bytes: u64,
    /// BLAKE3 in hex of those bytes.
    pub(super) blake3: String,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerEntry {
    /// Hash of all that is in it, see `tree`. Layers with the same one are the same.
    pub(super) hash: String,
    /// Entries in the archive, the layer's root included.
    pub(super) entries: u64,
    /// Length of all files together.
    pub(super) size_bytes: u64,
}

/// Where a file of the manifest belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Image(&'a str),
    Disk(&'a DiskId, &'a str),
    Engine(&'a str),
}

impl Manifest {
    /// Reads it, and refuses what this build cannot read or what makes no sense. Everything in it
    /// may have been written by anybody: afterwards each name in it can be used as a file name.
    pub(super) fn parse(text: &[u8]) -> Result<Self, TransferError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let unreadable = |error: serde_json::Error| {
            TransferError::NotAnExport(format!("{MANIFEST} cannot be read: {error}"))
        };
        let version: Version = serde_json::from_slice(text).map_err(unreadable)?;
        if version.format_version > FORMAT_VERSION {
            return Err(TransferError::Newer {
                found: version.format_version,
            });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(unreadable)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), TransferError> {
        let snapshot = &self.snapshot;
        if SandboxId::parse(snapshot.source.as_str()).as_ref() != Some(&snapshot.source) {
            return Err(damaged("its source is no sandbox id"));
        }
        for id in &snapshot.disks {
            if DiskId::parse(id.as_str()).is_none() {
                return Err(damaged(format!("{:?} is no disk id", id.as_str())));
            }
        }
        let distinct: BTreeSet<_> = snapshot.disks.iter().collect();
        if distinct.is_empty() || distinct.len() != snapshot.disks.len() {
            return Err(damaged("its disks are none, or not distinct"));
        }
        // No snapshot of ours has more: whatever stands on it could not be started.
        if distinct.len() > MAX_SEALED + 1 {
            return Err(damaged("it has too many disks"));
        }
        if let Some(id) = &snapshot.image
            && ImageId::parse(id.as_str()).is_none()
        {
            return Err(damaged(format!("{:?} is no image id", id.as_str())));
        }
        match &self.build {
            Some(build) if snapshot.image.is_some() && build.id == snapshot.build => {}
            None if snapshot.image.is_none() => {}
            Some(_) | None => return Err(damaged("its engine build is not that of its memory")),
        }
        if self.layers.is_empty() || self.layers.len() != snapshot.layers.len() {
            return Err(damaged("its layers are none, or not those of the snapshot"));
        }
        if self.layers.len() > MOST_LAYERS {
            return Err(damaged("it has too many layers"));
        }
        for layer in &self.layers {
            if !is_hash(&layer.hash) {
                return Err(damaged(format!("{:?} is no hash", layer.hash)));
            }
        }
        self.check_files()
    }

    fn check_files(&self) -> Result<(), TransferError> {
        let mut seen = BTreeSet::new();
        for file in &self.files {
            let path = &file.path;
            if self.place(path).is_none() || !seen.insert(path) {
                return Err(damaged(format!("{path:?} has no place in it")));
            }
            if !is_hash(&file.blake3) {
                return Err(damaged(format!("{:?} is no hash", file.blake3)));
            }
        }
        let has = |wanted: &dyn Fn(&Place<'_>) -> bool| {
            let mut places = self.files.iter().filter_map(|file| self.place(&file.path));
            places.any(|place| wanted(&place))
        };
        for disk in &self.snapshot.disks {
            if !has(&|place| matches!(place, Place::Disk(id, _) if *id == disk)) {
                return Err(damaged(format!("disk {disk} has no files")));
            }
        }
        Ok(())
    }

    /// Where a file belongs; `None` for a path that has no place.
    pub(super) fn place<'a>(&'a self, path: &'a str) -> Option<Place<'a>> {
        let (folder, rest) = path.split_once('/')?;
        let names: Vec<&str> = rest.split('/').collect();
        let plain =
            |name: &&str| !name.is_empty() && *name != "." && *name != ".." && !name.contains('\0');
        if names.len() > DEEPEST || !names.iter().all(plain) {
            return None;
        }
        match folder {
            IMAGE if names.len() == 1 && self.snapshot.image.is_some() => Some(Place::Image(rest)),
            DISKS => {
                let (id, file) = rest.split_once('/')?;
                let mut disks = self.snapshot.disks.iter();
                let disk = disks.find(|disk| disk.as_str() == id)?;
                Some(Place::Disk(disk, file))
            }
            ENGINE if self.build.is_some() => Some(Place::Engine(rest)),
            _ => None,
        }
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn good() -> Value {
        let hash = "0".repeat(64);
        json!({
            "format_version": 1,
            "kind": "snapshot",
            "written_by": "test",
            "snapshot": {
                "id": "0123456789abcdefghij", "name": null, "usage": "listed",
                "created_at": "2026-01-01T00:00:00Z", "source": "i1",
                "layers": ["layers/a"], "disks": ["d0123456789abcdefghij"],
                "image": "m0123456789abcdefghij", "build": "b",
                "limits": { "cpu_milli": 1, "memory_bytes": 1, "disk_bytes": 1, "pids": 1 },
            },
            "build": { "engine": "e", "version": "1", "id": "b" },
            "files": [
                { "path": "image/pages", "size_bytes": 1, "stored_bytes": 1, "blake3": hash },
                { "path": "disks/d0123456789abcdefghij/disk", "size_bytes": 1, "stored_bytes": 1,
                  "blake3": hash },
            ],
            "layers": [{ "hash": hash, "entries": 1, "size_bytes": 0 }],
        })
    }

    fn parse(value: &Value) -> Result<Manifest, TransferError> {
        Manifest::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_manifest_is_read_and_its_files_have_places() {
        let manifest = parse(&good()).unwrap();
        let disk = &manifest.snapshot.disks[0];
        assert_eq!(manifest.place("image/pages"), Some(Place::Image("pages")));
        let path = "disks/d0123456789abcdefghij/a/b";
        assert_eq!(manifest.place(path), Some(Place::Disk(disk, "a/b")));
        let build = manifest.place("engine/runsc");
        assert_eq!(build, Some(Place::Engine("runsc")));
    }

    #[test]
    fn paths_that_lead_elsewhere_have_no_place() {
        let manifest = parse(&good()).unwrap();
        for path in [
            "",
            "image",
            "image/",
            "image/a/b",
            "image/..",
            "/image/pages",
            "../image/pages",
            "engine/../../etc/passwd",
            "engine/./runsc",
            "engine//runsc",
            "engine/a\0b",
            "disks/d0123456789abcdefghij",
            "disks/d0123456789abcdefghij/",
            "disks/d0123456789abcdefghij/../x",
            "disks/daaaaaaaaaaaaaaaaaaaa/disk",
            "layers/0/etc/passwd",
            "manifest.json",
            "engine/1/2/3/4/5/6/7/8/9",
        ] {
            assert_eq!(manifest.place(path), None, "{path:?}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name_whatever_else_it_holds() {
        let newer = json!({ "format_version": 2, "everything": "else" });
        let refused = parse(&newer);
        assert!(matches!(refused, Err(TransferError::Newer { found: 2 })));
    }

    #[test]
    fn a_manifest_that_makes_no_sense_is_refused() {
        let changes: [(&str, Value); 13] = [
            ("/format_version", json!("one")),
            ("/kind", json!("template")),
            ("/snapshot/source", json!("../../x")),
            ("/snapshot/disks", json!([])),
            ("/snapshot/disks/0", json!("../../../../etc/cron.d")),
            ("/snapshot/image", json!("../../../../etc/cron.d")),
            ("/snapshot/image", Value::Null),
            ("/build/id", json!("other")),
            ("/build", Value::Null),
            ("/layers", json!([])),
            ("/layers/0/hash", json!("../../etc")),
            ("/files/0/path", json!("image/../x")),
            ("/files/1/path", json!("image/pages")),
        ];
        for (place, value) in changes {
            let mut manifest = good();
            *manifest.pointer_mut(place).unwrap() = value.clone();
            assert!(parse(&manifest).is_err(), "{place} = {value}");
        }
        assert!(Manifest::parse(b"").is_err());
        assert!(Manifest::parse(b"[]").is_err());
    }

    #[test]
    fn more_layers_than_a_template_has_are_refused() {
        let refused = |count: usize| {
            let mut manifest = good();
            manifest["snapshot"]["layers"] = json!(vec!["layers/a"; count]);
            manifest["layers"] = json!(vec![manifest["layers"][0].clone(); count]);
            parse(&manifest).is_err()
        };
        assert!(!refused(MOST_LAYERS));
        assert!(refused(MOST_LAYERS + 1));
    }

    #[test]
    fn more_disks_than_a_snapshot_can_have_are_refused() {
        let refusal = |count: usize| {
            let ids: Vec<_> = (0..count).map(|n| format!("d{n:020}")).collect();
            let mut manifest = good();
            manifest["snapshot"]["disks"] = json!(ids);
            parse(&manifest).err().map(|error| error.to_string())
        };
        let too_many = |count| refusal(count).is_some_and(|text| text.contains("too many disks"));
        assert!(!too_many(MAX_SEALED + 1));
        assert!(too_many(MAX_SEALED + 2));
    }
}
