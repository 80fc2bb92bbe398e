//! Hooks: executables of the sandbox's owner that run around a pause, as root, in name order.
//!
//! The host decides when; the agent knows which kind is due after a start, because only its memory
//! tells a resume from a boot and a clone from its source. Whatever a hook does, it is over in the
//! time that the host gives: its process group is killed then. What it leaves running in the
//! background when it ends by itself goes on.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::{HookEnd, HookKind, HookRun, RunHooks};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::agent::Agent;
use crate::descriptor::register;
use crate::log::Level;
use crate::process::{ExitStatus, Program, read_now};
use crate::users::{self, User};

/// Where the directories of the kinds are.
pub(crate) const ROOT: &str = "/etc/sandbase/hooks";
/// What is kept of a hook's output; the rest is read and dropped, so that it never blocks.
const OUTPUT_LIMIT: usize = 4096;
/// A killed process is collected within this, unless the kernel cannot end it.
const KILLED_LIMIT: Duration = Duration::from_secs(1);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is known of hooks between two requests of the host.
#[derive(Debug)]
pub(crate) struct Hooks {
    root: PathBuf,
    state: Mutex<State>,
    /// Held while hooks run: one run at a time.
    running: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The start of this execution was of this kind, and its hooks have not run yet.
    due: Option<HookKind>,
    /// Pre-pause hooks have run, and no others since.
    prepared: bool,
}

impl Hooks {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            state: Mutex::default(),
            running: tokio::sync::Mutex::default(),
        }
    }

    /// A new execution has begun: the sandbox that its memory knew, and the one it is now.
    pub(crate) fn started(&self, before: Option<&str>, now: &str) {
        let due = match before {
            // A boot.
            None => None,
            Some(before) if before == now => Some(HookKind::PostResume),
            Some(_) => Some(HookKind::PostFork),
        };
        let mut state = self.state();
        state.due = due;
        state.prepared = false;
    }

    /// The kind that the host has to run before the sandbox is served, if it has any hook.
    pub(crate) fn due(&self) -> Option<HookKind> {
        let due = self.state().due?;
        (self.count(due) > 0).then_some(due)
    }

    /// How many hooks of a kind there are.
    pub(crate) fn count(&self, kind: HookKind) -> usize {
        executables(&self.directory(kind)).len()
    }

    /// Runs the hooks of a kind. A task of its own: a host that leaves meanwhile leaves no hook
    /// without a limit behind.
    pub(crate) async fn run(agent: &Arc<Agent>, request: RunHooks) -> Vec<HookRun> {
        let agent = Arc::clone(agent);
        let run = tokio::spawn(async move { agent.hooks.run_all(&agent, request).await });
        run.await.unwrap_or_default()
    }

    async fn run_all(&self, agent: &Agent, request: RunHooks) -> Vec<HookRun> {
        let _alone = self.running.lock().await;
        if !self.begin(&request) {
            return Vec::new();
        }
        let end_of_all = Instant::now() + Duration::from_millis(request.all_ms);
        let environment = environment(agent, request.kind);
        let mut runs: Vec<HookRun> = Vec::new();
        let mut failed = false;
        for path in executables(&self.directory(request.kind)) {
            let begun = Instant::now();
            let end = (begun + Duration::from_millis(request.each_ms)).min(end_of_all);
            let (how, output) = if begun >= end_of_all || (failed && request.stop_at_failure) {
                (HookEnd::NotRun, String::new())
            } else {
                run_one(agent, &path, &environment, end).await
            };
            failed |= how != HookEnd::Done;
            let name = path.file_name().unwrap_or_default();
            let run = HookRun {
                name: name.to_string_lossy().into_owned(),
                end: how,
                milliseconds: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                output,
            };
            tell(agent, request.kind, &run);
            runs.push(run);
        }
        runs
    }

    /// Notes that hooks of this kind run; false when they shall not.
    fn begin(&self, request: &RunHooks) -> bool {
        let mut state = self.state();
        if request.only_after_pre_pause && !state.prepared {
            return false;
        }
        match request.kind {
            HookKind::PrePause => state.prepared = true,
            HookKind::PostResume | HookKind::PostFork => {
                state.prepared = false;
                state.due = None;
            }
        }
        true
    }

    fn directory(&self, kind: HookKind) -> PathBuf {
        self.root.join(format!("{}.d", kind.name()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Executable files of a directory in name order; hidden ones are left out, as editors leave such.
fn executables(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Links are followed.
        let executable = std::fs::metadata(entry.path())
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if executable && !hidden {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// For the owner's log; never what the hook wrote.
fn tell(agent: &Agent, kind: HookKind, run: &HookRun) {
    let mut fields = json!({
        "hook": run.name, "kind": kind.name(), "duration_ms": run.milliseconds,
    });
    match run.failure() {
        None => agent
            .log
            .add(Level::Info, "hooks", "a hook has run", fields),
        Some(failure) => {
            fields["failure"] = failure.into();
            agent.log.add(Level::Warn, "hooks", "a hook failed", fields);
        }
    }
}

fn environment(agent: &Agent, kind: HookKind) -> BTreeMap<String, String> {
    let mut table = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), "/root".to_owned()),
        ("USER".to_owned(), "root".to_owned()),
        ("LOGNAME".to_owned(), "root".to_owned()),
    ]);
    table.extend(agent.settings().environment());
    table.insert("SANDBASE_HOOK".to_owned(), kind.name().to_owned());
    table
}

/// Runs one hook to its end, or to the end of its time.
async fn run_one(
    agent: &Agent,
    path: &Path,
    environment: &BTreeMap<String, String>,
    end: Instant,
) -> (HookEnd, String) {
    let started = match start(agent, path, environment) {
        Ok(started) => started,
        Err(error) => return (HookEnd::Failed(format!("start it: {error}")), String::new()),
    };
    let Started {
        pid,
        mut status,
        output,
    } = started;
    let mut kept = Vec::new();
    let ended = timeout_at(end, async {
        tokio::select! {
            status = &mut status => status,
            // The output may be closed, or be kept open by a child, long before or after the end.
            never = keep_reading(&output, &mut kept) => match never {},
        }
    })
    .await;
    let how = match ended {
        Ok(Ok(status)) => outcome(status),
        Ok(Err(_)) => HookEnd::Failed("its end was lost".to_owned()),
        Err(_) => {
            kill(pid, &mut status).await;
            HookEnd::TimedOut
        }
    };
    // What was written right before the end.
    while kept.len() < OUTPUT_LIMIT && take(&output, &mut kept).is_ok_and(|count| count > 0) {}
    (how, String::from_utf8_lossy(&kept).trim().to_owned())
}

struct Started {
    pid: u32,
    status: oneshot::Receiver<ExitStatus>,
    output: AsyncFd<OwnedFd>,
}

fn start(
    agent: &Agent,
    path: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<Started, Box<dyn std::error::Error + Send + Sync>> {
    let root = User {
        name: "root".to_owned(),
        uid: 0,
        gid: 0,
        home: "/root".to_owned(),
    };
    let groups = users::groups_of(&root);
    let command = path.to_str().ok_or("its name is not UTF-8")?;
    let program = Program::new(command, &[], environment.iter(), "/", &root, groups)?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let flags = rustix::fs::fcntl_getfl(&reader)?;
    rustix::fs::fcntl_setfl(&reader, flags | OFlags::NONBLOCK)?;
    let output = register(reader, Interest::READABLE)?;
    let nothing = OwnedFd::from(File::open("/dev/null")?);
    let ticket = agent.processes.reaper.announce();
    let pid = program.spawn([&nothing, &writer, &writer], false)?;
    Ok(Started {
        pid,
        status: ticket.expect(pid),
        output,
    })
}

/// Keeps the start of the output and drops the rest, for as long as anybody may write.
async fn keep_reading(output: &AsyncFd<OwnedFd>, kept: &mut Vec<u8>) -> std::convert::Infallible {
    loop {
        let Ok(mut ready) = output.readable().await else {
            break;
        };
        // At its end, or broken: the process is all there is to wait for.
        if let Ok(Ok(0) | Err(_)) = ready.try_io(|output| take(output, kept)) {
            break;
        }
    }
    std::future::pending().await
}

fn take(output: &AsyncFd<OwnedFd>, kept: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut buffer = [0; 4096];
    let count = read_now(output.get_ref(), &mut buffer)?;
    let room = OUTPUT_LIMIT.saturating_sub(kept.len());
    kept.extend_from_slice(&buffer[..count.min(room)]);
    Ok(count)
}

fn outcome(status: ExitStatus) -> HookEnd {
    match status.end_event(None).error {
        None => HookEnd::Done,
        Some(how) => HookEnd::Failed(how),
    }
}

/// Kills a hook and everything in its process group, and waits until it is collected.
async fn kill(pid: u32, status: &mut oneshot::Receiver<ExitStatus>) {
    // Not collected yet, and nothing else runs on this thread meanwhile: the number is still its.
    if status.try_recv().is_err() {
        let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            let _gone_already = kill_process_group(group, Signal::KILL);
        }
        let _stuck_in_the_kernel = tokio::time::timeout(KILLED_LIMIT, status).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_executables_run_in_name_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        file("20-b", 0o755);
        file("10-a", 0o700);
        file("notes.txt", 0o644);
        file(".10-a.swp", 0o755);
        std::fs::create_dir(folder.path().join("30-directory")).unwrap();
        std::os::unix::fs::symlink("10-a", folder.path().join("05-link")).unwrap();
        std::os::unix::fs::symlink("gone", folder.path().join("06-dangling")).unwrap();
        let found = executables(folder.path());
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["05-link", "10-a", "20-b"]);
        assert!(executables(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn a_boot_a_resume_and_a_clone_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        for kind in ["post-resume", "post-fork"] {
            let directory = folder.path().join(format!("{kind}.d"));
            std::fs::create_dir(&directory).unwrap();
            let hook = directory.join("hook");
            std::fs::write(&hook, "").unwrap();
            std::fs::set_permissions(hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let hooks = Hooks::new(folder.path().to_owned());
        for (before, due) in [
            (None, None),
            (Some("i1"), Some(HookKind::PostResume)),
            (Some("i0"), Some(HookKind::PostFork)),
        ] {
            hooks.started(before, "i1");
            assert_eq!(hooks.due(), due);
        }
        let none = Hooks::new("/nowhere".into());
        none.started(Some("i1"), "i1");
        assert_eq!(none.due(), None);
    }
}
