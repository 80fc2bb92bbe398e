//! `sandbase doctor`: what this host must have, one line each.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use engine::gvisor;
use server::config::Config;

/// Prints the table of checks; fails when one of them does.
pub(crate) fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut checks = gvisor::host_checks(&server::app::engine_config(config, &config.data_dir));
    checks.push(agent_check(config));
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut out = std::io::stdout();
    let (good, bad, plain) = if out.is_terminal() {
        ("\x1b[32m", "\x1b[31m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let mut missing = 0;
    for check in &checks {
        if check.ok {
            writeln!(
                out,
                "{good}ok  {plain} {:width$}  {}",
                check.name, check.detail
            )?;
        } else {
            missing += 1;
            writeln!(
                out,
                "{bad}MISS{plain} {:width$}  {}",
                check.name, check.detail
            )?;
            writeln!(out, "     {:width$}  -> {}", "", check.remedy)?;
        }
    }
    if missing == 0 {
        writeln!(out, "\nThis host can run SandBase.")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "\n{missing} of {} checks failed.", checks.len())?;
    Ok(ExitCode::FAILURE)
}

fn agent_check(config: &Config) -> gvisor::Check {
    match server::app::agent_binary(config) {
        Ok(path) => gvisor::Check {
            name: "agent",
            ok: true,
            detail: path.display().to_string(),
            remedy: "",
        },
        Err(error) => gvisor::Check {
            name: "agent",
            ok: false,
            detail: format!("{error:#}"),
            remedy: "run ./run once, or set template.agent in the configuration",
        },
    }
}
