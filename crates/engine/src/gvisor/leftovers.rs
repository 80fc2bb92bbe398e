//! What earlier servers of this data directory left on the host.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use super::execution::{Live, read_number};
use super::freezing::Standing;
use super::paths::Paths;
use super::process::{self, Process};
use super::{Gvisor, cgroup, mounts, network};
use crate::{EngineError, ExecutionId, ExecutionStatus, Found};

/// Network slots that executions hold, running or not. All others of this tag are free to be
/// removed when the engine opens.
pub(super) fn slots_in_use(paths: &Paths) -> HashSet<u32> {
    directories(paths)
        .iter()
        .filter_map(|id| read_number(&paths.execution(id).slot()).ok())
        .collect()
}

/// Ends looks at disks that an earlier server did not finish.
pub(super) fn clear_inspections(paths: &Paths) -> std::io::Result<()> {
    let Ok(entries) = std::fs::read_dir(paths.inspect_dir()) else {
        return Ok(());
    };
    for entry in entries {
        mounts::unmount_and_remove(&entry?.path())?;
    }
    Ok(())
}

/// Whether any execution of this data directory is left on the host.
pub(super) fn any_trace(paths: &Paths) -> bool {
    !traces(paths).is_empty()
}

/// Removes what all executions of a data directory share; every engine makes it again when it
/// opens. Nothing here can hold anything of a sandbox: directories are removed only when empty.
pub(super) fn clear_host(paths: &Paths) {
    let report = |what: &str, error: std::io::Error| {
        tracing::debug!(%error, "{what} stays on the host");
    };
    if let Err(error) = network::clear_host(paths) {
        report("the table of packet filter rules", error);
    }
    // runsc pins one empty network namespace for the gofers of all its sandboxes.
    if let Err(error) = super::netns::remove(&paths.runsc_root().join("null-netns")) {
        report("the network namespace of gofers", error);
    }
    if let Err(error) = cgroup::remove(&paths.cgroup_parent()) {
        report("the cgroup of executions", error);
    }
    for directory in paths.run_directories() {
        if let Err(error) = std::fs::remove_dir(&directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            report("a run directory", error);
        }
    }
}

impl Gvisor {
    pub(super) async fn find_executions(&self) -> Result<Vec<Found>, EngineError> {
        self.wait_for_commands_in_flight().await?;
        let mut found = Vec::new();
        for id in traces(&self.paths) {
            let status = match Live::read(&self.paths.execution(&id)) {
                // runsc takes a dead sentry that nobody has collected yet for a running one.
                Ok(live) if !live.is_alive(&id) => ExecutionStatus::Dead,
                Ok(live) => match self.status(&id, &live.build).await.as_deref() {
                    Ok("running" | "paused") => match self.standing(&id).await {
                        Ok(Standing::Running) => ExecutionStatus::Running,
                        Ok(Standing::Frozen | Standing::FrozenByRunsc) => ExecutionStatus::Frozen,
                        // Whoever thaws it hears more; nothing is given up for a doubt.
                        Err(error) => {
                            tracing::error!(execution.id = %id, %error, "it may be frozen");
                            ExecutionStatus::Frozen
                        }
                    },
                    Ok(_) | Err(_) => ExecutionStatus::Dead,
                },
                Err(_) => ExecutionStatus::Dead,
            };
            found.push(Found { id, status });
        }
        Ok(found)
    }

    /// A server that was killed may have left a `runsc` at work; what it does must be over before
    /// anybody decides about its sandbox. Those that take too long are killed.
    async fn wait_for_commands_in_flight(&self) -> Result<(), EngineError> {
        let deadline = Instant::now() + self.config.command_timeout;
        let root = format!("--root={}", self.paths.runsc_root().display());
        for pid in process::all() {
            let words = process::command_line(pid);
            // Sentries and gofers are the same program; they carry these names and stay.
            let stays = words.iter().any(|word| word == "boot" || word == "gofer");
            if stays || !words.contains(&root) {
                continue;
            }
            let Ok(Some(command)) = Process::open(pid, &root) else {
                continue;
            };
            let rest = deadline.saturating_duration_since(Instant::now());
            if !command.ended_within(rest).await {
                tracing::warn!(pid, "killing an engine command of an earlier server");
                command.kill();
                command.ended().await;
            }
        }
        Ok(())
    }
}

/// Ids of all executions that have a directory, runsc state, a mount or a cgroup.
fn traces(paths: &Paths) -> BTreeSet<ExecutionId> {
    let mut ids: BTreeSet<ExecutionId> = directories(paths).into_iter().collect();
    ids.extend(
        cgroup::children(&paths.cgroup_parent())
            .iter()
            .filter_map(|name| ExecutionId::parse(name)),
    );
    let states = std::fs::read_dir(paths.runsc_root())
        .into_iter()
        .flatten()
        .flatten();
    ids.extend(states.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let id = match name.strip_prefix("runsc-") {
            Some(rest) => rest.strip_suffix(".sock")?,
            None => name.split_once('_')?.0,
        };
        ExecutionId::parse(id)
    }));
    ids
}

fn directories(paths: &Paths) -> Vec<ExecutionId> {
    let entries = std::fs::read_dir(paths.executions())
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter_map(|entry| ExecutionId::parse(entry.file_name().to_str()?))
        .collect()
}
