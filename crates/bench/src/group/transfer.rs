//! A large file up and down, beside pipes into and out of a bare container.

use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2b_client::{Agent, Problem};
use http_body_util::BodyExt;
use rand::RngCore;

use crate::floor::{Container, Program};
use crate::guest::{create, first_command};
use crate::report::{Board, Unit};
use crate::run::Bench;

const UP: &str = "transfer-up";
const DOWN: &str = "transfer-down";
const PATH: &str = "/home/user/big";
/// Transfers are long; more rounds say little more.
const MOST_ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(300);

/// Measures it.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    let mib = bench.options.transfer_mib;
    let unit = Unit::MebibytesPerSecond;
    let (up, down) = (
        "runsc exec of cat into a file",
        "runsc exec of cat of a file",
    );
    board.open(UP, format!("upload of {mib} MiB"), unit, Some(up));
    board.open(DOWN, format!("download of {mib} MiB"), unit, Some(down));
    let mut content = vec![0; mib << 20];
    rand::rng().fill_bytes(&mut content);
    let content = Bytes::from(content);
    let floor = match &bench.options.floor {
        Some(options) => Some(Container::start(options, Program::Idle).await?),
        None => None,
    };
    // Of the kind that a shell would give it.
    let mut source = tempfile::tempfile().map_err(|error| broken(&error))?;
    std::io::Write::write_all(&mut source, &content).map_err(|error| broken(&error))?;
    let (sandbox, _) = create(&bench.api, &bench.options.template, &bench.mark).await?;
    first_command(&bench.api, &sandbox).await?;
    let agent = Agent::new(&bench.api, &sandbox);
    let rounds = bench.options.rounds.min(MOST_ROUNDS);
    for round in 1..=rounds {
        bench.at("transfer", &format!("round {round} of {rounds}"));
        let begin = Instant::now();
        agent.upload(PATH, content.clone(), LIMIT).await?;
        board.note(UP, rate(mib, begin));
        let begin = Instant::now();
        download(&agent, content.len()).await?;
        board.note(DOWN, rate(mib, begin));
        if let Some(container) = &floor {
            use std::io::Seek;
            source.rewind().map_err(|error| broken(&error))?;
            let input = source.try_clone().map_err(|error| broken(&error))?;
            let begin = Instant::now();
            let write = ["/bin/sh", "-c", "cat > /big"];
            container.exec(&write, input.into(), Stdio::null()).await?;
            board.note_floor(UP, rate(mib, begin));
            // A regular file takes it as fast as a pipe whose reader drops everything.
            let output = tempfile::tempfile().map_err(|error| broken(&error))?;
            let begin = Instant::now();
            container
                .exec(&["/bin/cat", "/big"], Stdio::null(), output.into())
                .await?;
            board.note_floor(DOWN, rate(mib, begin));
        }
    }
    bench.api.kill(&sandbox.id).await
}

async fn download(agent: &Agent<'_>, wanted: usize) -> Result<(), Problem> {
    let received = async {
        let mut body = agent.download(PATH).await?;
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Problem::Broken(format!("download: {error}")))?;
            received += frame.data_ref().map_or(0, Bytes::len);
        }
        Ok(received)
    };
    let received = tokio::time::timeout(LIMIT, received).await;
    let received =
        received.map_err(|_| Problem::Broken(format!("download: not there after {LIMIT:?}")))??;
    if received == wanted {
        return Ok(());
    }
    Err(Problem::Broken(format!(
        "download: {received} bytes of {wanted}"
    )))
}

fn rate(mib: usize, begin: Instant) -> f64 {
    mib as f64 / begin.elapsed().as_secs_f64()
}

fn broken(error: &std::io::Error) -> Problem {
    Problem::Broken(format!("a temporary file: {error}"))
}
