//! The one task that owns a sandbox: it decides, journals, works, journals and publishes.
//!
//! Commands arrive one by one. While a transition is in flight, [`state::decide`] says of each new
//! command whether it joins the transition, waits for its end, or is refused. Nobody else writes
//! the record, so nobody can read a state, look away, and set another.

mod calls;
mod cold;
mod deadline;
mod disk;
mod journal;
mod work;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{ExecutionId, ExitReason};
use futures_util::future::BoxFuture;
use snapshot::ImageId;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::event::Why;
use super::registry::{Connected, Live};
use super::resume::Start;
use super::state::{
    self, Command, Decision, FreshNames, Outcome, Refusal, RollbackTarget, StartPoint, State,
    Transition,
};
use super::transition::{Cause, Ended, blocking, destroy};
use super::warm::Taken;
use super::{Record, ResumeFrom, SandboxError, Timings, rollback};
use crate::snapshots::{Snapshot, SnapshotId};
use calls::Answered;
pub(super) use calls::{Answer, Message, Request};
use cold::Cooling;
use disk::Disk;
pub(super) use journal::Published;
pub(super) use work::Work;

/// A wait for a disk in use that is told among the timings.
const WORTH_TELLING: Duration = Duration::from_millis(1);

pub(super) struct Driver {
    context: Arc<Context>,
    live: Live,
    record: Record,
    inbox: mpsc::Receiver<Message>,
    published: watch::Sender<Published>,
    ended: CancellationToken,
    work: Option<Work>,
    /// The work in flight is what a crash left; its failure is not the answer to a new request.
    recovering: bool,
    joined: Vec<Message>,
    waiting: VecDeque<Message>,
    /// To be handled before anything else.
    next: VecDeque<Message>,
    /// What went wrong first in the transition in flight, which may have several steps.
    cause: Option<Cause>,
    /// The snapshot that the transition in flight has committed.
    made: Option<Arc<Snapshot>>,
    /// An execution to be destroyed as soon as the next record is journaled, which has it no more.
    left: Option<ExecutionId>,
    /// How long the parts of the transition in flight took, or of the last one.
    timings: Timings,
    /// Since when the guest stands still in the transition in flight.
    still_since: Option<Instant>,
    /// Packs the image of a paused one.
    cooling: Option<Cooling>,
    /// Deletes the image that the current run was loaded from, when it is read no more.
    releasing: Option<JoinHandle<()>>,
    /// Resolves when the live execution dies.
    exit: Option<(ExecutionId, BoxFuture<'static, ExitReason>)>,
    expiry_not_before: Option<OffsetDateTime>,
    /// Pauses without memory at this deadline that failed because the agent was silent.
    silent_expiries: u32,
    /// Why the transition in flight was begun.
    why: Why,
}

impl Driver {
    /// A driver for a journaled record, with work to finish first if there is any.
    pub(super) fn new(
        context: Arc<Context>,
        live: Live,
        record: Record,
        work: Option<Work>,
        inbox: mpsc::Receiver<Message>,
    ) -> (Self, watch::Receiver<Published>) {
        let ended = CancellationToken::new();
        let first = Published {
            record: Arc::new(record.clone()),
            ended: ended.clone(),
            timings: Timings::default(),
        };
        let (published, watched) = watch::channel(first);
        let driver = Self {
            context,
            live,
            record,
            inbox,
            published,
            ended,
            work,
            recovering: false,
            joined: Vec::new(),
            waiting: VecDeque::new(),
            next: VecDeque::new(),
            cause: None,
            made: None,
            left: None,
            timings: Timings::default(),
            still_since: None,
            cooling: None,
            releasing: None,
            exit: None,
            expiry_not_before: None,
            silent_expiries: 0,
            why: Why::Request,
        };
        (driver, watched)
    }

    /// Lets a message share the result of the work the driver was made with.
    pub(super) fn join(&mut self, message: Message) {
        self.joined.push(message);
    }

    /// The work the driver was made with is the end of something a crash interrupted.
    pub(super) fn recovering(&mut self) {
        self.recovering = self.work.is_some();
        self.why = Why::Unknown;
    }

    /// Runs until the sandbox is gone or the server stops.
    pub(super) async fn run(mut self) {
        if self.work.is_none() {
            self.enter_run();
        }
        loop {
            if let Some(message) = self.next.pop_front() {
                self.handle(message).await;
                continue;
            }
            let (idle, expiry, cold) = (self.work.is_none(), self.expiry(), self.cold_at());
            tokio::select! {
                biased;
                ended = maybe(self.work.as_mut()) => {
                    self.work = None;
                    if self.finish(ended).await.is_none() {
                        return;
                    }
                }
                reason = maybe(self.exit.as_mut().map(|(_, exit)| exit)), if idle => {
                    if let Some((execution, _)) = self.exit.take() {
                        self.lose(execution, reason).await;
                    }
                }
                () = until(expiry), if idle => self.expire().await,
                () = until(cold), if idle => self.cool(),
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle(message).await,
                    None => return,
                },
            }
        }
    }

    async fn handle(&mut self, message: Message) {
        let command = match &message.request {
            Request::Pause(request) => Command::Pause(*request),
            Request::Resume { .. } => Command::Resume,
            Request::Connect { .. } => Command::Connect,
            Request::Kill => Command::Kill,
            Request::SetTimeout(_) | Request::Extend(_) => Command::SetDeadline,
            Request::Snapshot(_) => Command::Snapshot,
            Request::Rollback(snapshot) => Command::Rollback(RollbackTarget {
                snapshot: snapshot.id.clone(),
                saved: rollback::saved_in(snapshot),
            }),
            Request::Created => return,
        };
        match state::decide(&self.record.state, &command) {
            // A stable state with work in flight: an execution being taken over or cleaned up.
            Decision::Begin(_) | Decision::AlreadySo if self.work.is_some() => {
                self.waiting.push_back(message);
            }
            Decision::Begin(transition) => self.begin(transition, Some(message)).await,
            Decision::Join if self.recovering => self.waiting.push_back(message),
            Decision::Join if self.starts_otherwise(&message.request) => {
                self.answer(message, Err(self.refused(Refusal::Busy)));
            }
            Decision::Join => self.joined.push(message),
            Decision::Wait => self.waiting.push_back(message),
            Decision::AlreadySo => self.change_deadline(message).await,
            Decision::Refuse(refusal) => self.answer(message, Err(self.refused(refusal))),
            Decision::Stale => {}
        }
    }

    /// Journals the transient state, then starts the work.
    async fn begin(&mut self, transition: Transition, cause: Option<Message>) {
        let from = match cause.as_ref().map(|message| &message.request) {
            Some(
                Request::Resume {
                    from: ResumeFrom::Disk,
                    ..
                }
                | Request::Connect {
                    from: ResumeFrom::Disk,
                    ..
                },
            ) => StartPoint::Disk,
            Some(_) | None => StartPoint::Memory,
        };
        self.stop_cooling().await;
        // Kept until the record with the new execution is published.
        let admitted = match transition {
            Transition::Resume => match self.live.admit(self.context.settings.max_running) {
                Ok(admission) => Some(admission),
                Err(error) => {
                    if let Some(message) = cause {
                        self.answer(message, Err(error));
                    }
                    return;
                }
            },
            Transition::Pause(_)
            | Transition::Kill
            | Transition::Snapshot
            | Transition::Rollback(_)
            | Transition::Lose(_) => None,
        };
        let asked = Instant::now();
        let (start, taken) = match self.disk_for(&transition, from).await {
            Disk::Ours(Some(Taken::Frozen(execution))) => (Start::Thaw, Some(execution)),
            Disk::Ours(Some(Taken::Prepared(execution))) => (Start::Prepared, Some(execution)),
            Disk::Ours(None) => (Start::New, None),
            Disk::InUse(error) => {
                tracing::warn!(sandbox.id = %self.record.id, ?transition, %error, "nothing was begun");
                if let Some(message) = cause {
                    self.answer(message, Err(error));
                }
                return;
            }
            Disk::Doomed(kill) => {
                self.next.extend(cause);
                self.next.push_front(kill);
                return;
            }
        };
        let waited = asked.elapsed();
        let fresh = FreshNames {
            execution: taken.clone().unwrap_or_else(ExecutionId::random),
            image: ImageId::random(),
            snapshot: SnapshotId::random(),
        };
        let Some(next) = state::begin(&self.record.state, &transition, from, fresh) else {
            tracing::error!(sandbox.id = %self.record.id, ?transition, state = self.record.state.name(), "a transition does not begin in this state");
            if let Some(taken) = taken {
                destroy(&self.context, &taken).await;
            }
            return;
        };
        self.why = match &cause {
            Some(_) => Why::Request,
            None => Why::Timeout,
        };
        let mut record = self.record.clone();
        record.state = next;
        (self.timings, self.still_since) = (Timings::default(), None);
        if waited >= WORTH_TELLING {
            self.timings.add("wait", waited);
        }
        let begun = Instant::now();
        if let Err(error) = self.journal(record).await {
            if let Some(taken) = taken {
                destroy(&self.context, &taken).await;
            }
            if let Some(message) = cause {
                self.answer(message, Err(error));
            }
            return;
        }
        self.timings.note("journal", begun);
        drop(admitted);
        if matches!(transition, Transition::Kill) {
            self.ended.cancel();
        }
        self.exit = None;
        self.joined.extend(cause);
        self.work = self.work_for(Some(&transition), start);
        // The image that a rollback goes back to may be the very one that is about to be deleted.
        if matches!(transition, Transition::Rollback(_))
            && let Some(releasing) = self.releasing.take()
            && let Some(work) = self.work.take()
        {
            self.work = Some(Box::pin(async move {
                // It was not aborted, and a panic in it is reported by the runtime.
                let _ = releasing.await;
                work.await
            }));
        }
    }

    /// Takes the result of the work in flight. `None` when the sandbox is gone.
    async fn finish(&mut self, ended: Ended) -> Option<()> {
        let from = self.record.state.name();
        if let Some(cause) = &ended.cause {
            tracing::warn!(sandbox.id = %self.record.id, from, error = %cause, outcome = ?ended.outcome, "a transition did not reach its goal");
        }
        let Ended {
            mut outcome,
            cause,
            disks,
            snapshot,
            agent_silent,
            memory_lost,
            left,
            timings,
            still_since,
        } = ended;
        self.left = left;
        self.timings.extend(timings);
        self.still_since = self.still_since.or(still_since);
        // A boot in place of an unusable memory image is no failure, if it works.
        if !matches!(outcome, Outcome::MemoryUnusable(_)) {
            self.cause = self.cause.take().or(cause);
        }
        if let Some(disks) = disks {
            if let Err(error) = self.commit(&outcome, disks, snapshot).await {
                self.cause = Some(error);
                outcome = Outcome::Undone;
            }
        } else {
            let Some(mut record) = self.record_after(&outcome) else {
                self.leave(&outcome).await;
                return None;
            };
            if matches!(
                self.record.state,
                State::Pausing { .. } | State::Keeping { .. }
            ) {
                record.run.agent_silent = agent_silent;
                self.note_silent_expiry();
            }
            if memory_lost.is_some() {
                record.run.memory_lost = memory_lost;
            }
            self.journal_end(record).await;
        }
        if let Some(work) = self.work_for(None, Start::New) {
            self.work = Some(work);
            return Some(());
        }
        self.recovering = false;
        self.remove_given_up().await;
        self.enter_run();
        let (cause, made) = (self.cause.take(), self.made.take());
        for message in std::mem::take(&mut self.joined) {
            let answer = self.answer_to(&message.request, &outcome, cause.as_ref(), made.as_ref());
            self.answer(message, answer);
        }
        // Before what came later.
        self.waiting.append(&mut self.next);
        std::mem::swap(&mut self.waiting, &mut self.next);
        Some(())
    }

    /// Memory that was given up would take space until the next start.
    async fn remove_given_up(&mut self) {
        let State::Paused { saved } = &self.record.state else {
            return;
        };
        let images = self.context.files(&self.record).images();
        let keep: Vec<_> = saved.image().into_iter().cloned().collect();
        if let Err(error) = blocking(move || images.sweep(&keep)).await {
            tracing::warn!(sandbox.id = %self.record.id, %error, "an image of no use could not be removed");
        }
    }

    /// The sandbox is gone: nobody finds it any more, everybody waiting is told.
    async fn leave(&mut self, outcome: &Outcome) {
        self.ended.cancel();
        self.live.remove(&self.record.id);
        self.context.changes.send_replace(());
        tracing::info!(sandbox.id = %self.record.id, from = self.record.state.name(), to = "gone", "sandbox changed its state");
        self.inbox.close();
        let cause = self.cause.take();
        for message in std::mem::take(&mut self.joined) {
            let answer = match &message.request {
                Request::Kill => Ok(Answered::new(None, Connected::AlreadyRunning)),
                request => self.answer_to(request, outcome, cause.as_ref(), None),
            };
            self.answer(message, answer);
        }
        let mut late = std::mem::take(&mut self.waiting);
        late.append(&mut self.next);
        while let Some(message) = self.inbox.recv().await {
            late.push_back(message);
        }
        for message in late {
            let answer = match &message.request {
                Request::Kill => Ok(Answered::new(None, Connected::AlreadyRunning)),
                _ => Err(SandboxError::NotFound(self.record.id.clone())),
            };
            self.answer(message, answer);
        }
    }

    /// The live execution died: the disk is kept.
    async fn lose(&mut self, execution: ExecutionId, reason: ExitReason) {
        let command = Command::Lost(execution.clone(), reason);
        let decision = state::decide(&self.record.state, &command);
        let Decision::Begin(Transition::Lose(reason)) = decision else {
            return;
        };
        tracing::warn!(sandbox.id = %self.record.id, execution.id = %execution, ?reason, "an execution ended by itself; its disk is kept");
        self.ended.cancel();
        // Nobody waits for what is left of it, a kill of the sandbox for example.
        self.work = Some(Box::pin(std::future::ready(Ended {
            left: Some(execution),
            ..Ended::with(Outcome::ExecutionLost(reason))
        })));
    }

    /// Watches a run that has begun: its execution's end, and the image it was loaded from.
    fn enter_run(&mut self) {
        let State::Running { execution } = &self.record.state else {
            self.exit = None;
            return;
        };
        if self
            .exit
            .as_ref()
            .is_some_and(|(watched, _)| watched == execution)
        {
            return;
        }
        let (engine, watched) = (Arc::clone(&self.context.engine), execution.clone());
        let exit = Box::pin(async move { engine.exited(&watched).await });
        self.exit = Some((execution.clone(), exit));
        let (context, execution) = (Arc::clone(&self.context), execution.clone());
        let images = self.context.files(&self.record).images();
        // From the guest's first instruction on, the image it came from fits no disk any more. It
        // has to stay while it is being read.
        let old = images.list().unwrap_or_default();
        if old.is_empty() && !images.is_unpacked() {
            return;
        }
        let before = self.releasing.take();
        self.releasing = Some(self.context.tasks.spawn(async move {
            if let Some(before) = before {
                // It was not aborted, and a panic in it is reported by the runtime.
                let _ = before.await;
            }
            if let Err(error) = context.engine.image_released(&execution).await {
                tracing::debug!(execution.id = %execution, %error, "an image is read no more");
            }
            let deleted = blocking(move || {
                let deleted = old.iter().try_for_each(|id| images.delete(id));
                images.remove_unpacked().and(deleted)
            })
            .await;
            if let Err(error) = deleted {
                tracing::warn!(execution.id = %execution, %error, "an old image could not be deleted");
            }
        }));
    }
}

/// The future if there is one, else never.
async fn maybe<F: Future + Unpin>(future: Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn until(instant: Option<OffsetDateTime>) {
    let Some(instant) = instant else {
        return std::future::pending().await;
    };
    let left = instant - OffsetDateTime::now_utc();
    tokio::time::sleep(left.try_into().unwrap_or(Duration::ZERO)).await;
}
