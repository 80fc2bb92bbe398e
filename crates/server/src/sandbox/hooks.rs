//! Programs of the sandbox's owner that run inside it around a pause.

use std::time::Duration;

use agent_api::{HookKind, RunHooks};
use engine::ExecutionId;

use super::Record;
use super::context::Context;
use super::transition::Cause;

/// The agent's answer comes this much later than the last hook's end at most.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How hooks are bounded, and what their failure means.
#[derive(Clone, Debug)]
pub struct HookSettings {
    /// Time for one hook.
    pub each: Duration,
    /// Time for all hooks of a kind.
    pub all: Duration,
    /// What a failing pre-pause hook means for the pause.
    pub pre_pause_failure: HookFailure,
}

/// What a failing hook means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookFailure {
    /// It is logged.
    Ignore,
    /// The pause is refused, and the sandbox goes on running.
    Fatal,
}

/// Runs the pre-pause hooks. An error means that the pause must not go on.
pub(super) async fn before_pause(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
) -> Result<(), Cause> {
    let fatal = context.settings.hooks.pre_pause_failure == HookFailure::Fatal;
    let request = RunHooks {
        stop_at_failure: fatal,
        ..request(context, HookKind::PrePause)
    };
    match run(context, record, execution, &request).await {
        Err(failure) if fatal => Err(Cause::Hook(failure)),
        // Logged already.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs the hooks that are due after a start. Their failure does not undo it.
pub(super) async fn after_start(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    kind: HookKind,
) {
    let request = request(context, kind);
    let _logged = run(context, record, execution, &request).await;
}

/// After a pause that was given up: when its pre-pause hooks have run, the guest shall know that it
/// goes on.
pub(super) async fn after_undone_pause(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
) {
    let request = RunHooks {
        only_after_pre_pause: true,
        ..request(context, HookKind::PostResume)
    };
    let _logged = run(context, record, execution, &request).await;
}

fn request(context: &Context, kind: HookKind) -> RunHooks {
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    RunHooks {
        kind,
        each_ms: milliseconds(context.settings.hooks.each),
        all_ms: milliseconds(context.settings.hooks.all),
        stop_at_failure: false,
        only_after_pre_pause: false,
    }
}

/// Logs every failure and returns the first one.
async fn run(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
    request: &RunHooks,
) -> Result<(), String> {
    let limit = context.settings.hooks.all + ANSWER_LIMIT;
    let kind = request.kind.name();
    let guest = context.guest(execution);
    let call = guest.run_hooks(request);
    let reply = match tokio::time::timeout(limit, call).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            tracing::warn!(sandbox.id = %record.id, hook.kind = kind, %error, "hooks could not be run");
            return Err(format!("the {kind} hooks could not be run: {error}"));
        }
        Err(_) => {
            tracing::warn!(sandbox.id = %record.id, hook.kind = kind, "hooks gave no answer");
            return Err(format!("the {kind} hooks gave no answer within {limit:?}"));
        }
    };
    let mut first = None;
    for hook in reply.hooks {
        let Some(failure) = hook.failure() else {
            tracing::debug!(sandbox.id = %record.id, hook.kind = kind, hook.name, duration_ms = hook.milliseconds, "a hook has run");
            continue;
        };
        // Without its output, which may hold secrets: errors end in the log, too.
        tracing::warn!(sandbox.id = %record.id, hook.kind = kind, hook.name, duration_ms = hook.milliseconds, failure, "a hook failed");
        first.get_or_insert(format!("the {kind} hook {} failed ({failure})", hook.name));
    }
    first.map_or(Ok(()), Err)
}
