//! create: a new sandbox from a template.

use std::sync::Arc;

use engine::{BuildId, ExecutionId, StartFrom};

use super::Record;
use super::context::Context;
use super::faults::Step;
use super::launch;
use super::state::Outcome;
use super::transition::{Cause, Ended, blocking, destroy};
use crate::template::Template;

/// Makes the sandbox of a record in state `Creating`.
pub(super) async fn create(
    context: Arc<Context>,
    record: Record,
    template: Arc<Template>,
    execution: ExecutionId,
) -> Ended {
    match attempt(&context, &record, &template, &execution).await {
        Ok(()) => Ended::done(),
        Err(cause) => {
            super::kill::delete(&context, &record, Some(&execution)).await;
            Ended::failed(Outcome::Undone, cause)
        }
    }
}

async fn attempt(
    context: &Context,
    record: &Record,
    template: &Template,
    execution: &ExecutionId,
) -> Result<(), Cause> {
    let files = context.files(record);
    context.check_free_space(0).map_err(Cause::NoSpace)?;
    context.faults.reach(Step::CreateDirectory).await?;
    let root = files.root().to_owned();
    blocking(move || std::fs::create_dir_all(root))
        .await
        .map_err(|source| Cause::Io {
            step: "make the sandbox's directory",
            source,
        })?;
    context.faults.reach(Step::CreateDisk).await?;
    context
        .engine
        .copy_disk(&template.disk, &files.disk())
        .await?;

    context.faults.reach(Step::CreateStart).await?;
    let build = BuildId(template.manifest.engine.build.clone());
    let spec = context.execution_spec(record, execution, build);
    let image = template.image();
    if let Err(error) = context.engine.start(&spec, StartFrom::Image(&image)).await {
        tracing::warn!(sandbox.id = %record.id, error = %error.source, "a start failed, trying once more");
        // Restores fail about once in a thousand times for no lasting reason. The disk is a copy
        // and can be made again, whatever the first guest did to it.
        destroy(context, execution).await;
        context.engine.remove_disk(&files.disk()).await?;
        context
            .engine
            .copy_disk(&template.disk, &files.disk())
            .await?;
        context
            .engine
            .start(&spec, StartFrom::Image(&image))
            .await
            .map_err(|e| e.source)?;
    }
    context.faults.reach(Step::CreateAgent).await?;
    launch::greet(context, record, execution).await?;
    context.faults.reach(Step::CreatePublish).await?;
    Ok(())
}
