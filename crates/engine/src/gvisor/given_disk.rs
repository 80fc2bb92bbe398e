//! Disks that somebody else made: looked at before the kernel of this host mounts one.
//!
//! An ext4 superblock may ask its host for more than a mount: to panic at an error, to keep its journal
//! on another device, to mount with options of its own. Mount options of ours say otherwise for some of
//! it; what no disk of ours has is refused here. The rest is left to `e2fsck`, in a process of its own
//! with little memory and time: it replays the journal and finds what would lead the kernel astray.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::process::Command;

use super::{disk, failed};
use crate::EngineError;

/// Some seconds for a disk of 10 GiB with some 100,000 files; much more only for a trap.
const LIMIT: Duration = Duration::from_secs(300);
/// Address space of the check. A disk of 10 GiB needs some 10 MiB.
const ADDRESS_SPACE: u64 = 2 << 30;
/// Where the superblock begins, and how long it is.
const SUPERBLOCK: u64 = 1024;
const LENGTH: usize = 1024;
const MAGIC: u16 = 0xef53;
const ERRORS_PANIC: u16 = 3;
/// Of `s_feature_incompat`: file types, a journal to be replayed, block groups spread, extents, 64 bits,
/// flexible groups, attributes in inodes, checksum seed, large directories, data in inodes.
const KNOWN_FEATURES: u32 =
    0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000;
/// Protection against a mount on two hosts: a thread of the kernel that writes as long as it is mounted.
const MULTIPLE_MOUNT: u32 = 0x100;
/// Of `s_default_mount_opts`: user attributes and access lists, as `mke2fs` sets them.
const KNOWN_OPTIONS: u32 = 0x4 | 0x8;
/// Answers of `e2fsck -p` for a sound disk: it was sound, or is after what it replayed and tidied.
const SOUND: [i32; 2] = [0, 1];

/// Checks a disk that nobody uses, and replays its journal.
pub(super) async fn check(disk: &Path) -> Result<(), EngineError> {
    let image = disk::image(disk);
    let step = format!("check the disk {}", disk.display());
    match image.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(damaged("its image is no file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged("it has no image"));
        }
        Err(error) => return Err(failed(step)(error)),
    }
    let mut superblock = [0; LENGTH];
    let file = File::open(&image).map_err(failed(step.clone()))?;
    if file.read_exact_at(&mut superblock, SUPERBLOCK).is_err() {
        return Err(damaged("its image is cut short"));
    }
    check_superblock(&superblock).map_err(damaged)?;
    run_check(&image, &step).await?;
    file.sync_all().map_err(failed(step))
}

fn damaged(detail: &str) -> EngineError {
    EngineError::DiskDamaged {
        detail: detail.to_owned(),
    }
}

/// Refuses what no disk of ours asks of its host.
fn check_superblock(superblock: &[u8; LENGTH]) -> Result<(), &'static str> {
    let short = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
    let long = |at: usize| u32::from(short(at)) | u32::from(short(at + 2)) << 16;
    if short(0x38) != MAGIC {
        return Err("it is no ext4 file system");
    }
    if short(0x3c) == ERRORS_PANIC {
        return Err("it asks the host to panic at an error (tune2fs -e)");
    }
    let features = long(0x60);
    if features & MULTIPLE_MOUNT != 0 {
        return Err("it has protection against multiple mounts (MMP), which no disk here has");
    }
    if features & !KNOWN_FEATURES != 0 {
        return Err("it has features of ext4 that no disk here has");
    }
    if long(0xe4) != 0 {
        return Err("its journal is on another device");
    }
    if long(0x100) & !KNOWN_OPTIONS != 0 || superblock[0x200..0x240].iter().any(|byte| *byte != 0) {
        return Err("it brings mount options of its own (tune2fs -o, -E mount_opts)");
    }
    Ok(())
}

/// Preens: an image of a disk in use has a journal and deleted open files left, which every mount would
/// clean up, too; anything worse is an answer.
async fn run_check(image: &Path, step: &str) -> Result<(), EngineError> {
    let mut command = Command::new("e2fsck");
    command.args(["-f", "-p"]).arg(image);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(failed(step))?;
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let limit = Rlimit {
            current: Some(ADDRESS_SPACE),
            maximum: Some(ADDRESS_SPACE),
        };
        prlimit(Some(pid), Resource::As, limit).map_err(|error| failed(step)(error.into()))?;
    }
    let Ok(ended) = tokio::time::timeout(LIMIT, child.wait_with_output()).await else {
        return Err(damaged("its check (e2fsck) does not come to an end"));
    };
    let output = ended.map_err(failed(step))?;
    match output.status.code() {
        Some(code) if SOUND.contains(&code) => Ok(()),
        Some(_) | None => Err(damaged(
            "its file system is not sound (e2fsck -f -p finds errors)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> [u8; LENGTH] {
        let mut superblock = [0; LENGTH];
        superblock[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        superblock[0x3c] = 1;
        superblock[0x60..0x64].copy_from_slice(&0x2c2_u32.to_le_bytes());
        superblock[0x100] = 0xc;
        superblock
    }

    #[test]
    fn a_superblock_that_asks_the_host_for_something_is_refused() {
        assert_eq!(check_superblock(&sound()), Ok(()));
        for (at, value) in [
            (0x38, 0),
            (0x3c, 3),
            // MMP; a journal device; encryption.
            (0x61, 0x3),
            (0x60, 0xca),
            (0x62, 1),
            (0xe4, 1),
            (0xe7, 1),
            (0x100, 0x6c),
            (0x101, 1),
            (0x200, b'n'),
            (0x23f, 1),
        ] {
            let mut superblock = sound();
            superblock[at] = value;
            assert!(check_superblock(&superblock).is_err(), "{value} at {at:#x}");
        }
    }
}
