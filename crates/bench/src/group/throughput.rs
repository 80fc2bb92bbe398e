//! Creates, pauses and connects at once, beside as many restores at once.

use std::time::Instant;

use e2b_client::{Problem, Sandbox};
use futures_util::future::try_join_all;

use crate::floor::{Container, Program};
use crate::guest::{connect, create, pause, since};
use crate::report::{Board, Unit};
use crate::run::Bench;

const RESTORES: &str = "as many runsc restores at once";
/// Batches of many at once are fewer than rounds, but no fewer than this.
const FEWEST_BATCHES: usize = 3;

/// Measures it.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    for many in &bench.options.at_once {
        for (id, what) in [("creates", "create"), ("connects", "connect")] {
            let floor = Some(RESTORES);
            let each = format!("{what}, {many} at once, time per {what}");
            board.open(format!("{id}-{many}"), each, Unit::Milliseconds, floor);
            let latency = format!("{what}, {many} at once, until the answer");
            let latency_id = format!("{what}-latency-{many}");
            board.open(latency_id, latency, Unit::Milliseconds, floor);
        }
        let what = format!("pause, {many} at once, time per pause");
        board.open(format!("pauses-{many}"), what, Unit::Milliseconds, None);
    }
    let floor = match &bench.options.floor {
        Some(options) => {
            let container = Container::start(options, Program::Idle).await?;
            container.checkpoint().await?;
            container.delete().await?;
            Some(container)
        }
        None => None,
    };
    for many in &bench.options.at_once {
        let rounds = bench.options.rounds;
        // As many values as rounds, in batches.
        let batches = rounds.div_ceil(*many).max(FEWEST_BATCHES.min(rounds));
        for batch in 1..=batches {
            let step = format!("{many} at once: batch {batch} of {batches}");
            bench.at("throughput", &step);
            batch_of(bench, board, *many).await?;
            if let Some(container) = &floor {
                restores(bench, board, container, *many).await?;
            }
        }
    }
    Ok(())
}

async fn batch_of(bench: &Bench, board: &mut Board, many: usize) -> Result<(), Problem> {
    let api = &bench.api;
    tokio::time::sleep(bench.options.pool_time).await;
    let begin = Instant::now();
    let creates = (0..many).map(|_| create(api, &bench.options.template, &bench.mark));
    let created = try_join_all(creates).await?;
    note_batch(
        board,
        "create",
        many,
        begin,
        created.iter().map(|(_, took)| *took),
    );
    let sandboxes: Vec<Sandbox> = created.into_iter().map(|(sandbox, _)| sandbox).collect();

    let begin = Instant::now();
    try_join_all(sandboxes.iter().map(|sandbox| pause(api, sandbox))).await?;
    board.note(&format!("pauses-{many}"), per_one(begin, many));

    tokio::time::sleep(bench.options.warm_time.unwrap_or_default()).await;
    let begin = Instant::now();
    let connects = try_join_all(sandboxes.iter().map(|sandbox| connect(api, sandbox))).await?;
    note_batch(board, "connect", many, begin, connects.into_iter());

    try_join_all(sandboxes.iter().map(|sandbox| api.kill(&sandbox.id))).await?;
    Ok(())
}

fn note_batch(
    board: &mut Board,
    what: &str,
    many: usize,
    begin: Instant,
    latencies: impl Iterator<Item = f64>,
) {
    board.note(&format!("{what}s-{many}"), per_one(begin, many));
    for latency in latencies {
        board.note(&format!("{what}-latency-{many}"), latency);
    }
}

/// Milliseconds since `begin`, for each of so many.
fn per_one(begin: Instant, many: usize) -> f64 {
    let many = u32::try_from(many).unwrap_or(u32::MAX);
    since(begin) / f64::from(many)
}

/// The engine's own limit: the same image into as many sandboxes.
async fn restores(
    bench: &Bench,
    board: &mut Board,
    source: &Container,
    many: usize,
) -> Result<(), Problem> {
    let Some(options) = &bench.options.floor else {
        return Ok(());
    };
    let containers = (0..many).map(|_| Container::from_image_of(options, source));
    let containers: Vec<Container> = containers.collect::<Result<_, _>>()?;
    let timed = async |container: &Container| {
        let begin = Instant::now();
        container.restore().await?;
        Ok::<f64, Problem>(since(begin))
    };
    let begin = Instant::now();
    let latencies = try_join_all(containers.iter().map(timed)).await?;
    let each = per_one(begin, many);
    for what in ["create", "connect"] {
        board.note_floor(&format!("{what}s-{many}"), each);
        for latency in &latencies {
            board.note_floor(&format!("{what}-latency-{many}"), *latency);
        }
    }
    for container in &containers {
        container.settle().await?;
        container.delete().await?;
    }
    Ok(())
}
