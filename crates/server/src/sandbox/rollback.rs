//! rollback: put a sandbox back to what a snapshot holds, in place.
//!
//! The files of the snapshot are put beside the sandbox's own first; it goes on meanwhile. The
//! journal entry after that commits the rollback, and only then is anything of before removed.

use std::sync::Arc;

use engine::{BuildId, ExecutionId};

use super::Record;
use super::context::Context;
use super::disks::{DiskId, Disks, MAX_SEALED};
use super::faults::Step;
use super::state::{DiskReason, Outcome, Saved};
use super::transition::{Cause, Ended, blocking, destroy};
use crate::snapshots::{Lease, Snapshot, SnapshotId};

/// The disks of something that is to stand on a snapshot.
pub(super) fn disks_on(snapshot: &Snapshot) -> Disks {
    if snapshot.disks.len() <= MAX_SEALED {
        return Disks {
            own: DiskId::random(),
            fresh: true,
            sealed: snapshot.disks.clone(),
        };
    }
    // One sealed disk more would be too many: the topmost is copied, not sealed.
    Disks {
        own: DiskId::random(),
        fresh: false,
        sealed: snapshot.disks[1..].to_vec(),
    }
}

/// What a sandbox on this snapshot is started from.
pub(super) fn saved_in(snapshot: &Snapshot) -> Saved {
    match &snapshot.image {
        Some(image) => Saved::Memory {
            image: image.clone(),
        },
        None => Saved::Disk {
            reason: DiskReason::Asked,
        },
    }
}

/// Gives a sandbox names of its own for the disks of the snapshot, and the disk to write to.
pub(super) async fn take_over_disks(
    context: &Context,
    record: &Record,
    snapshot: &Snapshot,
    disks: &Disks,
) -> Result<(), Cause> {
    let (from, to) = (context.snapshots.files(&snapshot.id), context.files(record));
    let engine = context.engine.as_ref();
    from.disks()
        .share(engine, &disks.sealed, &to.disks())
        .await?;
    let own = to.own_disk(disks);
    match snapshot.disks.first().filter(|_| !disks.fresh) {
        Some(top) => {
            engine
                .copy_disk_durably(&from.disks().path(top), &own)
                .await?
        }
        None => engine.create_disk(&own, snapshot.limits.disk_bytes).await?,
    }
    Ok(())
}

/// The same for its memory, which is checked. Answers what the sandbox is started from.
pub(super) async fn take_over_memory(
    context: &Context,
    record: &Record,
    snapshot: &Snapshot,
) -> Result<Saved, Cause> {
    if let Some(image) = snapshot.image.clone() {
        let from = context.snapshots.files(&snapshot.id).images();
        let to = context.files(record).images();
        let manifest = blocking(move || {
            from.share(&image, &to)?;
            to.check(&image)
        });
        let engine = manifest.await?.engine;
        if !context.engine.has_build(&BuildId(engine.build)) {
            return Err(Cause::BuildGone(engine.version));
        }
    }
    Ok(saved_in(snapshot))
}

/// Puts everything in place beside what the sandbox stands on.
pub(super) async fn stage(context: Arc<Context>, record: Record, snapshot: Lease) -> Ended {
    let disks = disks_on(&snapshot);
    match attempt(&context, &record, &snapshot, &disks).await {
        Ok(()) => Ended {
            disks: Some(disks),
            ..Ended::done()
        },
        Err(cause) => {
            unstage(&context, &record).await;
            Ended::failed(Outcome::Undone, cause)
        }
    }
}

async fn attempt(
    context: &Context,
    record: &Record,
    snapshot: &Snapshot,
    disks: &Disks,
) -> Result<(), Cause> {
    context.check_free_space(0).map_err(Cause::NoSpace)?;
    context.faults.reach(Step::RollbackLink).await?;
    take_over_disks(context, record, snapshot, disks).await?;
    // What the sandbox is now is not given up for memory that cannot be used.
    take_over_memory(context, record, snapshot).await?;
    context.faults.reach(Step::RollbackCommit).await?;
    Ok(())
}

/// Removes the disks that were put beside the sandbox's own. An image stays until the next sweep: the
/// execution may still be reading one of the same name.
pub(super) async fn unstage(context: &Context, record: &Record) {
    let (disks, images) = (
        context.files(record).disks(),
        context.files(record).images(),
    );
    let keep = record.disks.clone();
    let removed = blocking(move || {
        disks.sweep(&keep).map_err(|error| error.to_string())?;
        images.sweep_staging().map_err(|error| error.to_string())
    });
    if let Err(error) = removed.await {
        tracing::warn!(sandbox.id = %record.id, error, "what a failed rollback put there could not be removed");
    }
}

/// The rollback is committed: removes what was before. It is repeated until done.
pub(super) async fn replace(
    context: Arc<Context>,
    record: Record,
    snapshot: SnapshotId,
    execution: Option<ExecutionId>,
    saved: Saved,
) -> Ended {
    tracing::info!(sandbox.id = %record.id, snapshot.id = %snapshot, "rolled back; removing what was before");
    while let Err(error) = context.faults.reach(Step::RollbackDestroy).await {
        tracing::warn!(%error, "trying again");
    }
    if let Some(execution) = execution {
        destroy(&context, &execution).await;
    }
    while let Err(error) = context.faults.reach(Step::RollbackSweep).await {
        tracing::warn!(%error, "trying again");
    }
    let (disks, images) = (
        context.files(&record).disks(),
        context.files(&record).images(),
    );
    let (keep, image) = (record.disks.clone(), saved.image().cloned());
    let swept = blocking(move || {
        disks.sweep(&keep).map_err(|error| error.to_string())?;
        let image: Vec<_> = image.into_iter().collect();
        images.sweep(&image).map_err(|error| error.to_string())
    });
    if let Err(error) = swept.await {
        tracing::warn!(sandbox.id = %record.id, error, "what was before a rollback could not be removed");
    }
    Ended::done()
}
