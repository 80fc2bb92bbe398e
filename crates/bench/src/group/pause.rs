//! Pauses and connects by the memory that is resident, beside checkpoints and restores of as much.

use std::time::{Duration, Instant};

use e2b_client::{Problem, Sandbox};

use crate::floor::{Container, Program};
use crate::guest::{Held, connect, create, first_command, pause, since};
use crate::report::{Board, Unit};
use crate::run::Bench;

const CHECKPOINT: &str = "runsc pause and checkpoint -direct -compression none";
const RESTORE: &str = "runsc restore -background that creates its sandbox itself";
const COLD_RESTORE: &str = "the same, its image not in the page cache";

/// How the image of a paused sandbox is found by the connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    /// Kept in memory by the server.
    Warm,
    /// On disk; perhaps in the page cache.
    Disk,
    /// On disk, and nowhere else.
    Cold,
}

impl Image {
    fn row(self, mib: u64) -> String {
        match self {
            Self::Warm => format!("connect-warm-{mib}"),
            Self::Disk => format!("connect-disk-{mib}"),
            Self::Cold => format!("connect-cold-{mib}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Warm => "right after the pause",
            Self::Disk => "from disk",
            Self::Cold => "page cache dropped",
        }
    }
}

/// One size.
struct Pair<'a> {
    bench: &'a Bench,
    mib: u64,
    sandbox: Sandbox,
    held: Held,
    floor: Option<Container>,
}

/// Measures it, size by size. A size that a server cannot have does not keep others from being
/// measured.
pub(super) async fn run(bench: &Bench, board: &mut Board) -> Result<(), Problem> {
    let unit = Unit::Milliseconds;
    let mut images = Vec::new();
    if bench.options.warm_time != Some(Duration::ZERO) {
        images.push(Image::Warm);
    }
    // Without knowing when the server lets go of memory, who can tell that it came from disk?
    if bench.options.warm_time.is_some() {
        images.push(Image::Disk);
        if bench.page_cache().is_some() {
            images.push(Image::Cold);
        }
    }
    let sizes = &bench.options.sizes;
    for (id, what) in [
        ("pause", "pause"),
        ("pause-still", "stand-still of a pause"),
    ] {
        for mib in sizes {
            let what = format!("{what}, {mib} MiB");
            board.open(format!("{id}-{mib}"), what, unit, Some(CHECKPOINT));
        }
    }
    for image in &images {
        let floor = match image {
            Image::Cold => COLD_RESTORE,
            Image::Warm | Image::Disk => RESTORE,
        };
        for mib in sizes {
            let what = format!("connect to first command, {}, {mib} MiB", image.name());
            board.open(image.row(*mib), what, unit, Some(floor));
        }
    }
    let mut ended = Ok(());
    for mib in &bench.options.sizes {
        bench.at("pause", &format!("{mib} MiB: filling memory"));
        let measured = async {
            let mut pair = Pair::start(bench, *mib).await?;
            for round in 1..=bench.options.rounds {
                let rounds = bench.options.rounds;
                bench.at("pause", &format!("{mib} MiB: round {round} of {rounds}"));
                for image in &images {
                    pair.round(board, *image).await?;
                }
            }
            bench.api.kill(&pair.sandbox.id).await
        };
        let measured: Result<(), Problem> = measured.await;
        // What is left of a size would take the memory of the next one.
        bench.api.clean_up().await;
        if let Err(problem) = measured {
            for image in &images {
                board.miss(&image.row(*mib), problem.clone());
            }
            board.miss(&format!("pause-{mib}"), problem.clone());
            board.miss(&format!("pause-still-{mib}"), problem.clone());
            if bench.api.state("none").await.is_err() {
                ended = Err(problem);
                break;
            }
        }
    }
    ended
}

impl<'a> Pair<'a> {
    async fn start(bench: &'a Bench, mib: u64) -> Result<Self, Problem> {
        let (sandbox, _) = create(&bench.api, &bench.options.template, &bench.mark).await?;
        let held = Held::fill(&bench.api, &sandbox, mib).await?;
        let program = match mib {
            0 => Program::Idle,
            mib => Program::Hold(mib),
        };
        let floor = match &bench.options.floor {
            Some(options) => Some(Container::start(options, program).await?),
            None => None,
        };
        Ok(Self {
            bench,
            mib,
            sandbox,
            held,
            floor,
        })
    }

    /// One pause and one connect of each of the two.
    async fn round(&mut self, board: &mut Board, image: Image) -> Result<(), Problem> {
        let (api, options) = (&self.bench.api, &self.bench.options);
        let mib = self.mib;
        let (took, still) = pause(api, &self.sandbox).await?;
        board.note(&format!("pause-{mib}"), took);
        match still {
            Some(still) => board.note(&format!("pause-still-{mib}"), still),
            None => board.miss(
                &format!("pause-still-{mib}"),
                Problem::NotSupported("the server does not tell (Server-Timing)".to_owned()),
            ),
        }
        if let Some(container) = &self.floor {
            container.forget_image()?;
            let begin = Instant::now();
            container.checkpoint().await?;
            let took = since(begin);
            board.note_floor(&format!("pause-{mib}"), took);
            board.note_floor(&format!("pause-still-{mib}"), took);
            container.delete().await?;
        }
        if image != Image::Warm {
            tokio::time::sleep(options.warm_time.unwrap_or_default()).await;
        }
        self.drop_cache(image).await?;
        let begin = Instant::now();
        connect(api, &self.sandbox).await?;
        first_command(api, &self.sandbox).await?;
        board.note(&image.row(mib), since(begin));
        self.held.touch(api, &self.sandbox).await?;
        if let Some(container) = &self.floor {
            // What the server has read in the meantime.
            self.drop_cache(image).await?;
            let begin = Instant::now();
            container.restore().await?;
            board.note_floor(&image.row(mib), since(begin));
            container.settle().await?;
        }
        Ok(())
    }

    async fn drop_cache(&self, image: Image) -> Result<(), Problem> {
        let Some(cache) = self.bench.page_cache().filter(|_| image == Image::Cold) else {
            return Ok(());
        };
        let own = self
            .floor
            .iter()
            .map(|container| container.image().to_owned());
        let own: Vec<_> = own.collect();
        cache.drop_for(&self.sandbox.id, &own).await
    }
}
