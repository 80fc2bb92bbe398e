//! pause: freeze, write memory, make everything durable, commit by rename, let go of the execution.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent_api::{PrepareReply, PrepareRequest};
use engine::ExecutionId;
use snapshot::{EngineIdentity, ImageId, Subject};
use time::OffsetDateTime;

use super::context::Context;
use super::faults::Step;
use super::state::{Outcome, PauseTarget};
use super::transition::{Cause, Ended, blocking, dead, destroy};
use super::warm::{Left, NextStart};
use super::{PauseMode, PauseRequest, Record, Timings, hooks};

/// Space an image may need beyond the resident memory: the engine's own state.
const IMAGE_OVERHEAD_BYTES: u64 = 64 << 20;

/// How long a living guest that does not thaw is kept after a pause that failed. The engine may still be
/// writing an image that nobody waits for any more, and thaws after that.
const THAW_LIMIT: Duration = Duration::from_secs(600);

/// Saves the sandbox of a record in state `Pausing`. An error before the commit leaves the
/// execution running.
pub(super) async fn pause(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    target: PauseTarget,
    request: PauseRequest,
    after: After,
) -> Ended {
    let mut progress = Progress::default();
    let saved = match &target {
        PauseTarget::Memory { image } => {
            save_memory(&context, &record, &execution, image, request, &mut progress).await
        }
        PauseTarget::Disk => {
            let saved = save_disk(&context, &record, &execution, &mut progress).await;
            saved.map(|()| Agent::Helped)
        }
    };
    let agent = match saved {
        Ok(agent) => agent,
        Err(cause) => {
            if !committed_all_the_same(&context, &record, &execution, &target).await {
                return undo(&context, &record, &execution, cause).await;
            }
            tracing::warn!(sandbox.id = %record.id, error = %cause, "the image is there, so the pause is finished");
            Agent::Helped
        }
    };
    let ending = finish(&context, &record, &execution, &target, after);
    progress.timings.of("end", ending).await;
    Ended {
        left: (target == PauseTarget::Disk).then(|| execution.clone()),
        agent_silent: agent == Agent::Silent,
        timings: progress.timings,
        still_since: progress.still_since,
        ..Ended::done()
    }
}

/// What becomes of the execution after the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It may stay frozen in memory for the next connect. Else its end is nothing to wait for: all of
    /// it is in the image.
    Leave,
    /// Its disk is needed.
    Destroy,
}

/// What is told of a pause besides its outcome.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) timings: Timings,
    /// When the guest was frozen.
    pub(super) still_since: Option<Instant>,
}

/// Whether the agent took part in a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    Helped,
    Silent,
}

/// Saves a running sandbox for a snapshot: all that a pause does.
pub(super) async fn save(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    image: ImageId,
) -> Ended {
    let request = PauseRequest {
        mode: PauseMode::Full,
        require_healthy_guest: false,
    };
    // By itself, because its failure counts: the kernel tells it once.
    if let Err(error) = context.engine.sync_disk(&execution).await {
        return undo(&context, &record, &execution, error.into()).await;
    }
    if let Err(error) = context.engine.forget_cached_files(&execution).await {
        tracing::debug!(sandbox.id = %record.id, %error, "the snapshot will take longer");
    }
    let target = PauseTarget::Memory { image };
    pause(context, record, execution, target, request, After::Destroy).await
}

async fn save_memory(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    image: &ImageId,
    request: PauseRequest,
    progress: &mut Progress,
) -> Result<Agent, Cause> {
    check_space(context, execution).await?;
    context.faults.reach(Step::PausePrepare).await?;
    let mut agent = Agent::Helped;
    let by_host = PrepareRequest {
        host_writes_back: true,
    };
    let preparing = prepare(context, record, execution, &by_host);
    let prepared = progress.timings.of("prepare", preparing);
    if let Err(cause) = prepared.await {
        if request.require_healthy_guest || matches!(cause, Cause::Hook(_)) {
            return Err(cause);
        }
        // The checkpoint writes back what the guest holds, so an agent that hangs costs nothing
        // but the trimming.
        tracing::warn!(sandbox.id = %record.id, error = %cause, "pausing without the agent's help");
        agent = Agent::Silent;
    }
    // Leaves little to do while the guest stands still. A failure counts: the kernel tells it once.
    let written = context.engine.sync_disk(execution);
    progress.timings.of("write-back", written).await?;
    write_image(context, record, execution, image, progress).await?;
    Ok(agent)
}

/// Freezes the guest and commits an image of its memory.
pub(super) async fn write_image(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    image: &ImageId,
    Progress {
        timings,
        still_since,
    }: &mut Progress,
) -> Result<(), Cause> {
    let images = context.files(record).images();
    let staged = image.clone();
    let staging = blocking(move || images.stage(&staged)).await?;

    context.faults.reach(Step::PauseFreeze).await?;
    let engine = context.engine.as_ref();
    *still_since = Some(Instant::now());
    timings.of("freeze", engine.freeze(execution)).await?;
    context.faults.reach(Step::PauseCheckpoint).await?;
    let written = engine.checkpoint(execution, staging.path());
    timings.of("checkpoint", written).await?;
    context.faults.reach(Step::PauseSync).await?;
    timings.of("sync", engine.sync_disk(execution)).await?;
    let subject = Subject {
        owner: record.id.to_string(),
        layers: record.spec.layers.clone(),
        memory_bytes: record.spec.limits.memory_bytes,
        cpu_milli: record.spec.limits.cpu_milli,
        // Taken after the sync: flushing may still touch the disk, the guest can not.
        frozen_at_ns: OffsetDateTime::now_utc().unix_timestamp_nanos(),
    };
    context.faults.reach(Step::PauseCommit).await?;
    let identity = engine_identity(context, execution)?;
    let committed = blocking(move || staging.commit(identity, subject));
    timings.of("commit", committed).await?;
    context.faults.reach(Step::PauseCommitted).await?;
    tracing::debug!(sandbox.id = %record.id, ?timings, "memory image committed");
    Ok(())
}

/// Whether an image would find room.
pub(super) async fn check_space(context: &Context, execution: &ExecutionId) -> Result<(), Cause> {
    let resident = context.engine.resident_bytes(execution).await?;
    context
        .check_free_space(resident + IMAGE_OVERHEAD_BYTES)
        .map_err(Cause::NoSpace)
}

async fn save_disk(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    Progress {
        timings,
        still_since,
    }: &mut Progress,
) -> Result<(), Cause> {
    context.faults.reach(Step::PausePrepare).await?;
    let engine = context.engine.as_ref();
    // What the host can write back it does at one go, the guest file by file.
    let written = engine.sync_disk(execution);
    timings.of("write-back", written).await?;
    // Without memory, whatever the guest has not written back is lost: no agent, no pause.
    let by_guest = PrepareRequest::default();
    let prepared = timings.of("prepare", prepare(context, record, execution, &by_guest));
    prepared.await?;
    context.faults.reach(Step::PauseFreeze).await?;
    *still_since = Some(Instant::now());
    timings.of("freeze", engine.freeze(execution)).await?;
    context.faults.reach(Step::PauseSync).await?;
    timings.of("sync", engine.sync_disk(execution)).await?;
    tracing::debug!(sandbox.id = %record.id, "disk saved");
    Ok(())
}

async fn prepare(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    request: &PrepareRequest,
) -> Result<(), Cause> {
    let reply = prepare_agent(context, execution, request).await?;
    if reply.pre_pause_hooks > 0 {
        hooks::before_pause(context, record, execution).await?;
        // What the hooks wrote.
        prepare_agent(context, execution, request).await?;
    }
    Ok(())
}

async fn prepare_agent(
    context: &Context,
    execution: &ExecutionId,
    request: &PrepareRequest,
) -> Result<PrepareReply, Cause> {
    let limit = context.settings.agent_prepare_timeout;
    match tokio::time::timeout(limit, context.guest(execution).prepare(request)).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(Cause::AgentSilent(error.to_string())),
        Err(_) => Err(Cause::AgentSilent(format!("no answer within {limit:?}"))),
    }
}

fn engine_identity(context: &Context, execution: &ExecutionId) -> Result<EngineIdentity, Cause> {
    let build = context.engine.build_of(execution)?;
    Ok(EngineIdentity {
        engine: build.engine,
        version: build.version,
        build: build.id.0,
    })
}

/// Whether the image got its name although its commit was told as failed, and cannot be made to lose
/// it again: then the pause has happened. A crash from here on would find it so. The same when the guest
/// has died meanwhile: the image is all that there is of it.
async fn committed_all_the_same(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    target: &PauseTarget,
) -> bool {
    let PauseTarget::Memory { image } = target else {
        return false;
    };
    let (images, image) = (context.files(record).images(), image.clone());
    if images.is_committed(&image) && dead(context, execution).await.is_some() {
        if let Err(error) = blocking(move || images.sync_names()).await {
            tracing::warn!(sandbox.id = %record.id, %error, "the image of a guest that has died may not outlive the host");
        }
        return true;
    }
    blocking(move || !images.withdraw(&image)).await
}

/// Puts everything back as it was and lets the guest go on.
async fn undo(context: &Context, record: &Record, execution: &ExecutionId, cause: Cause) -> Ended {
    let images = context.files(record).images();
    if let Err(error) = blocking(move || images.sweep_staging()).await {
        tracing::warn!(sandbox.id = %record.id, %error, "an unfinished image could not be removed");
    }
    let (begun, mut wait) = (Instant::now(), Duration::from_millis(20));
    while begun.elapsed() < THAW_LIMIT {
        if let Some(reason) = dead(context, execution).await {
            return lost(execution, reason, cause);
        }
        match context.engine.thaw(execution).await {
            Ok(()) => {
                // A silent agent would only be waited for again.
                if !matches!(cause, Cause::AgentSilent(_)) {
                    hooks::after_undone_pause(context, record, execution).await;
                }
                return Ended::failed(Outcome::Undone, cause);
            }
            Err(error) => {
                tracing::error!(sandbox.id = %record.id, %error, "thawing after a failed pause failed, trying again");
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
    // Frozen for good: the memory cannot be had, the disk can.
    lost(execution, engine::ExitReason::Exited, cause)
}

/// What the execution had in memory is gone; nobody waits for its end.
fn lost(execution: &ExecutionId, reason: engine::ExitReason, cause: Cause) -> Ended {
    Ended {
        left: Some(execution.clone()),
        ..Ended::failed(Outcome::ExecutionLost(reason), cause)
    }
}

/// Everything after the commit: none of it can turn the pause back. (One without memory is committed by
/// the entry in the journal that comes next, and no step before that fails any more.)
pub(super) async fn finish(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    target: &PauseTarget,
    after: After,
) {
    retry_fault(context, Step::PauseDestroy).await;
    let committed_at = OffsetDateTime::now_utc();
    match (target, after) {
        (PauseTarget::Memory { image }, After::Leave) => {
            let keep = !context.stopping.load(Ordering::Relaxed);
            let left = Left {
                execution: execution.clone(),
                image: image.clone(),
                next: keep
                    .then(|| next_start(context, record, execution, image))
                    .flatten(),
            };
            context.warm.leave(&record.id, left, keep).await;
        }
        (PauseTarget::Memory { .. }, After::Destroy) => destroy(context, execution).await,
        // Nothing but the journal can tell that it was paused.
        (PauseTarget::Disk, _) => {}
    }
    let images = context.files(record).images();
    let keep = match target {
        PauseTarget::Memory { image } => vec![image.clone()],
        PauseTarget::Disk => Vec::new(),
    };
    if let Err(error) = blocking(move || images.sweep(&keep)).await {
        tracing::warn!(sandbox.id = %record.id, %error, "an old image could not be removed");
    }
    pass(committed_at).await;
    retry_fault(context, Step::PausePublish).await;
}

/// How the sandbox of this record will be started from the image that its execution wrote.
fn next_start(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    image: &ImageId,
) -> Option<NextStart> {
    let build = context.engine.build_of(execution).ok()?.id;
    Some(NextStart {
        spec: context.execution_spec(record, &ExecutionId::random(), build),
        image: context.files(record).images().path(image),
    })
}

/// Waits until the clock by which file systems stamp changes has passed `instant`: it moves in ticks of
/// some milliseconds, and whatever the next guest writes must look newer than the image.
async fn pass(instant: OffsetDateTime) {
    loop {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        let now = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        // A clock that was set back meanwhile is not waited for.
        let left = instant.unix_timestamp_nanos() - now;
        if !(0..=1_000_000_000).contains(&left) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// After the commit a failing step is repeated, never given up.
async fn retry_fault(context: &Context, step: Step) {
    while let Err(error) = context.faults.reach(step).await {
        tracing::warn!(%error, "trying again");
    }
}
