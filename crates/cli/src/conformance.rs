//! `sandbase conformance`: the fidelity suite against any server, by URL and key.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use clap::Args;
use conformance::{Colours, Options, Progress, Report, Suite, Verdict};

use crate::target::TargetArguments;

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: TargetArguments,
    /// Template of the sandboxes; it must have Python 3.
    #[arg(long, value_name = "NAME", default_value = "base")]
    template: String,
    /// Pauses of the longest row group.
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: usize,
    /// Look at these rows only.
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    only: Vec<String>,
    /// Also write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not fail for what the server says it does not have.
    #[arg(long)]
    allow_missing: bool,
}

/// Runs the suite, prints its table; fails when a promise was not seen kept.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let options = Options {
        target: arguments.target.into(),
        template: arguments.template,
        rounds: arguments.rounds,
        only: arguments.only,
    };
    let line = ProgressLine::default();
    let suite = Suite::new(options, Box::new(move |progress| line.show(progress)))?;
    let report = tokio::select! {
        report = suite.run() => report,
        _ = tokio::signal::ctrl_c() => {
            for problem in suite.abandon().await {
                tracing::warn!("something may be left on the server: {problem}");
            }
            anyhow::bail!("interrupted");
        }
    };
    // The file before the table: a reader that went away takes the table only.
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    let mut out = std::io::stdout();
    let colours = if out.is_terminal() {
        Colours::Yes
    } else {
        Colours::No
    };
    write!(out, "{}", conformance::table(&report, colours)).context("print the table")?;
    Ok(if report.passed(arguments.allow_missing) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_json(path: &PathBuf, report: &Report) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(report).context("write the report as JSON")?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// On a terminal one line that changes; elsewhere a line for each thing that is done.
#[derive(Default)]
struct ProgressLine {
    failed: Mutex<usize>,
}

impl ProgressLine {
    /// Best effort: the table has it all.
    fn show(&self, progress: Progress<'_>) {
        let mut out = std::io::stderr();
        let terminal = out.is_terminal();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let _best_effort = match progress {
            Progress::At { scenario, step } if terminal => {
                let bad = match *failed {
                    0 => String::new(),
                    failed => format!("  \x1b[31m{failed} failed so far\x1b[0m"),
                };
                write!(out, "\r\x1b[2K\x1b[1m{scenario}\x1b[0m: {step}{bad}")
            }
            Progress::At { scenario, step } => writeln!(out, "{scenario}: {step}"),
            Progress::Done(row) => {
                *failed += usize::from(row.verdict == Verdict::Failed);
                Ok(())
            }
            Progress::End if terminal => write!(out, "\r\x1b[2K"),
            Progress::End => Ok(()),
        };
        let _best_effort = out.flush();
    }
}
