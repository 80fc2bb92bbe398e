//! Hooks: programs that the owner of a sandbox keeps inside it, run around a pause.

use serde::{Deserialize, Serialize};

/// When a hook runs; each kind has its directory below `/etc/sandbase/hooks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    /// Before memory is saved.
    PrePause,
    /// After a resume from memory, or a pause that was given up after its hooks had run.
    PostResume,
    /// In a new sandbox that came from the memory of another one.
    PostFork,
}

impl HookKind {
    /// As in the name of the directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::PrePause => "pre-pause",
            Self::PostResume => "post-resume",
            Self::PostFork => "post-fork",
        }
    }
}

/// Body of `POST /hooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunHooks {
    /// Which.
    pub kind: HookKind,
    /// Time for one hook; one that takes longer is killed with its process group.
    pub each_ms: u64,
    /// Time for all of them; those that are left then are not run.
    pub all_ms: u64,
    /// Whether the hooks after one that fails are not run.
    #[serde(default)]
    pub stop_at_failure: bool,
    /// Whether to run them only if pre-pause hooks have run and neither of the other kinds since.
    #[serde(default)]
    pub only_after_pre_pause: bool,
}

/// Answer to `POST /hooks`, in the order in which they ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HooksReply {
    /// One for each hook.
    pub hooks: Vec<HookRun>,
}

/// How one hook went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookRun {
    /// File name.
    pub name: String,
    /// How it ended.
    pub end: HookEnd,
    /// How long it took.
    pub milliseconds: u64,
    /// The start of what it wrote to standard output and error.
    pub output: String,
}

/// How a hook ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "how", content = "why")]
pub enum HookEnd {
    /// With exit status 0.
    Done,
    /// Otherwise, or it could not be started.
    Failed(String),
    /// It was killed because its time was over.
    TimedOut,
    /// The time for all hooks was over, or one before it had failed.
    NotRun,
}

impl HookRun {
    /// What went wrong, for people; `None` when nothing did.
    pub fn failure(&self) -> Option<String> {
        match &self.end {
            HookEnd::Done => None,
            HookEnd::Failed(why) => Some(why.clone()),
            HookEnd::TimedOut => Some(format!("killed after {} ms", self.milliseconds)),
            HookEnd::NotRun => Some("not run".to_owned()),
        }
    }
}
