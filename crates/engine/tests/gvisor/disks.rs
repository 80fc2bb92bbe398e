//! Disks: their size, their layers, and what changed on them.

use std::path::Path;
use std::process::Command;
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

fn run(program: &str, arguments: &[&str], image: &Path) {
    let output = Command::new(program).args(arguments).arg(image).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
}

/// Lines of mountinfo for what is mounted for one execution.
fn mounts_of(id: &ExecutionId) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_id = |line: &&str| line.contains(id.as_str()) && !line.contains(" nsfs ");
    table.lines().filter(of_id).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_disk_decides_what_the_host_does_at_its_errors() {
    let host = Host::new();
    let sealed = host.boot("sealed").await;
    host.engine.destroy(&sealed.id).await.unwrap();
    let mut spec = host.spec("disk");
    spec.sealed = vec![sealed.disk.clone()];
    let size = spec.limits.disk_bytes;
    host.engine.create_disk(&spec.disk, size).await.unwrap();
    for disk in [&spec.disk, &sealed.disk] {
        run("tune2fs", &["-e", "panic"], &disk.join("disk.img"));
    }
    host.engine.start(&spec, StartFrom::Boot).await.unwrap();
    host.answers(&spec.id).await;
    let mounts = mounts_of(&spec.id);
    let mut disks = 0;
    for mount in &mounts {
        for option in ["nodev", "nosuid"] {
            assert!(mount.contains(option), "{option} is missing: {mount}");
        }
        let words: Vec<_> = mount.split(' ').collect();
        let Some(device) = words.iter().find_map(|word| word.strip_prefix("/dev/loop")) else {
            continue;
        };
        disks += 1;
        assert!(mount.contains("noexec"), "{mount}");
        let options = std::fs::read_to_string(format!("/proc/fs/ext4/loop{device}/options"));
        let options = options.unwrap();
        let errors: Vec<_> = options.lines().filter(|it| it.contains("errors")).collect();
        assert!(
            errors == ["errors=remount-ro"] || errors == ["errors=continue"],
            "{errors:?}"
        );
    }
    assert_eq!(disks, 2, "{mounts:?}");

    // Inside, programs run and set-user-id counts, on the disk too.
    let inside = r#"
import shutil, subprocess, sys
shutil.copy(os.path.realpath(sys.executable), '/srv/own'); os.chmod('/srv/own', 0o4755)
drop = dict(user=1000, group=1000)
r = subprocess.run(['/srv/own', '-c', 'import os; print(os.getuid(), os.geteuid())'], **drop,
    capture_output=True, text=True, env={'PYTHONHOME': sys.prefix}).stdout.split()
"#;
    assert_eq!(host.run(&spec.id, inside).await, json!(["1000", "0"]));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_asks_the_host_for_something_is_refused() {
    let host = Host::new();
    let used = host.boot("used").await;
    let write = "open('/root/f', 'w').write('x' * 100000); os.sync()";
    host.run(&used.id, write).await;
    let copy = |name: &str| {
        let disk = host.directory(name);
        std::fs::copy(used.disk.join("disk.img"), disk.join("disk.img")).unwrap();
        disk
    };
    // As it lies there while it is used: its journal is to be replayed.
    let live = copy("live");
    host.engine.check_given_disk(&live).await.unwrap();
    host.engine.destroy(&used.id).await.unwrap();
    host.engine.check_given_disk(&used.disk).await.unwrap();

    let attacks: [(&str, &str, &[&str]); 6] = [
        ("panic", "tune2fs", &["-e", "panic"]),
        ("options", "tune2fs", &["-E", "mount_opts=nobarrier"]),
        ("defaults", "tune2fs", &["-o", "journal_data"]),
        ("mmp", "tune2fs", &["-O", "mmp"]),
        ("root", "debugfs", &["-w", "-R", "clri <2>"]),
        ("swap", "mkswap", &[]),
    ];
    for (name, program, arguments) in attacks {
        let disk = copy(name);
        run(program, arguments, &disk.join("disk.img"));
        let refused = host.engine.check_given_disk(&disk).await;
        assert!(
            matches!(refused, Err(EngineError::DiskDamaged { .. })),
            "{name}: {refused:?}"
        );
    }
    host.close().await;
}
