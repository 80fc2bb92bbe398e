//! Dropping what the kernel keeps of files in memory.

use std::fs::{DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};

use e2b_client::Problem;
use rustix::fs::Advice;

/// How to drop it.
#[derive(Clone, Debug)]
pub(crate) enum PageCache {
    /// All of the machine's. Programs and root file systems must be read again, too.
    Machine,
    /// Only that of a sandbox's files in a data directory.
    DataDirectory(PathBuf),
}

impl PageCache {
    /// Drops it for one sandbox, and for other directories that belong to the same measurement.
    pub(crate) async fn drop_for(&self, sandbox: &str, others: &[PathBuf]) -> Result<(), Problem> {
        let mut directories = others.to_vec();
        if let Self::DataDirectory(data) = self {
            directories.push(data.join("sandboxes").join(sandbox));
        }
        let cache = self.clone();
        let dropped = tokio::task::spawn_blocking(move || match cache {
            Self::Machine => {
                // Only clean pages can be dropped.
                rustix::fs::sync();
                std::fs::write("/proc/sys/vm/drop_caches", "3")
            }
            Self::DataDirectory(_) => directories.iter().try_for_each(|it| evict(it)),
        });
        let dropped = dropped.await.expect("it does not panic");
        dropped.map_err(|error| Problem::Broken(format!("drop the page cache: {error}")))
    }
}

/// Drops the pages of all files below a directory, which must be there. What is below it may go
/// meanwhile: a server removes images that it has read.
fn evict(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        match evict_entry(&entry?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn evict_entry(entry: &DirEntry) -> io::Result<()> {
    let kind = entry.file_type()?;
    if kind.is_dir() {
        return evict(&entry.path());
    }
    if kind.is_file() {
        let file = File::open(entry.path())?;
        // Only clean pages can be dropped.
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_directory_is_told_and_a_right_one_kept_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("images/one");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join("pages"), "content").unwrap();
        evict(folder.path()).unwrap();
        assert_eq!(std::fs::read(below.join("pages")).unwrap(), b"content");
        assert!(evict(&folder.path().join("none")).is_err());
    }
}
