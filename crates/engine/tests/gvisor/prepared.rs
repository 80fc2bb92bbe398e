//! Starts that were prepared before their image is read.

use std::time::SystemTime;

use engine::{Engine, ExecutionId, ExecutionSpec, ExecutionStatus, StartFrom};
use serde_json::json;

use crate::host::Host;
use crate::traces;

/// A paused guest that knows `x`, what to start next, and when it was frozen.
async fn paused(host: &Host) -> (ExecutionSpec, SystemTime) {
    let spec = host.boot("disk").await;
    host.run(&spec.id, "x = 'kept'").await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    // The clock that stamps changes moves in ticks.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    (next(&spec), SystemTime::now())
}

fn next(spec: &ExecutionSpec) -> ExecutionSpec {
    ExecutionSpec {
        id: ExecutionId::random(),
        ..spec.clone()
    }
}

async fn restored(host: &Host, spec: &ExecutionSpec) {
    let image = host.path("image");
    let started = host.engine.start(spec, StartFrom::Image(&image)).await;
    started.unwrap_or_else(|error| panic!("{error:?}"));
    host.answers(&spec.id).await;
    assert_eq!(host.run(&spec.id, "r = x").await, json!("kept"));
}

fn traces_of(host: &Host, id: &ExecutionId) -> Vec<String> {
    let mut all = traces::all(&host.tag(), &host.path(""));
    all.retain(|trace| trace.contains(id.as_str()));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_start_goes_on_from_where_it_is() {
    let host = Host::new();
    let (spec, _) = paused(&host).await;
    host.engine
        .prepare(&spec, &host.path("image"))
        .await
        .unwrap();
    let pid = format!("/run/sandbase/{}/executions/{}/pid", host.tag(), spec.id);
    let sentry = std::fs::read_to_string(&pid).unwrap();
    restored(&host, &spec).await;
    assert_eq!(std::fs::read_to_string(&pid).unwrap(), sentry);
    // It is an execution like any other.
    host.engine.image_released(&spec.id).await.unwrap();
    let image = host.directory("again");
    host.pause(&spec, &image).await;
    let spec = host.restore(&spec, &image).await;
    assert_eq!(host.run(&spec.id, "r = x").await, json!("kept"));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn preparing_changes_neither_the_disk_nor_what_is_left() {
    let host = Host::new();
    let (spec, frozen_at) = paused(&host).await;
    host.engine
        .prepare(&spec, &host.path("image"))
        .await
        .unwrap();
    host.engine.destroy(&spec.id).await.unwrap();
    let left = traces_of(&host, &spec.id);
    assert!(left.is_empty(), "{left:#?}");
    let changed = host.engine.disk_changed_since(&spec.disk, frozen_at).await;
    assert!(!changed.unwrap());
    restored(&host, &spec).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_start_than_the_prepared_one_begins_anew() {
    let host = Host::new();
    let (spec, _) = paused(&host).await;
    host.engine
        .prepare(&spec, &host.path("image"))
        .await
        .unwrap();
    let renamed = ExecutionSpec {
        hostname: "renamed".to_owned(),
        ..spec.clone()
    };
    restored(&host, &renamed).await;
    let hostname = host.run(&renamed.id, "r = socket.gethostname()").await;
    assert_eq!(hostname, json!("renamed"));
    host.engine.destroy(&renamed.id).await.unwrap();

    let spec = next(&spec);
    host.engine
        .prepare(&spec, &host.path("image"))
        .await
        .unwrap();
    host.engine.start(&spec, StartFrom::Boot).await.unwrap();
    host.answers(&spec.id).await;
    assert!(host.try_run(&spec.id, "r = x").await.is_err());
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_finds_what_was_prepared_as_dead() {
    let host = Host::new();
    let (spec, frozen_at) = paused(&host).await;
    host.engine
        .prepare(&spec, &host.path("image"))
        .await
        .unwrap();
    let host = host.restart();
    let found = host.engine.find().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].status, ExecutionStatus::Dead);
    host.engine.destroy(&spec.id).await.unwrap();
    let changed = host.engine.disk_changed_since(&spec.disk, frozen_at).await;
    assert!(!changed.unwrap());
    restored(&host, &spec).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_start_that_lost_its_processes_leaves_nothing() {
    let host = Host::new();
    let (spec, frozen_at) = paused(&host).await;
    host.engine
        .prepare(&spec, &host.path("image"))
        .await
        .unwrap();
    let pid = format!("/run/sandbase/{}/executions/{}/pid", host.tag(), spec.id);
    let pid = std::fs::read_to_string(pid).unwrap().parse().unwrap();
    let sentry = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(sentry, rustix::process::Signal::KILL).unwrap();
    let image = host.path("image");
    let started = host.engine.start(&spec, StartFrom::Image(&image)).await;
    started.unwrap_err();
    let left = traces_of(&host, &spec.id);
    assert!(left.is_empty(), "{left:#?}");
    let changed = host.engine.disk_changed_since(&spec.disk, frozen_at).await;
    assert!(!changed.unwrap());
    restored(&host, &spec).await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_only_prepared_ends_with_the_engine() {
    let host = Host::new();
    let (spec, _) = paused(&host).await;
    host.engine
        .prepare(&spec, &host.path("image"))
        .await
        .unwrap();
    host.engine.close().await;
    let left = traces_of(&host, &spec.id);
    assert!(left.is_empty(), "{left:#?}");
    host.close().await;
}
