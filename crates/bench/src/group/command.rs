//! The round trip of a command, beside runsc's own way to run one.

use std::process::Stdio;
use std::time::Instant;

use e2b_client::Problem;

use crate::floor::{Container, Program};
use crate::guest::{create, first_command, run as run_inside, since};
use crate::report::{Board, Unit};
use crate::run::Bench;

const COMMAND: &str = "command";
const INSIDE: &str = "command-inside";
/// It is short, so it is taken more often.
const PER_ROUND: usize = 5;
/// What the agent does for a command: fork, exec of a login shell, wait.
const FORKS: &str = r#"python3 -c '
import os, time
for _ in range(30):
    begin = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/bash", ["/bin/bash", "-l", "-c", "true"], os.environ), 0)
    print((time.perf_counter() - begin) * 1000)
'"#;

/// Measures it.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    let unit = Unit::Milliseconds;
    let floor = Some("runsc exec of the same shell");
    board.open(COMMAND, "commands.run(\"true\")", unit, floor);
    board.open(INSIDE, "fork and exec of the same shell inside", unit, None);
    let floor = match &bench.options.floor {
        Some(options) => Some(Container::start(options, Program::Idle).await?),
        None => None,
    };
    let (sandbox, _) = create(&bench.api, &bench.options.template, &bench.mark).await?;
    first_command(&bench.api, &sandbox).await?;
    for round in 1..=bench.options.rounds {
        bench.at(
            "command",
            &format!("round {round} of {}", bench.options.rounds),
        );
        for _ in 0..PER_ROUND {
            let begin = Instant::now();
            first_command(&bench.api, &sandbox).await?;
            board.note(COMMAND, since(begin));
        }
        if let Some(container) = &floor {
            let command = ["/bin/bash", "-l", "-c", "true"];
            let begin = Instant::now();
            container
                .exec(&command, Stdio::null(), Stdio::null())
                .await?;
            board.note_floor(COMMAND, since(begin));
        }
    }
    let times = run_inside(&bench.api, &sandbox, FORKS).await?;
    for line in times.lines() {
        let time = line
            .parse()
            .map_err(|_| Problem::Broken(format!("Python inside printed '{line}' for a time")))?;
        board.note(INSIDE, time);
    }
    bench.api.kill(&sandbox.id).await
}
