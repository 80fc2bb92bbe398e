//! Starting: turns, and what the processes of a start are given.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::{Engine, StartFrom};

use crate::host::Host;

#[tokio::test(flavor = "multi_thread")]
async fn starts_wait_for_their_turn() {
    const STARTS: usize = 4;
    let mut host = Host::new();
    host.config.starts_at_once = 1;
    let host = host.restart();
    let done = Arc::new(AtomicUsize::new(0));
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..STARTS {
        let spec = host.spec(&format!("disk{number}"));
        let size = spec.limits.disk_bytes;
        host.engine.create_disk(&spec.disk, size).await.unwrap();
        let (engine, done) = (Arc::clone(&host.engine), Arc::clone(&done));
        starts.spawn(async move {
            engine.start(&spec, StartFrom::Boot).await.unwrap();
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    let executions = format!("/run/sandbase/{}/executions", host.tag());
    // Mounting is the first thing that a start does in its turn.
    let begun = || {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .filter(|point| point.starts_with(&executions) && point.ends_with("/rootfs"))
            .count()
    };
    while done.load(Ordering::SeqCst) < STARTS {
        let begun = begun();
        let ended = done.load(Ordering::SeqCst);
        // One may have ended and not said so yet.
        assert!(begun <= ended + 2, "{begun} begun, {ended} ended");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    starts.join_all().await;
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sentry_has_a_large_descriptor_table_and_no_descriptor_of_ours() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let pid = format!("/run/sandbase/{}/executions/{}/pid", host.tag(), spec.id);
    let pid = std::fs::read_to_string(pid).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status
        .lines()
        .find_map(|line| line.strip_prefix("FDSize:"))
        .unwrap();
    assert!(size.trim().parse::<u32>().unwrap() >= 1024, "{size}");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let highest = open
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|number| number.parse::<u32>().unwrap())
        .max();
    assert!(highest < Some(1000), "{highest:?}");
    host.close().await;
}
