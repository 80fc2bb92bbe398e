//! Initialisation: the sandbox learns who it is (contract §10.2).
//!
//! Repeated by the host until it is answered, so everything here is idempotent and quick.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use agent_api::{ENVD_VERSION, InitReply, InitRequest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use serde_json::json;

use super::ports;
use crate::agent::Agent;
use crate::log::Level;
use crate::settings::Applied;

/// Directory of the files that tell programs where they run.
const RUN: &str = "/run/e2b";
const HOSTS: &str = "/etc/hosts";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Applies what the host sent and says what the agent is.
pub(crate) async fn init(agent: &Arc<Agent>, request: InitRequest) -> InitReply {
    let (applied, before) = {
        let mut settings = agent.settings();
        let before = settings.sandbox_id().map(str::to_owned);
        (settings.apply(&request), before)
    };
    if before.as_ref() != Some(&request.sandbox_id) {
        agent.log.clear();
    }
    if applied == Applied::NewLifecycle {
        // Their peers do not exist any more; left open they would hold back process output.
        agent.clients.hang_up_all();
        agent.host_watch.forget();
        agent.hooks.started(before.as_deref(), &request.sandbox_id);
        let fields = json!({"processes": agent.processes.count()});
        agent
            .log
            .add(Level::Info, "envd", "the sandbox runs", fields);
    }
    if applied != Applied::Stale {
        // Nothing of this can fail a sandbox: the image may be read-only or lack the files. What only
        // the guest's kernel answers takes no time worth another thread. The kernel's hostname is not
        // set here: the engine gives each start its own, from the first instruction on, but leaves one
        // alone that was set inside. Were it set here, each copy would wake up under its source's name,
        // and a name that root chose would be gone after a pause.
        let _best_effort = stir(request.entropy.as_deref());
        if applied == Applied::NewLifecycle {
            let _best_effort = ports::move_on();
        }
        let names = Names::of(&request);
        if *written() != Some(names.clone()) {
            let _panicked = tokio::task::spawn_blocking(move || {
                let identity = write_identity(&request);
                let hosts = add_to_hosts(&request.hostname);
                // What could not be written, for want of space perhaps, is tried again next time.
                if identity.and(hosts).is_ok() {
                    *written() = Some(names);
                }
            })
            .await;
        }
    }
    InitReply {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        envd_version: ENVD_VERSION.to_owned(),
        boot_id: boot_id(),
        processes: agent.processes.count(),
        hooks_due: agent.hooks.due(),
    }
}

/// What the files in the guest call the sandbox.
#[derive(Clone, PartialEq, Eq)]
struct Names {
    sandbox: String,
    template: String,
    hostname: String,
}

impl Names {
    fn of(request: &InitRequest) -> Self {
        Self {
            sandbox: request.sandbox_id.clone(),
            template: request.template_id.clone(),
            hostname: request.hostname.clone(),
        }
    }
}

/// The names that were written last. Like the files they outlive a pause, so a resume writes nothing:
/// what somebody inside changed since, they want so.
fn written() -> MutexGuard<'static, Option<Names>> {
    static WRITTEN: Mutex<Option<Names>> = Mutex::new(None);
    WRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_identity(request: &InitRequest) -> io::Result<()> {
    fs::create_dir_all(RUN)?;
    let files = [
        (".E2B_SANDBOX", "true"),
        (".E2B_SANDBOX_ID", request.sandbox_id.as_str()),
        (".E2B_TEMPLATE_ID", request.template_id.as_str()),
    ];
    for (name, value) in files {
        let path = Path::new(RUN).join(name);
        // Repeats are frequent and a write costs more than a read.
        if fs::read(&path).ok().as_deref() != Some(value.as_bytes()) {
            fs::write(path, value)?;
        }
    }
    Ok(())
}

fn add_to_hosts(hostname: &str) -> io::Result<()> {
    if hostname.is_empty() {
        return Ok(());
    }
    let hosts = match fs::read_to_string(HOSTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    // Appended and not rewritten, so that the user's lines stay as they are.
    if let Some(lines) = missing_hosts_lines(&hosts, hostname) {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(HOSTS)?
            .write_all(lines.as_bytes())?;
    }
    Ok(())
}

/// What to append so that the own name resolves; sudo complains otherwise.
fn missing_hosts_lines(hosts: &str, hostname: &str) -> Option<String> {
    let knows = |name: &str| {
        hosts.lines().any(|line| {
            let line = line.split('#').next().unwrap_or_default();
            line.split_whitespace().skip(1).any(|word| word == name)
        })
    };
    if knows(hostname) {
        return None;
    }
    let start = if hosts.is_empty() || hosts.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let localhost = if knows("localhost") { "" } else { "localhost " };
    Some(format!("{start}127.0.0.1 {localhost}{hostname}\n"))
}

/// Clones of one memory image share their random pool until something differs.
fn stir(entropy: Option<&str>) -> io::Result<()> {
    let Some(entropy) = entropy else {
        return Ok(());
    };
    let bytes = STANDARD.decode(entropy).map_err(io::Error::other)?;
    fs::OpenOptions::new()
        .write(true)
        .open("/dev/urandom")?
        .write_all(&bytes)
}

/// The kernel's boot id, or one made at the agent's start, which lives exactly as long.
pub(super) fn boot_id() -> String {
    static OWN: OnceLock<String> = OnceLock::new();
    match fs::read_to_string(BOOT_ID) {
        Ok(id) => id.trim().to_owned(),
        Err(_) => OWN.get_or_init(random_id).clone(),
    }
}

fn random_id() -> String {
    let mut bytes = [0_u8; 16];
    let _best_effort = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_is_added_once_and_user_lines_stay() {
        let added = missing_hosts_lines("127.0.0.1 localhost\n", "box");
        assert_eq!(added.as_deref(), Some("127.0.0.1 box\n"));
        assert_eq!(
            missing_hosts_lines("127.0.0.1 localhost box\n", "box"),
            None
        );
        let added = missing_hosts_lines("1.2.3.4 mine # box", "box");
        assert_eq!(added.as_deref(), Some("\n127.0.0.1 localhost box\n"));
    }
}
