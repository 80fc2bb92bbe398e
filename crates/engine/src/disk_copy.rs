//! Copies and shares disks that no execution writes to.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};

/// Copies every file of the disk directory `from` into the new directory `to`, sharing blocks
/// where the file system can and leaving holes holes: a 10 GiB disk with 2 MiB of data costs
/// 2 MiB. Nothing is durable before [`sync`].
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    each_file(from, to, &copy_file).and_then(|files| some(files, from))
}

/// Hard-links every file of the disk directory `from` into the new directory `to`, and makes content
/// and links durable.
pub(crate) fn share(from: &Path, to: &Path) -> io::Result<()> {
    each_file(from, to, &|from, to| fs::hard_link(from, to)).and_then(|files| some(files, from))?;
    sync(to)
}

/// Makes a disk directory durable: the content of its files, their names, and its own name.
pub(crate) fn sync(disk: &Path) -> io::Result<()> {
    sync_tree(disk)?;
    match disk.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

/// Does `work` for every file below `from` and its place below the new directory `to`; answers how
/// many there were.
fn each_file(
    from: &Path,
    to: &Path,
    work: &dyn Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<u64> {
    fs::create_dir(to)?;
    let mut files = 0;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files += each_file(&entry.path(), &target, work)?;
        } else {
            work(&entry.path(), &target)?;
            files += 1;
        }
    }
    Ok(files)
}

/// A removal that comes in between takes the files first and the directory last: a disk without a
/// file is a disk that is gone, not an empty one.
fn some(files: u64, disk: &Path) -> io::Result<()> {
    if files > 0 {
        return Ok(());
    }
    let problem = format!("there is no file in {}", disk.display());
    Err(io::Error::new(io::ErrorKind::NotFound, problem))
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::create_new(to)?;
    target.set_permissions(source.metadata()?.permissions())?;
    // A clone shares all blocks at once (XFS, btrfs); ext4 answers EOPNOTSUPP.
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    ftruncate(&target, size)?;
    let mut position = 0;
    while position < size {
        let start = match seek(&source, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            let length = usize::try_from(end - read_at).unwrap_or(usize::MAX);
            let copied = copy_file_range(
                &source,
                Some(&mut read_at),
                &target,
                Some(&mut write_at),
                length,
            )?;
            if copied == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the disk was cut short",
                ));
            }
        }
        position = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_same_content_and_keeps_holes() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("a");
        fs::create_dir(&disk).unwrap();
        let mut file = File::create(disk.join("disk.img")).unwrap();
        file.set_len(1 << 30).unwrap();
        file.seek(io::SeekFrom::Start(512 << 20)).unwrap();
        file.write_all(b"in the middle").unwrap();
        let target = folder.path().join("b");
        copy(&disk, &target).unwrap();

        let copied = File::open(target.join("disk.img")).unwrap();
        assert_eq!(copied.metadata().unwrap().len(), 1 << 30);
        assert!(copied.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut found = [0; 13];
        std::os::unix::fs::FileExt::read_exact_at(&copied, &mut found, 512 << 20).unwrap();
        assert_eq!(&found, b"in the middle");
    }

    #[test]
    fn either_home_of_a_shared_disk_outlives_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir(&first).unwrap();
        fs::write(first.join("disk.img"), b"content").unwrap();
        share(&first, &second).unwrap();
        let inode = |disk: &Path| disk.join("disk.img").metadata().unwrap().ino();
        assert_eq!(inode(&first), inode(&second));
        fs::remove_dir_all(first).unwrap();
        assert_eq!(fs::read(second.join("disk.img")).unwrap(), b"content");
        assert!(
            share(&second, &second).is_err(),
            "a disk in the way is refused"
        );
    }

    #[test]
    fn a_disk_that_is_being_removed_is_neither_shared_nor_copied() {
        let folder = tempfile::tempdir().unwrap();
        let half_gone = folder.path().join("a");
        fs::create_dir(&half_gone).unwrap();
        for work in [copy, share] {
            let to = folder.path().join(format!("{:x}", rand::random::<u64>()));
            let error = work(&half_gone, &to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    }
}
