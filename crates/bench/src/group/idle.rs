//! What sandboxes cost that do nothing, and whether they answer and others start beside them.

use std::time::{Duration, Instant};

use e2b_client::{Problem, Sandbox};
use futures_util::future::try_join_all;

use crate::floor::{Container, Program};
use crate::guest::{create, first_command};
use crate::host::{Execution, Used, available_memory, of_command_line};
use crate::report::{Board, Unit};
use crate::run::Bench;

/// Sandboxes that are made at once: no measurement, only to be quick.
const AT_ONCE: usize = 8;
/// After this a sandbox that did something is idle again.
const REST: Duration = Duration::from_secs(5);
const BARE: &str = "an idle container of bare runsc, without network and cgroup";
const MIB: f64 = (1 << 20) as f64;

/// Measures it, one number of sandboxes after the other; the smaller ones stay for the larger.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    for many in &bench.options.idle {
        let mut open = |id: &str, what: &str, unit, floor| {
            board.open(
                format!("idle-{id}-{many}"),
                format!("{many} idle: {what}"),
                unit,
                floor,
            );
        };
        open(
            "memory",
            "host memory of each, beyond guest pages",
            Unit::Mebibytes,
            Some(BARE),
        );
        open("guest", "guest pages of each", Unit::Mebibytes, Some(BARE));
        open(
            "host",
            "the host's available memory, less for each",
            Unit::Mebibytes,
            None,
        );
        open("cpu", "CPU of each", Unit::PercentOfCore, Some(BARE));
        open("answers", "how many answer", Unit::Sandboxes, None);
        open("create", "create of one more", Unit::Milliseconds, None);
    }
    let floor = match &bench.options.floor {
        Some(options) => Some(Container::start(options, Program::Idle).await?),
        None => None,
    };
    let before = available_memory();
    let mut sandboxes = Vec::new();
    for many in &bench.options.idle {
        bench.at("idle", &format!("{many} sandboxes: making them"));
        while sandboxes.len() < *many {
            let missing = (many - sandboxes.len()).min(AT_ONCE);
            let creates =
                (0..missing).map(|_| create(&bench.api, &bench.options.template, &bench.mark));
            let created = try_join_all(creates).await?;
            sandboxes.extend(created.into_iter().map(|(sandbox, _)| sandbox));
        }
        for sandbox in &sandboxes {
            first_command(&bench.api, sandbox).await?;
        }
        watch(bench, board, &sandboxes, floor.as_ref(), before).await?;
        answers(bench, board, &sandboxes).await?;
        creates(bench, board, &mut sandboxes).await?;
    }
    bench.at("idle", "removing them");
    for sandbox in &sandboxes {
        bench.api.kill(&sandbox.id).await?;
    }
    Ok(())
}

/// Memory and CPU time, where the server's executions can be seen.
async fn watch(
    bench: &Bench,
    board: &mut Board,
    sandboxes: &[Sandbox],
    floor: Option<&Container>,
    before: Option<u64>,
) -> Result<(), Problem> {
    let many = sandboxes.len();
    let executions: Option<Vec<Execution>> = if bench.is_local() {
        sandboxes
            .iter()
            .map(|sandbox| Execution::of(&sandbox.id))
            .collect()
    } else {
        None
    };
    let Some(executions) = executions else {
        let text = "the executions of the sandboxes cannot be seen on this machine";
        for row in ["memory", "guest", "host", "cpu"] {
            let problem = Problem::NotSupported(text.to_owned());
            board.miss(&format!("idle-{row}-{many}"), problem);
        }
        return Ok(());
    };
    tokio::time::sleep(REST).await;
    let seconds = bench.options.idle_time.as_secs();
    bench.at(
        "idle",
        &format!("{many} sandboxes: watching them for {seconds} s"),
    );
    let cpu = || executions.iter().map(Execution::cpu).collect::<Vec<_>>();
    let bare = || floor.map(|container| Used::by(of_command_line(container.directory())));
    let (first, first_bare, begin) = (cpu(), bare(), Instant::now());
    tokio::time::sleep(bench.options.idle_time).await;
    let (last, last_bare, watched) = (cpu(), bare(), begin.elapsed());
    let share = |used: Duration| used.as_secs_f64() / watched.as_secs_f64() * 100.0;
    for (first, last) in first.iter().zip(&last) {
        if let (Some(first), Some(last)) = (first, last) {
            board.note(
                &format!("idle-cpu-{many}"),
                share(last.saturating_sub(*first)),
            );
        }
    }
    for execution in &executions {
        let used = Used::by(execution.processes());
        let own = used.own_bytes + execution.kernel_bytes();
        board.note(&format!("idle-memory-{many}"), own as f64 / MIB);
        board.note(
            &format!("idle-guest-{many}"),
            used.shared_bytes as f64 / MIB,
        );
    }
    if let (Some(first), Some(last)) = (first_bare, last_bare) {
        board.note_floor(
            &format!("idle-cpu-{many}"),
            share(last.cpu.saturating_sub(first.cpu)),
        );
        board.note_floor(&format!("idle-memory-{many}"), last.own_bytes as f64 / MIB);
        board.note_floor(
            &format!("idle-guest-{many}"),
            last.shared_bytes as f64 / MIB,
        );
    }
    if let Some((before, now)) = before.zip(available_memory()) {
        let less = before as f64 - now as f64;
        board.note(&format!("idle-host-{many}"), less / MIB / many as f64);
    }
    Ok(())
}

/// A command in each of them.
async fn answers(bench: &Bench, board: &mut Board, sandboxes: &[Sandbox]) -> Result<(), Problem> {
    let many = sandboxes.len();
    bench.at("idle", &format!("{many} sandboxes: a command in each"));
    let mut answered = 0_u32;
    for sandbox in sandboxes {
        answered += u32::from(first_command(&bench.api, sandbox).await.is_ok());
    }
    board.note(&format!("idle-answers-{many}"), f64::from(answered));
    Ok(())
}

/// One is killed and another one takes its place: a server may have a limit of what runs.
async fn creates(
    bench: &Bench,
    board: &mut Board,
    sandboxes: &mut Vec<Sandbox>,
) -> Result<(), Problem> {
    let many = sandboxes.len();
    for round in 1..=bench.options.rounds {
        let rounds = bench.options.rounds;
        bench.at(
            "idle",
            &format!("{many} sandboxes: create {round} of {rounds}"),
        );
        if let Some(killed) = sandboxes.pop() {
            bench.api.kill(&killed.id).await?;
        }
        tokio::time::sleep(bench.options.pool_time).await;
        let (sandbox, took) = create(&bench.api, &bench.options.template, &bench.mark).await?;
        sandboxes.push(sandbox);
        board.note(&format!("idle-create-{many}"), took);
    }
    Ok(())
}
