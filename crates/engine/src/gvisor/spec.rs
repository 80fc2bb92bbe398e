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

/// Refuses a specification that no boot of ours could have made and that would reach the host: images
/// may come from somebody else, and what runsc mounts and runs for a guest, it does as root.
pub(super) fn check_saved(saved: &Value) -> Result<(), String> {
    const WHOLE: &[&str] = &[
        "ociVersion",
        "process",
        "root",
        "mounts",
        "linux",
        "hostname",
    ];
    const LINUX: &[&str] = &[
        "maskedPaths",
        "readonlyPaths",
        "cgroupsPath",
        "namespaces",
        "resources",
    ];
    const MOUNT: &[&str] = &["destination", "type", "source", "options"];
    /// File systems of the guest's own kernel.
    const INTERNAL: &[&str] = &["proc", "tmpfs", "devpts", "sysfs"];
    only(saved, WHOLE)?;
    only(&saved["linux"], LINUX)?;
    for mount in saved["mounts"].as_array().ok_or("it has no mounts")? {
        only(mount, MOUNT)?;
        let internal = mount["type"]
            .as_str()
            .is_some_and(|kind| INTERNAL.contains(&kind));
        let binds = mount["options"].as_array().is_some_and(|options| {
            let binds = |option: &Value| option == "bind" || option == "rbind";
            options.iter().any(binds)
        });
        if !internal || binds {
            return Err(format!("it mounts {mount}"));
        }
    }
    Ok(())
}

fn only(value: &Value, known: &[&str]) -> Result<(), String> {
    let fields = value.as_object().ok_or("a part of it is no object")?;
    match fields.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => Err(format!("it has the field {unknown}")),
        None => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{BuildId, ExecutionId, Limits, NetworkPolicy};

    fn booted() -> Value {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path(), "/nowhere/runsc");
        let paths = Paths::new(&config).unwrap();
        let spec = ExecutionSpec {
            id: ExecutionId::random(),
            build: BuildId("b".to_owned()),
            layers: Vec::new(),
            sealed: Vec::new(),
            disk: Path::new("/disk").to_owned(),
            hostname: "h".to_owned(),
            limits: Limits {
                cpu_milli: 1000,
                memory_bytes: 1 << 28,
                disk_bytes: 1 << 28,
                pids: 100,
            },
            network: NetworkPolicy::Closed,
        };
        let directory = paths.execution(&spec.id);
        for_boot(&spec, &directory, &paths, &config, "n")
    }

    #[test]
    fn what_a_boot_makes_may_be_restored() {
        check_saved(&booted()).unwrap();
    }

    #[test]
    fn what_would_reach_the_host_may_not() {
        let bind = json!({ "destination": "/host", "type": "bind", "source": "/" });
        let option = json!({ "destination": "/host", "type": "tmpfs", "source": "/",
                             "options": ["rbind"] });
        let hooks = json!({ "prestart": [{ "path": "/bin/sh" }] });
        for (part, field, value) in [
            ("", "hooks", hooks),
            ("", "annotations", json!({})),
            ("", "mounts", Value::Null),
            ("/linux", "devices", json!([])),
            ("/mounts/0", "type", bind["type"].clone()),
            ("/mounts/0", "options", option["options"].clone()),
            ("", "mounts", json!([bind])),
            ("", "mounts", json!([option])),
        ] {
            let mut oci = booted();
            oci.pointer_mut(part).unwrap()[field] = value;
            assert!(check_saved(&oci).is_err(), "{part} {field}");
        }
        assert!(check_saved(&Value::Null).is_err());
    }
}
