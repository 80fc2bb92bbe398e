//! `sandbase snapshot`: what is done to snapshots.

use api_types::SnapshotInfo;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;

use super::file::{self, ExportArguments, ImportArguments};
use super::http::{Client, escaped};
use super::output::{Output, Table, instant, print_json, print_line};
use super::pages;

#[derive(Subcommand)]
pub(crate) enum SnapshotVerb {
    /// List snapshots, newest first; of each name only the newest tag.
    List(ListArguments),
    /// Delete snapshots; all tags of a name go.
    Delete {
        /// Their ids or names.
        #[arg(required = true)]
        snapshots: Vec<String>,
    },
    /// Write a snapshot with all it needs to a file.
    Export {
        /// Its id or name.
        snapshot: String,
        #[command(flatten)]
        arguments: ExportArguments,
    },
    /// Make a snapshot of a file that `export` wrote, here or elsewhere.
    Import(ImportArguments),
}

#[derive(Args)]
pub(crate) struct ListArguments {
    /// Only those made of this sandbox.
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    /// Only the one of this name or id.
    #[arg(long)]
    name: Option<String>,
}

impl SnapshotVerb {
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List(arguments) => list(client, &arguments, output).await,
            Self::Delete { snapshots } => {
                for snapshot in snapshots {
                    let path = format!("/templates/{}", escaped(&snapshot));
                    client.call(Method::DELETE, &path, &Value::Null).await?;
                    if output == Output::People {
                        print_line(&format!("deleted {snapshot}"))?;
                    }
                }
                Ok(())
            }
            Self::Export {
                snapshot,
                arguments,
            } => {
                let path = format!("/snapshots/{}/export", escaped(&snapshot));
                file::export(client, &path, &snapshot, &arguments, output).await
            }
            Self::Import(arguments) => file::import(client, &arguments, output).await,
        }
    }
}

async fn list(client: &Client, arguments: &ListArguments, output: Output) -> anyhow::Result<()> {
    let mut filters = Vec::new();
    if let Some(id) = &arguments.sandbox {
        filters.push(("sandboxID", id.clone()));
    }
    if let Some(name) = &arguments.name {
        filters.push(("name", name.clone()));
    }
    let all = pages(client, "/snapshots", filters).await?;
    if output == Output::Json {
        return print_json(&Value::Array(all));
    }
    let mut table = Table::new(["SNAPSHOT", "SANDBOX", "CREATED", "HAS"]);
    for value in all {
        let snapshot: SnapshotInfo = serde_json::from_value(value)?;
        table.row(row(&snapshot));
    }
    table.print()
}

fn row(snapshot: &SnapshotInfo) -> [String; 4] {
    let has = match snapshot.memory {
        true => "files, memory",
        false => "files",
    };
    [
        snapshot.snapshot_id.clone(),
        snapshot.sandbox_id.clone(),
        instant(snapshot.created_at),
        has.to_owned(),
    ]
}
