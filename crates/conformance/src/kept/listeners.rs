//! Servers inside on every kind of address.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::json;

use super::{Kept, Round, token};
use crate::problem::{Problem, require};
use crate::report::Promise;

/// What each server answers, and where.
#[derive(Default)]
pub(super) struct Listeners {
    text: String,
    ports: BTreeMap<String, u16>,
}

impl Listeners {
    async fn look(&self, round: &Round<'_>) -> Result<(), Problem> {
        let inside: BTreeMap<String, String> =
            round.guest.call("listeners.ask_inside", json!({})).await?;
        for (address, port) in &self.ports {
            let expected = format!("{} {address}", self.text);
            let seen = inside.get(address);
            require(seen == Some(&expected), || {
                format!("{address} answers {seen:?} inside, instead of {expected:?}")
            })?;
            let answer = round.guest.get(*port).await?;
            require(answer.text() == expected, || {
                answer
                    .unwanted(&format!("{address} from outside"))
                    .to_string()
            })?;
        }
        Ok(())
    }
}

#[async_trait]
impl Kept for Listeners {
    fn promise(&self) -> Promise {
        Promise::required(
            "listeners",
            "servers on 0.0.0.0, 127.0.0.1, ::, ::1 and the interface's address answer inside and \
             from outside",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.text = token();
        let text = json!({ "text": self.text });
        self.ports = round.guest.call("listeners.start", text).await?;
        require(!self.ports.is_empty(), || "no listener".to_owned())?;
        self.look(round).await
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        self.look(round).await?;
        let addresses: Vec<&str> = self.ports.keys().map(String::as_str).collect();
        Ok(format!("all answer: {}", addresses.join(" ")))
    }
}
