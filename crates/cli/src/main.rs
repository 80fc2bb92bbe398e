//! The `sandbase` program: the server and everything an operator runs by hand.

mod bench;
mod client;
mod conformance;
mod doctor;
mod target;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use server::config::Config;
use server::sandbox::Faults;

/// Sandboxes for AI agents that come back exactly as they were.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the server.
    Serve(Options),
    /// Check everything this host must have, and say how to mend each miss.
    Doctor(Options),
    /// Look whether a server that speaks E2B's API keeps what it promises about persistence. Fails
    /// unless every row passes; docs/conformance.md explains the rows.
    Conformance(conformance::Arguments),
    /// Measure how fast a server that speaks E2B's API is, and with --runsc beside it how near to its
    /// engine; docs/performance.md explains the figures.
    Bench(Box<bench::Arguments>),
    /// Work with the sandboxes of a server.
    Sandbox {
        #[command(flatten)]
        server: client::Server,
        #[command(subcommand)]
        verb: client::SandboxVerb,
    },
    /// Work with the snapshots of a server.
    Snapshot {
        #[command(flatten)]
        server: client::Server,
        #[command(subcommand)]
        verb: client::SnapshotVerb,
    },
    /// Work on templates.
    Template {
        #[command(subcommand)]
        verb: TemplateVerb,
    },
}

#[derive(Subcommand)]
enum TemplateVerb {
    /// Build the root file system of the base template into a new directory.
    Rootfs {
        /// The directory to make.
        directory: PathBuf,
    },
}

#[derive(Args)]
struct Options {
    /// Configuration file; see config.example.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on; may be given several times. Default: 127.0.0.1:3000 and [::1]:3000.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Where everything durable is kept. Default: /var/lib/sandbase.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Options {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if !self.listen.is_empty() {
            config.listen.clone_from(&self.listen);
        }
        if let Some(data_dir) = &self.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        Ok(config)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    server::logging::start();
    match run(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            // The whole chain: what failed, and why.
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    match verb {
        Verb::Serve(options) => {
            runtime.block_on(server::app::serve(options.config()?, Faults::default()))?;
            // Tasks of running sandboxes end with the process; their executions do not.
            runtime.shutdown_background();
            Ok(ExitCode::SUCCESS)
        }
        Verb::Doctor(options) => doctor::run(&options.config()?),
        Verb::Conformance(arguments) => runtime.block_on(conformance::run(arguments)),
        Verb::Bench(arguments) => runtime.block_on(bench::run(*arguments)),
        Verb::Sandbox { server, verb } => {
            let code = runtime.block_on(client::sandbox(&server, verb));
            // A read of standard input that nobody needs any more would hold it up.
            runtime.shutdown_background();
            Ok(code)
        }
        Verb::Snapshot { server, verb } => {
            let code = runtime.block_on(client::snapshot(&server, verb));
            // A read of standard input that nobody needs any more would hold it up.
            runtime.shutdown_background();
            Ok(code)
        }
        Verb::Template {
            verb: TemplateVerb::Rootfs { directory },
        } => {
            let say = |step: &str| tracing::info!("{step}");
            runtime.block_on(server::template::rootfs::build(&directory, &say))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
