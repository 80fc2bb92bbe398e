//! Forks of a sandbox that writes all the time.

use async_trait::async_trait;
use e2b_client::{Forked, Problem, Sandbox, TIMEOUT_SECONDS};
use http::StatusCode;
use serde_json::json;

use super::clones::{Source, clocks_are_right, entropy_differs, names_differ};
use super::{At, Scenario};
use crate::problem::require;
use crate::report::{Findings, Promise};
use crate::suite::{CREATED_VARIABLE, Suite};

const STATE: Promise = Promise::required(
    "fork-state",
    "every fork has the memory, processes and files of its source",
);
const CONSISTENT: Promise = Promise::required(
    "fork-consistent",
    "a fork taken under write load is consistent: SQLite passes integrity_check, all rows and \
     lines from before it are there as in the source, and the writers go on",
);
const SOURCE: Promise = Promise::required(
    "fork-source",
    "the source goes on with the same memory, processes, files and deadline",
);
const IDENTITY: Promise = Promise::required(
    "fork-identity",
    "source and forks differ in id, access token and hostname, know their own id inside, and \
     refuse each other's token",
);
const ENTROPY: Promise = Promise::required(
    "fork-entropy",
    "source and forks draw different random numbers from the kernel",
);
const CLOCK: Promise = Promise::required(
    "fork-clock",
    "the clock of a fork is right within 1 s as soon as fork has answered",
);
const INHERITS: Promise = Promise::required(
    "fork-inherits",
    "a fork has template, metadata and variables of its source",
);
const REFUSALS: Promise = Promise::required(
    "fork-refusals",
    "0 and 101 forks are answered 400, a fork of a paused sandbox 409, of a killed one 404",
);

const COUNT: usize = 2;

/// Two forks at once.
pub(super) struct Fork;

#[async_trait]
impl Scenario for Fork {
    fn name(&self) -> &'static str {
        "forks"
    }

    fn promises(&self) -> Vec<Promise> {
        vec![
            STATE, CONSISTENT, SOURCE, IDENTITY, ENTROPY, CLOCK, INHERITS, REFUSALS,
        ]
    }

    async fn run(
        &self,
        suite: &Suite,
        at: &At<'_>,
        findings: &mut Findings,
    ) -> Result<(), Problem> {
        let source = Source::create(suite).await?;
        at("forking");
        let forks = fork(suite, &source.sandbox.id).await?;
        let last: Vec<&Sandbox> = forks.iter().rev().take(1).collect();
        findings.note(CLOCK, clocks_are_right(suite, &last).await);
        findings.note(SOURCE, source.goes_on(suite).await);
        for fork in &forks {
            findings.note(STATE, source.is_seen_by(suite, fork).await);
            findings.note(CONSISTENT, source.writes_are_in(suite, fork).await);
            findings.note(INHERITS, inherits(suite, &source.sandbox, fork).await);
        }
        let all: Vec<&Sandbox> = std::iter::once(&source.sandbox).chain(&forks).collect();
        findings.note(IDENTITY, names_differ(suite, &all).await);
        findings.note(ENTROPY, entropy_differs(suite, &all).await);
        at("refusals");
        findings.note(REFUSALS, refusals(suite, &source.sandbox.id).await);
        for fork in &forks {
            suite.api.kill(&fork.id).await?;
        }
        Ok(())
    }
}

async fn fork(suite: &Suite, id: &str) -> Result<Vec<Sandbox>, Problem> {
    let request = json!({ "count": COUNT, "timeout": TIMEOUT_SECONDS });
    let answer = suite.api.try_fork(id, &request).await?;
    let answer = answer.expect("fork", StatusCode::CREATED)?;
    let children: Vec<Forked> = answer.decode("fork")?;
    require(children.len() == COUNT, || {
        format!("asked for {COUNT} forks, got {}", children.len())
    })?;
    let mut forks = Vec::new();
    for child in children {
        match (child.sandbox, child.error) {
            (Some(sandbox), None) => forks.push(sandbox),
            (sandbox, error) => {
                return Err(Problem::Broken(format!(
                    "a fork came as {sandbox:?} with error {error:?}"
                )));
            }
        }
    }
    Ok(forks)
}

async fn inherits(suite: &Suite, source: &Sandbox, fork: &Sandbox) -> Result<String, Problem> {
    require(fork.template == source.template, || {
        format!("its template is {}, not {}", fork.template, source.template)
    })?;
    let was = suite.api.detail(&source.id).await?.metadata;
    let is = suite.api.detail(&fork.id).await?.metadata;
    require(was == is, || format!("metadata were {was:?}, are {is:?}"))?;
    let command = format!("echo \"${CREATED_VARIABLE}\"");
    let was = suite.view(source).agent.run(&command).await?.text;
    let is = suite.view(fork).agent.run(&command).await?.text;
    require(!is.is_empty() && was == is, || {
        format!("{CREATED_VARIABLE} was '{was}', is '{is}'")
    })?;
    Ok("the same".to_owned())
}

async fn refusals(suite: &Suite, id: &str) -> Result<String, Problem> {
    let refused = async |what: &str, count: u32, wanted: StatusCode| {
        let answer = suite.api.try_fork(id, &json!({ "count": count })).await?;
        require(answer.status == wanted, || {
            answer.unwanted(what).to_string()
        })
    };
    refused("0 forks", 0, StatusCode::BAD_REQUEST).await?;
    refused("101 forks", 101, StatusCode::BAD_REQUEST).await?;
    suite.api.pause(id).await?;
    refused("a fork of a paused sandbox", 1, StatusCode::CONFLICT).await?;
    suite.api.kill(id).await?;
    refused("a fork of a killed sandbox", 1, StatusCode::NOT_FOUND).await?;
    Ok("400, 400, 409, 404".to_owned())
}
