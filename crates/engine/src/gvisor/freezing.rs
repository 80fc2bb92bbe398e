//! Freezing and thawing, and knowing which of both was done last.
//!
//! The sentry counts: it needs as many resumes as it got pauses, one too many ends it, and it does not
//! say where it stands. So the execution's directory notes what is asked before it is asked, and the
//! outcome after. A note without an outcome, of a server that was killed between or a call that timed
//! out, is settled by looking at the stacks of the sentry's goroutines (`stacks`), which also show a
//! call that is still waiting for its turn: nothing is asked twice.
//!
//! ```text
//!  (no note) ──freeze──▶ freezing ──▶ frozen ──thaw──▶ thawing ──▶ (no note)
//! ```

use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::control::{CallError, Control, PAUSE, RESUME, STACKS};
use super::destroy::state_files;
use super::stacks::Seen;
use super::{Gvisor, failed};
use crate::{EngineError, ExecutionId};

/// How long the tasks of a guest that is being frozen are given to stand, when it has to be found out
/// whether they do.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
const SETTLE_POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    Freezing,
    Frozen,
    Thawing,
}

impl Note {
    const ALL: [(Self, &str); 3] = [
        (Self::Freezing, "freezing"),
        (Self::Frozen, "frozen"),
        (Self::Thawing, "thawing"),
    ];
}

/// How a guest stands still, or that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Running,
    /// Frozen over the control socket.
    Frozen,
    /// Frozen by `runsc pause`, which only `runsc resume` may undo.
    FrozenByRunsc,
}

impl Gvisor {
    pub(super) async fn freeze_execution(&self, id: &ExecutionId) -> Result<(), EngineError> {
        if self.standing_of_live(id, "freeze").await? != Standing::Running {
            return Ok(());
        }
        self.note(id, Some(Note::Freezing))?;
        match self.ask(id, PAUSE).await {
            Ok(_) => self.note(id, Some(Note::Frozen)),
            Err(CallError::NotAsked(why)) => {
                tracing::debug!(execution.id = %id, why, "freezing with runsc");
                self.note(id, None)?;
                self.switch(id, "pause", "paused").await
            }
            Err(CallError::Failed(error)) => Err(error),
        }
    }

    pub(super) async fn thaw_execution(&self, id: &ExecutionId) -> Result<(), EngineError> {
        match self.standing_of_live(id, "thaw").await? {
            Standing::Running => return Ok(()),
            Standing::FrozenByRunsc => return self.switch(id, "resume", "running").await,
            Standing::Frozen => {}
        }
        self.note(id, Some(Note::Thawing))?;
        match self.ask(id, RESUME).await {
            Ok(_) => self.note(id, None),
            Err(CallError::NotAsked(detail)) => {
                self.note(id, Some(Note::Frozen))?;
                let step = format!("thaw {id}");
                Err(EngineError::Failed { step, detail })
            }
            Err(CallError::Failed(error)) => Err(error),
        }
    }

    async fn standing_of_live(
        &self,
        id: &ExecutionId,
        verb: &str,
    ) -> Result<Standing, EngineError> {
        let step = format!("{verb} {id}");
        let alive = self.require(id)?.is_alive(id);
        if !alive.map_err(failed(step.clone()))? {
            return Err(EngineError::Failed {
                step,
                detail: "it is no longer alive".to_owned(),
            });
        }
        self.standing(id).await
    }

    /// Whether a guest whose sentry lives is frozen. Settles what is in doubt, or leaves it so when a
    /// call of before has not ended in time.
    pub(super) async fn standing(&self, id: &ExecutionId) -> Result<Standing, EngineError> {
        let file = self.paths.execution(id).frozen();
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if self.is_paused_by_runsc(id) {
                    Standing::FrozenByRunsc
                } else {
                    Standing::Running
                });
            }
            Err(error) => return Err(failed(format!("read whether {id} is frozen"))(error)),
        };
        // A server that was killed while it wrote leaves an empty file: in doubt as well.
        if text == "frozen" {
            return Ok(Standing::Frozen);
        }
        let stands = self.is_frozen_in_fact(id).await?;
        tracing::info!(execution.id = %id, frozen = stands, "settled what a killed call had done");
        self.note(id, stands.then_some(Note::Frozen))?;
        Ok(if stands {
            Standing::Frozen
        } else {
            Standing::Running
        })
    }

    fn note(&self, id: &ExecutionId, note: Option<Note>) -> Result<(), EngineError> {
        let file = self.paths.execution(id).frozen();
        let word = Note::ALL.iter().find(|known| Some(known.0) == note);
        let written = match word {
            Some((_, word)) => std::fs::write(file, word),
            None => std::fs::remove_file(file),
        };
        written.map_err(failed(format!("note whether {id} is frozen")))
    }

    async fn ask(&self, id: &ExecutionId, method: &str) -> Result<Value, CallError> {
        let limit = self.config.command_timeout;
        Control::of(id, &self.paths).call(method, limit).await
    }

    /// What `runsc pause` notes in its own records: how builds without our calls freeze.
    fn is_paused_by_runsc(&self, id: &ExecutionId) -> bool {
        state_files(&self.paths, id)
            .iter()
            .filter(|file| file.extension().is_some_and(|ending| ending == "state"))
            .filter_map(|file| std::fs::read(file).ok())
            .filter_map(|text| serde_json::from_slice::<Value>(&text).ok())
            .any(|state| state["status"] == "paused")
    }

    /// Whether a freeze stops the guest, by what the sentry's goroutines do.
    async fn is_frozen_in_fact(&self, id: &ExecutionId) -> Result<bool, EngineError> {
        let step = || format!("find out whether {id} is frozen");
        let begun = Instant::now();
        loop {
            let stacks = match self.ask(id, STACKS).await {
                Ok(stacks) => stacks,
                Err(CallError::Failed(error)) => return Err(error),
                Err(CallError::NotAsked(detail)) => {
                    let step = step();
                    return Err(EngineError::Failed { step, detail });
                }
            };
            match Seen::of(stacks.as_str().unwrap_or_default()) {
                Seen::Frozen => return Ok(true),
                Seen::Running => return Ok(false),
                // A task may take long to stand, in a system call of the host that nothing
                // interrupts. The freeze counts already, and a thaw undoes it.
                Seen::Freezing if begun.elapsed() > SETTLE_LIMIT => return Ok(true),
                Seen::SomeStand if begun.elapsed() > SETTLE_LIMIT => return Ok(false),
                // To ask on top of it would be once too often when it gets its turn.
                Seen::CallWaiting if begun.elapsed() > self.config.command_timeout => {
                    return Err(EngineError::Timeout {
                        step: step(),
                        limit: self.config.command_timeout,
                    });
                }
                Seen::Freezing | Seen::SomeStand | Seen::CallWaiting => {}
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
    }
}
