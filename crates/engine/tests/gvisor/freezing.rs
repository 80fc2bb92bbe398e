//! Freezing and thawing, and what a crash between leaves in doubt.

use std::path::PathBuf;
use std::process::Command;

use engine::{Engine, ExecutionId, ExecutionStatus};
use serde_json::json;

use crate::host::Host;

/// What the engine notes about a frozen execution.
fn note(host: &Host, id: &ExecutionId) -> PathBuf {
    PathBuf::from(format!(
        "/run/sandbase/{}/executions/{id}/frozen",
        host.tag()
    ))
}

async fn status(host: &Host, id: &ExecutionId) -> ExecutionStatus {
    let found = host.engine.find().await.unwrap();
    found.iter().find(|one| one.id == *id).unwrap().status
}

async fn counter(host: &Host, id: &ExecutionId) -> i64 {
    host.run(id, "r = state['counter']").await.as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn freezing_twice_needs_one_thaw() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.engine.thaw(&spec.id).await.unwrap();
    let before = counter(&host, &spec.id).await;
    host.engine.freeze(&spec.id).await.unwrap();
    host.engine.freeze(&spec.id).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    host.engine.thaw(&spec.id).await.unwrap();
    host.engine.thaw(&spec.id).await.unwrap();
    let after = counter(&host, &spec.id).await;
    assert!(after < before + 30, "it went on: {before} to {after}");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_had_begun_is_settled() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    // Tasks that stand for other reasons than a freeze.
    let stopped = "import subprocess, signal\n\
                   child = subprocess.Popen(['sleep', '1000']); child.send_signal(signal.SIGSTOP)";
    host.run(&spec.id, stopped).await;

    for begun in ["freezing", "thawing", ""] {
        std::fs::write(note(&host, &spec.id), begun).unwrap();
        let running = status(&host, &spec.id).await;
        assert_eq!(running, ExecutionStatus::Running, "{begun}");
        assert!(!note(&host, &spec.id).exists());
        host.answers(&spec.id).await;

        host.engine.freeze(&spec.id).await.unwrap();
        std::fs::write(note(&host, &spec.id), begun).unwrap();
        let frozen = status(&host, &spec.id).await;
        assert_eq!(frozen, ExecutionStatus::Frozen, "{begun}");
        host.engine.freeze(&spec.id).await.unwrap();
        std::fs::write(note(&host, &spec.id), begun).unwrap();
        host.engine.thaw(&spec.id).await.unwrap();
        host.answers(&spec.id).await;
    }
    assert_eq!(host.run(&spec.id, "r = child.poll()").await, json!(null));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runsc_froze_runsc_thaws() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let root = format!("--root=/run/sandbase/{}/runsc", host.tag());
    let paused = Command::new(&host.config.runsc)
        .args([&root, "pause", spec.id.as_str()])
        .status();
    assert!(paused.unwrap().success());
    let host = host.restart();
    assert_eq!(status(&host, &spec.id).await, ExecutionStatus::Frozen);
    host.engine.adopt(&spec.id).await.unwrap();
    host.engine.freeze(&spec.id).await.unwrap();
    host.engine.thaw(&spec.id).await.unwrap();
    host.answers(&spec.id).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_socket_runsc_is_asked() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let runsc = format!("/run/sandbase/{}/runsc", host.tag());
    let (ours, moved) = (
        format!("{runsc}/runsc-{}.sock", spec.id),
        format!("{runsc}/moved.sock"),
    );
    std::fs::rename(&ours, &moved).unwrap();
    // runsc looks there, too, so that it fails: the error names it, and nothing was noted.
    let error = host.engine.freeze(&spec.id).await.unwrap_err();
    assert!(error.to_string().contains("runsc pause"), "{error}");
    assert!(!note(&host, &spec.id).exists());
    std::fs::rename(&moved, &ours).unwrap();
    host.engine.freeze(&spec.id).await.unwrap();
    host.engine.thaw(&spec.id).await.unwrap();
    host.answers(&spec.id).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_guest_is_neither_frozen_nor_thawed() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let _ = host.try_run(&spec.id, "os._exit(3)").await;
    host.engine.exited(&spec.id).await;
    host.engine.freeze(&spec.id).await.unwrap_err();
    host.engine.thaw(&spec.id).await.unwrap_err();
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_guest_is_not_dead_because_runsc_says_nothing() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let counted = counter(&host, &spec.id).await;
    let kept = host.config.data_dir.join("engines").join(&spec.build.0);
    let (runsc, away) = (kept.join("runsc"), kept.join("away"));
    std::fs::rename(&runsc, &away).unwrap();
    let host = {
        // The engine looks at its build when it opens.
        let found = status(&host, &spec.id).await;
        assert_eq!(found, ExecutionStatus::Frozen, "in doubt");
        std::fs::rename(&away, &runsc).unwrap();
        host.restart()
    };
    host.engine.adopt(&spec.id).await.unwrap();
    host.engine.thaw(&spec.id).await.unwrap();
    host.answers(&spec.id).await;
    assert!(counter(&host, &spec.id).await >= counted);
    host.close().await;
}
