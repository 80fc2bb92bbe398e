//! Named places where tests make a transition fail or stop dead.

use std::sync::Arc;

/// A step of a transition, in the order in which they are reached. Each is reached *before* the
/// thing it names is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// create: after the journal entry, before anything exists.
    CreateDirectory,
    /// create: before the disk is made.
    CreateDisk,
    /// create: before the execution is started.
    CreateStart,
    /// create: before the agent is asked.
    CreateAgent,
    /// create: it is up; before this is journaled.
    CreatePublish,
    /// pause: after the journal entry.
    PausePrepare,
    /// pause: before the guest is frozen.
    PauseFreeze,
    /// pause: before memory is written.
    PauseCheckpoint,
    /// pause: memory is written; before the disk is made durable.
    PauseSync,
    /// pause: before the rename that commits.
    PauseCommit,
    /// pause: the image has its name; before anybody knows. A failure here stands for a commit that
    /// happened and was told as failed.
    PauseCommitted,
    /// pause: committed, or only to be journaled if it saves no memory; before the execution is
    /// destroyed, or left to its end.
    PauseDestroy,
    /// pause: all is done; before this is journaled.
    PausePublish,
    /// resume: after the journal entry, before the image is checked.
    ResumeCheck,
    /// resume: before the execution is started.
    ResumeStart,
    /// resume: before the agent is asked.
    ResumeAgent,
    /// resume: it is up; before this is journaled.
    ResumePublish,
    /// snapshot: the sandbox is saved; before anything of the snapshot exists.
    SnapshotLink,
    /// snapshot: its files are linked; before the source's next disk is made.
    SnapshotDisk,
    /// snapshot: before its directory gets its name.
    SnapshotFinish,
    /// snapshot: complete; before its row is written, which commits it.
    SnapshotCommit,
    /// snapshot: its row is written; before anybody knows, as for a pause.
    SnapshotCommitted,
    /// rollback: after the journal entry, before anything is linked.
    RollbackLink,
    /// rollback: all is there; before the journal entry that commits it.
    RollbackCommit,
    /// rollback: its entry is written; before anybody knows, as for a snapshot.
    RollbackCommitted,
    /// rollback: committed; before the execution of before is destroyed.
    RollbackDestroy,
    /// rollback: before the files of before are deleted.
    RollbackSweep,
    /// kill: after the journal entry.
    KillDestroy,
    /// kill: before its files are deleted.
    KillFiles,
    /// kill: before the record is deleted.
    KillForget,
    /// import: before anything is read.
    ImportRead,
    /// import: read and verified; before new layers and the engine build get their names.
    ImportPublish,
    /// import: before the row that makes a next start remove what there is.
    ImportAnnounce,
    /// import: before its directory gets its name.
    ImportFinish,
    /// import: complete; before the row says that it is listed, which commits it.
    ImportCommit,
    /// import: listed; before anybody knows, as for a snapshot.
    ImportCommitted,
}

impl Step {
    /// Every step.
    pub const ALL: [Step; 36] = [
        Step::CreateDirectory,
        Step::CreateDisk,
        Step::CreateStart,
        Step::CreateAgent,
        Step::CreatePublish,
        Step::PausePrepare,
        Step::PauseFreeze,
        Step::PauseCheckpoint,
        Step::PauseSync,
        Step::PauseCommit,
        Step::PauseCommitted,
        Step::PauseDestroy,
        Step::PausePublish,
        Step::ResumeCheck,
        Step::ResumeStart,
        Step::ResumeAgent,
        Step::ResumePublish,
        Step::SnapshotLink,
        Step::SnapshotDisk,
        Step::SnapshotFinish,
        Step::SnapshotCommit,
        Step::SnapshotCommitted,
        Step::RollbackLink,
        Step::RollbackCommit,
        Step::RollbackCommitted,
        Step::RollbackDestroy,
        Step::RollbackSweep,
        Step::KillDestroy,
        Step::KillFiles,
        Step::KillForget,
        Step::ImportRead,
        Step::ImportPublish,
        Step::ImportAnnounce,
        Step::ImportFinish,
        Step::ImportCommit,
        Step::ImportCommitted,
    ];
}

/// What a test does to a transition that reaches a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The step fails.
    Fail,
    /// The step fails for want of space.
    NoSpace,
    /// The step fails because the device does (EIO).
    Io,
    /// The server stops here for ever, as after SIGKILL.
    Stop,
}

/// Decides about faults; production has none.
#[derive(Clone, Default)]
pub struct Faults {
    decide: Option<Arc<dyn Fn(Step) -> Fault + Send + Sync>>,
}

/// A step that a test made fail.
#[derive(Debug, thiserror::Error)]
#[error("injected failure at {step:?}")]
pub struct InjectedFault {
    /// Where.
    pub step: Step,
    /// How.
    pub fault: Fault,
}

impl Faults {
    /// Asks `decide` at every step.
    pub fn new(decide: impl Fn(Step) -> Fault + Send + Sync + 'static) -> Self {
        Self {
            decide: Some(Arc::new(decide)),
        }
    }

    /// Called by transitions before each step.
    pub async fn reach(&self, step: Step) -> Result<(), InjectedFault> {
        let fault = match &self.decide {
            Some(decide) => decide(step),
            None => Fault::None,
        };
        match fault {
            Fault::None => Ok(()),
            Fault::Fail | Fault::NoSpace | Fault::Io => Err(InjectedFault { step, fault }),
            Fault::Stop => std::future::pending().await,
        }
    }
}
