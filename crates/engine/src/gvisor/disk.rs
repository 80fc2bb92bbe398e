//! Disks: a directory with one sparse ext4 image of exactly the promised size.
//!
//! A filesystem of its own gives the guest a true ENOSPC and `df` on every host. Project quotas
//! would need kernel support that is often missing, and overlayfs writes with the capabilities that
//! exempt from them.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{
    Advice, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fadvise, openat, openat2,
    statat,
};

use super::boot_mark::Note;
use super::mounts::{self, Access};
use super::paths::ExecutionDir;
use super::{failed, loopdev};
use crate::EngineError;

const IMAGE: &str = "disk.img";
/// How long looking for files to forget may take: they only make a checkpoint faster.
const FORGETTING_LIMIT: Duration = Duration::from_secs(2);
/// Smaller files are not worth a system call each.
const WORTH_FORGETTING: u64 = 1 << 20;
/// The upper directory of the overlay, on a disk.
pub(super) const UPPER: &str = "upper";
/// Longer than from the mount of a disk for a start to the look at it after that has failed. A clock that
/// is set back by less meanwhile hides nothing.
const LONGEST_START: Duration = Duration::from_secs(20 * 60);
/// Where the superblock of ext4 begins.
const SUPERBLOCK: u64 = 1024;
/// Below this the journal would take most of the disk.
const SMALLEST: u64 = 16 << 20;

/// The image of a disk.
pub(super) fn image(disk: &Path) -> PathBuf {
    disk.join(IMAGE)
}

/// Makes an empty disk. Formatting a sparse file takes about 10 ms whatever its size, less than
/// copying a prepared one would, and every disk gets its own UUID.
pub(super) fn create(disk: &Path, size_bytes: u64) -> Result<(), EngineError> {
    let step = format!("create a disk of {size_bytes} bytes at {}", disk.display());
    if size_bytes < SMALLEST {
        let detail = format!("a disk needs at least {SMALLEST} bytes");
        return Err(EngineError::Failed { step, detail });
    }
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(disk)
        .map_err(failed(step.clone()))?;
    let made = make_image(&image(disk), size_bytes);
    if made.is_err() {
        // Nothing can be mounted in a directory that was created a moment ago.
        let _ = std::fs::remove_dir_all(disk);
    }
    made.map_err(failed(step))
}

fn make_image(image: &Path, size_bytes: u64) -> io::Result<()> {
    let file = File::create_new(image)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.set_len(size_bytes)?;
    drop(file);
    // A small journal and lazily written inode tables: the image stays a few hundred KiB until it is
    // used. No blocks reserved for root, since the guest's root is the only user. Explicit block
    // size: mke2fs would take 1 KiB for small disks.
    let journal = if size_bytes < (256 << 20) {
        "size=4"
    } else {
        "size=16"
    };
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J"])
        .arg(journal)
        .args(["-O", "^resize_inode"])
        .args([
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0",
        ])
        .arg(image)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("No space left on device") {
        return Err(io::Error::new(io::ErrorKind::StorageFull, message));
    }
    Err(io::Error::other(format!("mke2fs: {message}")))
}

/// Removes a disk, unless an execution still uses it.
pub(super) fn remove(disk: &Path) -> Result<(), EngineError> {
    let step = format!("remove the disk {}", disk.display());
    let removed = loopdev::wait_released(&image(disk)).and_then(|()| std::fs::remove_dir_all(disk));
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed(step)),
    }
}

/// Mounts a disk, the sealed disks below it (topmost first), and at the root of the execution the
/// overlay of all of them and `layers`. On failure the caller unmounts what may have been mounted.
pub(super) fn mount_all(
    disk: &Path,
    sealed: &[PathBuf],
    layers: &[PathBuf],
    directory: &ExecutionDir,
) -> io::Result<()> {
    let (disk_mount, rootfs) = (directory.disk_mount(), directory.rootfs());
    // Side by side: each mount waits for its reads most of the time.
    std::thread::scope(|scope| {
        let below = scoped(scope, || mount_sealed(sealed, directory))?;
        let own = mounts::mount_disk(&image(disk), &disk_mount, Access::ReadWrite);
        let mut all = joined(below)?;
        all.extend_from_slice(layers);
        own.map(|()| all)
    })
    .and_then(|layers| mount_rootfs(&layers, &disk_mount, &rootfs))
}

/// Mounts sealed disks (topmost first) and answers the layers on them.
fn mount_sealed(sealed: &[PathBuf], directory: &ExecutionDir) -> io::Result<Vec<PathBuf>> {
    std::thread::scope(|scope| {
        let mounting: Vec<_> = sealed
            .iter()
            .enumerate()
            .map(|(position, disk)| {
                let target = directory.sealed_mount(position);
                scoped(scope, move || mount_one_sealed(disk, &target))
            })
            .collect();
        // All of them are waited for, also when one fails.
        let mounted: Vec<_> = mounting
            .into_iter()
            .map(|thread| thread.and_then(joined))
            .collect();
        mounted.into_iter().collect()
    })
}

/// A thread of a scope; that there can be none is an error like any other.
fn scoped<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<std::thread::ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().spawn_scoped(scope, work)
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn mount_one_sealed(disk: &Path, target: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir(target)?;
    mounts::mount_disk(&image(disk), target, Access::Sealed)?;
    let upper = target.join(UPPER);
    check_directory(&upper)?;
    Ok(upper)
}

/// A disk may come from somebody else, and a link in the place of a directory of ours would bring a
/// directory of the host into the guest.
pub(super) fn check_directory(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        return Ok(());
    }
    let problem = format!("{} is no directory", path.display());
    Err(io::Error::new(io::ErrorKind::NotADirectory, problem))
}

/// Mounts the overlay of `layers` (topmost first) and the disk that is mounted at `disk_mount`.
pub(super) fn mount_rootfs(layers: &[PathBuf], disk_mount: &Path, rootfs: &Path) -> io::Result<()> {
    let top = layers
        .first()
        .ok_or_else(|| io::Error::other("no layer to put the disk on"))?;
    let (upper, work) = (disk_mount.join(UPPER), disk_mount.join("work"));
    match upper.symlink_metadata() {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            prepare(&top.metadata()?, &upper, &work)?;
        }
        // What is there and cannot be read must not be replaced by something empty.
        Err(error) => return Err(error),
    }
    for directory in [&upper, &work] {
        check_directory(directory)?;
    }
    mounts::mount_overlay(layers, &upper, &work, rootfs)
}

/// The root of the upper hides those of the layers, so it takes over owner and mode. It is made
/// last and by a rename: a crash half way leaves no upper at all.
fn prepare(top: &Metadata, upper: &Path, work: &Path) -> io::Result<()> {
    std::fs::create_dir_all(work)?;
    let fresh = upper.with_file_name("upper.new");
    std::fs::create_dir_all(&fresh)?;
    std::os::unix::fs::chown(&fresh, Some(top.uid()), Some(top.gid()))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(top.mode() & 0o7777))?;
    std::fs::rename(fresh, upper)
}

/// Drops what the host caches of large files on a mounted disk, after writing it back. Files that the
/// guest removes meanwhile are no matter.
pub(super) fn forget_cached_files(disk_mount: &Path) -> io::Result<()> {
    mounts::sync_filesystem(disk_mount)?;
    let upper = disk_mount.join(UPPER);
    let upper = openat(CWD, &upper, directory_flags(), Mode::empty())?;
    let deadline = Instant::now() + FORGETTING_LIMIT;
    let mut pending = vec![PathBuf::from(".")];
    while let Some(directory) = pending.pop() {
        let Ok(opened) = open_beneath(&upper, &directory, directory_flags()) else {
            continue;
        };
        for entry in Dir::read_from(&opened)?.flatten() {
            let name = entry.file_name();
            if Instant::now() > deadline {
                return Ok(());
            }
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(found) = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let path = directory.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => pending.push(path),
                FileType::RegularFile if found.st_size.unsigned_abs() >= WORTH_FORGETTING => {
                    // The guest may put anything else in its place meanwhile: wait for no pipe.
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    if let Ok(file) = open_beneath(&upper, &path, flags) {
                        let _ = fadvise(&file, 0, None, Advice::DontNeed);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Opens what is at `path` below a directory that a guest may be changing: whatever it puts in the
/// place of a part of the path, nothing outside is reached.
fn open_beneath(directory: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(directory, path, flags, Mode::empty(), inside)
}

/// Whether anything in the upper has a change time after `instant` that is not our own. Mounts the disk below
/// `inspect` for the time of the look.
pub(super) fn changed_since(
    disk: &Path,
    inspect: &Path,
    instant: SystemTime,
) -> Result<bool, EngineError> {
    let step = format!("look for changes on the disk {}", disk.display());
    let look = || {
        // Before it is mounted again.
        let latest = latest_change(last_mounted(&image(disk))?, SystemTime::now());
        let since = Since { instant, latest };
        inspected(disk, inspect, |target| tree_changed_since(target, since))
    };
    look().map_err(failed(step))
}

/// The same of a disk that is mounted for a guest that stands still. All later times count: a change too
/// many costs a guest nothing here.
pub(super) fn mounted_changed_since(disk_mount: &Path, instant: SystemTime) -> io::Result<bool> {
    let latest = None;
    tree_changed_since(disk_mount, Since { instant, latest })
}

/// Which change times count.
#[derive(Clone, Copy, Debug)]
struct Since {
    /// Later than this,
    instant: SystemTime,
    /// and, if there is such a bound, not later than this.
    latest: Option<SystemTime>,
}

impl Since {
    fn counts(&self, changed: SystemTime) -> bool {
        changed > self.instant && self.latest.is_none_or(|latest| changed <= latest)
    }
}

/// Nothing that was changed since the disk was `mounted` has a later change time than this, by a look at
/// it `now`: times far ahead are of a clock that was set back before. Without an answer the clock was set
/// back since, and nothing of the kind can be said.
fn latest_change(mounted: SystemTime, now: SystemTime) -> Option<SystemTime> {
    (mounted <= now).then(|| now + LONGEST_START)
}

/// When a disk was last mounted to be written (`s_mtime` of its superblock), in whole seconds. Holds until
/// the year 2106.
fn last_mounted(image: &Path) -> io::Result<SystemTime> {
    const MOUNTED: u64 = SUPERBLOCK + 0x2c;
    let mut seconds = [0; 4];
    File::open(image)?.read_exact_at(&mut seconds, MOUNTED)?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u32::from_le_bytes(seconds).into()))
}

/// Has the kernel replay the journal of a disk that was not cleanly unmounted. A sealed mount cannot:
/// its device is read-only, and ext4 refuses to mount without.
pub(super) fn settle(disk: &Path, inspect: &Path) -> Result<(), EngineError> {
    let replay = || -> io::Result<()> {
        if !needs_recovery(&image(disk))? {
            return Ok(());
        }
        inspected(disk, inspect, |_| Ok(()))?;
        if needs_recovery(&image(disk))? {
            return Err(io::Error::other("its journal could not be replayed"));
        }
        Ok(())
    };
    replay().map_err(failed(format!("settle the disk {}", disk.display())))
}

/// Whether the superblock says that the journal holds something (`EXT4_FEATURE_INCOMPAT_RECOVER`).
pub(super) fn needs_recovery(image: &Path) -> io::Result<bool> {
    const INCOMPAT: u64 = SUPERBLOCK + 0x60;
    const RECOVER: u32 = 0x4;
    let mut features = [0; 4];
    File::open(image)?.read_exact_at(&mut features, INCOMPAT)?;
    Ok(u32::from_le_bytes(features) & RECOVER != 0)
}

/// Does `work` on the disk while it is mounted below `inspect`, its journal replayed.
fn inspected<T>(
    disk: &Path,
    inspect: &Path,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let target = inspect.join(format!("{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&target)?;
    let done =
        mounts::mount_disk(&image(disk), &target, Access::ReadOnly).and_then(|()| work(&target));
    mounts::unmount_and_remove(&target)?;
    loopdev::wait_released(&image(disk))?;
    done
}

fn tree_changed_since(disk_mount: &Path, since: Since) -> io::Result<bool> {
    let note = Note::read(disk_mount)?;
    let root = disk_mount.join(UPPER);
    let mut pending = vec![root.clone()];
    while let Some(path) = pending.pop() {
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            // A disk that was never started from has no upper yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == root => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let mut changed = change_time(&metadata);
        if let Some(note) = &note {
            changed = note.changed(disk_mount, &path, changed);
        }
        if since.counts(changed) {
            return Ok(true);
        }
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok(false)
}

pub(super) fn change_time(metadata: &Metadata) -> SystemTime {
    let seconds = Duration::from_secs(metadata.ctime().unsigned_abs());
    let nanoseconds = Duration::from_nanos(metadata.ctime_nsec().unsigned_abs());
    // Before 1970 only by a broken clock: as old as can be.
    if metadata.ctime() < 0 {
        return SystemTime::UNIX_EPOCH;
    }
    SystemTime::UNIX_EPOCH + seconds + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_files_are_forgotten_wherever_they_are() {
        // On a disk: a tmpfs is all cache.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = folder.path().join(UPPER).join("deep/image");
        std::fs::create_dir_all(&image).unwrap();
        std::fs::write(image.join("pages.img"), vec![1; 16 << 20]).unwrap();
        assert!(!super::super::image::reads_directly(&image), "it is cached");
        forget_cached_files(folder.path()).unwrap();
        assert!(super::super::image::reads_directly(&image));
    }

    #[test]
    fn nothing_is_opened_behind_a_link_that_a_guest_puts_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let upper = folder.path().join(UPPER);
        std::fs::create_dir_all(upper.join("directory")).unwrap();
        std::fs::write(upper.join("directory/file"), "inside").unwrap();
        let outside = folder.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "outside").unwrap();
        let root = openat(CWD, &upper, directory_flags(), Mode::empty()).unwrap();
        let open = |path: &str| open_beneath(&root, Path::new(path), OFlags::RDONLY);
        open("directory/file").unwrap();
        open(".").unwrap();

        std::fs::rename(upper.join("directory"), upper.join("moved")).unwrap();
        std::os::unix::fs::symlink(&outside, upper.join("directory")).unwrap();
        open("directory/file").unwrap_err();
        open("directory").unwrap_err();
        open("../outside/file").unwrap_err();
    }

    #[test]
    fn change_times_of_a_clock_that_was_ahead_do_not_count() {
        let at = |minutes: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minutes);
        let (instant, now) = (at(1000), at(1010));
        let counts = |mounted, changed| {
            let latest = latest_change(mounted, now);
            Since { instant, latest }.counts(changed)
        };
        assert!(!counts(at(1005), at(999)), "before the pause");
        assert!(counts(at(1005), at(1006)), "by the start that failed");
        assert!(counts(at(1005), at(1010)), "at this moment");
        // The clock was two hours ahead when the file was written, before the pause.
        assert!(!counts(at(1005), at(1120)));
        // Or it was set back since the start: by little, or so that the mount lies ahead as well.
        assert!(counts(at(1009), at(1015)));
        assert!(counts(at(1119), at(1120)));
    }

    #[test]
    fn the_time_of_the_last_mount_is_where_ext4_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        create(&disk, SMALLEST).unwrap();
        let never = last_mounted(&image(&disk)).unwrap();
        assert_eq!(never, SystemTime::UNIX_EPOCH);
        let set = ["-w", "-R", "set_super_value mtime @1700000000"];
        let done = Command::new("debugfs").args(set).arg(image(&disk)).status();
        assert!(done.unwrap().success());
        let expected = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(last_mounted(&image(&disk)).unwrap(), expected);
    }

    #[test]
    fn a_tree_with_files_of_the_future_is_as_old_as_its_other_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(UPPER)).unwrap();
        std::fs::write(folder.path().join(UPPER).join("file"), "").unwrap();
        let written = SystemTime::now();
        let hour = Duration::from_secs(3600);
        // The clock was an hour ahead of what it is at the look.
        let (mounted, now) = (written - hour, written - hour);
        let looked = |latest| {
            let instant = written - 2 * hour;
            tree_changed_since(folder.path(), Since { instant, latest }).unwrap()
        };
        assert!(!looked(latest_change(mounted, now)));
        assert!(looked(latest_change(written, now)));
        assert!(looked(None));
    }

    #[test]
    fn a_link_in_the_place_of_a_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (upper, link) = (folder.path().join("upper"), folder.path().join("link"));
        std::fs::create_dir(&upper).unwrap();
        std::os::unix::fs::symlink("/", &link).unwrap();
        check_directory(&upper).unwrap();
        check_directory(&link).unwrap_err();
        check_directory(&folder.path().join("nothing")).unwrap_err();
    }
}
