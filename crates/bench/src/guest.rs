//! What the bench does inside sandboxes, and times of it.

use std::time::{Duration, Instant};

use e2b_client::{Agent, Api, Event, MARK, Next, Output, Problem, Sandbox};
use http::{HeaderMap, StatusCode};
use serde_json::json;

/// Holds memory.
pub(crate) const HOLD: &str = include_str!("programs/hold.py");
/// Prepares and does file work.
pub(crate) const WORK: &str = include_str!("programs/work.py");
const HOLD_PATH: &str = "/home/user/hold.py";
const HELD: &str = "/home/user/held";
/// A sandbox that a bench forgot is gone after this.
const TIMEOUT_SECONDS: u64 = 3600;

/// Milliseconds since `begin`.
pub(crate) fn since(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

/// What a step of the server's work took, in milliseconds, as the answer's `Server-Timing` tells.
pub(crate) fn server_timing(headers: &HeaderMap, step: &str) -> Option<f64> {
    let entries = headers.get_all("server-timing").iter();
    let entries = entries.filter_map(|value| value.to_str().ok());
    let mut entries = entries.flat_map(|value| value.split(','));
    entries.find_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        if parts.next()? != step {
            return None;
        }
        parts.find_map(|part| part.strip_prefix("dur=")?.parse().ok())
    })
}

/// Creates a sandbox. Answers how long it took, too.
pub(crate) async fn create(
    api: &Api,
    template: &str,
    mark: &str,
) -> Result<(Sandbox, f64), Problem> {
    let request = json!({
        "templateID": template,
        "timeout": TIMEOUT_SECONDS,
        "secure": true,
        "metadata": { MARK: mark },
    });
    let begin = Instant::now();
    let sandbox = api.create(&request).await?;
    Ok((sandbox, since(begin)))
}

/// Runs `true`, which is how one sees that a sandbox works.
pub(crate) async fn first_command(api: &Api, sandbox: &Sandbox) -> Result<(), Problem> {
    run(api, sandbox, "true").await?;
    Ok(())
}

/// Runs a command that must end well.
pub(crate) async fn run(api: &Api, sandbox: &Sandbox, command: &str) -> Result<String, Problem> {
    let Output { exit_code, text } = Agent::new(api, sandbox).run(command).await?;
    if exit_code == 0 {
        return Ok(text);
    }
    Err(Problem::Broken(format!(
        "`{command}` ended with {exit_code}: {text}"
    )))
}

/// Pauses. Answers the time it took and the time that the guest stood still, if the server says it.
pub(crate) async fn pause(api: &Api, sandbox: &Sandbox) -> Result<(f64, Option<f64>), Problem> {
    let begin = Instant::now();
    let answer = api.try_pause(&sandbox.id, &json!({})).await?;
    let took = since(begin);
    answer.expect("pause", StatusCode::NO_CONTENT)?;
    Ok((took, server_timing(&answer.headers, "still")))
}

/// Connects to a paused one. Answers the time until the answer.
pub(crate) async fn connect(api: &Api, sandbox: &Sandbox) -> Result<f64, Problem> {
    let begin = Instant::now();
    api.resume(&sandbox.id).await?;
    Ok(since(begin))
}

/// A sandbox's memory of known content.
#[derive(Debug)]
pub(crate) struct Held {
    /// Process that holds it; `None`: nothing is held.
    pid: Option<u64>,
    /// What all of it adds up to.
    sum: String,
}

impl Held {
    /// Fills memory with random bytes.
    pub(crate) async fn fill(api: &Api, sandbox: &Sandbox, mib: u64) -> Result<Self, Problem> {
        if mib == 0 {
            let sum = String::new();
            return Ok(Self { pid: None, sum });
        }
        let agent = Agent::new(api, sandbox);
        agent.write(HOLD_PATH, HOLD).await?;
        let size = mib.to_string();
        let command = ["python3", HOLD_PATH, &size, HELD];
        let (mut stream, pid) = agent.start(&command, &json!({}), "/home/user").await?;
        let read = format!("cat {HELD} 2>/dev/null || true");
        loop {
            let sum = run(api, sandbox, &read).await?;
            if !sum.is_empty() {
                return Ok(Self {
                    pid: Some(pid),
                    sum,
                });
            }
            let end = match stream.next(Duration::from_millis(100)).await? {
                Next::Silent | Next::Event(Event::KeepAlive) => continue,
                Next::Event(Event::End { exit_code: -1 }) => "a signal ended it".to_owned(),
                other => format!("{other:?}"),
            };
            return Err(Problem::Broken(format!(
                "a process with {mib} MiB of memory did not stay: {end}. Sandboxes of this server \
                 may have less: see sandbox.memory_mib there, or --sizes here"
            )));
        }
    }

    /// Touches all of it, so that it is loaded, and checks that it is what it was.
    pub(crate) async fn touch(&self, api: &Api, sandbox: &Sandbox) -> Result<(), Problem> {
        let Some(pid) = self.pid else { return Ok(()) };
        let command = format!(
            "rm -f {HELD}; kill -USR1 {pid} && while [ ! -e {HELD} ]; do sleep 0.02; done; cat {HELD}"
        );
        let sum = run(api, sandbox, &command).await?;
        if sum == self.sum {
            return Ok(());
        }
        Err(Problem::Broken(format!(
            "memory has changed over a pause: it added up to {}, now to {sum}",
            self.sum
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_found_in_the_servers_timing() {
        let mut headers = HeaderMap::new();
        headers.append(
            "server-timing",
            "freeze;dur=1.5, still;desc=\"x\";dur=12".parse().unwrap(),
        );
        headers.append("server-timing", "other".parse().unwrap());
        assert_eq!(server_timing(&headers, "still"), Some(12.0));
        assert_eq!(server_timing(&headers, "freeze"), Some(1.5));
        assert_eq!(server_timing(&headers, "other"), None);
        assert_eq!(server_timing(&headers, "none"), None);
    }
}
