//! Our programs inside a sandbox: `programs/holder.py` and the modules it answers for.

use std::time::{Duration, Instant};

use e2b_client::{Agent, Answer, Api, Call, Problem, REQUEST_LIMIT, Sandbox, Stream};
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Where the programs are.
const PROGRAMS: &str = "/home/user/conformance";
/// Where they work.
pub(crate) const DIRECTORY: &str = "/home/user/conformance/work";
/// Where the holder answers.
const PORT: u16 = 8765;
/// The holder must answer this long after it was started.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// A variable of the holder's process, beside those of the sandbox.
pub(crate) const VARIABLE: &str = "CONFORMANCE_HOLDER";

const FILES: &[(&str, &str)] = &[
    ("holder.py", include_str!("programs/holder.py")),
    ("held.py", include_str!("programs/held.py")),
    ("acknowledged.py", include_str!("programs/acknowledged.py")),
    ("blob.py", include_str!("programs/blob.py")),
    ("channels.py", include_str!("programs/channels.py")),
    ("family.py", include_str!("programs/family.py")),
    ("listeners.py", include_str!("programs/listeners.py")),
    ("load.py", include_str!("programs/load.py")),
    ("shared.py", include_str!("programs/shared.py")),
    ("surroundings.py", include_str!("programs/surroundings.py")),
    ("timers.py", include_str!("programs/timers.py")),
    ("tree.py", include_str!("programs/tree.py")),
    ("unlinked.py", include_str!("programs/unlinked.py")),
    ("watch.py", include_str!("programs/watch.py")),
];

/// The holder in one sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest<'a> {
    api: &'a Api,
    sandbox: &'a Sandbox,
}

/// The holder as a process.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) pid: u64,
    /// Open since its start.
    pub(crate) stream: Stream,
}

impl<'a> Guest<'a> {
    /// Where a holder runs already.
    pub(crate) fn new(api: &'a Api, sandbox: &'a Sandbox) -> Self {
        Self { api, sandbox }
    }

    /// Puts the programs into a sandbox and starts the holder.
    pub(crate) async fn start(api: &'a Api, sandbox: &'a Sandbox) -> Result<Holder, Problem> {
        let agent = Agent::new(api, sandbox);
        for (name, text) in FILES {
            agent.write(&format!("{PROGRAMS}/{name}"), text).await?;
        }
        agent.write(&format!("{DIRECTORY}/.keep"), "").await?;
        Self::restart(api, sandbox).await
    }

    /// Starts the holder where the programs are already.
    pub(crate) async fn restart(api: &'a Api, sandbox: &'a Sandbox) -> Result<Holder, Problem> {
        // Values that no process has by itself.
        let command = format!(
            "umask 027 && ulimit -n 777 && ulimit -c 0 && exec python3 -u {PROGRAMS}/holder.py {PORT}"
        );
        let agent = Agent::new(api, sandbox);
        let environment = json!({ VARIABLE: "kept as it is" });
        let (stream, pid) = agent
            .start(&["/bin/bash", "-c", &command], &environment, DIRECTORY)
            .await?;
        let mut holder = Holder { pid, stream };
        let guest = Self::new(api, sandbox);
        let started = Instant::now();
        loop {
            // 502 until it listens.
            let answer = guest.ask("surroundings.directory", &json!({})).await?;
            if answer.status == StatusCode::OK {
                return Ok(holder);
            }
            if answer.status != StatusCode::BAD_GATEWAY || started.elapsed() > START_LIMIT {
                let said = holder.stream.next(Duration::ZERO).await;
                let problem = answer.unwanted("a server inside that was just started");
                return Err(Problem::Broken(format!("{problem}; its process: {said:?}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Calls a function of a module, whatever the edge answers.
    pub(crate) async fn ask(&self, function: &str, arguments: &Value) -> Result<Answer, Problem> {
        let call = self.call_of(Method::POST, PORT, &format!("/{function}"))?;
        let transport = &self.api.transport;
        transport
            .send_within(call.json(arguments), REQUEST_LIMIT)
            .await
    }

    /// Calls a function of a module.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        function: &str,
        arguments: Value,
    ) -> Result<T, Problem> {
        let answer = self.ask(function, &arguments).await?;
        if answer.status != StatusCode::OK {
            // Never "not supported": this is our own program, or the way to it.
            let problem = answer.unwanted(function);
            return Err(Problem::Broken(problem.to_string()));
        }
        answer.decode(function)
    }

    /// Asks any HTTP server inside.
    pub(crate) async fn get(&self, port: u16) -> Result<Answer, Problem> {
        let call = self.call_of(Method::GET, port, "/")?;
        self.api.transport.send(call).await
    }

    fn call_of(&self, method: Method, port: u16, path: &str) -> Result<Call, Problem> {
        self.api.sandbox_call(method, self.sandbox, port, path)
    }
}
