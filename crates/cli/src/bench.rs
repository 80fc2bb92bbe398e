//! `sandbase bench`: how fast any server is, by URL and key, and how near to bare runsc.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bench::{Bench, FloorOptions, GROUPS, Options, Progress};
use clap::Args;

use crate::target::TargetArguments;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: TargetArguments,
    /// Template of the sandboxes; it must have Python 3, and for file work Git, npm and pip.
    #[arg(long, value_name = "NAME", default_value = "base")]
    template: String,
    /// Measure these groups only.
    #[arg(long, value_name = "GROUP", num_args = 1.., value_delimiter = ',',
          value_parser = clap::builder::PossibleValuesParser::new(GROUPS))]
    only: Vec<String>,
    /// Values per row.
    #[arg(long, value_name = "N", default_value_t = 20)]
    rounds: usize,
    /// MiB of random memory that paused sandboxes hold.
    #[arg(
        long,
        value_name = "MIB",
        value_delimiter = ',',
        default_value = "0,64,256,1024,4096"
    )]
    sizes: Vec<u64>,
    /// How many requests at once.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,10,50"
    )]
    at_once: Vec<usize>,
    /// How many idle sandboxes.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,50,200"
    )]
    idle: Vec<usize>,
    /// Seconds that idle sandboxes are watched.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    idle_secs: u64,
    /// MiB of the file that goes up and down.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    transfer_mib: usize,
    /// Seconds after which the server's pools are full again.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pool_secs: f64,
    /// Seconds that the server keeps paused sandboxes in memory; the bench waits as long before it
    /// connects from disk. 0: the server has no warm tier. Without it, no connect from disk is
    /// measured.
    #[arg(long, value_name = "SECONDS")]
    warm_secs: Option<f64>,
    /// Also write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the times.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// The runsc of the server, when that is on this machine: gives rows their floors. Needs root.
    #[arg(long, value_name = "PATH", requires = "rootfs")]
    runsc: Option<PathBuf>,
    /// The root file system of the server's template, for the floors.
    #[arg(long, value_name = "DIR", requires = "runsc")]
    rootfs: Option<PathBuf>,
    /// The in-sandbox agent, for the floors. Default: `sandbase-agent` beside this program; without
    /// one an idle Python takes its place.
    #[arg(long, value_name = "PATH", requires = "runsc")]
    agent: Option<PathBuf>,
    /// Where the floors work; must be on the file system of the server's data directory.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
    /// The server's data directory, when it is on this machine: then only the files of the sandbox
    /// leave the page cache, instead of everything.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Arguments {
    fn options(&self) -> anyhow::Result<Options> {
        let seconds = |seconds: f64, option: &str| {
            Duration::try_from_secs_f64(seconds)
                .with_context(|| format!("{option} {seconds} is no time"))
        };
        let floor = self.runsc.as_ref().zip(self.rootfs.as_ref());
        let floor = floor.map(|(runsc, rootfs)| FloorOptions {
            runsc: runsc.clone(),
            rootfs: rootfs.clone(),
            agent: self.agent.clone().or_else(agent_beside_us),
            scratch: self.scratch.clone(),
        });
        Ok(Options {
            target: self.target.clone().into(),
            template: self.template.clone(),
            rounds: self.rounds,
            only: self.only.clone(),
            sizes: self.sizes.clone(),
            at_once: self.at_once.clone(),
            idle: self.idle.clone(),
            idle_time: Duration::from_secs(self.idle_secs),
            transfer_mib: self.transfer_mib,
            pool_time: seconds(self.pool_secs, "--pool-secs")?,
            warm_time: self
                .warm_secs
                .map(|time| seconds(time, "--warm-secs"))
                .transpose()?,
            floor,
            data_dir: self.data_dir.clone(),
        })
    }
}

fn agent_beside_us() -> Option<PathBuf> {
    let agent = std::env::current_exe()
        .ok()?
        .with_file_name("sandbase-agent");
    agent.is_file().then_some(agent)
}

/// Measures, prints the table; fails when a figure could not be taken that the server should have.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let bench = Bench::new(arguments.options()?, Box::new(show))?;
    let report = tokio::select! {
        report = bench.run() => report,
        _ = tokio::signal::ctrl_c() => {
            for problem in bench.abandon().await {
                tracing::warn!("something may be left on the server: {problem}");
            }
            anyhow::bail!("interrupted");
        }
    };
    // The files before the table: a reader that went away takes the table only.
    if let Some(path) = &arguments.json {
        let mut text = serde_json::to_string_pretty(&report).context("write the report as JSON")?;
        text.push('\n');
        write_file(path, &text)?;
    }
    if let Some(path) = &arguments.svg {
        write_file(path, &bench::plot(&report))?;
    }
    write!(std::io::stdout(), "{}", bench::table(&report)).context("print the table")?;
    Ok(if report.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// On a terminal one line that changes; elsewhere a line for each row. Best effort: the table has
/// it all.
fn show(progress: Progress<'_>) {
    let mut out = std::io::stderr();
    let terminal = out.is_terminal();
    let _best_effort = match progress {
        Progress::At { group, step } if terminal => {
            write!(out, "\r\x1b[2K\x1b[1m{group}\x1b[0m: {step}")
        }
        Progress::Done(row) if !terminal => match (&row.figure, &row.missing) {
            (Some(figure), _) => writeln!(out, "{}: median {:.2}", row.what, figure.median),
            (None, missing) => {
                let why = missing.as_deref().unwrap_or("no figure");
                writeln!(out, "{}: {why}", row.what)
            }
        },
        Progress::End if terminal => write!(out, "\r\x1b[2K"),
        Progress::At { .. } | Progress::Done(_) | Progress::End => Ok(()),
    };
    let _best_effort = out.flush();
}
