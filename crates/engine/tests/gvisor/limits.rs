//! One guest at its limits, and its neighbour.

use engine::{Engine, ExitReason};
use serde_json::json;

use crate::host::{Host, MIB, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn running_out_of_memory_ends_one_sandbox_and_says_so() {
    let host = Host::new();
    let mut spec = host.spec("disk");
    spec.limits.memory_bytes = 128 * MIB;
    host.boot_with(&spec).await;
    let neighbour = host.boot("neighbour").await;
    let _ = host
        .try_run(&spec.id, "x = bytearray(os.urandom(1 << 20)) * 1000")
        .await;
    let reason = tokio::time::timeout(PATIENCE, host.engine.exited(&spec.id)).await;
    assert_eq!(
        reason.expect("the sandbox goes on"),
        ExitReason::OutOfMemory
    );
    assert_eq!(host.run(&neighbour.id, "r = 1").await, json!(1));
    host.engine.destroy(&spec.id).await.unwrap();
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_stays_in_its_sandbox() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let neighbour = host.boot("neighbour").await;
    // Not waited for: whether the bomb hits a limit or the sandbox dies of it, is its own affair.
    let bomb = "import subprocess\nbomb = subprocess.Popen(['sh', '-c', 'b() { b & b & }; b'])";
    let _ = host.try_run(&spec.id, bomb).await;
    for _ in 0..20 {
        assert_eq!(host.run(&neighbour.id, "r = os.getpid()").await, json!(1));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    host.engine.destroy(&spec.id).await.unwrap();
    assert_eq!(host.run(&neighbour.id, "r = os.getpid()").await, json!(1));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_less_memory_is_told_than_the_guest_uses_and_no_cache_when_little_is_left() {
    let host = Host::new();
    let mut spec = host.spec("disk");
    spec.limits.memory_bytes = 256 * MIB;
    host.boot_with(&spec).await;
    // In the host's cache, charged to the sandbox.
    let write =
        "f = open('/root/file', 'wb')\nfor _ in range(100): f.write(bytes(1 << 20))\nf.flush()";
    host.run(&spec.id, write).await;
    host.run(&spec.id, "x = bytearray(os.urandom(1 << 20)) * 30")
        .await;
    let some = host.engine.memory_in_use(&spec.id).unwrap();
    assert!(some >= 30 * MIB, "{some}");
    host.run(&spec.id, "y = bytearray(os.urandom(1 << 20)) * 110")
        .await;
    let used = host.engine.memory_in_use(&spec.id).unwrap();
    let usage = host.engine.usage(&spec.id).await.unwrap();
    assert!(used >= 140 * MIB, "{used}");
    assert!(usage.cache_bytes > 50 * MIB, "{usage:?}");
    assert!(used < usage.memory_bytes + 50 * MIB, "{used} of {usage:?}");
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resident_bytes_bound_the_size_of_an_image() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(&spec.id, "x = os.urandom(100 << 20)").await;
    // File cache does not count.
    let write =
        "with open('/root/f', 'wb') as f:\n    for _ in range(300): f.write(bytes(1 << 20))";
    host.run(&spec.id, write).await;
    let resident = host.engine.resident_bytes(&spec.id).await.unwrap();
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    let files = std::fs::read_dir(&image).unwrap();
    let size: u64 = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size > 100 * MIB, "the image has {size} bytes");
    assert!(
        resident >= size,
        "{resident} bytes resident, {size} in the image"
    );
    assert!(
        resident < size + 250 * MIB,
        "{resident} bytes resident, {size} in the image"
    );
    host.close().await;
}
