//! How much a sandbox or snapshot takes on the host's disk.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes on the host's disk; holes of sparse files are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// What its deletion would give back.
    pub own_bytes: u64,
    /// What others stand on, too: deleting only this one gives nothing of it back.
    pub shared_bytes: u64,
}

impl Storage {
    /// Adds up the files below a directory. Blocks; one that is deleted meanwhile counts as nothing.
    pub(crate) fn of(directory: &Path) -> io::Result<Self> {
        let mut storage = Self::default();
        let mut pending = vec![directory.to_owned()];
        while let Some(path) = pending.pop() {
            let metadata = match path.symlink_metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let bytes = metadata.blocks() * 512;
            if metadata.is_dir() {
                storage.own_bytes += bytes;
                for entry in std::fs::read_dir(&path)? {
                    pending.push(entry?.path());
                }
            } else if metadata.nlink() > 1 {
                storage.shared_bytes += bytes;
            } else {
                storage.own_bytes += bytes;
            }
        }
        Ok(storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linked_files_count_as_shared_and_holes_as_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&two).unwrap();
        std::fs::write(one.join("own"), vec![1; 65536]).unwrap();
        std::fs::write(one.join("both"), vec![1; 131_072]).unwrap();
        std::fs::hard_link(one.join("both"), two.join("both")).unwrap();
        std::fs::File::create(one.join("hole"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let storage = Storage::of(&one).unwrap();
        assert_eq!(storage.shared_bytes, 131_072);
        assert!((65536..131_072).contains(&storage.own_bytes), "{storage:?}");
        std::fs::remove_dir_all(two).unwrap();
        assert_eq!(Storage::of(&one).unwrap().shared_bytes, 0);
        assert_eq!(
            Storage::of(&folder.path().join("none")).unwrap(),
            Storage::default()
        );
    }
}
