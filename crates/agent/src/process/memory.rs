//! How much memory the guest uses, and which processes use it.

use std::fs;
use std::io;

use crate::metrics;

/// What the engine takes besides the memory of the guest: at the start, with time for the guard to
/// act, for each process and thread, and for each process of a client with its pipes and stream.
/// Measured with gVisor's systrap: 430 KiB a process, 610 KiB one of a client, and more while they
/// start.
const ENGINE: u64 = 48 * 1024 * 1024;
pub(super) const ENGINE_PER_PROCESS: u64 = 424 * 1024;
const ENGINE_PER_THREAD: u64 = 32 * 1024;
const ENGINE_PER_CLIENT: u64 = 320 * 1024;

/// A process as the memory guard sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) pid: u32,
    pub(super) parent: u32,
    pub(super) name: String,
    /// Resident bytes.
    pub(super) resident: u64,
    /// When it started, in ticks.
    pub(super) started: u64,
    /// Whether it has ended, and only waits for its parent to hear of it: it uses nothing any more.
    pub(super) ended: bool,
}

/// What the engine leaves of the host's limit to the memory of the guest, given what is in use and
/// how many processes clients have. The host's limit is what the guest sees as its total.
pub(super) fn left_by_engine(used: u64, clients: u64) -> u64 {
    let system = rustix::system::sysinfo();
    let total = system.totalram * u64::from(system.mem_unit.max(1));
    // Threads too.
    let tasks = u64::from(system.procs);
    let left = |processes: u64| {
        let threads = tasks.saturating_sub(processes) * ENGINE_PER_THREAD;
        let processes = processes * ENGINE_PER_PROCESS + clients * ENGINE_PER_CLIENT;
        total.saturating_sub(ENGINE + processes + threads)
    };
    match left(tasks) {
        // Enough even if every thread were a process, which need not be counted then.
        enough if used < enough => enough,
        little => match count() {
            // Enough even if those that have ended were there, which takes longer to find out.
            Ok(all) if used < left(all) => left(all),
            Ok(all) => count_living().map_or(little, |living| {
                let ended = all.saturating_sub(living) * ENGINE_PER_THREAD;
                (left(living) + ended).min(total)
            }),
            Err(_) => little,
        },
    }
}

/// How many processes have not ended.
fn count_living() -> io::Result<u64> {
    let living = processes()?.into_iter().filter(|process| !process.ended);
    Ok(living.count() as u64)
}

/// Whether a process has ended.
pub(super) fn has_ended(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Usage::parse(pid, &stat, 0).is_some_and(|usage| usage.ended),
        Err(error) => {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
        }
    }
}

/// How many processes there are.
fn count() -> io::Result<u64> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        count += u64::from(name.as_encoded_bytes()[0].is_ascii_digit());
    }
    Ok(count)
}

/// Bytes in use, or anything below `enough` when it is below that.
///
/// The usual question is answered by one system call, which counts the file cache as used and is
/// exact in gVisor. Only if that is too much the cache is looked up and taken off.
pub(super) fn used(enough: u64) -> io::Result<u64> {
    let system = rustix::system::sysinfo();
    let unit = u64::from(system.mem_unit.max(1));
    let with_cache = system.totalram.saturating_sub(system.freeram) * unit;
    if with_cache < enough {
        return Ok(with_cache);
    }
    let memory = metrics::Memory::read()?;
    Ok(with_cache.saturating_sub(memory.reclaimable()))
}

/// All processes; those that end meanwhile are left out.
pub(super) fn processes() -> io::Result<Vec<Usage>> {
    let page = rustix::param::page_size() as u64;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat"))
            && let Some(usage) = Usage::parse(pid, &stat, page)
        {
            found.push(usage);
        }
    }
    Ok(found)
}

impl Usage {
    /// Reads a line of `/proc/<pid>/stat`. The name is in parentheses and may hold anything.
    fn parse(pid: u32, stat: &str, page: u64) -> Option<Self> {
        let (_, rest) = stat.split_once('(')?;
        let (name, rest) = rest.rsplit_once(')')?;
        // From the state on; the line's fields are counted from the pid, which is 1.
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        let resident: u64 = fields.nth(1)?.parse().ok()?;
        Some(Self {
            pid,
            parent,
            name: name.to_owned(),
            resident: resident.saturating_mul(page),
            started,
            ended: matches!(state, "Z" | "X"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_procfs_is_read_whatever_the_name_holds() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 100 4096000 250 0 0";
        let expected = Usage {
            pid: 7,
            parent: 3,
            name: "a) b (c".to_owned(),
            resident: 250 * 4096,
            started: 100,
            ended: false,
        };
        assert_eq!(Usage::parse(7, stat, 4096), Some(expected));
        let zombie = stat.replace(") S ", ") Z ");
        assert!(Usage::parse(7, &zombie, 4096).unwrap().ended);
        assert_eq!(Usage::parse(7, "7 (a) S", 4096), None);
    }

    #[test]
    fn a_process_that_nobody_has_collected_has_ended() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let of_child = || {
            let all = processes().unwrap();
            all.into_iter().find(|one| one.pid == pid)
        };
        assert!(!has_ended(pid));
        assert!(!of_child().unwrap().ended);
        drop(child.stdin.take());
        let begin = std::time::Instant::now();
        while !has_ended(pid) {
            assert!(begin.elapsed().as_secs() < 10, "it does not end");
            std::thread::yield_now();
        }
        assert!(of_child().unwrap().ended);
        child.wait().unwrap();
        assert!(has_ended(pid));
        assert_eq!(of_child(), None);
    }

    #[test]
    fn the_own_process_is_found_with_its_memory() {
        let own = std::process::id();
        let all = processes().unwrap();
        let me = all.iter().find(|usage| usage.pid == own).unwrap();
        assert!(me.resident > 100_000, "{me:?}");
        assert!(used(u64::MAX).unwrap() > me.resident);
        assert!(used(0).unwrap() <= used(u64::MAX).unwrap());
    }
}
