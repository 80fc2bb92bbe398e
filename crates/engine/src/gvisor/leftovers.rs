//! What earlier servers of this data directory left on the host.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use super::execution::{Live, read_number};
use super::freezing::Standing;
use super::paths::Paths;
use super::process::{self, Process};
use super::{Gvisor, cgroup, failed, mounts, network};
use crate::{EngineError, ExecutionId, ExecutionStatus, Found};

/// How often a living sentry's state is asked for when there is no answer, and the time between.
const STATE_TRIES: u32 = 3;
const STATE_RETRY: Duration = Duration::from_secs(1);

/// Network slots that executions hold, running or not. All others of this tag are free to be
/// removed when the engine opens.
pub(super) fn slots_in_use(paths: &Paths) -> io::Result<HashSet<u32>> {
    let slots = directories(paths)?
        .into_iter()
        .filter_map(|id| read_number(&paths.execution(&id).slot()).ok());
    Ok(slots.collect())
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
pub(super) fn any_trace(paths: &Paths) -> io::Result<bool> {
    Ok(!traces(paths)?.is_empty())
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
        let traces = traces(&self.paths).map_err(failed("look for executions"))?;
        for id in traces {
            let status = match Live::read(&self.paths.execution(&id)) {
                Ok(live) => self.status_found(&id, &live).await?,
                Err(error) if is_unreadable(&error) => {
                    return Err(failed(format!("read the state of {id}"))(error));
                }
                // It was never fully started.
                Err(_) => ExecutionStatus::Dead,
            };
            found.push(Found { id, status });
        }
        Ok(found)
    }

    /// A doubt about a living one is told as frozen: whoever thaws it hears more, and whoever believes
    /// it dead would give its memory up.
    async fn status_found(
        &self,
        id: &ExecutionId,
        live: &Live,
    ) -> Result<ExecutionStatus, EngineError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let step = || format!("find out whether {id} is alive");
            // Asked first: runsc takes a dead sentry that nobody has collected yet for a running one.
            if !live.is_alive(id).map_err(failed(step()))? {
                return Ok(ExecutionStatus::Dead);
            }
            let doubt = match self.status(id, &live.build).await.as_deref() {
                Ok("running" | "paused") => match self.standing(id).await {
                    Ok(Standing::Running) => return Ok(ExecutionStatus::Running),
                    Ok(Standing::Frozen | Standing::FrozenByRunsc) => {
                        return Ok(ExecutionStatus::Frozen);
                    }
                    Err(error) => {
                        tracing::warn!(execution.id = %id, %error, "it may be frozen");
                        return Ok(ExecutionStatus::Frozen);
                    }
                },
                // Its guest never ran, or ended.
                Ok("creating" | "created" | "stopped") => return Ok(ExecutionStatus::Dead),
                Ok(other) => format!("runsc calls it {other:?}"),
                Err(error) => error.to_string(),
            };
            if tries == STATE_TRIES {
                tracing::warn!(execution.id = %id, doubt, "its engine lives; it may be frozen");
                return Ok(ExecutionStatus::Frozen);
            }
            tokio::time::sleep(STATE_RETRY).await;
        }
    }

    /// A server that was killed may have left a `runsc` at work; what it does must be over before
    /// anybody decides about its sandbox. Those that take too long are killed: each may take as long as
    /// its own server would have given it, since a sentry goes on with what a killed one had asked.
    async fn wait_for_commands_in_flight(&self) -> Result<(), EngineError> {
        let step = || "look for engine commands of an earlier server";
        let root = format!("--root={}", self.paths.runsc_root().display());
        for pid in process::all().map_err(failed(step()))? {
            let words = process::command_line(pid).map_err(failed(step()))?;
            // Sentries and gofers are the same program; they carry these names and stay.
            let stays = words.iter().any(|word| word == "boot" || word == "gofer");
            if stays || !words.contains(&root) {
                continue;
            }
            let Some(command) = Process::open(pid, &root).map_err(failed(step()))? else {
                continue;
            };
            if !command.ended_within(self.limit_of(&words)).await {
                tracing::warn!(pid, "killing an engine command of an earlier server");
                command.kill();
                command.ended().await;
            }
        }
        Ok(())
    }

    /// How long a command with these words may take.
    fn limit_of(&self, words: &[String]) -> Duration {
        let writes_image = words.iter().any(|word| word == "checkpoint");
        let config = &self.config;
        if writes_image {
            config.image_timeout
        } else {
            config.command_timeout
        }
    }
}

/// Ids of all executions that have a directory, runsc state, a mount or a cgroup.
fn traces(paths: &Paths) -> io::Result<BTreeSet<ExecutionId>> {
    let mut ids: BTreeSet<ExecutionId> = directories(paths)?.into_iter().collect();
    let groups = cgroup::children(&paths.cgroup_parent())?;
    ids.extend(groups.iter().filter_map(|name| ExecutionId::parse(name)));
    let states = names_in(&paths.runsc_root())?;
    ids.extend(states.iter().filter_map(|name| {
        let id = match name.strip_prefix("runsc-") {
            Some(rest) => rest.strip_suffix(".sock")?,
            None => name.split_once('_')?.0,
        };
        ExecutionId::parse(id)
    }));
    Ok(ids)
}

fn directories(paths: &Paths) -> io::Result<Vec<ExecutionId>> {
    let names = names_in(&paths.executions())?;
    let ids = names.iter().filter_map(|name| ExecutionId::parse(name));
    Ok(ids.collect())
}

/// Names in a directory; a missing one has none.
fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// Whether a file could not be read, which says nothing about what is in it or that it is not there.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error().is_some() && error.kind() != io::ErrorKind::NotFound
}
