//! One run of the suite against one server.

use std::time::Instant;

use e2b_client::{Agent, Api, Connections, MARK, Problem, Sandbox, TIMEOUT_SECONDS, Target};
use serde_json::{Value, json};

use crate::guest::{Guest, Holder};
use crate::kept::{Round, token};
use crate::report::{Findings, Promise, Report, Row};
use crate::scenario::{self, Scenario};

/// A variable that every sandbox of the suite is created with.
pub(crate) const CREATED_VARIABLE: &str = "CONFORMANCE_CREATED";

/// What to run against what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server.
    pub target: Target,
    /// Template of the sandboxes; it must have Python 3.
    pub template: String,
    /// Pauses in the rounds.
    pub rounds: usize,
    /// Names of the rows to look at; empty means all.
    pub only: Vec<String>,
}

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// What it is at.
    At {
        /// The scenario.
        scenario: &'a str,
        /// The step of it.
        step: &'a str,
    },
    /// A row is done.
    Done(&'a Row),
    /// Nothing more comes.
    End,
}

type Listener = Box<dyn Fn(Progress<'_>) + Send + Sync>;

/// Makes sandboxes, looks at them, removes them.
pub struct Suite {
    pub(crate) api: Api,
    pub(crate) rounds: usize,
    /// Value of the metadata key [`MARK`] of all sandboxes of this run.
    pub(crate) mark: String,
    options: Options,
    listener: Listener,
}

impl Suite {
    /// Checks the options; nothing is sent yet.
    pub fn new(options: Options, listener: Listener) -> Result<Self, Problem> {
        let known = promises();
        for name in &options.only {
            if !known.iter().any(|promise| promise.name == name) {
                let names: Vec<&str> = known.iter().map(|promise| promise.name).collect();
                return Err(Problem::Broken(format!(
                    "there is no row '{name}'; there are {}",
                    names.join(", ")
                )));
            }
        }
        if options.rounds == 0 {
            return Err(Problem::Broken("rounds must be at least 1".to_owned()));
        }
        Ok(Self {
            api: Api::new(options.target.clone(), Connections::Fresh)?,
            rounds: options.rounds,
            mark: token(),
            options,
            listener,
        })
    }

    /// Looks at every promise that was asked for.
    pub async fn run(&self) -> Report {
        let started = Instant::now();
        let mut rows = Vec::new();
        for scenario in scenario::all() {
            let promises = scenario.promises();
            if promises.iter().any(|promise| self.is_wanted(promise.name)) {
                rows.extend(self.look(&*scenario, promises).await);
            }
        }
        (self.listener)(Progress::End);
        Report {
            server: self.options.target.url.clone(),
            rounds: self.rounds,
            seconds: started.elapsed().as_secs_f64(),
            rows,
        }
    }

    async fn look(&self, scenario: &dyn Scenario, promises: Vec<Promise>) -> Vec<Row> {
        let at = |step: &str| {
            (self.listener)(Progress::At {
                scenario: scenario.name(),
                step,
            });
        };
        at("starting");
        let mut findings = Findings::new(promises);
        let mut ended = scenario.run(self, &at, &mut findings).await;
        let left = self.api.clean_up().await;
        if let (Ok(()), Some(problem)) = (&ended, left.into_iter().next()) {
            ended = Err(Problem::Broken(problem.to_string()));
        }
        let mut rows = findings.rows(ended);
        rows.retain(|row| self.is_wanted(row.name));
        for row in &rows {
            (self.listener)(Progress::Done(row));
        }
        rows
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.options.only.is_empty() || self.options.only.iter().any(|only| only == name)
    }

    /// Removes what a run left that was broken off. Says what could not be removed.
    pub async fn abandon(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        problems.extend(self.api.find_strays(&self.mark).await.err());
        problems.extend(self.api.clean_up().await);
        problems
    }

    /// A sandbox of the template, with `more` in its request.
    pub(crate) async fn create(&self, more: &Value) -> Result<Sandbox, Problem> {
        self.api
            .create(&self.create_request(&self.options.template, more))
            .await
    }

    /// A request for a sandbox that this run knows again.
    pub(crate) fn create_request(&self, template: &str, more: &Value) -> Value {
        let mut request = json!({
            "templateID": template,
            "timeout": TIMEOUT_SECONDS,
            "secure": true,
            "metadata": { MARK: self.mark },
            "envVars": { CREATED_VARIABLE: format!("created by {}", self.mark) },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            request[key] = value.clone();
        }
        request
    }

    /// A sandbox with the holder in it.
    pub(crate) async fn create_holding(&self, more: &Value) -> Result<(Sandbox, Holder), Problem> {
        let sandbox = self.create(more).await?;
        let holder = Guest::start(&self.api, &sandbox).await?;
        Ok((sandbox, holder))
    }

    /// A look at a sandbox, outside of the rounds.
    pub(crate) fn view<'a>(&'a self, sandbox: &'a Sandbox) -> Round<'a> {
        Round {
            api: &self.api,
            sandbox,
            guest: Guest::new(&self.api, sandbox),
            agent: Agent::new(&self.api, sandbox),
            mark: &self.mark,
            number: 0,
            down: std::time::Duration::ZERO,
        }
    }
}

/// Everything that is looked at, in the order of the report.
pub fn promises() -> Vec<Promise> {
    let scenarios = scenario::all().into_iter();
    scenarios.flat_map(|scenario| scenario.promises()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn options() -> Options {
        Options {
            target: Target {
                url: "http://localhost:1".to_owned(),
                sandbox_url: None,
                key: "k".to_owned(),
            },
            template: "base".to_owned(),
            rounds: 1,
            only: Vec::new(),
        }
    }

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let promises = promises();
        let names: BTreeSet<&str> = promises.iter().map(|promise| promise.name).collect();
        assert_eq!(names.len(), promises.len());
    }

    #[test]
    fn the_document_tells_of_every_row() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
        let document = std::fs::read_to_string(path).unwrap();
        for promise in promises() {
            let row = format!("| `{}` |", promise.name);
            assert!(document.contains(&row), "docs/conformance.md lacks {row}");
        }
    }

    #[test]
    fn an_unknown_row_is_refused_with_the_known_ones() {
        let mut options = options();
        options.only = vec!["memori".to_owned()];
        let Err(problem) = Suite::new(options, Box::new(|_| ())) else {
            panic!("accepted");
        };
        let text = problem.to_string();
        assert!(
            text.contains("'memori'") && text.contains("memory"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn without_a_server_every_row_fails_and_says_why() {
        let suite = Suite::new(options(), Box::new(|_| ())).unwrap();
        let report = suite.run().await;
        assert_eq!(report.rows.len(), promises().len());
        for row in &report.rows {
            assert_eq!(row.verdict, crate::Verdict::Failed, "{row:?}");
            assert!(row.seen.contains("onnect"), "{row:?}");
        }
        assert!(!report.passed(true));
    }
}
