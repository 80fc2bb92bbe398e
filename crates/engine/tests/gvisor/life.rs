//! Starts that fail, engines that die, servers that come back.

use std::time::Duration;

use engine::gvisor::{Config, Gvisor, OpenError, host_checks};
use engine::{
    Engine, EngineError, ExecutionId, ExecutionSpec, ExecutionStatus, ExitReason, Found, StartFrom,
};
use serde_json::json;

use crate::host::{Host, PATIENCE, config};
use crate::traces;

#[tokio::test(flavor = "multi_thread")]
async fn destruction_leaves_nothing_and_may_be_repeated() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.engine.destroy(&spec.id).await.unwrap();
    let left = traces::all(&host.tag(), &host.path(""));
    let of_it: Vec<_> = left
        .iter()
        .filter(|trace| trace.contains(spec.id.as_str()))
        .collect();
    assert!(of_it.is_empty(), "left behind: {of_it:#?}");
    assert!(
        !left.iter().any(|trace| trace.starts_with("loop")),
        "{left:#?}"
    );
    host.engine.destroy(&spec.id).await.unwrap();
    host.engine.destroy(&ExecutionId::random()).await.unwrap();
    let error = host.engine.freeze(&spec.id).await.unwrap_err();
    assert!(matches!(error, EngineError::Unknown(_)), "{error}");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_adopts_what_runs() {
    let host = Host::new();
    let (running, frozen) = (host.boot("running").await, host.boot("frozen").await);
    host.run(&running.id, "x = 'kept'").await;
    host.engine.freeze(&frozen.id).await.unwrap();

    let host = host.restart();
    let mut found = host.engine.find().await.unwrap();
    found.sort_by_key(|one| one.id.clone());
    let mut expected = vec![
        Found {
            id: running.id.clone(),
            status: ExecutionStatus::Running,
        },
        Found {
            id: frozen.id.clone(),
            status: ExecutionStatus::Frozen,
        },
    ];
    expected.sort_by_key(|one| one.id.clone());
    assert_eq!(found, expected);
    assert!(
        host.engine.dial(&running.id, 9000).await.is_err(),
        "not adopted yet"
    );
    host.engine.adopt(&running.id).await.unwrap();
    host.engine.adopt(&frozen.id).await.unwrap();
    assert_eq!(host.run(&running.id, "r = x").await, json!("kept"));
    host.engine.thaw(&frozen.id).await.unwrap();
    host.answers(&frozen.id).await;
    // New ones do not get in their way, and an adopted one can be paused.
    let fresh = host.boot("fresh").await;
    let image = host.directory("image");
    host.pause(&running, &image).await;
    let running = host.restore(&running, &image).await;
    assert_eq!(host.run(&running.id, "r = x").await, json!("kept"));
    host.answers(&fresh.id).await;

    let error = host.engine.adopt(&ExecutionId::random()).await.unwrap_err();
    assert!(matches!(error, EngineError::Unknown(_)), "{error}");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_is_noticed_and_its_disk_survives() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(&spec.id, "open('/root/f', 'w').write('kept'); os.sync()")
        .await;
    let pid = format!("/run/sandbase/{}/executions/{}/pid", host.tag(), spec.id);
    let pid: i32 = std::fs::read_to_string(pid)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // Watched by one that adopted it.
    let host = host.restart();
    host.engine.adopt(&spec.id).await.unwrap();
    let mut exited = host.engine.exited(&spec.id);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut exited).await;
    assert!(early.is_err(), "it runs");
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let reason = tokio::time::timeout(PATIENCE, &mut exited).await;
    assert_eq!(reason.expect("the end is noticed"), ExitReason::Exited);
    drop(exited);

    let found = host.engine.find().await.unwrap();
    assert_eq!(
        found,
        [Found {
            id: spec.id.clone(),
            status: ExecutionStatus::Dead
        }]
    );
    host.engine.destroy(&spec.id).await.unwrap();
    let again = ExecutionSpec {
        id: ExecutionId::random(),
        ..spec
    };
    host.engine.start(&again, StartFrom::Boot).await.unwrap();
    host.answers(&again.id).await;
    assert_eq!(
        host.run(&again.id, "r = open('/root/f').read()").await,
        json!("kept")
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_pid_1_is_the_end_of_the_execution() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let _ = host.try_run(&spec.id, "os._exit(3)").await;
    let reason = tokio::time::timeout(PATIENCE, host.engine.exited(&spec.id)).await;
    assert_eq!(reason.expect("the end is noticed"), ExitReason::Exited);
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_start_leaves_nothing() {
    let mut host = Host::new();
    host.config.init = vec!["/no/such/program".to_owned()];
    let host = host.restart();
    let spec = host.spec("disk");
    host.engine
        .create_disk(&spec.disk, spec.limits.disk_bytes)
        .await
        .unwrap();
    let error = host.engine.start(&spec, StartFrom::Boot).await.unwrap_err();
    assert!(
        error.source.to_string().contains("/no/such/program"),
        "{}",
        error.source
    );
    assert!(host.engine.find().await.unwrap().is_empty());

    let missing = ExecutionSpec {
        disk: host.path("no-disk"),
        ..spec.clone()
    };
    let error = host
        .engine
        .start(&missing, StartFrom::Boot)
        .await
        .unwrap_err();
    assert!(!error.guest_may_have_run);
    assert!(host.engine.find().await.unwrap().is_empty());
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_in_use_is_refused_and_not_disturbed() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let second = ExecutionSpec {
        disk: host.path("second"),
        ..spec.clone()
    };
    host.engine
        .create_disk(&second.disk, second.limits.disk_bytes)
        .await
        .unwrap();
    host.engine
        .start(&second, StartFrom::Boot)
        .await
        .unwrap_err();
    host.answers(&spec.id).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_started_executions_are_found_and_destroyed() {
    let host = Host::new();
    let spec = host.spec("disk");
    host.engine
        .create_disk(&spec.disk, spec.limits.disk_bytes)
        .await
        .unwrap();
    // Cut off at some point, as by the end of the server: nothing is cleaned up then.
    let mut cut = 0;
    for delay in [0, 5, 15, 40, 80, 120, 180] {
        let spec = ExecutionSpec {
            id: ExecutionId::random(),
            ..spec.clone()
        };
        let start = host.engine.start(&spec, StartFrom::Boot);
        let limit = Duration::from_millis(delay);
        cut += u32::from(tokio::time::timeout(limit, start).await.is_err());
        for found in host.engine.find().await.unwrap() {
            host.engine.destroy(&found.id).await.unwrap();
        }
    }
    assert!(cut >= 2, "every start was quicker than its limit");
    // The disk is free again.
    host.engine.start(&spec, StartFrom::Boot).await.unwrap();
    host.answers(&spec.id).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_commands_of_an_earlier_server_are_over_when_find_answers() {
    let mut host = Host::new();
    host.config.command_timeout = Duration::from_secs(2);
    let host = host.restart();
    // Stand-ins with the command lines of runsc at work, of which one hangs and one writes an image.
    let written = host.path("written");
    let command = |script: &str, verb: &str| {
        std::process::Command::new("/bin/sh")
            .args(["-c", script, "runsc"])
            .stdout(std::process::Stdio::null())
            .arg(format!("--root=/run/sandbase/{}/runsc", host.tag()))
            .arg(verb)
            .spawn()
            .unwrap()
    };
    let (short, hanging) = (
        command("sleep 0.5; true", "pause"),
        command("sleep 20; true", "pause"),
    );
    let write = format!("sleep 5; touch {}", written.display());
    let writing = command(&write, "checkpoint");
    let begin = std::time::Instant::now();
    host.engine.find().await.unwrap();
    assert!(
        begin.elapsed() > Duration::from_millis(400),
        "nothing was waited for"
    );
    assert!(begin.elapsed() < PATIENCE, "the hanging one was waited for");
    assert!(written.exists(), "a checkpoint has more time");
    for child in [short, hanging, writing] {
        let line = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap_or_default();
        assert!(line.is_empty(), "{} still runs", child.id());
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_machine_do_not_see_each_other() {
    let (one, two) = (Host::new(), Host::new());
    let (first, second) = tokio::join!(one.boot("disk"), two.boot("disk"));
    assert_eq!(one.engine.find().await.unwrap().len(), 1);
    two.engine.destroy(&first.id).await.unwrap();
    one.answers(&first.id).await;
    one.close().await;
    two.answers(&second.id).await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsuitable_runsc_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut config: Config = config(&folder.path().join("data"));
    config.runsc = "/bin/true".into();
    let error = Gvisor::open(config.clone())
        .err()
        .expect("/bin/true is no runsc");
    assert!(
        matches!(error, OpenError::UnsuitableRunsc { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("-allow-suid"), "{error}");
    let check = host_checks(&config)
        .into_iter()
        .find(|check| check.name == "runsc")
        .unwrap();
    assert!(!check.ok);
    config.runsc = "/no/runsc".into();
    let error = Gvisor::open(config.clone()).err().expect("there is none");
    assert!(error.to_string().contains("/no/runsc"), "{error}");
    // Neither prepared anything but the directories.
    let data = config.data_dir.canonicalize().unwrap();
    let tag = &blake3::hash(data.as_os_str().as_encoded_bytes()).to_hex()[..8];
    traces::none_within(tag, folder.path(), PATIENCE);
    traces::remove_shared(tag);
}

#[test]
fn the_checks_pass_here_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let checks = host_checks(&config(&folder.path().join("data")));
    let bad: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
