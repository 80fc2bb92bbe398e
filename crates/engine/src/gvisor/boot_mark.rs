//! The file that a boot leaves in the guest's `/tmp`, and what it does to the change times there.
//!
//! gVisor mounts a tmpfs of its own, without a limit, over a `/tmp` that is empty at a boot: it would
//! be memory of the sandbox, and lost by a filesystem-only pause. A mark in it prevents that; PID 1
//! removes it. When no PID 1 came to that, the mark is taken back.
//!
//! Change times cannot be set, so a boot that failed would look like a guest that wrote. Therefore the
//! disk notes, where no guest can reach it, what the change times of `/tmp` and of the root were and
//! what our own work made of them: as long as they are exactly that, the earlier ones count.

use std::fs::{File, FileTimes};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::XattrFlags;

use super::disk::{UPPER, change_time};

/// Extended attribute of the root of a disk, which is not the root of the guest's tree.
const NOTE: &str = "trusted.sandbase.boot";
/// Of the root and of `/tmp`: before and after, in nanoseconds since 1970.
const NOTE_BYTES: usize = 4 * 8;

/// Change times of the upper's root and of its `/tmp`. Where there is nothing: 1970.
#[derive(Clone, Copy, Debug)]
struct Times {
    root: SystemTime,
    tmp: SystemTime,
}

impl Times {
    fn read(disk_mount: &Path) -> io::Result<Self> {
        let of = |path: &Path| match path.symlink_metadata() {
            Ok(metadata) => Ok(change_time(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SystemTime::UNIX_EPOCH),
            Err(error) => Err(error),
        };
        let upper = disk_mount.join(UPPER);
        Ok(Self {
            root: of(&upper)?,
            tmp: of(&upper.join("tmp"))?,
        })
    }
}

/// What our own work changed on a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    before: Times,
    after: Times,
}

impl Note {
    /// `None` for a disk that has none.
    pub(super) fn read(disk_mount: &Path) -> io::Result<Option<Self>> {
        let mut bytes = [0; NOTE_BYTES];
        match rustix::fs::lgetxattr(disk_mount, NOTE, &mut bytes[..]) {
            Ok(NOTE_BYTES) => {}
            // One of another length is none of ours.
            Ok(_) | Err(rustix::io::Errno::RANGE | rustix::io::Errno::NODATA) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut times = bytes.chunks_exact(8).map(|chunk| {
            let nanoseconds = chunk
                .iter()
                .rev()
                .fold(0, |all, &b| all << 8 | u64::from(b));
            SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds)
        });
        let mut pair = || {
            Some(Times {
                root: times.next()?,
                tmp: times.next()?,
            })
        };
        Ok(pair()
            .zip(pair())
            .map(|(before, after)| Self { before, after }))
    }

    fn write(&self, disk_mount: &Path) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(NOTE_BYTES);
        for times in [self.before, self.after] {
            for time in [times.root, times.tmp] {
                let age = time
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                let nanoseconds = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
                bytes.extend_from_slice(&nanoseconds.to_le_bytes());
            }
        }
        rustix::fs::lsetxattr(disk_mount, NOTE, &bytes, XattrFlags::empty())?;
        Ok(())
    }

    /// When somebody else last changed what lies at `path` and has the change time `time`.
    pub(super) fn changed(&self, disk_mount: &Path, path: &Path, time: SystemTime) -> SystemTime {
        let upper = disk_mount.join(UPPER);
        if path == upper && time == self.after.root {
            self.before.root
        } else if path == upper.join("tmp") && time == self.after.tmp {
            self.before.tmp
        } else {
            time
        }
    }

    /// The times before our own work, the one of an earlier note not counted either.
    fn undisturbed(earlier: Option<Self>, now: Times) -> Times {
        let Some(Self { before, after }) = earlier else {
            return now;
        };
        let pick = |now, after, before| if now == after { before } else { now };
        Times {
            root: pick(now.root, after.root, before.root),
            tmp: pick(now.tmp, after.tmp, before.tmp),
        }
    }
}

/// Puts the mark into the mounted tree, before a boot.
pub(super) fn put(rootfs: &Path, disk_mount: &Path) -> io::Result<()> {
    let tmp = rootfs.join("tmp");
    let Ok(metadata) = tmp.symlink_metadata() else {
        // A change of the guest's tree that is not taken back, so it has to be seen as one: no note.
        std::fs::create_dir(&tmp)?;
        std::fs::set_permissions(&tmp, std::fs::Permissions::from_mode(0o1777))?;
        return make(&tmp).map(|_| ());
    };
    // A link would lead out of the guest's tree; gVisor leaves one alone.
    if !metadata.is_dir() {
        return Ok(());
    }
    let before = Note::undisturbed(Note::read(disk_mount)?, Times::read(disk_mount)?);
    if make(&tmp)? {
        set_modified(&tmp, metadata.modified()?)?;
        let after = Times::read(disk_mount)?;
        Note { before, after }.write(disk_mount)?;
    }
    Ok(())
}

/// Whether it was not there yet.
fn make(tmp: &Path) -> io::Result<bool> {
    // Exclusively: the guest may have left a link of this name to a file of the host.
    match File::create_new(tmp.join(crate::TMP_MARK)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the mark of a boot that failed, on a disk from which no tree is mounted any more. Does
/// nothing when anybody did anything in `/tmp` since.
pub(super) fn take_back(disk_mount: &Path) -> io::Result<()> {
    let tmp = disk_mount.join(UPPER).join("tmp");
    let Ok(metadata) = tmp.symlink_metadata() else {
        return Ok(());
    };
    let mark = tmp.join(crate::TMP_MARK);
    if !metadata.is_dir() || mark.symlink_metadata().is_err() {
        return Ok(());
    }
    let Some(note) = Note::read(disk_mount)? else {
        return Ok(());
    };
    let now = Times::read(disk_mount)?;
    if now.tmp != note.after.tmp {
        return Ok(());
    }
    std::fs::remove_file(mark)?;
    set_modified(&tmp, metadata.modified()?)?;
    let before = Note::undisturbed(Some(note), now);
    let after = Times::read(disk_mount)?;
    Note { before, after }.write(disk_mount)
}

fn set_modified(directory: &Path, time: SystemTime) -> io::Result<()> {
    File::open(directory)?.set_times(FileTimes::new().set_modified(time))
}
