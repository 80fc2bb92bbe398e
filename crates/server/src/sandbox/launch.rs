//! From a started execution to an agent that knows which sandbox it is in.

use std::time::Duration;

use agent_api::InitRequest;
use base64::Engine as _;
use engine::ExecutionId;
use time::OffsetDateTime;

use super::context::Context;
use super::transition::Cause;
use super::{Record, hooks};

/// Waits until the agent of a started execution answers and tells it who it is. Whatever the
/// agent held from an earlier execution (connections, token, names) is replaced.
pub(super) async fn greet(
    context: &Context,
    record: &Record,
    execution: &ExecutionId,
) -> Result<(), Cause> {
    let guest = context.guest(execution);
    let limit = context.settings.agent_start_timeout;
    let greeting = async {
        let mut pause = Duration::from_millis(2);
        loop {
            match guest.init(&init_request(record, execution)).await {
                Ok(reply) => return reply,
                Err(error) => tracing::trace!(%error, "the agent does not answer yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    };
    tokio::select! {
        reply = tokio::time::timeout(limit, greeting) => match reply {
            Ok(reply) => {
                tracing::debug!(sandbox.id = %record.id, agent = reply.agent_version, "agent answers");
                if let Some(kind) = reply.hooks_due {
                    hooks::after_start(context, record, execution, kind).await;
                }
                Ok(())
            }
            Err(_) => Err(Cause::AgentSilent(format!("no answer within {limit:?} of the start"))),
        },
        _ = context.engine.exited(execution) => Err(Cause::Exited),
    }
}

fn init_request(record: &Record, execution: &ExecutionId) -> InitRequest {
    let entropy: [u8; 32] = rand::random();
    InitRequest {
        // A thawed execution begins a new run as well.
        lifecycle_id: format!("{execution}-{}", record.generation),
        timestamp: OffsetDateTime::now_utc(),
        sandbox_id: record.id.to_string(),
        template_id: record.spec.template_id.clone(),
        hostname: record.id.to_string(),
        access_token: Some(record.spec.access_token.clone()),
        env_vars: Some(record.spec.env_vars.clone()),
        default_user: "user".to_owned(),
        default_workdir: "/home/user".to_owned(),
        memory_limit_bytes: Some(record.spec.limits.memory_bytes),
        entropy: Some(base64::engine::general_purpose::STANDARD.encode(entropy)),
    }
}
