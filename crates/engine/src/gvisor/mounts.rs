//! Mounting and unmounting.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::loopdev;

/// How long a mount may stay busy after its last user ended: on a loaded machine the kernel takes
/// some seconds to let go.
const BUSY_LIMIT: Duration = Duration::from_secs(15);
const BUSY_POLL: Duration = Duration::from_millis(5);
/// The kernel takes one page of mount options.
const OPTIONS_LIMIT: usize = 4095;

/// How a disk is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    /// Still replays the journal after a crash: without that the tree would be a stale one.
    ReadOnly,
    /// Nothing at all is written, not even a journal replayed; others may mount the image, too.
    Sealed,
}

/// Mounts a disk image at `target`, which must exist.
pub(super) fn mount_disk(image: &Path, target: &Path, access: Access) -> io::Result<()> {
    let device = loopdev::attach(image, access)?;
    let mut flags = MountFlags::NOATIME | MountFlags::NODEV;
    if access != Access::ReadWrite {
        flags |= MountFlags::RDONLY;
    }
    // noinit_itable: the image is sparse, so its inode tables are zero already; the kernel's lazy
    // zeroing would only make noise. discard: deleted files give their blocks back to the host.
    mount(
        &device.path,
        target,
        "ext4",
        flags,
        c"noinit_itable,discard",
    )?;
    Ok(())
    // The device goes when the mount goes: `device` is dropped here, and it is set to autoclear.
}

/// Mounts `layers` (topmost first) with a writable `upper` over them at `target`.
pub(super) fn mount_overlay(
    layers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> io::Result<()> {
    let mut options = Vec::from(&b"lowerdir="[..]);
    for (position, layer) in layers.iter().enumerate() {
        if position > 0 {
            options.push(b':');
        }
        escape(layer, &mut options);
    }
    options.extend_from_slice(b",upperdir=");
    escape(upper, &mut options);
    options.extend_from_slice(b",workdir=");
    escape(work, &mut options);
    // redirect_dir: without it renaming a directory of a layer fails with EXDEV. index and metacopy
    // off, whatever the kernel's default: layers get stacked and copied, and file handles or
    // data-less copies in an upper would not survive that.
    options.extend_from_slice(b",redirect_dir=on,xino=auto,index=off,metacopy=off");
    if options.len() > OPTIONS_LIMIT {
        return Err(io::Error::other(format!(
            "{} layers are too many to mount",
            layers.len()
        )));
    }
    let options = CString::new(options)?;
    // Devices are never opened from the host's side: the guest's own are emulated.
    let flags = MountFlags::NOATIME | MountFlags::NODEV;
    mount(c"overlay", target, c"overlay", flags, options.as_c_str())?;
    Ok(())
}

/// Overlayfs splits its options at commas and layers at colons.
fn escape(path: &Path, options: &mut Vec<u8>) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            options.push(b'\\');
        }
        options.push(byte);
    }
}

/// Unmounts all that is mounted at `target` and removes this directory, which must be a mount point
/// or empty. A missing one is success. When this fails, nothing below a mount was removed.
///
/// A program that unshares its mount namespace (`unshare -m`, some containers) takes copies of all
/// mounts of the host with it and would keep filesystem and device alive for as long as it likes.
/// Removing the mount point makes the kernel take it away in all other namespaces, too.
pub(super) fn unmount_and_remove(target: &Path) -> io::Result<()> {
    unmount_all(target)?;
    match std::fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(about("remove", target, error))
        }
        _ => Ok(()),
    }
}

/// Unmounts all that is mounted at `target`; nothing mounted, or no such directory, is success.
/// When this fails the mount is still there.
pub(super) fn unmount_all(target: &Path) -> io::Result<()> {
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            // There may be another one below.
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if Instant::now() < deadline => {
                std::thread::sleep(BUSY_POLL);
            }
            Err(error) => return Err(about("unmount", target, error.into())),
        }
    }
}

/// Names what an error is about; the kind stays.
pub(super) fn about(step: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{step} {}: {error}", path.display()))
}

/// Makes everything written to the filesystem at `path` durable.
pub(super) fn sync_filesystem(path: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(path)?)?;
    Ok(())
}

/// Mount points below a directory, deepest and newest first.
pub(super) fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut points = Vec::new();
    for line in table.split(|&byte| byte == b'\n') {
        let Some(field) = line.split(|&byte| byte == b' ').nth(4) else {
            continue;
        };
        let point = unescape(field);
        if point != directory && point.starts_with(directory) {
            points.push(point);
        }
    }
    points.reverse();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(points)
}

/// mountinfo writes spaces and the like as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_paths_are_escaped_for_overlayfs() {
        let mut options = Vec::new();
        escape(Path::new("/a,b:c\\d"), &mut options);
        assert_eq!(options, b"/a\\,b\\:c\\\\d");
    }

    #[test]
    fn spaces_in_mount_points_are_read_back() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
    }
}
