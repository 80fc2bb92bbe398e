//! create: a new sandbox from a template or a snapshot.

use std::sync::Arc;

use engine::{BuildId, ExecutionId, StartFrom};

use super::context::Context;
use super::faults::Step;
use super::state::{Outcome, Saved, StartPoint};
use super::transition::{Cause, Ended, blocking, destroy};
use super::{Record, launch, resume};
use crate::snapshots::Snapshot;
use crate::template::Template;

/// What a sandbox is made from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Template(Arc<Template>),
    Snapshot(Arc<Snapshot>),
}

/// Makes the sandbox of a record in state `Creating`.
pub(super) async fn create(
    context: Arc<Context>,
    record: Record,
    origin: Origin,
    execution: ExecutionId,
) -> Ended {
    match attempt(&context, &record, &origin, &execution).await {
        Ok(()) => Ended::done(),
        Err(cause) => {
            super::kill::delete(&context, &record, Some(&execution)).await;
            Ended::failed(Outcome::Undone, cause)
        }
    }
}

async fn attempt(
    context: &Arc<Context>,
    record: &Record,
    origin: &Origin,
    execution: &ExecutionId,
) -> Result<(), Cause> {
    let files = context.files(record);
    context.check_free_space(0).map_err(Cause::NoSpace)?;
    context.faults.reach(Step::CreateDirectory).await?;
    let root = files.root().to_owned();
    blocking(move || std::fs::create_dir_all(root))
        .await
        .map_err(|source| Cause::io("make the sandbox's directory", source))?;
    files.disks().create().await?;
    match origin {
        Origin::Template(template) => from_template(context, record, template, execution).await?,
        Origin::Snapshot(snapshot) => from_snapshot(context, record, snapshot, execution).await?,
    }
    context.faults.reach(Step::CreatePublish).await?;
    Ok(())
}

async fn from_template(
    context: &Context,
    record: &Record,
    template: &Template,
    execution: &ExecutionId,
) -> Result<(), Cause> {
    let disk = context.own_disk(record);
    context.faults.reach(Step::CreateDisk).await?;
    context.engine.copy_disk(&template.disk, &disk).await?;

    context.faults.reach(Step::CreateStart).await?;
    let build = BuildId(template.manifest.engine.build.clone());
    let spec = context.execution_spec(record, execution, build);
    let image = template.image();
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
    context.faults.reach(Step::CreateAgent).await?;
    launch::greet(context, record, execution).await
}

/// Its own names of all that the snapshot has, then a resume: from there on it depends on nobody.
async fn from_snapshot(
    context: &Arc<Context>,
    record: &Record,
    snapshot: &Snapshot,
    execution: &ExecutionId,
) -> Result<(), Cause> {
    context.faults.reach(Step::CreateDisk).await?;
    let saved = super::rollback::take_over(context, record, snapshot, &record.disks).await?;
    context.faults.reach(Step::CreateStart).await?;
    let from = match saved {
        Saved::Memory { .. } => StartPoint::Memory,
        Saved::Disk { .. } => StartPoint::Disk,
    };
    let (context, copy, execution) = (Arc::clone(context), record.clone(), execution.clone());
    let started = resume::resume(Arc::clone(&context), copy, execution, saved, from).await;
    context.faults.reach(Step::CreateAgent).await?;
    match started.cause {
        None if started.outcome == Outcome::Done => Ok(()),
        None => Err(Cause::Exited),
        Some(cause) => Err(cause),
    }
}
