//! The cgroups of executions: runsc makes them and sets the limits; here they are read and removed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";

/// Bytes of memory that a checkpoint may have to write: all that is charged except file cache. An
/// upper bound, since it includes the engine itself.
pub(super) fn resident_bytes(cgroup: &str) -> io::Result<u64> {
    let directory = memory_directory(cgroup);
    let (usage, file, shmem) = if is_v2() {
        ("memory.current", "file", "shmem")
    } else {
        ("memory.usage_in_bytes", "total_cache", "total_shmem")
    };
    let usage = read_number(&directory.join(usage))?;
    let stat = std::fs::read_to_string(directory.join("memory.stat"))?;
    let value = |key| lookup(&stat, key).unwrap_or(0);
    // The guest's memory is a memfd: it counts as file cache too, and as shmem only there.
    let cache = value(file).saturating_sub(value(shmem));
    Ok(usage.saturating_sub(cache))
}

/// Memory of the guest, and file cache, in bytes. The guest's memory is a memfd, so it is what counts
/// as shared; the engine's own is not in it.
pub(super) fn memory(cgroup: &str) -> io::Result<(u64, u64)> {
    let (file, shmem) = if is_v2() {
        ("file", "shmem")
    } else {
        ("total_cache", "total_shmem")
    };
    let stat = std::fs::read_to_string(memory_directory(cgroup).join("memory.stat"))?;
    let value = |key| lookup(&stat, key).unwrap_or(0);
    Ok((value(shmem), value(file).saturating_sub(value(shmem))))
}

/// Bytes that the memory limit counts and that cannot be given back: the guest's memory, the engine's own
/// and the kernel's for them, which both grow with every process of the guest; also those that the host
/// has swapped out. Below `enough` it may be an upper bound, with cached files: that is a counter to be
/// read, where the exact figure is a sum over the processors.
pub(super) fn in_use(cgroup: &str, enough: u64) -> io::Result<u64> {
    let directory = memory_directory(cgroup);
    let usage = if is_v2() {
        "memory.current"
    } else {
        "memory.usage_in_bytes"
    };
    let usage = read_number(&directory.join(usage))?;
    let swapped = swapped(&directory, usage)?;
    if usage + swapped < enough {
        return Ok(usage + swapped);
    }
    let (_, cached) = memory(cgroup)?;
    Ok(usage.saturating_sub(cached) + swapped)
}

/// Bytes swapped out, beside a usage; none where the kernel does not count them. Version 1 counts both
/// together.
fn swapped(directory: &Path, usage: u64) -> io::Result<u64> {
    let (file, beside) = if is_v2() {
        ("memory.swap.current", 0)
    } else {
        ("memory.memsw.usage_in_bytes", usage)
    };
    match read_number(&directory.join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        number => Ok(number?.saturating_sub(beside)),
    }
}

/// CPU time of everything in it since it was made.
pub(super) fn cpu_time(cgroup: &str) -> io::Result<Duration> {
    let relative = cgroup.trim_start_matches('/');
    if is_v2() {
        let stat = Path::new(ROOT).join(relative).join("cpu.stat");
        let stat = std::fs::read_to_string(stat)?;
        let microseconds = lookup(&stat, "usage_usec").unwrap_or(0);
        return Ok(Duration::from_micros(microseconds));
    }
    let file = Path::new(ROOT).join("cpuacct").join(relative);
    Ok(Duration::from_nanos(read_number(
        &file.join("cpuacct.usage"),
    )?))
}

/// Whether the kernel killed anything of the execution for want of memory.
pub(super) fn was_out_of_memory(cgroup: &str) -> bool {
    let events = if is_v2() {
        "memory.events"
    } else {
        "memory.oom_control"
    };
    std::fs::read_to_string(memory_directory(cgroup).join(events))
        .is_ok_and(|text| lookup(&text, "oom_kill").is_some_and(|kills| kills > 0))
}

/// Processes of the execution that are still there, in any hierarchy.
pub(super) fn processes(cgroup: &str) -> io::Result<Vec<i32>> {
    let mut processes: Vec<i32> = Vec::new();
    for directory in directories(cgroup)? {
        let text = match std::fs::read_to_string(directory.join("cgroup.procs")) {
            // Removed meanwhile.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ENODEV) =>
            {
                continue;
            }
            text => text?,
        };
        processes.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    processes.sort_unstable();
    processes.dedup();
    Ok(processes)
}

/// Removes an empty cgroup from every hierarchy.
pub(super) fn remove(cgroup: &str) -> io::Result<()> {
    for directory in directories(cgroup)? {
        match std::fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(super::mounts::about("remove", &directory, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Names of the cgroups below `parent`, in any hierarchy.
pub(super) fn children(parent: &str) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for directory in directories(parent)? {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Makes the kernel expect processes to join cgroups. Blocks for some 10 ms: to be called beside other
/// work, a moment before a sandbox joins its own.
///
/// Version 1 lets a process join only after all processors have passed through a quiet state, unless
/// another one did so less than some 12 ms ago. So a join that changes nothing, of this process to where
/// it is, takes the waiting off the start of a sandbox. Version 2 creates processes in their cgroup and
/// has nothing of that.
pub(super) fn expect_joins() {
    if is_v2() {
        return;
    }
    // Looked up each time: somebody may have moved this process.
    let own = std::fs::read_to_string("/proc/self/cgroup");
    if let Some(file) = own.ok().and_then(|text| own_processes(&text)) {
        // 0 stands for the writer. A start is slower without, and that is all.
        let _ = std::fs::write(file, "0");
    }
}

/// The file that lists the processes of the cgroup for `pids`, from the text of `/proc/self/cgroup`.
fn own_processes(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers
            .split(',')
            .any(|one| one == "pids")
            .then_some(path)
    })?;
    let directory = Path::new(ROOT).join("pids");
    Some(
        directory
            .join(path.trim_start_matches('/'))
            .join("cgroup.procs"),
    )
}

/// Controllers that limits need and this host lacks.
pub(super) fn missing_controllers() -> Vec<&'static str> {
    let v2 = std::fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
    ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|controller| match &v2 {
            Ok(list) => !list.split_whitespace().any(|entry| entry == *controller),
            Err(_) => !Path::new(ROOT)
                .join(controller)
                .join("cgroup.procs")
                .exists(),
        })
        .collect()
}

fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

fn memory_directory(cgroup: &str) -> PathBuf {
    let root = Path::new(ROOT);
    let hierarchy = if is_v2() {
        root.to_owned()
    } else {
        root.join("memory")
    };
    hierarchy.join(cgroup.trim_start_matches('/'))
}

/// Where this cgroup exists: once with version 2, once for each hierarchy with version 1.
fn directories(cgroup: &str) -> io::Result<Vec<PathBuf>> {
    let relative = cgroup.trim_start_matches('/');
    if is_v2() {
        let directory = Path::new(ROOT).join(relative);
        return Ok(Some(directory)
            .filter(|one| one.is_dir())
            .into_iter()
            .collect());
    }
    let mut found = Vec::new();
    for hierarchy in std::fs::read_dir(ROOT)? {
        let directory = hierarchy?.path().join(relative);
        if directory.is_dir() {
            found.push(directory);
        }
    }
    Ok(found)
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}

/// The number after `key` in lines of `key number`.
fn lookup(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split(' ').next() == Some(key))?;
    line.split(' ').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found() {
        let text = "9:name=systemd:/\n8:cpu,pids:/a/b\n4:memory:/c\n0::/d\n";
        let file = Path::new("/sys/fs/cgroup/pids/a/b/cgroup.procs");
        assert_eq!(own_processes(text).as_deref(), Some(file));
        assert_eq!(own_processes("0::/user.slice\n"), None);
    }
}
