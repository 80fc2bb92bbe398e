//! Ending an execution, from whatever state it is in.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::execution::{read_number, read_spec};
use super::paths::{ExecutionDir, Paths};
use super::process::Process;
use super::slots::SlotReturn;
use super::{Gvisor, blocking, boot_mark, cgroup, disk, failed, loopdev, mounts};
use crate::{EngineError, ExecutionId};

const POLL: Duration = Duration::from_millis(2);

impl Gvisor {
    /// First the processes, then what they used, the directory last: as long as anything is left,
    /// the directory or a name with the id in it leads here again.
    pub(super) async fn destroy_execution(&self, id: &ExecutionId) -> Result<(), EngineError> {
        let limit = self.config.command_timeout;
        let Ok(_alone) = tokio::time::timeout(limit, self.work_on(id).write_owned()).await else {
            let step = format!("wait for the cancelled start of {id}");
            return Err(EngineError::Timeout { step, limit });
        };
        self.forget_prepared(id);
        self.end_processes(id).await?;
        let directory = self.paths.execution(id);
        let came_up = self.known(id).is_some();
        let (paths, slots, cleaned) = (self.paths.clone(), self.slots.handle(), id.clone());
        blocking(move || {
            forget_state(&paths, &cleaned)?;
            mounts::unmount_and_remove(&directory.rootfs())?;
            // Not below an image that a running guest may have written.
            if !came_up && let Err(error) = boot_mark::take_back(&directory.disk_mount()) {
                tracing::warn!(execution.id = %cleaned, %error, "a failed boot left its mark");
            }
            release(&slots, &directory)?;
            remove_cgroup(&paths.cgroup(&cleaned))?;
            remove_directory(&directory)
        })
        .await
        .map_err(failed(format!("clean up after {id}")))?;
        self.live().remove(id);
        self.work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        Ok(())
    }

    /// Kills everything of an execution, without `runsc delete`: that kills the same processes, after
    /// a start-up of its own, and what it removes besides is removed here in any case.
    async fn end_processes(&self, id: &ExecutionId) -> Result<(), EngineError> {
        let limit = self.config.command_timeout;
        let step = || format!("end the processes of {id}");
        let sentry = match read_number(&self.paths.execution(id).pid()) {
            Ok(pid) => Process::open(pid, id.as_str()).map_err(failed(step()))?,
            // It was never written. What there is is in the cgroup, too.
            Err(_) => None,
        };
        let group = self.paths.cgroup(id);
        let deadline = Instant::now() + limit;
        if let Some(sentry) = &sentry {
            sentry.kill();
        }
        // Again and again: a command that was cut off may just have been starting others.
        loop {
            let pids = cgroup::processes(&group).map_err(failed(step()))?;
            let mut rest = Vec::with_capacity(pids.len());
            for pid in &pids {
                // What cannot be opened may live, and what it uses must not be taken away.
                rest.extend(Process::open_any(*pid).map_err(failed(step()))?);
            }
            for process in &rest {
                process.kill();
            }
            let mut in_time = true;
            for process in sentry.iter().chain(&rest) {
                let left = deadline.saturating_duration_since(Instant::now());
                in_time &= process.ended_within(left).await;
            }
            if in_time && pids.is_empty() {
                return Ok(());
            }
            if !in_time || Instant::now() > deadline {
                let step = step();
                return Err(EngineError::Timeout { step, limit });
            }
            if rest.is_empty() {
                // All of them are gone, and the cgroup learns of it in a moment.
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

/// Takes the disks with their loop devices and the network away, side by side: each waits for the
/// kernel most of the time.
fn release(slots: &SlotReturn, directory: &ExecutionDir) -> io::Result<()> {
    std::thread::scope(|scope| {
        let network = scope.spawn(|| release_slot(slots, directory));
        let disks = release_disks(directory);
        let network = network
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        disks.and(network)
    })
}

fn release_disks(directory: &ExecutionDir) -> io::Result<()> {
    mounts::unmount_and_remove(&directory.disk_mount())?;
    let sealed = read_spec(directory).map_or(0, |spec| spec.sealed.len());
    for position in 0..sealed {
        mounts::unmount_and_remove(&directory.sealed_mount(position))?;
    }
    // Mounts that nothing of this version makes: whatever it is, it must not be deleted into.
    for point in mounts::below(directory.path())? {
        mounts::unmount_all(&point)?;
    }
    if let Ok(spec) = read_spec(directory) {
        // From here on the caller may mount, copy or remove the disk.
        loopdev::wait_released(&disk::image(&spec.disk))?;
    }
    Ok(())
}

fn release_slot(slots: &SlotReturn, directory: &ExecutionDir) -> io::Result<()> {
    if let Ok(slot) = read_number(&directory.slot()) {
        // Written by us a moment after the slot was taken. Another server's claim has another tag.
        slots.discard(slot)?;
        remove_file(&directory.slot())?;
    }
    Ok(())
}

/// Processes that have just ended may keep a cgroup busy for a moment.
fn remove_cgroup(group: &str) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        match cgroup::remove(group) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(POLL);
            }
            other => return other,
        }
    }
}

/// What runsc keeps about a sandbox below its `--root`.
pub(super) fn state_files(paths: &Paths, id: &ExecutionId) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(paths.runsc_root()) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| {
                name.starts_with(&format!("{id}_")) || name == format!("runsc-{id}.sock")
            })
        })
        .map(|entry| entry.path())
        .collect()
}

/// Removes runsc's records of a sandbox that has no process any more.
fn forget_state(paths: &Paths, id: &ExecutionId) -> io::Result<()> {
    for file in state_files(paths, id) {
        remove_file(&file)?;
    }
    Ok(())
}

/// Removes the directory file by file: a mount that is still there makes this fail, where a
/// recursive removal would empty the sandbox's disk.
fn remove_directory(directory: &ExecutionDir) -> io::Result<()> {
    remove_file(&directory.oci_spec())?;
    remove_empty(&directory.bundle())?;
    let Ok(entries) = std::fs::read_dir(directory.path()) else {
        return Ok(());
    };
    for entry in entries {
        remove_file(&entry?.path())?;
    }
    remove_empty(directory.path())
}

fn remove_file(path: &Path) -> io::Result<()> {
    missing_is_fine(std::fs::remove_file(path))
}

fn remove_empty(path: &Path) -> io::Result<()> {
    missing_is_fine(std::fs::remove_dir(path))
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
