//! Root inside is root, as far as the guest's own kernel grants, and no further.

use serde_json::{Value, json};

use crate::host::{Host, MIB};

/// Each is run by a shell of its own as root: a name and the commands.
const POWERS: &[(&str, &str)] = &[
    (
        "mount tmpfs",
        "mkdir -p /mnt/t && mount -t tmpfs t /mnt/t && echo kept > /mnt/t/f",
    ),
    (
        "mount bind",
        "mkdir -p /mnt/b && mount --bind /mnt/t /mnt/b && cat /mnt/b/f",
    ),
    (
        "mount overlay",
        "cd /mnt/t && mkdir l u w m && echo low > l/f && \
        mount -t overlay o -o lowerdir=/mnt/t/l,upperdir=/mnt/t/u,workdir=/mnt/t/w /mnt/t/m && echo high > m/g && cat m/f",
    ),
    ("mount namespace", "unshare -m mount -t tmpfs t /opt"),
    ("pid namespace", "test $(unshare -fp sh -c 'echo $$') = 1"),
    ("network namespace", "unshare -n true"),
    ("user namespace", "unshare -Ur true"),
    ("uts namespace", "unshare -u hostname other"),
    ("ipc namespace", "unshare -i true"),
    ("hostname", "hostname changed && test $(hostname) = changed"),
    ("chroot", "chroot / true"),
];

async fn results(host: &Host, spec: &engine::ExecutionSpec) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (name, commands) in POWERS {
        let commands = serde_json::to_string(commands).unwrap();
        let code = format!(
            "import subprocess\np = subprocess.run({commands}, shell=True, capture_output=True, \
             text=True)\nr = [p.returncode, p.stderr]"
        );
        found.push(((*name).to_owned(), host.run(&spec.id, &code).await));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn root_may_do_what_the_guests_own_kernel_grants_and_it_comes_back() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let found = results(&host, &spec).await;
    let refused: Vec<_> = found.iter().filter(|(_, result)| result[0] != 0).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let image = host.directory("image");
    host.pause(&spec, &image).await;
    let spec = host.restore(&spec, &image).await;
    let read = "r = [open('/mnt/' + f).read() for f in ('t/f', 'b/f', 't/m/f', 't/m/g')]";
    let kept = host.run(&spec.id, read).await;
    assert_eq!(kept, json!(["kept\n", "kept\n", "low\n", "high\n"]));
    let name = host
        .run(&spec.id, "import socket\nr = socket.gethostname()")
        .await;
    assert_eq!(name, json!("changed"));
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_memory_is_half_of_the_memory() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let code = "s = os.statvfs('/dev/shm')\nr = s.f_blocks * s.f_frsize";
    let size = host.run(&spec.id, code).await;
    assert_eq!(
        size,
        json!(spec.limits.memory_bytes / 2),
        "{} MiB",
        spec.limits.memory_bytes / MIB
    );
    host.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_gets_no_raw_sockets_and_no_device_of_the_host() {
    let host = Host::new();
    let spec = host.boot("disk").await;
    let code = "import socket\nr = []\n\
        for f, t in ((socket.AF_INET, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW)):\n\
        \x20 try: r.append(bool(socket.socket(f, t)))\n\
        \x20 except OSError: r.append(False)\n\
        try:\n  os.mknod('/root/sda', 0o60600, os.makedev(8, 0)); open('/root/sda')\n  r.append(True)\n\
        except OSError: r.append(False)";
    assert_eq!(host.run(&spec.id, code).await, json!([false, false, false]));
    host.close().await;
}
