//! snapshot: seal what a sandbox stands on, and let it go on on a fresh disk.
//!
//! Nothing is copied and nothing is moved: the snapshot gets names of its own (hard links) for the
//! disks and the memory image. Until its commit the source is what it was, and giving up means to
//! remove the snapshot's names.

use std::sync::Arc;

use time::OffsetDateTime;

use super::context::Context;
use super::disks::{DiskId, Disks, MAX_SEALED};
use super::faults::Step;
use super::state::{Outcome, Saved};
use super::transition::{Cause, Ended, blocking};
use super::{Record, SnapshotRequest};
use crate::snapshots::{Snapshot, SnapshotId};

/// Seals the disk of a record in step `Sealing`; the driver commits what this answers. A failure
/// leaves the sandbox as it was.
pub(super) async fn seal(
    context: Arc<Context>,
    record: Record,
    id: SnapshotId,
    saved: Saved,
    request: SnapshotRequest,
) -> Ended {
    match attempt(&context, &record, &id, &saved, request).await {
        Ok((snapshot, disks)) => Ended {
            snapshot: Some(snapshot),
            disks: Some(disks),
            ..Ended::done()
        },
        Err(cause) => {
            remove(&context, &record, &id).await;
            Ended::failed(Outcome::Undone, cause)
        }
    }
}

/// Gives up a snapshot that was not committed.
pub(super) async fn abandon(context: Arc<Context>, record: Record, id: SnapshotId) -> Ended {
    remove(&context, &record, &id).await;
    Ended::with(Outcome::Undone)
}

/// Removes what there is of the snapshot, and disks that the source did not come to stand on.
pub(super) async fn remove(context: &Context, record: &Record, id: &SnapshotId) {
    let (files, disks) = (context.snapshots.files(id), context.files(record).disks());
    let keep = record.disks.clone();
    let removed = blocking(move || files.remove().and_then(|()| disks.sweep(&keep))).await;
    if let Err(error) = removed {
        tracing::error!(sandbox.id = %record.id, snapshot.id = %id, %error, "an unfinished snapshot could not be removed");
    }
}

async fn attempt(
    context: &Context,
    record: &Record,
    id: &SnapshotId,
    saved: &Saved,
    request: SnapshotRequest,
) -> Result<(Snapshot, Disks), Cause> {
    context.check_free_space(0).map_err(Cause::NoSpace)?;
    context.faults.reach(Step::SnapshotLink).await?;
    let (own, target) = (context.files(record), context.snapshots.files(id));
    let staged = target.staged_disks();
    let sealed = &record.disks.sealed;
    let engine = context.engine.as_ref();
    own.disks().share(engine, sealed, &staged).await?;
    if !record.disks.fresh {
        // A paused one may have been through a power cut; a sealed disk is never mended again.
        engine.settle_disk(&context.own_disk(record)).await?;
    }
    let (disks, next) = if record.disks.fresh {
        // Nothing is on it: what it stands on is all there is to seal.
        (sealed.clone(), record.disks.clone())
    } else if sealed.len() < MAX_SEALED {
        let all = on_top(record.disks.own.clone(), sealed);
        own.disks().share(engine, &all[..1], &staged).await?;
        let next = Disks {
            own: DiskId::random(),
            fresh: true,
            sealed: all.clone(),
        };
        (all, next)
    } else {
        let copy = DiskId::random();
        let from = context.own_disk(record);
        let to = staged.path(&copy);
        engine.copy_disk_durably(&from, &to).await?;
        (on_top(copy, sealed), record.disks.clone())
    };
    let image = saved.image().filter(|_| request.memory).cloned();
    if let Some(image) = image.clone() {
        let (from, to) = (own.images(), target.staged_images());
        blocking(move || from.share(&image, &to)).await?;
    }
    context.faults.reach(Step::SnapshotDisk).await?;
    if next.own != record.disks.own {
        let size = record.spec.limits.disk_bytes;
        engine.create_disk(&own.own_disk(&next), size).await?;
    }
    context.faults.reach(Step::SnapshotFinish).await?;
    let build = match image.clone() {
        Some(image) => {
            let images = own.images();
            let manifest = blocking(move || images.check(&image)).await?;
            engine::BuildId(manifest.engine.build)
        }
        None => engine.build().id.clone(),
    };
    let snapshot = Snapshot {
        id: id.clone(),
        name: request.name,
        usage: request.usage,
        created_at: OffsetDateTime::now_utc(),
        source: record.id.clone(),
        layers: record.spec.layers.clone(),
        disks,
        image,
        build,
        limits: record.spec.limits,
    };
    let finished = snapshot.clone();
    blocking(move || target.finish(&finished))
        .await
        .map_err(|source| Cause::io("finish the snapshot's directory", source))?;
    context.faults.reach(Step::SnapshotCommit).await?;
    Ok((snapshot, next))
}

fn on_top(disk: DiskId, sealed: &[DiskId]) -> Vec<DiskId> {
    let mut all = vec![disk];
    all.extend_from_slice(sealed);
    all
}
