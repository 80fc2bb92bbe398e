//! `sandbase sandbox` and `sandbase snapshot`: calls of a server's API, for people and for scripts.

mod events;
mod file;
mod http;
mod missing;
mod output;
mod sandbox;
mod snapshot;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use ::http::Method;
use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use server::config::{DEFAULT_DATA_DIR, DEFAULT_PORT};

use self::http::{Client, escaped};
use self::output::Output;
pub(crate) use self::sandbox::SandboxVerb;
pub(crate) use self::snapshot::SnapshotVerb;

/// Header with the token of the next page of a list.
const NEXT: &str = "x-next-token";

/// Which server, and how to print.
#[derive(Args)]
pub(crate) struct Server {
    /// Base URL of the API. Default: the server of this machine.
    #[arg(long, env = "E2B_API_URL", global = true)]
    url: Option<String>,
    /// The API key. Default: the one in the data directory.
    #[arg(long, env = "E2B_API_KEY", hide_env_values = true, global = true)]
    key: Option<String>,
    /// Data directory of the server of this machine, which holds its API key.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR, global = true)]
    data_dir: PathBuf,
    /// Print what the server answers, as JSON.
    #[arg(long, global = true)]
    json: bool,
}

impl Server {
    fn client(&self) -> anyhow::Result<Client> {
        let default = || format!("http://localhost:{DEFAULT_PORT}");
        let url = self.url.clone().unwrap_or_else(default);
        if !url.starts_with("http://") && !url.starts_with("https://") {
            bail!("{url} is no URL of a server; it begins with http:// or https://");
        }
        let key = match &self.key {
            Some(key) => key.clone(),
            None => {
                let path = self.data_dir.join("api-key");
                std::fs::read_to_string(&path).with_context(|| {
                    let shown = path.display();
                    format!("read the API key from {shown}; --key or E2B_API_KEY give another")
                })?
            }
        };
        Client::new(&url, key.trim().to_owned())
    }

    fn output(&self) -> Output {
        if self.json {
            Output::Json
        } else {
            Output::People
        }
    }
}

/// Runs a verb about sandboxes.
pub(crate) async fn sandbox(server: &Server, verb: SandboxVerb) -> ExitCode {
    told(async { verb.run(&server.client()?, server.output()).await }.await)
}

/// Runs a verb about snapshots.
pub(crate) async fn snapshot(server: &Server, verb: SnapshotVerb) -> ExitCode {
    told(async { verb.run(&server.client()?, server.output()).await }.await)
}

/// Says why something failed, without the trappings of a log.
fn told(done: anyhow::Result<()>) -> ExitCode {
    let Err(error) = done else {
        return ExitCode::SUCCESS;
    };
    // Nobody is left to tell when this fails, too.
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

/// All entries of a list, page by page.
async fn pages(
    client: &Client,
    path: &str,
    filters: Vec<(&str, String)>,
) -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let mut parameters = filters.clone();
        if let Some(token) = token {
            parameters.push(("nextToken", token));
        }
        let query: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", escaped(value)))
            .collect();
        let path = format!("{path}?{}", query.join("&"));
        let answer = client.call(Method::GET, &path, &Value::Null).await?;
        let page: Vec<Value> = answer.decode()?;
        all.extend(page);
        let next = answer.headers.get(NEXT);
        let Some(next) = next.and_then(|next| next.to_str().ok()) else {
            return Ok(all);
        };
        token = Some(next.to_owned());
    }
}
