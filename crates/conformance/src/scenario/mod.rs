//! One story with sandboxes each, from create to kill.

mod auto_pause;
mod auto_resume;
mod clones;
mod connects;
mod filesystem;
mod fork;
mod held;
mod kill;
mod refusals;
mod rounds;
mod snapshot;

use async_trait::async_trait;
use e2b_client::Problem;

use crate::report::{Findings, Promise};
use crate::suite::Suite;

/// Tells at which step a scenario is.
pub(crate) type At<'a> = dyn Fn(&str) + Sync + 'a;

/// A story that shows whether some promises are kept.
#[async_trait]
pub(crate) trait Scenario: Send + Sync {
    /// For people who wait.
    fn name(&self) -> &'static str;

    /// Its rows.
    fn promises(&self) -> Vec<Promise>;

    /// Looks. An error means that it could not go on: what was not seen by then counts as not kept.
    /// What it made is removed afterwards by the suite.
    async fn run(&self, suite: &Suite, at: &At<'_>, findings: &mut Findings)
    -> Result<(), Problem>;
}

/// All of them, in the order of the report.
pub(crate) fn all() -> Vec<Box<dyn Scenario>> {
    vec![
        Box::new(rounds::Rounds),
        Box::new(filesystem::Filesystem),
        Box::new(auto_pause::AutoPause),
        Box::new(auto_pause::AutoPauseFiles),
        Box::new(auto_resume::AutoResume),
        Box::new(connects::Connects),
        Box::new(kill::KillDuringPause),
        Box::new(refusals::Refusals),
        Box::new(snapshot::Snapshots),
        Box::new(fork::Fork),
        Box::new(held::Held),
    ]
}
