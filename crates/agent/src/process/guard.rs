//! Keeps the sandbox alive when its memory runs out.
//!
//! The guest's kernel kills nothing, and the host's limit would take the whole sandbox. So while
//! there are processes, and the host does not [watch](crate::host::watch) in its stead, the agent
//! looks how much memory is left, the more often the less there is, and kills the biggest one when
//! the sandbox has used up what it was promised. Between the promise and the host's limit is the
//! engine's headroom, which is the guard's time to act.
//!
//! The engine needs memory for every process, too. When there are so many that the headroom does not
//! cover them, the newest ones are killed: there is no room for another one.

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
            Look::Crowded { killed, limit } => deaths(&killed, limit).await,
        }
    }
}

/// What one look at the memory led to.
enum Look {
    /// The next look may wait so long.
    Enough(Duration),
    /// A process is about to end, and to give back what is above this limit.
    Killed { limit: u64 },
    /// These processes are about to end, in a sandbox with this limit.
    Crowded { killed: Vec<u32>, limit: u64 },
}

fn look(agent: &Agent, limit: u64) -> Look {
    match memory::used(limit) {
        Ok(used) if used < limit => look_for_room(agent, used, limit),
        Ok(used) => match kill_biggest(agent, used, limit) {
            Ok(true) => Look::Killed { limit },
            // Memory that belongs to no process, such as files in memory.
            Ok(false) => Look::Enough(LONGEST_PAUSE),
            // It ended by itself just now, or could not be found for want of memory: look again soon.
            Err(_) => Look::Enough(SHORTEST_PAUSE),
        },
        // The figures cannot be read for want of memory, perhaps: look again soon.
        Err(_) => Look::Enough(SHORTEST_PAUSE),
    }
}

/// Whether the processes fit beside each other, though they use less memory than was promised.
fn look_for_room(agent: &Agent, used: u64, limit: u64) -> Look {
    let left = memory::left_by_engine(used, agent.processes.count() as u64);
    if used < left {
        return Look::Enough(pause(limit.min(left) - used));
    }
    match memory::used(left) {
        Ok(used) if used < left => Look::Enough(pause(limit.min(left) - used)),
        Ok(used) => match kill_newest(agent, used - left) {
            Ok(killed) if !killed.is_empty() => Look::Crowded { killed, limit },
            Ok(_) => Look::Enough(LONGEST_PAUSE),
            Err(_) => Look::Enough(SHORTEST_PAUSE),
        },
        Err(_) => Look::Enough(SHORTEST_PAUSE),
    }
}

/// The time in which `free` bytes cannot be filled.
fn pause(free: u64) -> Duration {
    Duration::from_millis(free / FASTEST_GROWTH_PER_MS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

fn kill_biggest(agent: &Agent, used: u64, limit: u64) -> io::Result<bool> {
    let processes = memory::processes()?;
    let descendants = descendants(&processes, std::process::id());
    let Some(victim) = descendants.iter().max_by_key(|one| one.usage.resident) else {
        return Ok(false);
    };
    let reason = format!("the sandbox used {} of {} MiB", used / MIB, limit / MIB);
    victim.kill(agent, &reason)?;
    Ok(true)
}

/// Kills as many as make `missing` bytes of the engine free, at least one.
fn kill_newest(agent: &Agent, missing: u64) -> io::Result<Vec<u32>> {
    let processes = memory::processes()?;
    let mut descendants = descendants(&processes, std::process::id());
    descendants.sort_unstable_by_key(|one| (one.usage.started, one.usage.pid));
    let living = processes.iter().filter(|process| !process.ended).count();
    let reason = format!("{living} processes are too many for it");
    let wanted = usize::try_from(missing / memory::ENGINE_PER_PROCESS).unwrap_or(usize::MAX);
    let victims = descendants.iter().rev().take(wanted.saturating_add(1));
    kill_all(victims, |victim| victim.kill(agent, &reason))
}

/// Kills each of them and answers who is gone or about to be. Those that ended by themselves meanwhile
/// are gone as well, and one that cannot be killed does not spare the others.
fn kill_all<'a>(
    victims: impl Iterator<Item = &'a Descendant<'a>>,
    mut kill: impl FnMut(&Descendant) -> io::Result<()>,
) -> io::Result<Vec<u32>> {
    let mut killed = Vec::new();
    let mut failed = Ok(());
    for victim in victims {
        match kill(victim) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => failed = Err(error),
            Ok(()) | Err(_) => killed.push(victim.usage.pid),
        }
    }
    if killed.is_empty() {
        failed?;
    }
    Ok(killed)
}

/// A process below the agent.
struct Descendant<'a> {
    usage: &'a Usage,
    /// The pids from it up to below the agent.
    line: Vec<u32>,
}

impl Descendant<'_> {
    fn kill(&self, agent: &Agent, reason: &str) -> io::Result<()> {
        let Usage {
            pid,
            name,
            resident,
            ..
        } = self.usage;
        let Some(target) = i32::try_from(*pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let text = format!(
            "out of memory: {reason}, and process {pid} ({name}) with {} MiB was killed",
            resident / MIB,
        );
        // Before the signal, which may be the end of the process.
        agent.processes.note_out_of_memory(&self.line, &text);
        kill_process(target, Signal::KILL)?;
        let fields = json!({"pid": pid, "name": name, "resident_bytes": resident});
        agent.log.add(Level::Warn, "memory", &text, fields);
        Ok(())
    }
}

/// The descendants of `root` that have not ended.
fn descendants(processes: &[Usage], root: u32) -> Vec<Descendant<'_>> {
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
        .filter(|process| process.pid != root && !process.ended)
        .filter_map(|usage| {
            let line = line_of(usage.pid)?;
            Some(Descendant { usage, line })
        })
        .collect()
}

/// Waits until killed processes have ended, or others have filled the memory meanwhile.
async fn deaths(killed: &[u32], limit: u64) {
    let deadline = Instant::now() + DEATH_LIMIT;
    let mut lowest = u64::MAX;
    while Instant::now() < deadline && !killed.iter().all(|&pid| memory::has_ended(pid)) {
        if let Ok(used) = memory::used(limit) {
            if used >= limit || used > lowest.saturating_add(GROWTH_LIMIT) {
                return;
            }
            lowest = lowest.min(used);
        }
        tokio::time::sleep(SHORTEST_PAUSE).await;
    }
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
            started: 0,
            ended: false,
        }
    }

    #[test]
    fn one_that_has_ended_is_no_victim_but_its_children_are() {
        let mut processes = [process(5, 1, 1), process(6, 5, 30), process(7, 1, 9)];
        processes[0].ended = true;
        let found = descendants(&processes, 1);
        let pids: Vec<_> = found.iter().map(|one| one.usage.pid).collect();
        assert_eq!(pids, [6, 7]);
    }

    #[test]
    fn one_that_cannot_be_killed_does_not_spare_the_others() {
        let processes = [process(5, 1, 1), process(6, 1, 1), process(7, 1, 1)];
        let found = descendants(&processes, 1);
        let kill = |errors: [i32; 3]| {
            kill_all(found.iter(), |victim| {
                match errors[victim.usage.pid as usize - 5] {
                    0 => Ok(()),
                    error => Err(io::Error::from_raw_os_error(error)),
                }
            })
        };
        assert_eq!(kill([libc::ESRCH, 0, 0]).unwrap(), [5, 6, 7]);
        assert_eq!(kill([libc::EPERM, 0, 0]).unwrap(), [6, 7]);
        kill([libc::EPERM; 3]).unwrap_err();
    }

    #[test]
    fn descendants_are_found_with_their_lines_and_strangers_are_spared() {
        let processes = [
            process(1, 0, 900),
            process(5, 1, 1),
            process(6, 5, 30),
            process(7, 6, 20),
            process(8, 99, 800),
            process(9, 10, 700),
            process(10, 9, 700),
        ];
        let found = descendants(&processes, 1);
        let lines: Vec<_> = found.iter().map(|one| one.line.as_slice()).collect();
        assert_eq!(lines, [&[5][..], &[6, 5], &[7, 6, 5]]);
        assert!(descendants(&processes, 7).is_empty());
    }

    #[test]
    fn looks_come_more_often_the_less_is_left() {
        assert_eq!(pause(0), SHORTEST_PAUSE);
        assert_eq!(pause(400 * MIB), Duration::from_millis(100));
        assert_eq!(pause(u64::MAX), LONGEST_PAUSE);
    }
}
