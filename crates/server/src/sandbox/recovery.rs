//! After a start of the server: what the journal says meets what is on the host.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{EngineError, ExecutionId, ExecutionStatus, ExitReason};
use futures_util::StreamExt;

use super::context::Context;
use super::driver::Work;
use super::files::SandboxFiles;
use super::registry::OpenError;
use super::state::{
    self, Outcome, PauseTarget, Recovery, RollbackStep, Saved, SnapshotStep, State,
};
use super::transition::{Cause, Ended, blocking, dead, destroy, until_done};
use super::{Record, keep, kill, resume, rollback, seal};

/// Executions destroyed at once at the start.
const STRAYS_AT_ONCE: usize = 8;
/// The start of the server waits no longer for one.
const STRAY_LIMIT: Duration = Duration::from_secs(60);
/// How long a living execution that does not thaw is kept. It may be writing an image that nobody waits
/// for any more, and thaws after that.
const ADOPT_LIMIT: Duration = Duration::from_secs(600);

/// Every journaled sandbox with the work its recovery needs. What belongs to no sandbox is removed
/// before this returns.
pub(super) async fn recover(
    context: &Arc<Context>,
) -> Result<Vec<(Record, Option<Work>)>, OpenError> {
    let records = context.db.load_all().await?;
    let found = context.engine.find().await?;
    let found: HashMap<_, _> = found
        .into_iter()
        .map(|found| (found.id, found.status))
        .collect();
    remove_strays(context, &records, &found).await;

    let mut recovered = Vec::with_capacity(records.len());
    for mut record in records {
        let work = recover_one(context, &mut record, &found).await;
        recovered.push((record, work));
    }
    Ok(recovered)
}

async fn recover_one(
    context: &Arc<Context>,
    record: &mut Record,
    found: &HashMap<ExecutionId, ExecutionStatus>,
) -> Option<Work> {
    let status = record
        .state
        .execution()
        .and_then(|execution| found.get(execution))
        .copied();
    let recovery = state::recover(&record.state, status, is_committed(context, record));
    sweep(context, record, status).await;
    if recovery != Recovery::Rest {
        tracing::info!(sandbox.id = %record.id, from = record.state.name(), ?status, ?recovery, "recovering a sandbox");
    }
    let (context, copy) = (Arc::clone(context), record.clone());
    let restarted = || Cause::Io {
        step: "resume",
        source: std::io::Error::other("the server was restarted meanwhile"),
    };
    Some(match recovery {
        Recovery::Rest => return None,
        Recovery::Undo => Box::pin(async { Ended::with(Outcome::Undone) }),
        Recovery::Adopt(execution, outcome) => Box::pin(adopt(context, copy, execution, outcome)),
        Recovery::CleanUp(execution, outcome) => Box::pin(async move {
            // A snapshot goes on with the disk.
            if matches!(copy.state, State::Snapshotting { .. }) && outcome == Outcome::Done {
                destroy(&context, &execution).await;
                return Ended::with(outcome);
            }
            Ended {
                left: Some(execution),
                agent_silent: matches!(copy.state, State::Keeping { .. }),
                ..Ended::with(outcome)
            }
        }),
        Recovery::FinishStart(execution) => Box::pin(resume::finish_start(
            context,
            copy.clone(),
            execution,
            saved_of(&copy),
        )),
        Recovery::Keep(execution, image) => Box::pin(async move {
            match take_over(&context, &copy, &execution, Then::Stay).await {
                Ok(()) => keep::keep(context, copy, execution, image).await,
                Err((error, _)) => resume::give_up(context, copy, execution, error.into()).await,
            }
        }),
        Recovery::UndoStart(execution) => Box::pin(resume::undo_start(
            context,
            copy.clone(),
            execution,
            saved_of(&copy),
            restarted(),
        )),
        Recovery::StartAgain(execution) => {
            let saved = saved_of(&copy);
            let from = copy.state.start_point();
            Box::pin(resume::start_again(context, copy, execution, saved, from))
        }
        Recovery::AbandonSnapshot(id) => Box::pin(seal::abandon(context, copy, id)),
        Recovery::FinishRollback => match copy.state.clone() {
            State::RollingBack {
                snapshot,
                step:
                    RollbackStep::Replacing {
                        execution, saved, ..
                    },
            } => Box::pin(rollback::replace(context, copy, snapshot, execution, saved)),
            _ => return None,
        },
        Recovery::Delete => {
            let execution = record.state.execution().cloned();
            record.state = State::Killing {
                execution: execution.clone(),
            };
            Box::pin(kill::kill(context, copy, execution))
        }
    })
}

async fn adopt(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    outcome: Outcome,
) -> Ended {
    match take_over(&context, &record, &execution, Then::Thaw).await {
        Ok(()) => Ended::with(outcome),
        Err((error, reason)) => {
            tracing::error!(sandbox.id = %record.id, %error, "a running execution could not be taken over");
            // Nobody waits for its end: what cannot be taken over may be hard to destroy as well.
            Ended {
                left: Some(execution),
                ..Ended::failed(Outcome::ExecutionLost(reason), error.into())
            }
        }
    }
}

/// What becomes of an execution that was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It runs.
    Thaw,
    /// It stays as it is.
    Stay,
}

/// Takes a live execution over, trying again while it lives: destroying it would give its memory up. If
/// it dies in between it is lost like any other. An error says what it is taken for.
pub(super) async fn take_over(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    then: Then,
) -> Result<(), (EngineError, ExitReason)> {
    let begun = Instant::now();
    let mut wait = Duration::from_millis(50);
    loop {
        let adopted = context.engine.adopt(execution).await;
        let known = adopted.is_ok();
        let taken = match (adopted, then) {
            (Ok(()), Then::Thaw) => context.engine.thaw(execution).await,
            (adopted, _) => adopted,
        };
        let Err(error) = taken else {
            return Ok(());
        };
        let lost = match &error {
            EngineError::Unknown(_) => Some(ExitReason::Exited),
            // The engine cannot tell the end of what it does not know.
            _ if known => dead(context, execution).await,
            _ => None,
        };
        let lost = lost.or((begun.elapsed() > ADOPT_LIMIT).then_some(ExitReason::Exited));
        if let Some(reason) = lost {
            return Err((error, reason));
        }
        tracing::warn!(sandbox.id = %record.id, %error, "taking a running execution over failed, trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

pub(super) fn saved_of(record: &Record) -> Saved {
    match &record.state {
        State::Resuming { saved, .. }
        | State::Keeping { saved, .. }
        | State::Restarting { saved, .. }
        | State::Paused { saved } => saved.clone(),
        State::Creating { .. }
        | State::Running { .. }
        | State::Pausing { .. }
        | State::Snapshotting { .. }
        | State::RollingBack { .. }
        | State::Killing { .. } => Saved::Disk {
            reason: state::DiskReason::Asked,
        },
    }
}

fn is_committed(context: &Context, record: &Record) -> bool {
    match &record.state {
        State::Pausing {
            target: PauseTarget::Memory { image },
            ..
        }
        | State::Keeping { image, .. }
        | State::Snapshotting {
            step: SnapshotStep::Saving { image, .. },
            ..
        } => context.files(record).images().is_committed(image),
        State::Pausing {
            target: PauseTarget::Disk,
            ..
        }
        | State::Creating { .. }
        | State::Running { .. }
        | State::Paused { .. }
        | State::Resuming { .. }
        | State::Snapshotting { .. }
        | State::RollingBack { .. }
        | State::Restarting { .. }
        | State::Killing { .. } => false,
    }
}

/// Removes what unfinished transitions left. A live execution may still be reading an old image, so
/// committed ones are only removed when there is none; the driver does the rest. The disks of an
/// execution that a rollback is replacing are not in the record any more: they go with it.
async fn sweep(context: &Context, record: &Record, status: Option<ExecutionStatus>) {
    let (images, disks) = (
        context.files(record).images(),
        context.files(record).disks(),
    );
    let keep: Vec<_> = record.images().into_iter().cloned().collect();
    let swept = match status {
        Some(_) => blocking(move || images.sweep_staging()).await,
        None => blocking(move || images.sweep(&keep)).await,
    };
    if let Err(error) = swept {
        tracing::warn!(sandbox.id = %record.id, %error, "old images could not be removed");
    }
    let replacing = matches!(
        record.state,
        State::RollingBack {
            step: RollbackStep::Replacing { .. },
            ..
        }
    );
    if replacing && status.is_some() {
        return;
    }
    let keep = record.disks.clone();
    if let Err(error) = blocking(move || disks.sweep(&keep)).await {
        tracing::warn!(sandbox.id = %record.id, %error, "old disks could not be removed");
    }
}

/// Destroys executions that no record names, and points out directories that none names. Such a
/// directory cannot come from a crash (the record is written first and deleted last), so it may be
/// somebody's data without its journal: it is left alone.
async fn remove_strays(
    context: &Context,
    records: &[Record],
    found: &HashMap<ExecutionId, ExecutionStatus>,
) {
    let known: HashSet<_> = records
        .iter()
        .filter_map(|record| record.state.execution())
        .collect();
    let strays = found.keys().filter(|id| !known.contains(id));
    futures_util::stream::iter(strays)
        .for_each_concurrent(STRAYS_AT_ONCE, async |stray| {
            tracing::info!(execution.id = %stray, "destroying an execution that belongs to no record");
            // It may be the frozen one of a paused sandbox, whose disk is needed.
            let (engine, id) = (Arc::clone(&context.engine), stray.clone());
            let destroyed = tokio::spawn(async move {
                let step = format!("destroy {id}");
                until_done(&step, || engine.destroy(&id)).await;
            });
            if tokio::time::timeout(STRAY_LIMIT, destroyed).await.is_err() {
                tracing::error!(execution.id = %stray, "it could not be destroyed yet; its sandbox cannot be resumed or killed before it is");
            }
        })
        .await;
    let names: HashSet<_> = records.iter().map(|record| record.id.to_string()).collect();
    let all = SandboxFiles::all(&context.data_dir);
    let listed = blocking(move || -> std::io::Result<Vec<std::path::PathBuf>> {
        let entries = match std::fs::read_dir(&all) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    });
    for path in listed.await.unwrap_or_default() {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        if name.is_none_or(|name| !names.contains(&name)) {
            tracing::warn!(path = %path.display(), "this directory belongs to no sandbox of the journal; remove it if you do not need it");
        }
    }
}
