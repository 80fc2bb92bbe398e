//! keep: a start has failed, its guest lives and is ahead of what was saved. It is saved anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::ExecutionId;
use snapshot::ImageId;

use super::context::Context;
use super::pause::{self, After, Progress};
use super::state::PauseTarget;
use super::transition::{Cause, Ended, blocking, dead, until_done};
use super::{Record, resume};

/// How long a living guest is kept that cannot be frozen, looked at or saved: giving it up gives up its
/// memory.
pub(super) const KEEP_LIMIT: Duration = Duration::from_secs(600);

/// Saves the execution of a record in state `Keeping`, without the help of its agent. It is never thawed
/// here, so a step that fails is tried again.
pub(super) async fn keep(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    image: ImageId,
) -> Ended {
    let target = PauseTarget::Memory {
        image: image.clone(),
    };
    let mut progress = Progress::default();
    let images = context.files(&record).images();
    let (mut failing, mut wait) = (None, Duration::from_millis(50));
    while let Err(cause) = attempt(&context, &record, &execution, &image, &mut progress).await {
        // Whole, but its name may not be durable yet. The guest stands still: another image would be the
        // same.
        if images.is_committed(&image) {
            let syncing = until_done("make the name of an image durable", || {
                let images = images.clone();
                blocking(move || images.sync_names())
            });
            let _ = tokio::time::timeout(KEEP_LIMIT, syncing).await;
            break;
        }
        let swept = images.clone();
        if let Err(error) = blocking(move || swept.sweep_staging()).await {
            tracing::warn!(sandbox.id = %record.id, %error, "an unfinished image could not be removed");
        }
        let failing = failing.get_or_insert_with(Instant::now);
        if failing.elapsed() > KEEP_LIMIT || dead(&context, &execution).await.is_some() {
            tracing::error!(sandbox.id = %record.id, error = %cause, "a guest that could not be reached could not be saved either");
            return resume::give_up(context, record, execution, cause).await;
        }
        tracing::warn!(sandbox.id = %record.id, error = %cause, "saving a guest that could not be reached failed, trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
    let ending = pause::finish(&context, &record, &execution, &target, After::Leave);
    progress.timings.of("end", ending).await;
    tracing::warn!(sandbox.id = %record.id, "a guest that could not be reached was saved");
    Ended {
        agent_silent: true,
        timings: progress.timings,
        still_since: progress.still_since,
        ..Ended::done()
    }
}

async fn attempt(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    image: &ImageId,
    progress: &mut Progress,
) -> Result<(), Cause> {
    pause::check_space(context, execution).await?;
    pause::write_image(context, record, execution, image, progress).await
}
