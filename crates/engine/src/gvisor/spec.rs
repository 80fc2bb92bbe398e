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

/// All that the guest's own kernel knows to grant, so that root inside is root: it may mount, make
/// namespaces and name the machine. The sentry asks its own tables for them, never the host: its own
/// process keeps the five capabilities that it opens files with, whatever stands here
/// (docs/decisions/019-root-inside-is-root.md).
///
/// Left out is what would reach further or means nothing there: raw sockets, kernel modules, raw I/O,
/// the clock, the host's logs, and limits above those that the host keeps (`CAP_SYS_RESOURCE`).
const CAPABILITIES: [&str; 25] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];
/// Files that a process of the guest may have open. Soft is what programs expect that walk through all
/// possible descriptors or use `select`; who needs more raises it up to hard. The agent does.
const OPEN_FILES: u64 = 1024;
/// The most that is promised, where the host gives enough for it.
const MOST_OPEN_FILES: u64 = 1 << 20;
/// The fewest that are promised, where the host gives next to nothing.
const FEWEST_OPEN_FILES: u64 = 4096;
/// Descriptors of the host that an open file of the guest costs the sentry.
const HOST_FILES_PER_FILE: u64 = 2;
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
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": most_open_files() }],
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
              "options": ["nosuid", "nodev", "mode=1777", shared_memory(spec)] },
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

/// Files that one process of a guest may have open, by the descriptors that the host gives the sentry: a
/// promise that the host does not keep ends the sentry. An image keeps the limit that it was made with.
fn most_open_files() -> u64 {
    let host = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    host.map_or(MOST_OPEN_FILES, |most| most / HOST_FILES_PER_FILE)
        .clamp(FEWEST_OPEN_FILES, MOST_OPEN_FILES)
}

/// Half of the memory, as on any Linux.
fn shared_memory(spec: &ExecutionSpec) -> String {
    format!("size={}", spec.limits.memory_bytes / 2)
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
    fn no_more_files_are_promised_than_the_host_gives() {
        let limit = &booted()["process"]["rlimits"][0];
        let host = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let hard = limit["hard"].as_u64().unwrap();
        assert!(limit["soft"].as_u64().unwrap() < hard);
        if let Some(host) = host.filter(|host| *host >= 2 * FEWEST_OPEN_FILES) {
            assert!(HOST_FILES_PER_FILE * hard <= host, "{hard} of {host}");
        }
    }

    #[test]
    fn shared_memory_is_half_of_the_memory() {
        let oci = booted();
        let options = oci.pointer("/mounts/3/options").unwrap();
        assert_eq!(oci["mounts"][3]["destination"], "/dev/shm");
        assert!(
            options
                .as_array()
                .unwrap()
                .contains(&json!("size=134217728")),
            "{options}"
        );
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
