//! Disks: their size, their layers, and what changed on them.

use std::time::SystemTime;

use engine::{Engine, EngineError, ExecutionId, ExecutionSpec, StartFrom};
use serde_json::json;

use crate::host::{Host, MIB};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_inside_and_df_tells_the_truth() {
    let host = Host::new();
    let mut spec = host.spec("disk");
    spec.limits.disk_bytes = 200 * MIB;
    host.boot_with(&spec).await;
    let other = host.boot("other").await;

    let fill = r#"
stat = os.statvfs("/"); total = stat.f_blocks * stat.f_frsize; written = 0
try:
    with open("/root/big", "wb") as big:
        while True: written += big.write(bytes(1 << 20)); big.flush()
except OSError as error: r = [error.errno, total >> 20, written >> 20]
"#;
    let full = host.run(&spec.id, fill).await;
    assert_eq!(full[0], libc::ENOSPC);
    let (total, written) = (full[1].as_u64().unwrap(), full[2].as_u64().unwrap());
    assert!((150..=200).contains(&total), "df says {total} MiB");
    assert!((150..=200).contains(&written), "{written} MiB fitted");
    // Both go on, and space that is freed can be used again.
    let again = "os.unlink('/root/big'); open('/root/f', 'wb').write(bytes(50 << 20)); r = 'ok'";
    assert_eq!(host.run(&spec.id, again).await, json!("ok"));
    assert_eq!(
        host.run(&other.id, "open('/f', 'w').write('x')\nr = 'ok'")
            .await,
        json!("ok")
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_disk_are_seen() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(
        &spec.id,
        "open('/root/f', 'w').write('x'); os.makedirs('/srv/a/b')",
    )
    .await;
    host.engine.freeze(&spec.id).await.unwrap();
    host.engine.sync_disk(&spec.id).await.unwrap();
    let instant = SystemTime::now();
    let image = host.directory("image");
    host.engine.checkpoint(&spec.id, &image).await.unwrap();
    host.engine.destroy(&spec.id).await.unwrap();
    assert!(
        !host
            .engine
            .disk_changed_since(&spec.disk, instant)
            .await
            .unwrap()
    );
    assert!(
        host.engine
            .disk_changed_since(&spec.disk, SystemTime::UNIX_EPOCH)
            .await
            .unwrap()
    );

    // A guest that only computes leaves the disk as it was.
    let again = host.restore(&spec, &image).await;
    host.engine.freeze(&again.id).await.unwrap();
    let written = host.engine.has_written_since(&again.id, instant).await;
    assert!(!written.unwrap());
    host.engine.destroy(&again.id).await.unwrap();
    assert!(
        !host
            .engine
            .disk_changed_since(&spec.disk, instant)
            .await
            .unwrap()
    );

    for change in [
        "os.rmdir('/srv/a/b')",
        "os.chmod('/srv/a', 0o700)",
        "open('/f', 'w')",
    ] {
        let before = SystemTime::now();
        let spec = ExecutionSpec {
            id: ExecutionId::random(),
            ..spec.clone()
        };
        host.engine.start(&spec, StartFrom::Boot).await.unwrap();
        host.answers(&spec.id).await;
        host.run(&spec.id, change).await;
        host.engine.freeze(&spec.id).await.unwrap();
        let written = host.engine.has_written_since(&spec.id, before).await;
        assert!(written.unwrap(), "{change}");
        host.engine.destroy(&spec.id).await.unwrap();
        let changed = host
            .engine
            .disk_changed_since(&spec.disk, before)
            .await
            .unwrap();
        assert!(changed, "{change} was not seen");
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_lie_over_each_other_and_take_changes() {
    let host = Host::new();
    // Separators of mount options in the name.
    let layer = host.directory("a,b:c\\d");
    std::fs::create_dir_all(layer.join("opt/lower")).unwrap();
    std::fs::write(layer.join("opt/lower/file"), "from the layer").unwrap();
    let mut spec = host.spec("disk");
    spec.layers.insert(0, layer.clone());
    host.boot_with(&spec).await;
    let change = r#"
os.rename("/opt/lower", "/opt/moved")
os.setxattr("/opt/moved/file", "user.key", b"value")
os.mkfifo("/opt/fifo"); os.link("/opt/moved/file", "/opt/link"); os.unlink("/etc/passwd")
r = open("/opt/moved/file").read()
"#;
    assert_eq!(host.run(&spec.id, change).await, json!("from the layer"));
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    let spec = host.restore(&spec, &image).await;
    let look = r#"
r = [open("/opt/link").read(), os.getxattr("/opt/moved/file", "user.key").decode(),
     os.path.exists("/opt/lower"), os.path.exists("/etc/passwd")]
"#;
    let expected = json!(["from the layer", "value", false, false]);
    assert_eq!(host.run(&spec.id, look).await, expected);
    assert!(
        layer.join("opt/lower/file").exists(),
        "the layer was changed"
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_in_use_is_not_mounted_twice() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let second = ExecutionSpec {
        id: ExecutionId::random(),
        ..spec.clone()
    };
    let error = host
        .engine
        .start(&second, StartFrom::Boot)
        .await
        .unwrap_err();
    assert!(!error.guest_may_have_run);
    assert!(
        error.source.to_string().contains("is in use"),
        "{}",
        error.source
    );
    assert!(host.engine.remove_disk(&spec.disk).await.is_err());
    host.run(&spec.id, "open('/root/f', 'w').write('x')").await;

    host.engine.destroy(&spec.id).await.unwrap();
    host.engine.remove_disk(&spec.disk).await.unwrap();
    assert!(!spec.disk.exists());
    host.engine.remove_disk(&spec.disk).await.unwrap();
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_mounts_in_other_namespaces_do_not_hold_a_disk() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    // Such a program keeps what is mounted now, and with it the loop device.
    let keeper = Keeper::start();
    let mounts = || std::fs::read_to_string(format!("/proc/{}/mountinfo", keeper.0.id())).unwrap();
    let begin = std::time::Instant::now();
    while !mounts().contains(spec.id.as_str()) || !keeper.has_own_namespace() {
        assert!(begin.elapsed() < crate::host::PATIENCE);
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let begin = std::time::Instant::now();
    host.engine.destroy(&spec.id).await.unwrap();
    assert!(
        begin.elapsed() < std::time::Duration::from_secs(3),
        "took {:?}",
        begin.elapsed()
    );
    let left = crate::traces::all(&host.tag(), &host.path(""));
    assert!(
        !left.iter().any(|trace| trace.starts_with("loop")),
        "{left:#?}"
    );
    assert!(!mounts().contains(spec.id.as_str()));

    let again = ExecutionSpec {
        id: ExecutionId::random(),
        ..spec
    };
    host.engine.start(&again, StartFrom::Boot).await.unwrap();
    host.answers(&again.id).await;
    host.close().await;
}

/// A program with a mount namespace of its own.
struct Keeper(std::process::Child);

impl Keeper {
    fn start() -> Self {
        let mut unshare = std::process::Command::new("unshare");
        Self(unshare.args(["-m", "sleep", "1000"]).spawn().unwrap())
    }

    fn has_own_namespace(&self) -> bool {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        namespace("self") != namespace(&self.0.id().to_string())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_not_made_over_another() {
    let host = Host::new();
    let disk = host.path("disk");
    host.engine.create_disk(&disk, 64 * MIB).await.unwrap();
    let inode = |path: &std::path::Path| {
        use std::os::unix::fs::MetadataExt;
        path.join("disk.img").metadata().unwrap().ino()
    };
    let before = inode(&disk);
    let error = host.engine.create_disk(&disk, 64 * MIB).await.unwrap_err();
    assert!(matches!(error, EngineError::Failed { .. }), "{error}");
    assert_eq!(inode(&disk), before);
    host.close().await;
}
