//! The files on disks that cannot be used any more: mounted read-only, one over the other, to be read
//! as far as they can.
//!
//! Nothing is written and no journal is replayed, unless the disk was not cleanly let go: then the
//! tree without its journal would be a stale one. Every mount point lies directly in the directory of
//! inspections, which the next engine clears.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::disk::{self, UPPER};
use super::mounts::{self, Access};
use crate::{LeftOut, OpenFiles};

/// Where ext4 keeps copies of its superblock and group descriptors, in units of 1 KiB, on a disk with
/// blocks of 4 KiB: groups 1 and 3.
const COPIES: [u64; 2] = [32_768 * 4, 98_304 * 4];

/// Takes mounts down again.
struct Mounted(Vec<PathBuf>);

impl Drop for Mounted {
    fn drop(&mut self) {
        for target in self.0.iter().rev() {
            if let Err(error) = mounts::unmount_and_remove(target) {
                tracing::error!(%error, "a disk that was being read stays mounted until the next start");
            }
        }
    }
}

/// Mounts `disks` (topmost first) over `layers` below `inspect`. Those that cannot be mounted are left
/// out; when that is all of them there is nothing to read.
pub(super) fn open(layers: &[PathBuf], disks: &[PathBuf], inspect: &Path) -> io::Result<OpenFiles> {
    let name = format!("{:016x}", rand::random::<u64>());
    let target = |part: &str| inspect.join(format!("{name}-{part}"));
    let mut mounted = Mounted(Vec::new());
    let mut lower = Vec::new();
    let mut left_out = Vec::new();
    for (position, disk) in disks.iter().enumerate() {
        let at = target(&position.to_string());
        std::fs::create_dir_all(&at)?;
        mounted.0.push(at.clone());
        match mount(disk, &at).and_then(|()| upper_of(&at)) {
            Ok(Some(upper)) => lower.push(upper),
            // No guest ever ran on it.
            Ok(None) => {}
            Err(error) => left_out.push(LeftOut {
                disk: disk.clone(),
                problem: error.to_string(),
            }),
        }
    }
    if left_out.len() == disks.len() {
        let problems = left_out.iter().map(|one| one.problem.as_str());
        let problems: Vec<_> = problems.collect();
        return Err(io::Error::other(problems.join("; ")));
    }
    lower.extend_from_slice(layers);
    if lower.len() == 1 {
        // Overlayfs wants two.
        let empty = target("empty");
        std::fs::create_dir(&empty)?;
        mounted.0.push(empty.clone());
        lower.push(empty);
    }
    let tree = target("tree");
    std::fs::create_dir(&tree)?;
    mounted.0.push(tree.clone());
    mounts::mount_overlay_to_read(&lower, &tree)?;
    Ok(OpenFiles::new(tree, left_out, mounted))
}

fn mount(disk: &Path, at: &Path) -> io::Result<()> {
    let image = disk::image(disk);
    if disk::needs_recovery(&image).unwrap_or(false)
        && mounts::mount_disk(&image, at, Access::ReadOnly).is_ok()
    {
        return Ok(());
    }
    check_length(&image)?;
    let mut mounted = mounts::mount_damaged(&image, at, None);
    for copy in COPIES {
        mounted = mounted.or_else(|error| {
            // What is wrong with the first one says more.
            mounts::mount_damaged(&image, at, Some(copy)).map_err(|_| error)
        });
    }
    mounted
}

/// A file system that is longer than what is left of its image is not mounted by the kernel, which
/// does not say why.
fn check_length(image: &Path) -> io::Result<()> {
    const SUPERBLOCK: u64 = 1024;
    let file = File::open(image)?;
    let mut found = [0; 0x3a];
    if file.read_exact_at(&mut found, SUPERBLOCK).is_err() {
        return Err(io::Error::other("its image is cut short"));
    }
    let number =
        |at: usize| u32::from_le_bytes([found[at], found[at + 1], found[at + 2], found[at + 3]]);
    if found[0x38..0x3a] != [0x53, 0xef] {
        // Not a superblock: a copy of it may be.
        return Ok(());
    }
    let promised = u64::from(number(0x4)) << (10 + number(0x18).min(6));
    let there = file.metadata()?.len();
    if there >= promised {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "its image is cut short: {there} of {promised} bytes are there"
    )))
}

fn upper_of(mounted: &Path) -> io::Result<Option<PathBuf>> {
    let upper = mounted.join(UPPER);
    match disk::check_directory(&upper) {
        Ok(()) => Ok(Some(upper)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(mounts::about("look at", &upper, error)),
    }
}
