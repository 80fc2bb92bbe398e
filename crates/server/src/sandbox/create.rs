//! create: a new sandbox from a template or a snapshot.

use std::sync::Arc;
use std::time::Instant;

use engine::{BuildId, ExecutionId, StartFrom};

use super::context::Context;
use super::faults::Step;
use super::resume::Start;
use super::state::{DiskReason, Outcome, Saved, StartPoint};
use super::transition::{Cause, Ended, blocking, destroy};
use super::{Record, Timings, launch, resume, rollback};
use crate::snapshots::Lease;
use crate::template::Template;

/// What a sandbox is made from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Template(Arc<Template>),
    Snapshot(Lease),
}

/// Makes the sandbox of a record in state `Creating`.
pub(super) async fn create(
    context: Arc<Context>,
    record: Record,
    origin: Origin,
    execution: ExecutionId,
) -> Ended {
    let _starting = context.starting();
    let made = make(&context, &record, origin, &execution).await;
    ended(&context, &record, &execution, made).await
}

/// Makes the sandbox of a record in state `Creating` from one that was started ahead of time. The
/// journal gets to know what it is meanwhile.
pub(super) async fn adopt(context: Arc<Context>, record: Record, execution: ExecutionId) -> Ended {
    let _starting = context.starting();
    let made = async {
        let assigned = async {
            let assigned = context.db.assign(record.clone()).await;
            assigned.map_err(|error| Cause::Io {
                step: "journal what a prepared sandbox is",
                source: std::io::Error::other(error),
            })
        };
        let greeted = greet(&context, &record, &execution, Timings::default());
        let (timings, ()) = tokio::try_join!(greeted, assigned)?;
        Ok((timings, None))
    };
    ended(&context, &record, &execution, made.await).await
}

async fn ended(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    made: Result<(Timings, Option<String>), Cause>,
) -> Ended {
    match made {
        Ok((timings, memory_lost)) => Ended {
            timings,
            memory_lost,
            ..Ended::done()
        },
        Err(cause) => {
            super::kill::delete(context, record, Some(execution)).await;
            Ended::failed(Outcome::Undone, cause)
        }
    }
}

/// Answers also why it was booted although there is a memory image, if it was.
async fn make(
    context: &Arc<Context>,
    record: &Record,
    origin: Origin,
    execution: &ExecutionId,
) -> Result<(Timings, Option<String>), Cause> {
    match origin {
        Origin::Template(template) => {
            let timings = start(context, record, &template, execution).await?;
            let timings = greet(context, record, execution, timings).await?;
            Ok((timings, None))
        }
        Origin::Snapshot(snapshot) => {
            make_directory(context, record).await?;
            let made = from_snapshot(context, record, snapshot, execution).await?;
            context.faults.reach(Step::CreatePublish).await?;
            Ok(made)
        }
    }
}

async fn make_directory(context: &Context, record: &Record) -> Result<(), Cause> {
    let files = context.files(record);
    context.check_free_space(0).map_err(Cause::NoSpace)?;
    context.faults.reach(Step::CreateDirectory).await?;
    let root = files.root().to_owned();
    blocking(move || std::fs::create_dir_all(root))
        .await
        .map_err(|source| Cause::io("make the sandbox's directory", source))?;
    files.disks().create().await?;
    Ok(())
}

/// Starts an execution of a template that nobody has greeted. A failure leaves things to be deleted.
pub(super) async fn start(
    context: &Context,
    record: &Record,
    template: &Template,
    execution: &ExecutionId,
) -> Result<Timings, Cause> {
    make_directory(context, record).await?;
    let mut timings = Timings::default();
    let disk = context.own_disk(record);
    context.faults.reach(Step::CreateDisk).await?;
    let copied = context.engine.copy_disk(&template.disk, &disk);
    timings.of("disk", copied).await?;

    context.faults.reach(Step::CreateStart).await?;
    let build = BuildId(template.manifest.engine.build.clone());
    let spec = context.execution_spec(record, execution, build);
    let image = template.image();
    let begun = Instant::now();
    if let Err(error) = context.engine.start(&spec, StartFrom::Image(&image)).await {
        tracing::warn!(sandbox.id = %record.id, error = %error.source, "a start failed, trying once more");
        // Restores fail about once in a thousand times for no lasting reason. The disk is a copy
        // and can be made again, whatever the first guest did to it.
        destroy(context, execution).await;
        context.engine.remove_disk(&disk).await?;
        context.engine.copy_disk(&template.disk, &disk).await?;
        context
            .engine
            .start(&spec, StartFrom::Image(&image))
            .await
            .map_err(|e| e.source)?;
    }
    timings.note("start", begun);
    Ok(timings)
}

/// Tells the agent who it is.
async fn greet(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    mut timings: Timings,
) -> Result<Timings, Cause> {
    context.faults.reach(Step::CreateAgent).await?;
    let greeting = launch::greet(context, record, execution);
    timings.of("agent", greeting).await?;
    context.faults.reach(Step::CreatePublish).await?;
    Ok(timings)
}

/// Its own names of all that the snapshot has, then a resume: from there on it depends on nobody.
/// Memory that cannot be used does not cost the files, as for a paused sandbox.
async fn from_snapshot(
    context: &Arc<Context>,
    record: &Record,
    snapshot: Lease,
    execution: &ExecutionId,
) -> Result<(Timings, Option<String>), Cause> {
    context.faults.reach(Step::CreateDisk).await?;
    rollback::take_over_disks(context, record, &snapshot, &record.disks).await?;
    let (saved, mut memory_lost) =
        match rollback::take_over_memory(context, record, &snapshot).await {
            Ok(saved) => (saved, None),
            Err(cause) => match resume::unusable_image(&cause) {
                Some(why) if context.settings.boot_without_memory => {
                    let reason = DiskReason::Asked;
                    (Saved::Disk { reason }, Some(why))
                }
                Some(_) | None => return Err(cause),
            },
        };
    drop(snapshot);
    context.faults.reach(Step::CreateStart).await?;
    let resume = |from| {
        let (context, record) = (Arc::clone(context), record.clone());
        let execution = execution.clone();
        resume::resume(context, record, execution, saved.clone(), from, Start::New)
    };
    let from = match saved {
        Saved::Memory { .. } => StartPoint::Memory,
        Saved::Disk { .. } => StartPoint::Disk,
    };
    let mut started = resume(from).await;
    if let Outcome::MemoryUnusable(why) = started.outcome {
        memory_lost = Some(why);
        started = resume(StartPoint::Disk).await;
    }
    context.faults.reach(Step::CreateAgent).await?;
    match started.cause {
        None if started.outcome == Outcome::Done => Ok((started.timings, memory_lost)),
        None => Err(Cause::Exited),
        Some(cause) => Err(cause),
    }
}
