//! Loop devices for disk images.
//!
//! Two writing loop devices on one image would be two ext4 drivers writing over each other. The
//! guard is a `flock` on the very open file that the device is given: exclusive for a device that
//! writes, shared for those that only read. The kernel keeps that file open, and so the lock held,
//! exactly as long as the device is attached. The lock belongs to the inode: another name of the
//! image is no way around it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::mounts::Access;

const LOOP_CONTROL: &str = "/dev/loop-control";
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Sector size of the device. Direct I/O must be aligned to the host disk's sectors, and no disk
/// has larger ones.
const BLOCK_SIZE: u32 = 4096;
/// How long an earlier device may take to let go of the image.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
const RELEASE_POLL: Duration = Duration::from_millis(3);
/// Tries to get a free device while others take them as well.
const ATTEMPTS: usize = 64;

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// An attached loop device. It detaches itself when this is dropped and nothing is mounted from it.
pub(super) struct LoopDevice {
    /// `/dev/loopN`.
    pub(super) path: PathBuf,
    _open: File,
}

/// Attaches an image with direct I/O where the filesystem below can, buffered elsewhere. Waits
/// (bounded) for an earlier device of the same image to go away that is in the way.
pub(super) fn attach(image: &Path, access: Access) -> io::Result<LoopDevice> {
    let file = lock(image, access)?;
    let writes = access != Access::Sealed;
    let flags = if writes {
        LO_FLAGS_AUTOCLEAR
    } else {
        LO_FLAGS_AUTOCLEAR | LO_FLAGS_READ_ONLY
    };
    let mut last = io::Error::other("no free loop device");
    for _ in 0..ATTEMPTS {
        let path = free_device()?;
        let device = OpenOptions::new().read(true).write(writes).open(&path)?;
        let direct = flags | LO_FLAGS_DIRECT_IO;
        let attached = configure(device.as_raw_fd(), file.as_raw_fd(), direct).or_else(|error| {
            if error.raw_os_error() == Some(libc::EBUSY) {
                return Err(error);
            }
            configure(device.as_raw_fd(), file.as_raw_fd(), flags)
        });
        match attached {
            Ok(()) => {
                return Ok(LoopDevice {
                    path,
                    _open: device,
                });
            }
            // Somebody else took the device between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Returns when no device holds the image any more.
pub(super) fn wait_released(image: &Path) -> io::Result<()> {
    match lock(image, Access::ReadWrite) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn lock(image: &Path, access: Access) -> io::Result<File> {
    let (writes, kind) = match access {
        // Looking at a disk may replay its journal.
        Access::ReadWrite | Access::ReadOnly => (true, FlockOperation::NonBlockingLockExclusive),
        Access::Sealed => (false, FlockOperation::NonBlockingLockShared),
    };
    let file = OpenOptions::new()
        .read(true)
        .write(writes)
        .custom_flags(libc::O_CLOEXEC)
        .open(image)?;
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        match flock(&file, kind) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(RELEASE_POLL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::other(format!("{} is in use", image.display())));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[expect(unsafe_code, reason = "no safe wrapper exists for the loop ioctls")]
fn free_device() -> io::Result<PathBuf> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(LOOP_CONTROL)?;
    // SAFETY: LOOP_CTL_GET_FREE takes no argument and answers a number or -1.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(PathBuf::from(format!("/dev/loop{number}")))
}

#[expect(unsafe_code, reason = "no safe wrapper exists for the loop ioctls")]
fn configure(device: RawFd, image: RawFd, flags: u32) -> io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(image).map_err(io::Error::other)?,
        block_size: BLOCK_SIZE,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: `config` has the layout of the kernel's `struct loop_config`, lives across the call,
    // and is only read; both descriptors are open.
    let result = unsafe { libc::ioctl(device, LOOP_CONFIGURE, &raw const config) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
