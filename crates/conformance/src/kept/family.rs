//! The tree of processes.

use async_trait::async_trait;
use e2b_client::Problem;
use serde_json::{Map, Value, json};

use super::{Kept, Round};
use crate::problem::require;
use crate::report::Promise;

/// Children, grandchildren, an orphan, other sessions.
#[derive(Default)]
pub(super) struct Family {
    tree: Map<String, Value>,
    counted: u64,
}

#[async_trait]
impl Kept for Family {
    fn promise(&self) -> Promise {
        Promise::required(
            "processes",
            "the process tree has the same pids, parents, groups and sessions, and goes on",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.tree = round.guest.call("family.start", json!({})).await?;
        Ok(())
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.counted = round.guest.call("family.counted", json!({})).await?;
        Ok(())
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let tree: Map<String, Value> = round.guest.call("family.tree", json!({})).await?;
        for pid in self.tree.keys().chain(tree.keys()) {
            let (was, is) = (self.tree.get(pid), tree.get(pid));
            require(was == is, || format!("pid {pid} was {was:?}, is {is:?}"))?;
        }
        // Every process that is known to count counts on.
        let counted: u64 = round.guest.call("family.counted", json!({})).await?;
        require(counted >= self.counted, || {
            format!("a child had counted to {}, now to {counted}", self.counted)
        })?;
        let than = json!({ "than": counted });
        let goes_on: bool = round.guest.call("family.goes_on", than).await?;
        require(goes_on, || "a child stands still or has ended".to_owned())?;
        Ok(format!("same {} processes", tree.len()))
    }
}
