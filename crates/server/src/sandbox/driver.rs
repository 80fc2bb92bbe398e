//! The one task that owns a sandbox: it decides, journals, works, journals and publishes.
//!
//! Commands arrive one by one. While a transition is in flight, [`state::decide`] says of each new
//! command whether it joins the transition, waits for its end, or is refused. Nobody else writes
//! the record, so nobody can read a state, look away, and set another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use engine::{ExecutionId, ExitReason};
use futures_util::future::BoxFuture;
use snapshot::ImageId;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::registry::{Connected, Live};
use super::state::{
    self, Command, Decision, FreshNames, Next, Outcome, Refusal, RollbackStep, RollbackTarget,
    SnapshotStep, StartPoint, State, Transition,
};
use super::transition::{Cause, Ended, blocking, destroy};
use super::{
    Disks, OnTimeout, PauseRequest, Record, ResumeFrom, Run, SandboxError, SandboxView,
    SnapshotRequest, kill, pause, resume, rollback, seal,
};
use crate::db::DbError;
use crate::snapshots::{Snapshot, SnapshotId};

/// After a pause at the deadline failed, it is tried again this much later.
const EXPIRY_RETRY: Duration = Duration::from_secs(10);

/// What a caller asks the driver for.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Pause(PauseRequest),
    Resume {
        timeout: Duration,
        from: ResumeFrom,
    },
    Connect {
        timeout: Duration,
        from: ResumeFrom,
    },
    Kill,
    SetTimeout(Duration),
    Extend(Duration),
    Snapshot(SnapshotRequest),
    Rollback(Arc<Snapshot>),
    /// The answer to a create; never sent, only joined.
    Created,
}

/// What the driver answers.
pub(super) type Answer = Result<Answered, SandboxError>;

/// What became of a request.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    /// The sandbox now; `None` when it is gone.
    pub(super) view: Option<SandboxView>,
    pub(super) connected: Connected,
    /// The snapshot that was asked for.
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

impl Answered {
    fn new(view: Option<SandboxView>, connected: Connected) -> Self {
        Self {
            view,
            connected,
            snapshot: None,
        }
    }
}

/// A request with the way back to its caller, who may have left.
pub(super) struct Message {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A sandbox as everybody may see it at any moment.
#[derive(Clone)]
pub(super) struct Published {
    pub(super) record: Arc<Record>,
    /// Fires at the end of the current run.
    pub(super) ended: CancellationToken,
}

/// Work under way.
pub(super) type Work = BoxFuture<'static, Ended>;

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
    /// What went wrong first in the transition in flight, which may have several steps.
    cause: Option<Cause>,
    /// The snapshot that the transition in flight has committed.
    made: Option<Arc<Snapshot>>,
    /// Deletes the image that the current run was loaded from, when it is read no more.
    releasing: Option<JoinHandle<()>>,
    /// Resolves when the live execution dies.
    exit: Option<(ExecutionId, BoxFuture<'static, ExitReason>)>,
    expiry_not_before: Option<OffsetDateTime>,
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
            cause: None,
            made: None,
            releasing: None,
            exit: None,
            expiry_not_before: None,
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
    }

    /// Runs until the sandbox is gone or the server stops.
    pub(super) async fn run(mut self) {
        if self.work.is_none() {
            self.enter_run();
        }
        loop {
            let (idle, expiry) = (self.work.is_none(), self.expiry());
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
        let fresh = FreshNames {
            execution: ExecutionId::random(),
            image: ImageId::random(),
            snapshot: SnapshotId::random(),
        };
        let Some(next) = state::begin(&self.record.state, &transition, from, fresh) else {
            tracing::error!(sandbox.id = %self.record.id, ?transition, state = self.record.state.name(), "a transition does not begin in this state");
            return;
        };
        let mut record = self.record.clone();
        record.state = next;
        if let Err(error) = self.journal(record).await {
            if let Some(message) = cause {
                self.answer(message, Err(error));
            }
            return;
        }
        drop(admitted);
        if matches!(transition, Transition::Kill) {
            self.ended.cancel();
        }
        self.exit = None;
        self.joined.extend(cause);
        self.work = self.work_for(Some(&transition));
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

    /// What has to be done in this state; `None` in those that last.
    fn work_for(&self, transition: Option<&Transition>) -> Option<Work> {
        let (context, record) = (Arc::clone(&self.context), self.record.clone());
        Some(match self.record.state.clone() {
            State::Pausing { execution, target } => {
                let request = match transition {
                    Some(Transition::Pause(request)) => *request,
                    Some(_) | None => return None,
                };
                Box::pin(pause::pause(context, record, execution, target, request))
            }
            State::Resuming {
                execution,
                saved,
                from,
                ..
            } => Box::pin(resume::resume(context, record, execution, saved, from)),
            State::Snapshotting { snapshot, step } => match step {
                SnapshotStep::Saving {
                    execution, image, ..
                } => Box::pin(pause::save(context, record, execution, image)),
                SnapshotStep::Sealing { saved, .. } => match self.snapshot_request() {
                    Some(request) => {
                        Box::pin(seal::seal(context, record, snapshot, saved, request))
                    }
                    // A crash took whoever asked for it.
                    None => Box::pin(seal::abandon(context, record, snapshot)),
                },
            },
            State::RollingBack { snapshot, step } => match step {
                RollbackStep::Staging { .. } => {
                    let target = self
                        .joined
                        .iter()
                        .find_map(|message| match &message.request {
                            Request::Rollback(snapshot) => Some(Arc::clone(snapshot)),
                            _ => None,
                        })?;
                    Box::pin(rollback::stage(context, record, target))
                }
                RollbackStep::Replacing {
                    execution, saved, ..
                } => Box::pin(rollback::replace(
                    context, record, snapshot, execution, saved,
                )),
            },
            State::Restarting {
                execution, saved, ..
            } => {
                let from = self.record.state.start_point();
                Box::pin(resume::resume(context, record, execution, saved, from))
            }
            State::Killing { execution } => Box::pin(kill::kill(context, record, execution)),
            State::Creating { .. } | State::Running { .. } | State::Paused { .. } => return None,
        })
    }

    fn snapshot_request(&self) -> Option<SnapshotRequest> {
        self.joined
            .iter()
            .find_map(|message| match &message.request {
                Request::Snapshot(request) => Some(request.clone()),
                _ => None,
            })
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
        } = ended;
        // A boot in place of an unusable memory image is no failure, if it works.
        if !matches!(outcome, Outcome::MemoryUnusable(_)) {
            self.cause = self.cause.take().or(cause);
        }
        let mut committed = false;
        if let Some(disks) = disks {
            match self.commit(&outcome, disks, snapshot).await {
                Ok(()) => committed = true,
                Err(error) => {
                    self.cause = Some(error);
                    outcome = Outcome::Undone;
                }
            }
        }
        if !committed {
            let Some(mut record) = self.record_after(&outcome) else {
                self.leave(&outcome).await;
                return None;
            };
            if matches!(self.record.state, State::Pausing { .. }) {
                record.run.agent_silent = agent_silent;
            }
            self.journal_end(record).await;
        }
        if let Some(work) = self.work_for(None) {
            self.work = Some(work);
            return Some(());
        }
        self.recovering = false;
        self.enter_run();
        let (cause, made) = (self.cause.take(), self.made.take());
        for message in std::mem::take(&mut self.joined) {
            let answer = self.answer_to(&message.request, &outcome, cause.as_ref(), made.as_ref());
            self.answer(message, answer);
        }
        for message in std::mem::take(&mut self.waiting) {
            self.handle(message).await;
        }
        Some(())
    }

    /// The record that an outcome leads to, and the end of the current run if it is one. `None` when
    /// the sandbox is gone.
    fn record_after(&mut self, outcome: &Outcome) -> Option<Record> {
        let mut record = self.record.clone();
        record.state = match state::after(&self.record.state, outcome) {
            Next::State(next) => next,
            Next::Gone => return None,
        };
        let ran = self.record.state.counts_as_running();
        match &record.state {
            State::Running { .. } => {
                // A pause that does not happen, also one undone after a crash, leaves the run as it
                // was; so do snapshots and rollbacks.
                if !ran {
                    record.run = self.new_run();
                }
                let lost = self.record.state.memory_lost();
                if !ran || lost.is_some() {
                    record.run.memory_lost = lost;
                }
                record.disks.fresh = false;
            }
            State::Paused { .. } if ran => record.run.end_at = OffsetDateTime::now_utc(),
            State::Paused { .. }
            | State::Creating { .. }
            | State::Pausing { .. }
            | State::Resuming { .. }
            | State::Snapshotting { .. }
            | State::RollingBack { .. }
            | State::Restarting { .. }
            | State::Killing { .. } => {}
        }
        if record.state.execution() != self.record.state.execution() {
            self.ended.cancel();
        }
        Some(record)
    }

    /// Writes the entry by which the sandbox comes to stand on other disks, together with the
    /// snapshot that was made of the old ones. Until it is written nothing has happened: an error
    /// leaves all as it was.
    async fn commit(
        &mut self,
        outcome: &Outcome,
        disks: Disks,
        snapshot: Option<Snapshot>,
    ) -> Result<(), Cause> {
        let before = self.record.clone();
        let Some(mut record) = self.record_after(outcome) else {
            return Ok(());
        };
        record.disks = disks;
        // Names are given in one order, in the database and here.
        let _turn = self.context.snapshots.turn().await;
        let written = match snapshot.clone() {
            Some(snapshot) => self.journal_with(record, snapshot).await,
            None => self.journal(record).await,
        };
        match (written, snapshot) {
            (Ok(()), Some(snapshot)) => {
                let made = Arc::new(snapshot);
                self.context.snapshots.committed(Arc::clone(&made)).await;
                self.made = Some(made);
                Ok(())
            }
            (Ok(()), None) => {
                // Only a rollback comes here: what it goes back from ends now.
                self.ended.cancel();
                Ok(())
            }
            (Err(error), snapshot) => {
                match snapshot {
                    Some(snapshot) => {
                        seal::remove(&self.context, &before, &snapshot.id).await;
                    }
                    None => rollback::unstage(&self.context, &before).await,
                }
                Err(Cause::Io {
                    step: "commit",
                    source: std::io::Error::other(error),
                })
            }
        }
    }

    fn new_run(&self) -> Run {
        let longest = self.context.settings.max_run;
        let asked = self
            .joined
            .iter()
            .filter_map(|message| match &message.request {
                Request::Resume { timeout, .. } | Request::Connect { timeout, .. } => {
                    Some(*timeout)
                }
                Request::Pause(_)
                | Request::Kill
                | Request::SetTimeout(_)
                | Request::Extend(_)
                | Request::Snapshot(_)
                | Request::Rollback(_)
                | Request::Created => None,
            });
        let timeout = asked.max().unwrap_or(self.record.spec.create_timeout);
        Run::starting_now(timeout, longest)
    }

    fn answer_to(
        &self,
        request: &Request,
        outcome: &Outcome,
        cause: Option<&Cause>,
        made: Option<&Arc<Snapshot>>,
    ) -> Answer {
        let view = self.record.view();
        let id = || self.record.id.clone();
        let reached = match request {
            Request::Pause(_) => matches!(self.record.state, State::Paused { .. }),
            Request::Resume { .. } | Request::Connect { .. } | Request::Created => {
                matches!(self.record.state, State::Running { .. })
            }
            Request::Snapshot(_) => made.is_some(),
            Request::Rollback(_) => cause.is_none(),
            Request::Kill | Request::SetTimeout(_) | Request::Extend(_) => true,
        };
        // A committed snapshot is there, whatever became of its source afterwards.
        if reached && (made.is_some() || *outcome == Outcome::Done) {
            return Ok(Answered {
                view,
                connected: Connected::Resumed,
                snapshot: made.cloned(),
            });
        }
        let left_as = match view.map(|view| view.state) {
            Some(super::PublicState::Running) => "running as before",
            Some(super::PublicState::Paused) => "paused",
            None => "gone",
        };
        let action = match request {
            Request::Pause(_) => "pause",
            Request::Resume { .. } | Request::Connect { .. } => "resume",
            Request::Created => "create",
            Request::Snapshot(_) => "snapshot",
            Request::Rollback(_) => "rollback",
            Request::Kill => "kill",
            Request::SetTimeout(_) | Request::Extend(_) => "change of the deadline",
        };
        Err(match (cause, request) {
            (Some(Cause::NoSpace(text)), _) => SandboxError::NoSpace(text.clone()),
            (Some(Cause::AgentSilent(_)), Request::Pause(_)) => {
                SandboxError::GuestUnresponsive(id())
            }
            (cause, _) => {
                let cause = cause.map_or_else(
                    || "the execution ended by itself".to_owned(),
                    |cause| cause.to_string(),
                );
                SandboxError::Failed {
                    action,
                    left_as,
                    cause,
                }
            }
        })
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

    /// The live execution died: clean up, keep the disk.
    async fn lose(&mut self, execution: ExecutionId, reason: ExitReason) {
        let command = Command::Lost(execution.clone(), reason);
        let decision = state::decide(&self.record.state, &command);
        let Decision::Begin(Transition::Lose(reason)) = decision else {
            return;
        };
        tracing::warn!(sandbox.id = %self.record.id, execution.id = %execution, ?reason, "an execution ended by itself; its disk is kept");
        self.ended.cancel();
        let context = Arc::clone(&self.context);
        self.work = Some(Box::pin(async move {
            destroy(&context, &execution).await;
            Ended::with(Outcome::ExecutionLost(reason))
        }));
    }

    async fn change_deadline(&mut self, message: Message) {
        let longest = self.context.settings.max_run;
        let mut record = self.record.clone();
        match message.request {
            Request::SetTimeout(timeout) => record.run.set_deadline(timeout, longest),
            Request::Extend(timeout) | Request::Connect { timeout, .. } => {
                record.run.extend(timeout, longest);
            }
            Request::Pause(_)
            | Request::Resume { .. }
            | Request::Kill
            | Request::Snapshot(_)
            | Request::Rollback(_)
            | Request::Created => {}
        }
        let changed = record.run != self.record.run;
        let answer = if changed {
            self.journal(record).await
        } else {
            Ok(())
        };
        self.expiry_not_before = None;
        let answer = answer.map(|()| Answered::new(self.record.view(), Connected::AlreadyRunning));
        self.answer(message, answer);
    }

    fn expiry(&self) -> Option<OffsetDateTime> {
        matches!(self.record.state, State::Running { .. }).then(|| {
            let end_at = self.record.run.end_at;
            self.expiry_not_before
                .map_or(end_at, |not_before| end_at.max(not_before))
        })
    }

    /// The deadline has come.
    async fn expire(&mut self) {
        self.expiry_not_before = Some(OffsetDateTime::now_utc() + EXPIRY_RETRY);
        let transition = match self.record.spec.lifecycle.on_timeout {
            OnTimeout::Kill => Transition::Kill,
            OnTimeout::Pause(mode) => Transition::Pause(PauseRequest {
                mode,
                require_healthy_guest: false,
            }),
        };
        tracing::info!(sandbox.id = %self.record.id, ?transition, "the deadline has come");
        self.begin(transition, None).await;
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
        self.expiry_not_before = None;
        let (context, execution) = (Arc::clone(&self.context), execution.clone());
        let images = self.context.files(&self.record).images();
        // From the guest's first instruction on, the image it came from fits no disk any more. It
        // has to stay while it is being read.
        let Ok(old) = images.list() else { return };
        if old.is_empty() {
            return;
        }
        self.releasing = Some(self.context.tasks.spawn(async move {
            if let Err(error) = context.engine.image_released(&execution).await {
                tracing::debug!(execution.id = %execution, %error, "an image is read no more");
            }
            let deleted = blocking(move || old.iter().try_for_each(|id| images.delete(id))).await;
            if let Err(error) = deleted {
                tracing::warn!(execution.id = %execution, %error, "an old image could not be deleted");
            }
        }));
    }

    /// Writes the end of a transition, trying again until that works: nobody is told of a state that
    /// a restart of the server would not find. (One that finds `Creating` deletes the sandbox.)
    async fn journal_end(&mut self, record: Record) {
        let mut wait = Duration::from_millis(50);
        while self.journal(record.clone()).await.is_err() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    /// Writes the record with the next generation and publishes it.
    async fn journal(&mut self, mut record: Record) -> Result<(), SandboxError> {
        record.generation = self.record.generation + 1;
        let written = self.context.db.update(record.clone()).await;
        self.written(record, written)
    }

    /// Like [`journal`](Self::journal), with a snapshot in the same transaction.
    async fn journal_with(
        &mut self,
        mut record: Record,
        snapshot: Snapshot,
    ) -> Result<(), SandboxError> {
        record.generation = self.record.generation + 1;
        let written = self
            .context
            .db
            .commit_snapshot(record.clone(), snapshot)
            .await;
        self.written(record, written)
    }

    fn written(
        &mut self,
        record: Record,
        written: Result<(), DbError>,
    ) -> Result<(), SandboxError> {
        if let Err(error) = written {
            let cause = format!("the journal cannot be written: {error:?}");
            tracing::error!(sandbox.id = %record.id, error = cause, "nothing was begun");
            return Err(SandboxError::Failed {
                action: "journal",
                left_as: "unchanged",
                cause,
            });
        }
        let (from, to) = (self.record.state.name(), record.state.name());
        if from != to {
            tracing::info!(sandbox.id = %record.id, from, to, "sandbox changed its state");
        }
        self.record = record;
        self.publish();
        Ok(())
    }

    fn publish(&mut self) {
        if self.ended.is_cancelled() && matches!(self.record.state, State::Running { .. }) {
            self.ended = CancellationToken::new();
        }
        self.published.send_replace(Published {
            record: Arc::new(self.record.clone()),
            ended: self.ended.clone(),
        });
        self.context.changes.send_replace(());
    }

    fn refused(&self, refusal: Refusal) -> SandboxError {
        let id = self.record.id.clone();
        match refusal {
            Refusal::NotFound => SandboxError::NotFound(id),
            Refusal::AlreadyPaused => SandboxError::AlreadyPaused(id),
            Refusal::AlreadyRunning => SandboxError::AlreadyRunning(id),
            Refusal::NotRunning => SandboxError::Paused(id),
            Refusal::Busy => SandboxError::Busy(id),
            Refusal::BeingKilled => SandboxError::BeingKilled(id),
        }
    }

    /// The caller may have left; what was done for it stays done.
    fn answer(&self, message: Message, answer: Answer) {
        let _ = message.reply.send(answer);
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
