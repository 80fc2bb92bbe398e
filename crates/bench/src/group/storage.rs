//! What paused sandboxes take on the server's disk, beside the image that bare runsc writes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use e2b_client::Problem;

use crate::floor::{Container, Program};
use crate::guest::{Held, create, first_command, pause};
use crate::report::{Board, Unit};
use crate::run::Bench;

const IMAGE: &str = "image of runsc checkpoint -compression none";
const MIB: f64 = (1 << 20) as f64;

/// Measures it.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    for mib in &bench.options.sizes {
        let what = format!("stored for a paused sandbox, {mib} MiB resident");
        board.open(format!("stored-{mib}"), what, Unit::Mebibytes, Some(IMAGE));
    }
    for mib in &bench.options.sizes {
        bench.at("storage", &format!("{mib} MiB"));
        let stored = stored(bench, *mib).await;
        bench.api.clean_up().await;
        match stored {
            Ok(bytes) => {
                board.note(&format!("stored-{mib}"), bytes as f64 / MIB);
                if let Some(bytes) = bare(bench, *mib).await? {
                    board.note_floor(&format!("stored-{mib}"), bytes as f64 / MIB);
                }
            }
            Err(problem) => board.miss(&format!("stored-{mib}"), problem),
        }
    }
    Ok(())
}

async fn stored(bench: &Bench, mib: u64) -> Result<u64, Problem> {
    let api = &bench.api;
    let (sandbox, _) = create(api, &bench.options.template, &bench.mark).await?;
    first_command(api, &sandbox).await?;
    Held::fill(api, &sandbox, mib).await?;
    pause(api, &sandbox).await?;
    let stored = api.own_bytes(&sandbox.id).await?;
    api.kill(&sandbox.id).await?;
    Ok(stored)
}

async fn bare(bench: &Bench, mib: u64) -> Result<Option<u64>, Problem> {
    let Some(options) = &bench.options.floor else {
        return Ok(None);
    };
    let program = match mib {
        0 => Program::Idle,
        mib => Program::Hold(mib),
    };
    let container = Container::start(options, program).await?;
    container.checkpoint().await?;
    let bytes = bytes_of(container.image())
        .map_err(|error| Problem::Broken(format!("floor: look at an image: {error}")))?;
    Ok(Some(bytes))
}

fn bytes_of(directory: &Path) -> std::io::Result<u64> {
    std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.metadata()?.blocks() * 512))
        .sum()
}
