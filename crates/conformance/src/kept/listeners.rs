//! Servers inside on every kind of address.

use std::collections::BTreeMap;

use async_trait::async_trait;
use e2b_client::Problem;
use serde::Deserialize;
use serde_json::json;

use super::{Kept, Round, token};
use crate::problem::require;
use crate::report::Promise;

/// Servers on some addresses: what each answers, and where.
pub(super) struct Listeners {
    promise: Promise,
    addresses: &'static [&'static str],
    text: String,
    ports: BTreeMap<String, u16>,
    /// Connects inside that got no answer, while the next one did.
    hung: u32,
}

/// What the program inside tells.
#[derive(Deserialize)]
struct Inside {
    answers: BTreeMap<String, String>,
    hung: u32,
}

impl Listeners {
    fn new(promise: Promise, addresses: &'static [&'static str]) -> Self {
        Self {
            promise,
            addresses,
            text: String::new(),
            ports: BTreeMap::new(),
            hung: 0,
        }
    }

    pub(super) fn ipv4() -> Self {
        let promise = Promise::required(
            "listeners",
            "servers on 0.0.0.0, 127.0.0.1 and the interface's address answer inside and from \
             outside",
        );
        Self::new(promise, &["0.0.0.0", "127.0.0.1", "interface"])
    }

    pub(super) fn ipv6() -> Self {
        let promise = Promise::required(
            "listeners-ipv6",
            "servers on :: and ::1 answer inside and from outside",
        );
        Self::new(promise, &["::", "::1"])
    }

    async fn look(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        let asked = json!({ "addresses": self.addresses });
        let inside: Inside = round.guest.call("listeners.ask_inside", asked).await?;
        self.hung += inside.hung;
        for (address, port) in &self.ports {
            let expected = format!("{} {address}", self.text);
            let seen = inside.answers.get(address);
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
        self.promise
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.text = token();
        let text = json!({ "text": self.text, "addresses": self.addresses });
        self.ports = round.guest.call("listeners.start", text).await?;
        require(!self.ports.is_empty(), || "no listener".to_owned())?;
        self.look(round).await
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        self.look(round).await?;
        let addresses: Vec<&str> = self.ports.keys().map(String::as_str).collect();
        let hung = match self.hung {
            0 => String::new(),
            hung => format!("; {hung} connects inside hung, and the next one worked"),
        };
        Ok(format!("all answer: {}{hung}", addresses.join(" ")))
    }
}
