//! Copies and shares disks that no execution writes to.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};

/// Copies every file of the disk directory `from` into the new directory `to`, sharing blocks
/// where the file system can and leaving holes holes: a 10 GiB disk with 2 MiB of data costs
/// 2 MiB.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            copy_file(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Hard-links every file of the disk directory `from` into the new directory `to`, and makes content
/// and links durable.
pub(crate) fn share(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            share(&entry.path(), &target)?;
        } else {
            fs::hard_link(entry.path(), &target)?;
            File::open(&target)?.sync_all()?;
        }
    }
    File::open(to)?.sync_all()
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
}
