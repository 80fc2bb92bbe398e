//! State of which a function inside tells the digest: the same after the resume as before.

use async_trait::async_trait;
use e2b_client::Problem;
use serde_json::{Value, json};

use super::{Kept, Round};
use crate::problem::{difference, require};
use crate::report::Promise;

/// When the expected answer is taken.
enum Taken {
    /// Once, from the function that sets up: it never changes.
    AtStart,
    /// Before each pause, from a function that changes the state first.
    BeforeEach(&'static str),
}

struct Equal {
    promise: Promise,
    /// Sets up, with its arguments.
    start: (&'static str, Value),
    taken: Taken,
    /// Tells the state.
    tell: &'static str,
    /// What of it is told to people.
    show: fn(&Value) -> String,
    expected: Value,
}

impl Equal {
    fn new(
        promise: Promise,
        start: (&'static str, Value),
        taken: Taken,
        tell: &'static str,
        show: fn(&Value) -> String,
    ) -> Self {
        Self {
            promise,
            start,
            taken,
            tell,
            show,
            expected: Value::Null,
        }
    }
}

#[async_trait]
impl Kept for Equal {
    fn promise(&self) -> Promise {
        self.promise
    }

    async fn start(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        let (function, arguments) = &self.start;
        self.expected = round.guest.call(function, arguments.clone()).await?;
        Ok(())
    }

    async fn before(&mut self, round: &Round<'_>) -> Result<(), Problem> {
        if let Taken::BeforeEach(change) = self.taken {
            self.expected = round.guest.call(change, json!({})).await?;
        }
        Ok(())
    }

    async fn after(&mut self, round: &Round<'_>) -> Result<String, Problem> {
        let seen: Value = round.guest.call(self.tell, json!({})).await?;
        require(seen == self.expected, || difference(&self.expected, &seen))?;
        Ok((self.show)(&seen))
    }
}

fn entries(object: &Value) -> usize {
    object.as_object().map_or(0, serde_json::Map::len)
}

/// All state of this kind.
pub(super) fn all() -> Vec<Box<dyn Kept>> {
    let rows = [
        Equal::new(
            Promise::required(
                "memory",
                "64 MiB of random memory, some of it changed before every pause, are the same",
            ),
            ("blob.start", json!({ "mib": 64 })),
            Taken::BeforeEach("blob.change"),
            "blob.digest",
            |seen| format!("same SHA-256 over {} bytes", seen["bytes"]),
        ),
        Equal::new(
            Promise::required(
                "unlinked-file",
                "an open file without a name has its content and offset",
            ),
            ("unlinked.start", json!({})),
            Taken::BeforeEach("unlinked.change"),
            "unlinked.digest",
            |seen| format!("same {} bytes, same offset", seen["bytes"]),
        ),
        Equal::new(
            Promise::required(
                "environment",
                "a process has the variables it was started with",
            ),
            ("surroundings.environment", json!({})),
            Taken::AtStart,
            "surroundings.environment",
            |seen| format!("same {} variables", entries(seen)),
        ),
        Equal::new(
            Promise::required("working-directory", "a process is in its directory"),
            ("surroundings.directory", json!({})),
            Taken::AtStart,
            "surroundings.directory",
            |seen| format!("in {}", seen.as_str().unwrap_or_default()),
        ),
        Equal::new(
            Promise::required(
                "umask",
                "a process has its umask, and files it makes have the mode that follows",
            ),
            ("surroundings.mask", json!({})),
            Taken::AtStart,
            "surroundings.mask",
            |seen| format!("{} and mode {}", seen["umask"], seen["new file"]),
        ),
        Equal::new(
            Promise::required("rlimits", "a process has its resource limits"),
            ("surroundings.limits", json!({})),
            Taken::AtStart,
            "surroundings.limits",
            |seen| {
                let files = &seen["RLIMIT_NOFILE"];
                format!("same {} limits, open files {files}", entries(seen))
            },
        ),
    ];
    let rows = rows.into_iter();
    rows.map(|row| Box::new(row) as Box<dyn Kept>).collect()
}
