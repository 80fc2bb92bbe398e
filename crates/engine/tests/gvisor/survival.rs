//! What of a guest survives checkpoint, destruction and restore.

use std::time::Duration;

use engine::{Engine, ExecutionSpec};
use serde_json::json;

use crate::host::Host;

/// Sets up one of everything in the guest.
pub(crate) const SET_UP: &str = r#"
import fcntl, select, signal, subprocess, struct, mmap, uuid
# Files: appended, in the middle, open but unlinked, locked, and on tmpfs.
log = open("/var/log/test.log", "a+"); log.write("one\n"); log.flush()
middle = open("/tmp/middle", "w+"); middle.write("0123456789"); middle.seek(4)
gone = open("/tmp/gone", "w+"); gone.write("still here"); gone.flush(); os.unlink("/tmp/gone")
shm = open("/dev/shm/x", "w+b"); shm.write(b"shared" + bytes(4090)); shm.flush()
mapped = mmap.mmap(shm.fileno(), 4096)
# Connections inside.
inner = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(inner.getsockname()); far, _ = inner.accept()
unix = socket.socket(socket.AF_UNIX); unix.bind("/tmp/unix"); unix.listen()
unix_near = socket.socket(socket.AF_UNIX); unix_near.connect("/tmp/unix"); unix_far, _ = unix.accept()
pair = socket.socketpair(); pipe = os.pipe(); os.write(pipe[1], b"in the pipe")
own = socket.create_server(("169.254.0.21", 9001))
# Processes and timers.
child = subprocess.Popen(["sleep", "1000"])
shell = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
shell.stdin.write(b"X=kept\n"); shell.stdin.flush()
event = threading.Event(); timer = threading.Timer(0.1, event.set)
boot_id = open("/proc/sys/kernel/random/boot_id").read()
random = os.urandom(8)
r = os.getpid()
"#;

pub(crate) const LOOK: &str = r#"
log.write("two\n"); log.flush(); log.seek(0)
gone.seek(0); shell.stdin.write(b"echo $X\n"); shell.stdin.flush()
near.sendall(b"a"); unix_near.sendall(b"b"); pair[0].sendall(b"c"); timer.start()
r = dict(
    log=log.read(), middle=middle.read(), gone=gone.read(), mapped=mapped[:6].decode(),
    near=far.recv(1).decode(), unix=unix_far.recv(1).decode(), pair=pair[1].recv(1).decode(),
    pipe=os.read(pipe[0], 100).decode(), child=child.poll(), shell=shell.stdout.readline().decode(),
    timer=event.wait(5), same_boot=boot_id == open("/proc/sys/kernel/random/boot_id").read(),
    pid=os.getpid(), hostname=socket.gethostname(),
)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn programs_files_and_connections_survive() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(&spec.id, SET_UP).await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;

    let renamed = ExecutionSpec {
        hostname: "renamed".to_owned(),
        ..spec
    };
    let spec = host.restore(&renamed, &image).await;
    let expected = json!({
        "log": "one\ntwo\n", "middle": "456789", "gone": "still here", "mapped": "shared",
        "near": "a", "unix": "b", "pair": "c", "pipe": "in the pipe", "child": null,
        "shell": "kept\n", "timer": true, "same_boot": true, "pid": 1, "hostname": "renamed",
    });
    assert_eq!(host.run(&spec.id, LOOK).await, expected);
    // The listener on the address of the interface is there, too.
    host.engine.dial(&spec.id, 9001).await.unwrap();
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_disk_stay_one_over_many_pauses() {
    let host = Host::new();
    let mut spec = host.boot("disk").await;
    // A writer that notices by itself when disk and memory do not belong together.
    host.run(
        &spec.id,
        r#"
lines = 0
def write():
    global lines
    with open("/root/journal", "a+") as journal:
        while True:
            journal.write(f"{lines}\n"); journal.flush(); lines += 1
            if lines % 50 == 0: time.sleep(0.001)
threading.Thread(target=write, daemon=True).start()
"#,
    )
    .await;
    let mut counter = 0;
    for round in 0..3 {
        let seen = host
            .run(&spec.id, "r = state['counter']")
            .await
            .as_u64()
            .unwrap();
        assert!(
            seen >= counter,
            "the counter went back from {counter} to {seen}"
        );
        counter = seen;
        let image = host.directory(&format!("image{round}"));
        host.pause(&spec, &image).await;
        spec = host.restore(&spec, &image).await;
        host.engine.image_released(&spec.id).await.unwrap();
        std::fs::remove_dir_all(&image).unwrap();
    }
    let check = r#"
content = open("/root/journal").read().split("\n")[:-1]
r = content == [str(n) for n in range(len(content))] and len(content) > 100
"#;
    assert_eq!(host.run(&spec.id, check).await, json!(true));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_writes_nothing_between_image_and_destruction() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(
        &spec.id,
        r#"
def write():
    with open("/root/journal", "a") as journal:
        while True: journal.write("x"); journal.flush(); time.sleep(0.0005)
threading.Thread(target=write, daemon=True).start()
"#,
    )
    .await;
    let journal = std::path::PathBuf::from(format!(
        "/run/sandbase/{}/executions/{}/rootfs/root/journal",
        host.tag(),
        spec.id
    ));
    let size = || journal.metadata().map_or(0, |metadata| metadata.len());
    host.engine.freeze(&spec.id).await.unwrap();
    host.engine
        .checkpoint(&spec.id, &host.directory("image"))
        .await
        .unwrap();
    let after_image = size();
    // A guest that runs writes a hundred bytes in this time.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(size(), after_image);
    // Proof that it would have been seen.
    host.engine.thaw(&spec.id).await.unwrap();
    host.answers(&spec.id).await;
    let begin = std::time::Instant::now();
    while size() == after_image {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "the guest does not write"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_executions_of_one_image_live_side_by_side() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    host.run(
        &spec.id,
        "x = 'common'; open('/root/f', 'w').write('common')",
    )
    .await;
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    host.engine
        .copy_disk(&spec.disk, &host.path("copy"))
        .await
        .unwrap();

    let other = ExecutionSpec {
        disk: host.path("copy"),
        ..spec.clone()
    };
    let (one, two) = tokio::join!(host.restore(&spec, &image), host.restore(&other, &image));
    let write = |who: &str| {
        format!(
            "r = [x, open('/root/f').read(), os.urandom(8).hex()]; x = '{who}'\nopen('/root/f', 'w').write(x)"
        )
    };
    let first = host.run(&one.id, &write("one")).await;
    let second = host.run(&two.id, &write("two")).await;
    assert_eq!((&first[0], &first[1]), (&json!("common"), &json!("common")));
    assert_eq!(
        (&second[0], &second[1]),
        (&json!("common"), &json!("common"))
    );
    assert_ne!(first[2], second[2], "both draw the same randomness");
    let look = "r = [x, open('/root/f').read()]";
    assert_eq!(host.run(&one.id, look).await, json!(["one", "one"]));
    assert_eq!(host.run(&two.id, look).await, json!(["two", "two"]));
    host.close().await;
}
