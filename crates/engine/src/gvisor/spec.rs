//! The OCI runtime specification of an execution.
//!
//! runsc refuses to restore when the specification differs from the one at the checkpoint in more
//! than a short list of fields. So it depends on nothing but the execution's own specification and
//! the configuration, each image carries the one it was made with (see `image`), and a restore only
//! replaces what may differ.

use serde_json::{Value, json};

use super::Config;
use super::paths::{ExecutionDir, Paths};
use crate::ExecutionSpec;

/// What Docker grants, without raw sockets and device nodes (gVisor refuses both anyway), and with
/// ptrace for debuggers, which reaches no further than the guest.
const CAPABILITIES: [&str; 13] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// The guest's own limit, kept by the sentry. It must be the same on every host that restores an
/// image, so it does not follow the host's limit.
const OPEN_FILES: u64 = 1 << 20;
/// A guest that reaches the host's limit of tasks takes the whole sandbox down, so it is never low.
const FEWEST_PIDS: u32 = 2048;
const CPU_PERIOD_US: u64 = 100_000;

/// Specification for a first start.
pub(super) fn for_boot(
    spec: &ExecutionSpec,
    directory: &ExecutionDir,
    paths: &Paths,
    config: &Config,
    netns: &str,
) -> Value {
    let mut oci = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": config.init,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": OPEN_FILES }],
            // sudo has to work.
            "noNewPrivileges": false,
        },
        // Every tmpfs is memory of the sandbox and gets a size. /tmp and /run stay on the disk.
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "mode=755", "size=1m"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "nodev", "mode=1777", "size=64m"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list",
                            "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                              "/proc/sysrq-trigger"],
        },
    });
    place(&mut oci, spec, directory, paths, config, netns);
    oci
}

/// Replaces, in the specification an image was made with, all that may differ at its restore.
pub(super) fn for_restore(
    mut saved: Value,
    spec: &ExecutionSpec,
    directory: &ExecutionDir,
    paths: &Paths,
    config: &Config,
    netns: &str,
) -> Value {
    place(&mut saved, spec, directory, paths, config, netns);
    saved
}

/// Sets where this one execution runs and what it may use.
fn place(
    oci: &mut Value,
    spec: &ExecutionSpec,
    directory: &ExecutionDir,
    paths: &Paths,
    config: &Config,
    netns: &str,
) {
    let limits = &spec.limits;
    let memory = limits
        .memory_bytes
        .saturating_add(headroom(limits.memory_bytes, config));
    let quota = u64::from(limits.cpu_milli) * CPU_PERIOD_US / 1000;
    oci["hostname"] = json!(spec.hostname);
    oci["root"] = json!({ "path": directory.rootfs(), "readonly": false });
    oci["linux"]["cgroupsPath"] = json!(paths.cgroup(&spec.id));
    oci["linux"]["namespaces"] = json!([
        { "type": "pid" },
        { "type": "ipc" },
        { "type": "uts" },
        { "type": "mount" },
        { "type": "network", "path": paths.netns(netns) },
    ]);
    oci["linux"]["resources"] = json!({
        "memory": { "limit": memory },
        "cpu": { "quota": quota.max(1000), "period": CPU_PERIOD_US },
        "pids": { "limit": limits.pids.max(FEWEST_PIDS) },
    });
}

/// What the engine itself may need beside the guest's memory.
fn headroom(memory_bytes: u64, config: &Config) -> u64 {
    config.memory_headroom_bytes.max(memory_bytes / 10)
}
