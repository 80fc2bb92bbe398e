//! Who may reach the ports that programs in a sandbox listen on. The agent's port has a token of its
//! own and is none of them.

use serde::{Deserialize, Serialize};

/// Rules for traffic from outside, fixed at create and kept through every pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// What a request must bring in `E2b-Traffic-Access-Token`; `None` lets everybody in. Different in
    /// every sandbox, and the same for its whole life.
    pub traffic_token: Option<String>,
}

impl Ingress {
    /// Open to everybody, or only to those with a token that is made here.
    pub fn new(private: bool) -> Self {
        Self {
            traffic_token: private.then(|| crate::random::hex(32)),
        }
    }

    /// The same rules for another sandbox, with a token that only fits there.
    pub fn for_another(&self) -> Self {
        Self::new(self.traffic_token.is_some())
    }
}
