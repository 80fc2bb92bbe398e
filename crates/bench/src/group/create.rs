//! From a create to the first command, beside restores of a small image.

use std::time::Instant;

use e2b_client::{Problem, Sandbox};
use serde_json::json;

use crate::floor::{Container, Program};
use crate::guest::{create, first_command, since};
use crate::report::{Board, Unit};
use crate::run::Bench;

const CREATE: &str = "create";
const COMMAND: &str = "create-command";
const UNPOOLED: &str = "create-unpooled";
const KILL: &str = "kill";
const INTO_PREPARED: &str = "runsc restore into a sandbox that `runsc create` prepared";
const ALONE: &str = "runsc restore that creates its sandbox itself";

/// Measures it.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    let unit = Unit::Milliseconds;
    board.open(CREATE, "create", unit, Some(INTO_PREPARED));
    board.open(
        COMMAND,
        "create to first command",
        unit,
        Some(INTO_PREPARED),
    );
    board.open(
        UNPOOLED,
        "create, nothing prepared for it",
        unit,
        Some(ALONE),
    );
    board.open(KILL, "kill", unit, Some("runsc delete -force"));
    let floor = match &bench.options.floor {
        Some(options) => {
            let container = Container::start(options, Program::Idle).await?;
            container.checkpoint().await?;
            container.delete().await?;
            Some(container)
        }
        None => None,
    };
    // The first one of all pays for connections and the like.
    let (sandbox, _) = create(&bench.api, &bench.options.template, &bench.mark).await?;
    first_command(&bench.api, &sandbox).await?;
    bench.api.kill(&sandbox.id).await?;
    let mut unpooled = true;
    for round in 1..=bench.options.rounds {
        bench.at(
            "create",
            &format!("round {round} of {}", bench.options.rounds),
        );
        tokio::time::sleep(bench.options.pool_time).await;
        let begin = Instant::now();
        let (sandbox, took) = create(&bench.api, &bench.options.template, &bench.mark).await?;
        first_command(&bench.api, &sandbox).await?;
        board.note(COMMAND, since(begin));
        board.note(CREATE, took);
        if let Some(container) = &floor {
            restores(board, container).await?;
        }
        if unpooled {
            match without_pool(bench, &sandbox).await {
                Ok(took) => board.note(UNPOOLED, took),
                Err(problem @ Problem::NotSupported(_)) => {
                    board.miss(UNPOOLED, problem);
                    unpooled = false;
                }
                Err(problem) => return Err(problem),
            }
        }
        let begin = Instant::now();
        bench.api.kill(&sandbox.id).await?;
        board.note(KILL, since(begin));
    }
    Ok(())
}

async fn restores(board: &mut Board, container: &Container) -> Result<(), Problem> {
    container.prepare().await?;
    let begin = Instant::now();
    container.restore().await?;
    let took = since(begin);
    for row in [CREATE, COMMAND] {
        board.note_floor(row, took);
    }
    container.settle().await?;
    let begin = Instant::now();
    container.delete().await?;
    board.note_floor(KILL, since(begin));
    let begin = Instant::now();
    container.restore().await?;
    board.note_floor(UNPOOLED, since(begin));
    container.settle().await?;
    container.delete().await
}

/// A create from a snapshot that was made a moment ago: no pool can have prepared anything for it.
async fn without_pool(bench: &Bench, source: &Sandbox) -> Result<f64, Problem> {
    let api = &bench.api;
    let snapshot = api.snapshot(&source.id, &json!({})).await?;
    let (sandbox, took) = create(api, &snapshot.id, &bench.mark).await?;
    first_command(api, &sandbox).await?;
    api.kill(&sandbox.id).await?;
    api.try_delete_snapshot(&snapshot.id).await?;
    Ok(took)
}
