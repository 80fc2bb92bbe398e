//! Memory and CPU time of processes.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// What some processes use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Used {
    /// Their private memory, and their share of the programs' files. Memory of the guest is not in
    /// it: that is shared memory.
    pub(crate) own_bytes: u64,
    /// Their share of shared memory: the guest's pages.
    pub(crate) shared_bytes: u64,
    /// Time that their threads have run.
    pub(crate) cpu: Duration,
}

impl Used {
    /// By some processes together; one that is gone uses nothing.
    pub(crate) fn by(processes: impl IntoIterator<Item = i32>) -> Self {
        let mut used = Self::default();
        for id in processes {
            let directory = format!("/proc/{id}");
            let rollup = std::fs::read_to_string(format!("{directory}/smaps_rollup"));
            let rollup = rollup.unwrap_or_default();
            let bytes = |key| kib(&rollup, key) * 1024;
            used.own_bytes += bytes("Pss_Anon:") + bytes("Pss_File:");
            used.shared_bytes += bytes("Pss_Shmem:");
            used.cpu += run_time(&format!("{directory}/task"));
        }
        used
    }
}

fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.unwrap_or(0)
}

fn run_time(tasks: &str) -> Duration {
    let tasks = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// Processes whose command line names a path, and all their descendants.
pub(crate) fn of_command_line(path: &Path) -> BTreeSet<i32> {
    let wanted = path.to_string_lossy();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found = BTreeSet::new();
    let mut parents = Vec::new();
    for id in ids {
        let command = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(&*wanted) {
            found.insert(id);
        }
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // The name in brackets may hold anything.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| {
            let field = rest.split_whitespace().nth(1)?;
            field.parse::<i32>().ok()
        });
        parents.extend(parent.map(|parent| (id, parent)));
    }
    loop {
        let children = parents.iter().filter(|(_, parent)| found.contains(parent));
        let new: Vec<i32> = children
            .map(|(id, _)| *id)
            .filter(|id| !found.contains(id))
            .collect();
        if new.is_empty() {
            return found;
        }
        found.extend(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let id = i32::try_from(std::process::id()).unwrap();
        let used = Used::by([id]);
        assert!(
            used.own_bytes > 100_000 && used.cpu > Duration::ZERO,
            "{used:?}"
        );
        assert_eq!(Used::by([i32::MAX]), Used::default());
    }

    #[test]
    fn descendants_belong_to_a_command_line() {
        let name = Path::new("/nowhere/bench-descendants");
        let script = "sleep 10 & echo; wait";
        let mut shell = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .arg(name)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut byte).unwrap();
        let found = of_command_line(name);
        for id in &found {
            let process = rustix::process::Pid::from_raw(*id).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
        }
        shell.wait().unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
