//! Who the sandbox is.

use async_trait::async_trait;
use e2b_client::Problem;

use super::{Kept, Round};
use crate::problem::require;
use crate::report::Promise;
use crate::suite::CREATED_VARIABLE;

/// What must never change of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    id: String,
    token: Option<String>,
    metadata: Option<serde_json::Value>,
    variable: String,
    user: String,
}

impl Identity {
    /// As the server and the inside tell it.
    pub(crate) async fn of(round: &Round<'_>) -> Result<Self, Problem> {
        let detail = round.api.detail(&round.sandbox.id).await?;
        let id = &round.sandbox.id;
        require(detail.id == *id, || {
            format!("connect tells {id}, get {}", detail.id)
        })?;
        // The token is not in the detail of every server; the one of connect counts.
        let told = detail.token.is_none() || detail.token == round.sandbox.token;
        require(told, || "connect and get tell different tokens".to_owned())?;
        let command = format!("whoami; pwd; echo \"${CREATED_VARIABLE}\"");
        let output = round.agent.run(&command).await?.text;
        let mut lines: Vec<&str> = output.lines().collect();
        let variable = lines.pop().unwrap_or_default().to_owned();
        Ok(Self {
            id: id.clone(),
            token: round.sandbox.token.clone(),
            metadata: detail.metadata,
            variable,
            user: lines.join(" in "),
        })
    }

    /// That it is the same as `before`.
    pub(crate) fn is_still(&self, before: &Self) -> Result<(), Problem> {
        require(self.token == before.token, || {
            "the access token is another one".to_owned()
        })?;
        require(self == before, || {
            let hidden = |identity: &Self| Self {
                token: None,
                ..identity.clone()
            };
            format!("was {:?}, is {:?}", hidden(before), hidden(self))
        })
    }
}

#[async_trait]
impl Kept for Identity {
    fn promise(&self) -> Promise {
        Promise::required(
            "identity",
            "id, access token, metadata, variables of the create, default user and directory are \
             the same",
        )
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        *self = Self::of(round).await?;
        require(!self.variable.is_empty(), || {
            format!("{CREATED_VARIABLE} of the create is not in a command's environment")
        })
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        Self::of(round).await?.is_still(self)?;
        Ok("all the same".to_owned())
    }
}

/// A resume is no boot.
#[derive(Default)]
pub(super) struct BootId {
    id: String,
}

#[async_trait]
impl Kept for BootId {
    fn promise(&self) -> Promise {
        Promise::required("boot-id", "a resume from memory is no boot: same boot_id")
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        self.id = round.agent.boot_id().await?;
        Ok(())
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let id = round.agent.boot_id().await?;
        require(id == self.id, || format!("was {}, is {id}", self.id))?;
        Ok(format!("same {id}"))
    }
}
