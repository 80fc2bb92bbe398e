//! resume: check what was saved, start from it, greet the agent.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use engine::{BuildId, EngineError, ExecutionId, StartFrom};
use snapshot::{ImageError, ImageId, Manifest};

use super::context::Context;
use super::faults::Step;
use super::keep::KEEP_LIMIT;
use super::launch;
use super::recovery::Then;
use super::state::{Outcome, Saved, StartPoint};
use super::transition::{Cause, Ended, blocking, dead, destroy, until_done};
use super::{Record, Timings, recovery};

/// Between the two attempts of a resume.
const RETRY_WAIT: Duration = Duration::from_millis(250);

/// How long a frozen guest that does not thaw is asked to, before its image is used.
const THAW_LIMIT: Duration = Duration::from_secs(10);

/// How long a comparison of disk and image is tried again.
const COMPARE_LIMIT: Duration = Duration::from_secs(60);

/// What is known about a failed attempt.
struct Failure {
    cause: Cause,
    /// Whether the guest may have written to its disk.
    guest_may_have_run: bool,
}

impl Failure {
    fn before_the_guest(cause: impl Into<Cause>) -> Self {
        Self {
            cause: cause.into(),
            guest_may_have_run: false,
        }
    }

    fn with_the_guest(cause: impl Into<Cause>) -> Self {
        Self {
            cause: cause.into(),
            guest_may_have_run: true,
        }
    }
}

/// How a resume gets its execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It starts one.
    New,
    /// It is prepared for its image; the start goes on from there.
    Prepared,
    /// It is there, frozen since the pause.
    Thaw,
}

/// Starts the sandbox of a record in state `Resuming`. A failure leaves what was saved as it was;
/// it is tried once more, because restores fail about once in a thousand times for no lasting
/// reason.
pub(super) async fn resume(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    saved: Saved,
    from: StartPoint,
    mut start: Start,
) -> Ended {
    let mut retried = false;
    loop {
        // Not while a failed start is undone, which may take long.
        let starting = context.starting();
        let mut timings = Timings::default();
        let started = match (&saved, from) {
            (Saved::Memory { .. }, StartPoint::Memory) if start == Start::Thaw => {
                from_frozen(&context, &record, &execution, &mut timings).await
            }
            (Saved::Memory { image }, StartPoint::Memory) => {
                from_memory(&context, &record, &execution, image, &mut timings).await
            }
            (Saved::Memory { .. } | Saved::Disk { .. }, StartPoint::Disk)
            | (Saved::Disk { .. }, StartPoint::Memory) => {
                from_disk(&context, &record, &execution, &mut timings).await
            }
        };
        drop(starting);
        let failure = match started {
            Ok(()) => {
                return Ended {
                    timings,
                    ..Ended::done()
                };
            }
            Err(failure) => failure,
        };
        let outcome = undo(
            &context,
            &record,
            &execution,
            &saved,
            from,
            failure.guest_may_have_run,
        )
        .await;
        // It says nothing of the image that what was there for it is of no use.
        let begin_anew = match start {
            Start::New => false,
            Start::Prepared => matches!(failure.cause, Cause::Engine(_) | Cause::Exited),
            Start::Thaw => true,
        };
        if begin_anew && outcome == Outcome::Undone {
            tracing::warn!(sandbox.id = %record.id, ?start, error = %failure.cause, "what was kept for a resume is of no use; starting from the image");
            start = Start::New;
            continue;
        }
        let from_image = matches!((&saved, from), (Saved::Memory { .. }, StartPoint::Memory));
        if from_image
            && outcome == Outcome::Undone
            && context.settings.boot_without_memory
            && let Some(why) = unusable(&failure, retried)
        {
            tracing::error!(sandbox.id = %record.id, why, "the memory image cannot be used; booting from the disk instead");
            return Ended::failed(Outcome::MemoryUnusable(why), failure.cause);
        }
        if retried || outcome != Outcome::Undone || !worth_a_retry(&failure.cause) {
            return Ended::failed(outcome, failure.cause);
        }
        tracing::warn!(sandbox.id = %record.id, error = %failure.cause, "a resume failed, trying once more");
        // What the host was short of may be there again.
        tokio::time::sleep(RETRY_WAIT).await;
        (retried, start) = (true, Start::New);
    }
}

/// After a crash of the server, or of a start that had to be begun anew: whatever is left of it is
/// destroyed first.
pub(super) async fn start_again(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    saved: Saved,
    from: StartPoint,
) -> Ended {
    match undo(&context, &record, &execution, &saved, from, true).await {
        outcome @ (Outcome::MemoryStale | Outcome::Unreached(_)) => Ended::with(outcome),
        Outcome::Done
        | Outcome::Undone
        | Outcome::ExecutionLost(_)
        | Outcome::MemoryUnusable(_) => {
            resume(context, record, execution, saved, from, Start::New).await
        }
    }
}

/// After a crash of the server: the execution was found alive, is its agent?
pub(super) async fn finish_start(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    saved: Saved,
) -> Ended {
    let adopted = async {
        let taken = recovery::take_over(&context, &record, &execution, Then::Thaw).await;
        taken.map_err(|(error, _)| error)?;
        launch::greet(&context, &record, &execution).await
    };
    match adopted.await {
        Ok(()) => Ended::done(),
        Err(cause) => undo_start(context, record, execution, saved, cause).await,
    }
}

/// After a crash of the server: nothing of use is left of the start.
pub(super) async fn undo_start(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    saved: Saved,
    cause: Cause,
) -> Ended {
    let from = record.state.start_point();
    let outcome = undo(&context, &record, &execution, &saved, from, true).await;
    Ended::failed(outcome, cause)
}

/// The guest of a start that failed is dead, or cannot be saved.
pub(super) async fn give_up(
    context: Arc<Context>,
    record: Record,
    execution: ExecutionId,
    cause: Cause,
) -> Ended {
    let saved = recovery::saved_of(&record);
    let outcome = end(&context, &record, &execution, &saved, true).await;
    Ended::failed(outcome, cause)
}

/// The image is not looked at: the execution is what it was made from. It stays until the run is
/// journaled, in case this fails.
async fn from_frozen(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    timings: &mut Timings,
) -> Result<(), Failure> {
    context
        .faults
        .reach(Step::ResumeStart)
        .await
        .map_err(Failure::before_the_guest)?;
    let thawed = thaw(context, record, execution);
    timings
        .of("thaw", thawed)
        .await
        .map_err(Failure::with_the_guest)?;
    up(context, record, execution, timings).await
}

/// Thaws a guest, trying again for a while: it may be slow for a moment. After that its image has to do.
async fn thaw(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
) -> Result<(), EngineError> {
    let begun = Instant::now();
    loop {
        let Err(error) = context.engine.thaw(execution).await else {
            return Ok(());
        };
        if begun.elapsed() > THAW_LIMIT || dead(context, execution).await.is_some() {
            return Err(error);
        }
        tracing::warn!(sandbox.id = %record.id, %error, "a thaw failed, trying again");
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

async fn from_memory(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    image: &ImageId,
    timings: &mut Timings,
) -> Result<(), Failure> {
    context
        .faults
        .reach(Step::ResumeCheck)
        .await
        .map_err(Failure::before_the_guest)?;
    let images = context.files(record).images();
    let (checked, id) = (images.clone(), image.clone());
    let checking = blocking(move || checked.check(&id));
    let manifest: Manifest = timings
        .of("check", checking)
        .await
        .map_err(Failure::before_the_guest)?;
    let build = BuildId(manifest.engine.build.clone());
    if !context.engine.has_build(&build) {
        let gone = Cause::BuildGone(manifest.engine.version);
        return Err(Failure::before_the_guest(gone));
    }
    let spec = context.execution_spec(record, execution, build);
    context
        .faults
        .reach(Step::ResumeStart)
        .await
        .map_err(Failure::before_the_guest)?;
    let path = if manifest.is_packed() {
        // Each takes memory for its window, and space that the others cannot have.
        let _turn = context.unpacking.acquire().await;
        let sizes = manifest.files.iter().map(|file| file.size_bytes);
        context
            .check_free_space(sizes.fold(0, u64::saturating_add))
            .map_err(|error| Failure::before_the_guest(Cause::NoSpace(error)))?;
        let unpacking = blocking(move || images.plain(&manifest));
        let unpacked = timings.of("unpack", unpacking).await;
        unpacked.map_err(Failure::before_the_guest)?
    } else {
        images.path(image)
    };
    renew_missing_disk(context, record).await?;
    let starting = context.engine.start(&spec, StartFrom::Image(&path));
    timings
        .of("start", starting)
        .await
        .map_err(|error| Failure {
            cause: error.source.into(),
            guest_may_have_run: error.guest_may_have_run,
        })?;
    up(context, record, execution, timings).await
}

async fn from_disk(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    timings: &mut Timings,
) -> Result<(), Failure> {
    context
        .faults
        .reach(Step::ResumeCheck)
        .await
        .map_err(Failure::before_the_guest)?;
    let spec = context.execution_spec(record, execution, context.engine.build().id.clone());
    context
        .faults
        .reach(Step::ResumeStart)
        .await
        .map_err(Failure::before_the_guest)?;
    renew_missing_disk(context, record).await?;
    let starting = context.engine.start(&spec, StartFrom::Boot);
    timings
        .of("start", starting)
        .await
        .map_err(|error| Failure {
            cause: error.source.into(),
            guest_may_have_run: error.guest_may_have_run,
        })?;
    up(context, record, execution, timings).await
}

async fn up(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    timings: &mut Timings,
) -> Result<(), Failure> {
    context
        .faults
        .reach(Step::ResumeAgent)
        .await
        .map_err(Failure::with_the_guest)?;
    let greeting = launch::greet(context, record, execution);
    timings
        .of("agent", greeting)
        .await
        .map_err(Failure::with_the_guest)?;
    context
        .faults
        .reach(Step::ResumePublish)
        .await
        .map_err(Failure::with_the_guest)
}

/// Ends a start that failed, unless its guest is worth more than what was saved.
async fn undo(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    saved: &Saved,
    from: StartPoint,
    guest_may_have_run: bool,
) -> Outcome {
    // The memory of a boot is no loss, and a fresh disk is replaced by another.
    if let (Saved::Memory { image }, StartPoint::Memory) = (saved, from)
        && guest_may_have_run
        && !record.disks.fresh
        && is_ahead(context, record, execution, image).await
    {
        return Outcome::Unreached(ImageId::random());
    }
    end(context, record, execution, saved, guest_may_have_run).await
}

/// Whether the guest lives and has written to its disk. It stands still after that.
async fn is_ahead(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    image: &ImageId,
) -> bool {
    let (mut failing, mut wait) = (None, Duration::from_millis(50));
    while dead(context, execution).await.is_none() {
        let error = match look(context, record, execution, image).await {
            Ok(ahead) => return ahead,
            Err(error) => error,
        };
        if failing.get_or_insert_with(Instant::now).elapsed() > KEEP_LIMIT {
            tracing::error!(sandbox.id = %record.id, %error, "a guest that could not be reached cannot be frozen or looked at, and is given up");
            return false;
        }
        tracing::warn!(sandbox.id = %record.id, %error, "looking at a guest that could not be reached failed, trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(5));
    }
    false
}

async fn look(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    image: &ImageId,
) -> Result<bool, EngineError> {
    context.engine.freeze(execution).await?;
    let reading = frozen_at(context, record, image);
    match tokio::time::timeout(COMPARE_LIMIT, reading).await {
        Ok(Ok(at)) => context.engine.has_written_since(execution, at).await,
        // There is no other memory than the guest's.
        Ok(Err(_)) | Err(_) => Ok(true),
    }
}

/// Destroys the execution and says whether what was saved is still good. An image belongs to
/// exactly one state of its disk; whether the guest got as far as changing it, the disk tells.
async fn end(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    saved: &Saved,
    guest_may_have_run: bool,
) -> Outcome {
    destroy(context, execution).await;
    let images = context.files(record).images();
    if let Err(error) = blocking(move || images.remove_unpacked()).await {
        tracing::warn!(sandbox.id = %record.id, %error, "an unpacked image was left behind");
    }
    if record.disks.fresh {
        // Whatever this start wrote goes with the disk; the next one makes an empty one.
        let disk = context.own_disk(record);
        until_done("remove a disk that only a failed start used", || {
            context.engine.remove_disk(&disk)
        })
        .await;
        return Outcome::Undone;
    }
    let Saved::Memory { image } = saved else {
        return Outcome::Undone;
    };
    if !guest_may_have_run {
        return Outcome::Undone;
    }
    // Not guessed from one error, which may be a lack of descriptors or loop devices for a moment: a
    // wrong answer gives memory up or puts it over another disk.
    let comparing = async {
        let frozen_at = frozen_at(context, record, image).await?;
        let disk = context.own_disk(record);
        let changed = until_done("compare a disk with its memory image", || {
            context.engine.disk_changed_since(&disk, frozen_at)
        });
        Ok::<_, ImageError>(changed.await)
    };
    match tokio::time::timeout(COMPARE_LIMIT, comparing).await {
        Ok(Ok(false)) => Outcome::Undone,
        Ok(Ok(true)) => Outcome::MemoryStale,
        // If it were mended one day, nothing would tell any more that it fits another disk.
        Ok(Err(error)) => {
            tracing::error!(sandbox.id = %record.id, %error, "the disk cannot be compared with its memory image, which is given up");
            Outcome::MemoryStale
        }
        // A sandbox must not be stuck: it goes on from its files, and says why.
        Err(_) => {
            tracing::error!(sandbox.id = %record.id, limit = ?COMPARE_LIMIT, "the disk could not be compared with its memory image, which is given up");
            Outcome::MemoryStale
        }
    }
}

/// When the guest of an image stood still. Asks the manifest alone: whether the rest is whole does not
/// matter to the disk. Tries again where reading it fails.
async fn frozen_at(
    context: &Context,
    record: &Record,
    image: &ImageId,
) -> Result<SystemTime, ImageError> {
    let read = until_done("read when a memory image was taken", || {
        let (images, image) = (context.files(record).images(), image.clone());
        let reading = blocking(move || images.manifest(&image));
        async {
            match reading.await {
                Err(error @ ImageError::Io { .. }) => Err(error),
                read => Ok(read),
            }
        }
    });
    let at = read.await?.subject.frozen_at_ns;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(at).unwrap_or(0)))
}

/// Makes the empty disk that a failed start left missing.
async fn renew_missing_disk(context: &Context, record: &Record) -> Result<(), Failure> {
    let disk = context.own_disk(record);
    if !record.disks.fresh || disk.exists() {
        return Ok(());
    }
    let size = record.spec.limits.disk_bytes;
    let made = context.engine.create_disk(&disk, size).await;
    made.map_err(Failure::before_the_guest)
}

/// Why the image is no good, if the failure is its own: not what may pass by itself (a full disk, an
/// agent that is slow, a read that failed) or went wrong before the image was loaded.
fn unusable(failure: &Failure, retried: bool) -> Option<String> {
    let cause = &failure.cause;
    match cause {
        Cause::Engine(EngineError::Failed { .. }) if retried && failure.guest_may_have_run => {
            Some(format!("it could not be restored, twice: {cause}"))
        }
        cause => unusable_image(cause),
    }
}

/// The same of what was found before the image was loaded.
pub(super) fn unusable_image(cause: &Cause) -> Option<String> {
    match cause {
        Cause::Image(
            ImageError::Missing(_) | ImageError::Newer { .. } | ImageError::Damaged { .. },
        )
        | Cause::BuildGone(_) => Some(cause.to_string()),
        Cause::Image(ImageError::Io { .. })
        | Cause::Engine(_)
        | Cause::NoSpace(_)
        | Cause::AgentSilent(_)
        | Cause::Exited
        | Cause::Io { .. }
        | Cause::Hook(_)
        | Cause::Injected(_) => None,
    }
}

fn worth_a_retry(cause: &Cause) -> bool {
    match cause {
        Cause::Engine(_) | Cause::Exited | Cause::AgentSilent(_) => true,
        Cause::NoSpace(_)
        | Cause::Hook(_)
        | Cause::Image(_)
        | Cause::BuildGone(_)
        | Cause::Io { .. }
        | Cause::Injected(_) => false,
    }
}
