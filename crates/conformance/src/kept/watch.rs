//! A watch of a directory.

use async_trait::async_trait;
use e2b_client::Problem;
use serde_json::json;

use super::{Kept, Round, token};
use crate::problem::require;
use crate::report::Promise;

/// The event that waits to be read over the pause.
#[derive(Default)]
pub(super) struct Watch {
    waiting: String,
}

#[async_trait]
impl Kept for Watch {
    fn promise(&self) -> Promise {
        Promise::required(
            "inotify",
            "an inotify watch tells an event from before the pause that nobody read, and new ones",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        round.guest.call("watch.start", json!({})).await
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.waiting = token();
        let name = json!({ "name": self.waiting });
        round.guest.call("watch.create", name).await
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let fresh = token();
        let name = json!({ "name": fresh });
        let () = round.guest.call("watch.create", name).await?;
        let two = json!({ "count": 2 });
        let names: Vec<String> = round.guest.call("watch.events", two).await?;
        let expected = [self.waiting.clone(), fresh];
        require(names == expected, || {
            format!("expected events about {expected:?}, got {names:?}")
        })?;
        Ok("both told, in order".to_owned())
    }
}
