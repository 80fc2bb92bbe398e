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

/// For what a guest wrote, wherever the host mounts it: the host opens no device of it and takes no
/// rights from a file of it. The guest's own kernel decides what these mean inside.
const OF_GUESTS: MountFlags = MountFlags::NOATIME
    .union(MountFlags::NODEV)
    .union(MountFlags::NOSUID);

/// Mounts a disk image at `target`, which must exist.
pub(super) fn mount_disk(image: &Path, target: &Path, access: Access) -> io::Result<()> {
    let device = loopdev::attach(image, access)?;
    // Nothing is run from here: guests reach a disk through the overlay over it.
    let mut flags = OF_GUESTS | MountFlags::NOEXEC;
    if access != Access::ReadWrite {
        flags |= MountFlags::RDONLY;
    }
    // noinit_itable: the image is sparse, so its inode tables are zero already; the kernel's lazy
    // zeroing would only make noise. discard: deleted files give their blocks back to the host.
    // errors: without it the image decides, and one that was imported may ask for a panic of the host.
    let options = match access {
        Access::ReadWrite => c"noinit_itable,discard,errors=remount-ro",
        Access::ReadOnly | Access::Sealed => c"noinit_itable,discard,errors=continue",
    };
    mount(&device.path, target, "ext4", flags, options)
        .map_err(|error| DamagedDisk::instead_of(image, error.into()))
    // The device goes when the mount goes: `device` is dropped here, and it is set to autoclear.
}

/// Mounts what is left of a disk image at `target`, which must exist: nothing is written, no journal
/// replayed, and errors on the disk are errors of what is read. `copy` is where a copy of the
/// superblock is, in KiB.
pub(super) fn mount_damaged(image: &Path, target: &Path, copy: Option<u64>) -> io::Result<()> {
    let device = loopdev::attach(image, Access::Sealed)?;
    let mut options = String::from("noload,errors=continue");
    if let Some(copy) = copy {
        options.push_str(&format!(",sb={copy}"));
    }
    let options = CString::new(options)?;
    let path = &device.path;
    mount(path, target, "ext4", to_read(), options.as_c_str())
        .map_err(|error| DamagedDisk::instead_of(image, error.into()))
}

/// Mounts `layers` (topmost first) at `target` to be read, nothing of which is to be run.
pub(super) fn mount_overlay_to_read(layers: &[PathBuf], target: &Path) -> io::Result<()> {
    let mut options = lower(layers);
    // xino off: to number the entries of a directory it looks at each of them, and one that cannot be
    // read would cost the whole list.
    options.extend_from_slice(b",redirect_dir=follow,xino=off,index=off,metacopy=off");
    let options = one_page(options, layers)?;
    mount(
        c"overlay",
        target,
        c"overlay",
        to_read(),
        options.as_c_str(),
    )?;
    Ok(())
}

fn to_read() -> MountFlags {
    OF_GUESTS | MountFlags::RDONLY | MountFlags::NOEXEC
}

/// A disk whose file system the kernel does not mount, or not read.
#[derive(Debug, thiserror::Error)]
#[error("the file system in {image} is damaged: {source}")]
pub(super) struct DamagedDisk {
    image: PathBuf,
    source: io::Error,
}

impl DamagedDisk {
    /// In place of an error that says it of the disk; any other error stays what it is.
    fn instead_of(image: &Path, source: io::Error) -> io::Error {
        let says_so = [libc::EUCLEAN, libc::EBADMSG, libc::EIO, libc::EINVAL];
        let code = source.raw_os_error();
        if !code.is_some_and(|code| says_so.contains(&code)) {
            return source;
        }
        let image = image.to_owned();
        io::Error::new(io::ErrorKind::InvalidData, Self { image, source })
    }

    /// Whether an error is one of these, or can come from nothing else.
    pub(super) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
            || [libc::EUCLEAN, libc::EBADMSG, libc::EIO]
                .map(Some)
                .contains(&error.raw_os_error())
    }
}

/// Mounts `layers` (topmost first) with a writable `upper` over them at `target`.
pub(super) fn mount_overlay(
    layers: &[PathBuf],
    upper: &Path,
    work: &Path,
    target: &Path,
) -> io::Result<()> {
    let mut options = lower(layers);
    options.extend_from_slice(b",upperdir=");
    escape(upper, &mut options);
    options.extend_from_slice(b",workdir=");
    escape(work, &mut options);
    // redirect_dir: without it renaming a directory of a layer fails with EXDEV. index and metacopy
    // off, whatever the kernel's default: layers get stacked and copied, and file handles or
    // data-less copies in an upper would not survive that.
    options.extend_from_slice(b",redirect_dir=on,xino=auto,index=off,metacopy=off");
    let options = one_page(options, layers)?;
    // Not noexec: the engine maps the guest's programs from here to be executed.
    let flags = OF_GUESTS;
    mount(c"overlay", target, c"overlay", flags, options.as_c_str())?;
    Ok(())
}

fn lower(layers: &[PathBuf]) -> Vec<u8> {
    let mut options = Vec::from(&b"lowerdir="[..]);
    for (position, layer) in layers.iter().enumerate() {
        if position > 0 {
            options.push(b':');
        }
        escape(layer, &mut options);
    }
    options
}

fn one_page(options: Vec<u8>, layers: &[PathBuf]) -> io::Result<CString> {
    if options.len() > OPTIONS_LIMIT {
        let problem = format!("{} layers are too many to mount", layers.len());
        return Err(io::Error::other(problem));
    }
    Ok(CString::new(options)?)
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
