//! kill: delete everything a sandbox has. It works from every state and is repeated until done.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use engine::ExecutionId;

use super::Record;
use super::context::Context;
use super::disks::remove_tree;
use super::faults::Step;
use super::transition::{Cause, Ended, blocking, destroy};

/// Deletes the sandbox of a record in state `Killing` (or of a failed create).
pub(super) async fn kill(
    context: Arc<Context>,
    record: Record,
    execution: Option<ExecutionId>,
) -> Ended {
    delete(&context, &record, execution.as_ref()).await;
    Ended::done()
}

/// Destroys the execution, deletes the files, then the record: as long as anything is left, the
/// record says that it has to go.
pub(super) async fn delete(context: &Context, record: &Record, execution: Option<&ExecutionId>) {
    let mut wait = Duration::from_millis(50);
    while let Err(cause) = attempt(context, record, execution).await {
        tracing::error!(sandbox.id = %record.id, error = %cause, "deleting a sandbox failed, trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
}

async fn attempt(
    context: &Context,
    record: &Record,
    execution: Option<&ExecutionId>,
) -> Result<(), Cause> {
    // That of a paused one is in no record: what is kept of it, or does not end, uses its disk.
    context.warm.drop_of(&record.id).await;
    context.faults.reach(Step::KillDestroy).await?;
    if let Some(execution) = execution {
        destroy(context, execution).await;
    }
    context.faults.reach(Step::KillFiles).await?;
    let files = context.files(record);
    context
        .engine
        .remove_disk(&context.own_disk(record))
        .await?;
    let root = files.root().to_owned();
    blocking(move || remove_tree(&root))
        .await
        .map_err(|source| Cause::Io {
            step: "delete the sandbox's directory",
            source,
        })?;
    context.faults.reach(Step::KillForget).await?;
    let forgotten = context.db.delete(record.id.clone()).await;
    forgotten.map_err(|error| Cause::Io {
        step: "delete the sandbox's record",
        source: io::Error::other(error),
    })
}
