//! `sandbase sandbox`: what is done to sandboxes.

use std::collections::BTreeMap;

use anyhow::bail;
use api_types::{
    Fork, ListedSandbox, PauseMode, Sandbox, SandboxDetail, SandboxOnTimeout, SandboxState,
    SnapshotInfo,
};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::events;
use super::file::{self, ExportArguments};
use super::http::{Answer, Client, escaped};
use super::output::{Output, Table, instant, print_facts, print_json, print_line};
use super::pages;

#[derive(Subcommand)]
pub(crate) enum SandboxVerb {
    /// List sandboxes, running and paused.
    List,
    /// Create a sandbox.
    Create(CreateArguments),
    /// Show everything about a sandbox.
    Get {
        /// Its id.
        sandbox: String,
    },
    /// Pause a sandbox: save files and memory, and stop.
    Pause {
        /// Its id.
        sandbox: String,
        /// Save files only; it will boot when it is connected to.
        #[arg(long)]
        files_only: bool,
    },
    /// Make sure that a sandbox runs; a paused one goes on where it was.
    Connect {
        /// Its id.
        sandbox: String,
        /// Seconds that it runs on for at least.
        #[arg(long, default_value_t = DEFAULT_TIMEOUT)]
        timeout: i32,
        /// Discard the memory of a paused one and boot from its files.
        #[arg(long)]
        files_only: bool,
    },
    /// Kill sandboxes and delete all they have.
    Kill {
        /// Their ids.
        #[arg(required = true)]
        sandboxes: Vec<String>,
    },
    /// Make a snapshot of a sandbox.
    Snapshot {
        /// Its id.
        sandbox: String,
        /// What to call it: `<name>[:<tag>]`.
        #[arg(long)]
        name: Option<String>,
        /// Without memory; sandboxes made from it boot.
        #[arg(long)]
        files_only: bool,
    },
    /// Start copies of a running sandbox.
    Fork {
        /// Its id.
        sandbox: String,
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: i32,
        /// Seconds that each runs for.
        #[arg(long, default_value_t = DEFAULT_TIMEOUT)]
        timeout: i32,
    },
    /// Put a sandbox back to one of its snapshots. What happened since is lost.
    Rollback {
        /// Its id.
        sandbox: String,
        /// Id or name of the snapshot.
        snapshot: String,
    },
    /// Show what became of a sandbox, also of one that is gone.
    Events {
        /// Its id.
        sandbox: String,
    },
    /// Write a sandbox as it is now to a file, which `sandbase snapshot import` reads.
    Export {
        /// Its id.
        sandbox: String,
        #[command(flatten)]
        arguments: ExportArguments,
    },
}

const DEFAULT_TIMEOUT: i32 = 300;

#[derive(Args)]
pub(crate) struct CreateArguments {
    /// Id or name of a template or a snapshot.
    #[arg(default_value = "base")]
    template: String,
    /// Seconds until it is killed, or paused with --auto-pause.
    #[arg(long, default_value_t = DEFAULT_TIMEOUT)]
    timeout: i32,
    /// Pause it at its deadline.
    #[arg(long)]
    auto_pause: bool,
    /// Let traffic to it resume it.
    #[arg(long)]
    auto_resume: bool,
    /// Forbid connections to the internet.
    #[arg(long)]
    no_internet: bool,
    /// Environment of its processes.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Free text pairs.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as NAME=VALUE".to_owned()),
    }
}

impl SandboxVerb {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let told = match self {
            Self::List => return list(client, output).await,
            Self::Get { sandbox } => return get(client, &sandbox, output).await,
            Self::Fork {
                sandbox,
                count,
                timeout,
            } => return fork(client, &sandbox, count, timeout, output).await,
            Self::Events { sandbox } => return events::show(client, &sandbox, output).await,
            Self::Export { sandbox, arguments } => {
                let path = of(&sandbox, "/export");
                return file::export(client, &path, &sandbox, &arguments, output).await;
            }
            Self::Kill { sandboxes } => {
                for sandbox in sandboxes {
                    let path = of(&sandbox, "");
                    client.call(Method::DELETE, &path, &Value::Null).await?;
                    if output == Output::People {
                        print_line(&format!("killed {sandbox}"))?;
                    }
                }
                return Ok(());
            }
            Self::Create(arguments) => {
                let body = new_sandbox(arguments);
                let answer = client.call(Method::POST, "/v2/sandboxes", &body).await?;
                let made: Sandbox = answer.decode()?;
                (answer, made.sandbox_id)
            }
            Self::Pause {
                sandbox,
                files_only,
            } => {
                let body = json!({ "memory": !files_only });
                let answer = post(client, &sandbox, "/pause", &body).await?;
                (answer, format!("paused {sandbox}"))
            }
            Self::Connect {
                sandbox,
                timeout,
                files_only,
            } => {
                let body = json!({ "timeout": timeout, "memory": !files_only });
                let answer = post(client, &sandbox, "/connect", &body).await?;
                (answer, format!("{sandbox} is running"))
            }
            Self::Snapshot {
                sandbox,
                name,
                files_only,
            } => {
                let body = json!({ "name": name, "memory": !files_only });
                let answer = post(client, &sandbox, "/snapshots", &body).await?;
                let made: SnapshotInfo = answer.decode()?;
                (answer, made.snapshot_id)
            }
            Self::Rollback { sandbox, snapshot } => {
                let body = json!({ "snapshotID": snapshot });
                let answer = post(client, &sandbox, "/rollback", &body).await?;
                (answer, format!("{sandbox} is what it was at {snapshot}"))
            }
        };
        match (output, told) {
            (Output::Json, (answer, _)) => print_json(&answer.value()?),
            (Output::People, (_, line)) => print_line(&line),
        }
    }
}

/// Path of a call about a sandbox.
fn of(sandbox: &str, call: &str) -> String {
    format!("/sandboxes/{}{call}", escaped(sandbox))
}

async fn post(client: &Client, sandbox: &str, call: &str, body: &Value) -> anyhow::Result<Answer> {
    client.call(Method::POST, &of(sandbox, call), body).await
}

fn new_sandbox(arguments: CreateArguments) -> Value {
    let map = |pairs: Vec<(String, String)>| pairs.into_iter().collect::<BTreeMap<_, _>>();
    let mut body = json!({
        "templateID": arguments.template,
        "timeout": arguments.timeout,
        "autoPause": arguments.auto_pause,
        "autoResume": { "enabled": arguments.auto_resume },
        "envVars": map(arguments.env),
        "metadata": map(arguments.metadata),
    });
    if arguments.no_internet {
        body["allow_internet_access"] = Value::Bool(false);
    }
    body
}

async fn list(client: &Client, output: Output) -> anyhow::Result<()> {
    let states = vec![("state", "running,paused".to_owned())];
    let all = pages(client, "/v2/sandboxes", states).await?;
    if output == Output::Json {
        return print_json(&Value::Array(all));
    }
    let mut table = Table::new(["SANDBOX", "STATE", "TEMPLATE", "STARTED", "ENDS", "SIZE"]);
    for value in all {
        let sandbox: ListedSandbox = serde_json::from_value(value)?;
        let template = match sandbox.alias.is_empty() {
            true => sandbox.template_id,
            false => sandbox.alias,
        };
        let ends = match sandbox.state {
            SandboxState::Running => instant(sandbox.end_at),
            SandboxState::Paused => "-".to_owned(),
        };
        table.row([
            sandbox.sandbox_id,
            state(sandbox.state).to_owned(),
            template,
            instant(sandbox.started_at),
            ends,
            format!(
                "{} CPU, {} MiB, {} MiB disk",
                sandbox.cpu_count, sandbox.memory_mb, sandbox.disk_size_mb
            ),
        ]);
    }
    table.print()
}

async fn get(client: &Client, sandbox: &str, output: Output) -> anyhow::Result<()> {
    let path = of(sandbox, "");
    let answer = client.call(Method::GET, &path, &Value::Null).await?;
    if output == Output::Json {
        return print_json(&answer.value()?);
    }
    let detail: SandboxDetail = answer.decode()?;
    let mut facts = vec![
        ("sandbox", detail.sandbox_id),
        ("state", state(detail.state).to_owned()),
        (
            "template",
            format!("{} {}", detail.template_id, detail.alias),
        ),
        ("started", instant(detail.started_at)),
        ("ends", instant(detail.end_at)),
        ("cpus", detail.cpu_count.to_string()),
        ("memory", format!("{} MiB", detail.memory_mb)),
        ("disk", format!("{} MiB", detail.disk_size_mb)),
        ("domain", detail.domain),
    ];
    if let Some(mode) = detail.pause_mode {
        let kept = match mode {
            PauseMode::Full => "files and memory",
            PauseMode::Filesystem => "files only",
        };
        facts.push(("kept", kept.to_owned()));
    }
    let at_deadline = match detail.lifecycle.on_timeout {
        SandboxOnTimeout::Kill => "kill",
        SandboxOnTimeout::Pause => "pause",
    };
    facts.push(("at deadline", at_deadline.to_owned()));
    let resumes = match detail.lifecycle.auto_resume {
        true => "yes",
        false => "no",
    };
    facts.push(("auto-resume", resumes.to_owned()));
    for (name, value) in &detail.metadata {
        facts.push(("metadata", format!("{name}={value}")));
    }
    print_facts(&facts)
}

async fn fork(
    client: &Client,
    sandbox: &str,
    count: i32,
    timeout: i32,
    output: Output,
) -> anyhow::Result<()> {
    let body = json!({ "count": count, "timeout": timeout });
    let answer = post(client, sandbox, "/fork", &body).await?;
    if output == Output::Json {
        print_json(&answer.value()?)?;
    }
    let forks: Vec<Fork> = answer.decode()?;
    let mut refused = Vec::new();
    for fork in forks {
        match (fork.sandbox, fork.error) {
            (Some(made), _) if output == Output::People => print_line(&made.sandbox_id)?,
            (Some(_), _) => {}
            (None, error) => refused.push(error.map_or_else(String::new, |error| error.message)),
        }
    }
    match refused.first() {
        None => Ok(()),
        Some(first) => bail!("{} of {count} forks were not made: {first}", refused.len()),
    }
}

fn state(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Running => "running",
        SandboxState::Paused => "paused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_split_at_the_first_sign() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err());
    }
}
