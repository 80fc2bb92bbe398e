//! Keeps the sandbox alive when its memory runs out.
//!
//! The guest's kernel kills nothing, and the host's limit would take the whole sandbox. So while
//! there are processes, and the host does not [watch](crate::host::watch) in its stead, the agent
//! looks how much memory is left, the more often the less there is, and kills the biggest one when
//! the sandbox has used up what it was promised. Between the promise and the host's limit is the
//! engine's headroom, which is the guard's time to act.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::time::Instant;

use super::memory::{self, Usage};
use crate::agent::Agent;
use crate::log::Level;

/// How fast memory may be filled; bounds the time between two looks.
const FASTEST_GROWTH_PER_MS: u64 = 4 * MIB;
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a killed process may take to give its memory back before the next one is killed. The
/// kernel takes it back some time after the process is gone.
const DEATH_LIMIT: Duration = Duration::from_secs(2);
/// When others fill this much in the meantime, the next one is killed at once.
const GROWTH_LIMIT: u64 = 32 * MIB;
const MIB: u64 = 1024 * 1024;

/// Guards for ever. Sleeps while there is nothing to guard.
pub(crate) async fn guard_memory(agent: &Agent) {
    loop {
        agent.processes.reaper.has_children().await;
        agent.host_watch.over().await;
        let pause = match agent.settings().memory_limit {
            Some(limit) => look(agent, limit),
            None => Look::Enough(LONGEST_PAUSE),
        };
        match pause {
            Look::Enough(pause) => tokio::time::sleep(pause).await,
            Look::Killed { limit } => relief(limit).await,
        }
    }
}

/// What one look at the memory led to.
enum Look {
    /// The next look may wait so long.
    Enough(Duration),
    /// A process is about to end, and to give back what is above this limit.
    Killed { limit: u64 },
}

fn look(agent: &Agent, limit: u64) -> Look {
    match memory::used(limit) {
        Ok(used) if used < limit => Look::Enough(pause(limit - used)),
        Ok(used) => match kill_biggest(agent, used, limit) {
            Ok(true) => Look::Killed { limit },
            // Memory that belongs to no process, such as files in memory.
            Ok(false) | Err(_) => Look::Enough(LONGEST_PAUSE),
        },
        // The figures cannot be read for want of memory, perhaps: look again soon.
        Err(_) => Look::Enough(SHORTEST_PAUSE),
    }
}

/// The time in which `free` bytes cannot be filled.
fn pause(free: u64) -> Duration {
    Duration::from_millis(free / FASTEST_GROWTH_PER_MS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

fn kill_biggest(agent: &Agent, used: u64, limit: u64) -> io::Result<bool> {
    let processes = memory::processes()?;
    let Some((victim, ancestors)) = biggest(&processes, std::process::id()) else {
        return Ok(false);
    };
    let pid = i32::try_from(victim.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(false) };
    let text = format!(
        "out of memory: the sandbox used {} of {} MiB, and process {} ({}) with {} MiB was killed",
        used / MIB,
        limit / MIB,
        victim.pid,
        victim.name,
        victim.resident / MIB,
    );
    // Before the signal, which may be the end of the process.
    agent.processes.note_out_of_memory(&ancestors, &text);
    kill_process(pid, Signal::KILL)?;
    let fields = json!({"pid": victim.pid, "name": victim.name, "resident_bytes": victim.resident});
    agent.log.add(Level::Warn, "memory", &text, fields);
    Ok(true)
}

/// The descendant of `root` with the most memory, and the pids from it up to below `root`.
fn biggest(processes: &[Usage], root: u32) -> Option<(&Usage, Vec<u32>)> {
    let parents: HashMap<u32, u32> = processes
        .iter()
        .map(|process| (process.pid, process.parent))
        .collect();
    let line_of = |pid: u32| {
        let mut line = Vec::new();
        let mut seen = HashSet::new();
        let mut next = pid;
        while next != root {
            // Not a descendant, or procfs changed while it was read.
            if !seen.insert(next) {
                return None;
            }
            line.push(next);
            next = *parents.get(&next)?;
        }
        Some(line)
    };
    processes
        .iter()
        .filter(|process| process.pid != root)
        .filter_map(|process| Some((process, line_of(process.pid)?)))
        .max_by_key(|(process, _)| process.resident)
}

/// Waits until a kill has brought the use below the limit, or has turned out not to be enough.
async fn relief(limit: u64) {
    let deadline = Instant::now() + DEATH_LIMIT;
    let mut lowest = u64::MAX;
    while Instant::now() < deadline {
        if let Ok(used) = memory::used(limit) {
            if used < limit || used > lowest.saturating_add(GROWTH_LIMIT) {
                return;
            }
            lowest = lowest.min(used);
        }
        tokio::time::sleep(SHORTEST_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, resident: u64) -> Usage {
        Usage {
            pid,
            parent,
            name: format!("p{pid}"),
            resident,
        }
    }

    #[test]
    fn the_biggest_descendant_is_found_with_its_line_and_strangers_are_spared() {
        let processes = [
            process(1, 0, 900),
            process(5, 1, 1),
            process(6, 5, 30),
            process(7, 6, 20),
            process(8, 99, 800),
            process(9, 10, 700),
            process(10, 9, 700),
        ];
        let (victim, line) = biggest(&processes, 1).unwrap();
        assert_eq!((victim.pid, line), (6, vec![6, 5]));
        assert!(biggest(&processes, 7).is_none());
    }

    #[test]
    fn looks_come_more_often_the_less_is_left() {
        assert_eq!(pause(0), SHORTEST_PAUSE);
        assert_eq!(pause(400 * MIB), Duration::from_millis(100));
        assert_eq!(pause(u64::MAX), LONGEST_PAUSE);
    }
}
