//! Hooks of the sandbox's owner, by the real binary.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_api::{
    HookEnd, HookKind, HookRun, InitRequest, LogReader, PrepareRequest, RunHooks, client,
};
use serde_json::json;
use tokio::net::TcpStream;

use crate::agent::{Agent, LIMIT, eventually, init_of};

/// Directories of hooks and an agent that knows them.
struct Guest {
    folder: tempfile::TempDir,
    agent: Agent,
}

impl Guest {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        let agent = Agent::start_with(&["--hooks", root]).await;
        Self { folder, agent }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A shell script; `$T` is the folder.
    fn hook(&self, kind: &str, name: &str, script: &str) {
        let directory = self.path(&format!("{kind}.d"));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(name);
        let folder = self.folder.path().display();
        std::fs::write(&path, format!("#!/bin/sh\nT={folder}\n{script}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn run(&self, request: &RunHooks) -> Vec<HookRun> {
        let stream = TcpStream::connect(self.agent.host).await.unwrap();
        let call = client::run_hooks(stream, request);
        let reply = tokio::time::timeout(LIMIT, call).await;
        reply.unwrap().unwrap().hooks
    }

    async fn pre_pause_hooks(&self) -> usize {
        let stream = TcpStream::connect(self.agent.host).await.unwrap();
        let prepare = PrepareRequest {
            host_writes_back: true,
        };
        let reply = client::prepare(stream, &prepare).await.unwrap();
        reply.pre_pause_hooks
    }
}

fn request(kind: HookKind) -> RunHooks {
    RunHooks {
        kind,
        each_ms: 10_000,
        all_ms: 15_000,
        stop_at_failure: false,
        only_after_pre_pause: false,
    }
}

fn names(runs: &[HookRun]) -> Vec<(&str, &HookEnd)> {
    runs.iter()
        .map(|run| (run.name.as_str(), &run.end))
        .collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn hooks_run_in_name_order_as_root_with_the_environment_of_the_sandbox() {
    let guest = Guest::start().await;
    guest.agent.init(&init_of("l1")).await;
    assert_eq!(guest.pre_pause_hooks().await, 0);
    let tell = "echo $0 $(id -u) $PWD $SANDBASE_HOOK $E2B_SANDBOX_ID >> $T/told";
    guest.hook("pre-pause", "20-second", tell);
    guest.hook(
        "pre-pause",
        "10-first",
        &format!("{tell}; echo out; echo err >&2"),
    );
    std::fs::write(guest.path("pre-pause.d/15-plain.txt"), "not executable").unwrap();
    assert_eq!(guest.pre_pause_hooks().await, 2);
    assert_eq!(read(&guest.path("told")), "", "asking runs nothing");

    let runs = guest.run(&request(HookKind::PrePause)).await;
    assert_eq!(
        names(&runs),
        [("10-first", &HookEnd::Done), ("20-second", &HookEnd::Done)]
    );
    assert_eq!(runs[0].output, "out\nerr");
    let told = read(&guest.path("told"));
    let first = guest.path("pre-pause.d/10-first");
    let second = guest.path("pre-pause.d/20-second");
    let expected = format!(
        "{} 0 / pre-pause sandbox1\n{} 0 / pre-pause sandbox1\n",
        first.display(),
        second.display()
    );
    assert_eq!(told, expected);
    assert!(guest.agent.live_pids().await.is_empty());
}

#[tokio::test]
async fn a_failure_is_told_and_stops_the_others_only_when_asked_to() {
    let guest = Guest::start().await;
    guest.hook("pre-pause", "10-bad", "echo no space; exit 3");
    guest.hook("pre-pause", "20-killed", "kill -9 $$");
    guest.hook("pre-pause", "30-good", "touch $T/good");
    let broken = guest.path("pre-pause.d/40-broken");
    std::fs::write(&broken, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    let failed = |how: &str| HookEnd::Failed(how.to_owned());

    let strict = RunHooks {
        stop_at_failure: true,
        ..request(HookKind::PrePause)
    };
    let runs = guest.run(&strict).await;
    assert_eq!(
        names(&runs),
        [
            ("10-bad", &failed("exit status 3")),
            ("20-killed", &HookEnd::NotRun),
            ("30-good", &HookEnd::NotRun),
            ("40-broken", &HookEnd::NotRun),
        ]
    );
    assert_eq!(runs[0].output, "no space");
    assert!(!guest.path("good").exists());

    let runs = guest.run(&request(HookKind::PrePause)).await;
    assert_eq!(
        names(&runs),
        [
            ("10-bad", &failed("exit status 3")),
            ("20-killed", &failed("signal: killed")),
            ("30-good", &HookEnd::Done),
            ("40-broken", &failed("exit status 127")),
        ]
    );
    assert!(guest.path("good").exists());

    // The owner reads of it, without what the hook wrote.
    let stream = TcpStream::connect(guest.agent.host).await.unwrap();
    let mut log = LogReader::open(stream, "", 0).await.unwrap();
    let line = tokio::time::timeout(LIMIT, log.next()).await.unwrap();
    let entry = line.unwrap().expect("an entry").entry;
    assert_eq!(entry["message"], "a hook failed");
    assert_eq!(
        (&entry["hook"], &entry["kind"]),
        (&json!("10-bad"), &json!("pre-pause"))
    );
    assert_eq!(entry["failure"], "exit status 3");
    let text = format!("{entry:?}");
    assert!(!text.contains("no space"), "{text}");
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed_with_its_children_at_its_limit() {
    let guest = Guest::start().await;
    // It ignores what it can, and leaves the waiting to a child that holds its output open.
    let hang = "trap '' TERM INT HUP; echo begun; sleep 1000 & echo $! > $T/child; wait";
    guest.hook("pre-pause", "10-hangs", hang);
    guest.hook("pre-pause", "20-next", "touch $T/next");
    let limited = RunHooks {
        each_ms: 300,
        ..request(HookKind::PrePause)
    };
    let begun = Instant::now();
    let runs = guest.run(&limited).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        names(&runs),
        [
            ("10-hangs", &HookEnd::TimedOut),
            ("20-next", &HookEnd::Done)
        ]
    );
    assert!(runs[0].milliseconds >= 300);
    assert_eq!(runs[0].output, "begun");
    let child = read(&guest.path("child"));
    let child = PathBuf::from(format!("/proc/{}", child.trim()));
    eventually("the child to be killed and collected", async || {
        !child.exists()
    })
    .await;
}

#[tokio::test]
async fn all_hooks_together_have_a_limit_too() {
    let guest = Guest::start().await;
    for name in ["1", "2", "3", "4"] {
        guest.hook("pre-pause", name, "exec sleep 1000");
    }
    let limited = RunHooks {
        each_ms: 400,
        all_ms: 600,
        ..request(HookKind::PrePause)
    };
    let begun = Instant::now();
    let runs = guest.run(&limited).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        names(&runs),
        [
            ("1", &HookEnd::TimedOut),
            ("2", &HookEnd::TimedOut),
            ("3", &HookEnd::NotRun),
            ("4", &HookEnd::NotRun),
        ]
    );
}

#[tokio::test]
async fn endless_output_is_cut_and_blocks_nothing() {
    let guest = Guest::start().await;
    guest.hook(
        "pre-pause",
        "10-loud",
        "head -c 3000000 /dev/zero | tr '\\0' x; touch $T/done",
    );
    // What it leaves running keeps the output open and is nobody's business.
    guest.hook("pre-pause", "20-leaves", "sleep 1000 & echo $! > $T/left");
    let begun = Instant::now();
    let runs = guest.run(&request(HookKind::PrePause)).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert!(guest.path("done").exists());
    assert_eq!(runs[0].output, "x".repeat(4096));
    assert_eq!(runs[1].end, HookEnd::Done);
    let left = read(&guest.path("left"));
    let left: i32 = left.trim().parse().unwrap();
    assert!(PathBuf::from(format!("/proc/{left}")).exists());
    let left = rustix::process::Pid::from_raw(left).unwrap();
    rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_host_that_leaves_takes_the_limit_not_along() {
    let guest = Guest::start().await;
    guest.hook("pre-pause", "10-hangs", "echo $$ > $T/pid; exec sleep 1000");
    let limited = RunHooks {
        each_ms: 1000,
        ..request(HookKind::PrePause)
    };
    let pid = guest.path("pid");
    let stream = TcpStream::connect(guest.agent.host).await.unwrap();
    tokio::select! {
        _ = client::run_hooks(stream, &limited) => panic!("it hangs"),
        () = eventually("the hook to run", async || !read(&pid).trim().is_empty()) => {}
    }
    let process = PathBuf::from(format!("/proc/{}", read(&pid).trim()));
    eventually("the hook to be killed", async || !process.exists()).await;
}

#[tokio::test]
async fn a_resume_and_a_fork_are_told_apart_and_due_once() {
    let guest = Guest::start().await;
    guest.hook("post-resume", "10-resume", "echo resumed >> $T/told");
    guest.hook(
        "post-fork",
        "10-fork",
        "echo forked as $E2B_SANDBOX_ID >> $T/told",
    );
    let boot = guest.agent.init(&init_of("l1")).await;
    assert_eq!(boot.hooks_due, None, "a boot is no resume");

    let resumed = guest.agent.init(&init_of("l2")).await;
    assert_eq!(resumed.hooks_due, Some(HookKind::PostResume));
    let repeated = guest.agent.init(&init_of("l2")).await;
    assert_eq!(repeated.hooks_due, Some(HookKind::PostResume));
    guest.run(&request(HookKind::PostResume)).await;
    assert_eq!(guest.agent.init(&init_of("l2")).await.hooks_due, None);

    let clone = InitRequest {
        sandbox_id: "sandbox2".to_owned(),
        ..init_of("l3")
    };
    let forked = guest.agent.init(&clone).await;
    assert_eq!(forked.hooks_due, Some(HookKind::PostFork));
    guest.run(&request(HookKind::PostFork)).await;
    assert_eq!(read(&guest.path("told")), "resumed\nforked as sandbox2\n");
}

#[tokio::test]
async fn after_a_pause_that_was_given_up_the_guest_is_told_once() {
    let guest = Guest::start().await;
    guest.hook("pre-pause", "10-hook", "echo pause >> $T/told");
    guest.hook("post-resume", "10-hook", "echo resume >> $T/told");
    let given_up = RunHooks {
        only_after_pre_pause: true,
        ..request(HookKind::PostResume)
    };
    assert!(guest.run(&given_up).await.is_empty(), "no hook had run");
    guest.run(&request(HookKind::PrePause)).await;
    assert_eq!(guest.run(&given_up).await.len(), 1);
    assert!(guest.run(&given_up).await.is_empty(), "it was told already");
    assert_eq!(read(&guest.path("told")), "pause\nresume\n");
}
