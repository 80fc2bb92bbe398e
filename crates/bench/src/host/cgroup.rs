//! The executions of SandBase's sandboxes on this host, by what can be seen of them from outside.

use std::path::{Path, PathBuf};
use std::time::Duration;

const CGROUPS: &str = "/sys/fs/cgroup";

/// The execution of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Execution {
    /// Its cgroup, relative to a hierarchy.
    cgroup: PathBuf,
}

impl Execution {
    /// Finds the execution of a sandbox. The loop device of its disk has the sandbox's id in the name
    /// of its file, and is mounted below `/run/sandbase/<tag>/executions/<execution>/`; its cgroup
    /// is `sandbase-<tag>/<execution>`.
    pub(crate) fn of(sandbox: &str) -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (device, point) = (fields.next()?, Path::new(fields.next()?));
            let cgroup = cgroup_of_mount(point)?;
            let device = device.strip_prefix("/dev/")?;
            let file = format!("/sys/block/{device}/loop/backing_file");
            let file = std::fs::read_to_string(file).ok()?;
            let belongs = file.contains(&format!("/sandboxes/{sandbox}/"));
            belongs.then_some(Self { cgroup })
        })
    }

    /// Its processes: sentry, gofer, and the stubs that run the guest's code.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let path = self.directory("memory").join("cgroup.procs");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// What the kernel keeps for it: page tables, stacks, sockets.
    pub(crate) fn kernel_bytes(&self) -> u64 {
        let directory = self.directory("memory");
        let v1 = std::fs::read_to_string(directory.join("memory.kmem.usage_in_bytes"));
        let v1 = v1.ok().and_then(|text| text.trim().parse().ok());
        v1.or_else(|| lookup(&directory.join("memory.stat"), "kernel"))
            .unwrap_or(0)
    }

    /// CPU time since it was made.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let directory = self.directory("cpuacct");
        let v1 = std::fs::read_to_string(directory.join("cpuacct.usage"));
        if let Some(nanoseconds) = v1.ok().and_then(|text| text.trim().parse().ok()) {
            return Some(Duration::from_nanos(nanoseconds));
        }
        lookup(&directory.join("cpu.stat"), "usage_usec").map(Duration::from_micros)
    }

    fn directory(&self, controller: &str) -> PathBuf {
        let root = Path::new(CGROUPS);
        if root.join("cgroup.controllers").exists() {
            root.join(&self.cgroup)
        } else {
            root.join(controller).join(&self.cgroup)
        }
    }
}

fn cgroup_of_mount(point: &Path) -> Option<PathBuf> {
    let below = point.strip_prefix("/run/sandbase").ok()?;
    let mut names = below.iter().map(|name| name.to_str());
    let (tag, executions, id) = (names.next()??, names.next()??, names.next()??);
    let cgroup = Path::new(&format!("sandbase-{tag}")).join(id);
    (executions == "executions").then_some(cgroup)
}

fn lookup(file: &Path, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// Bytes that programs of this host could still get.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_disk_names_the_cgroup() {
        let point = Path::new("/run/sandbase/0a1b2c3d/executions/xabc/disk");
        let cgroup = Some(PathBuf::from("sandbase-0a1b2c3d/xabc"));
        assert_eq!(cgroup_of_mount(point), cgroup);
        assert_eq!(
            cgroup_of_mount(Path::new("/run/sandbase/0a1b2c3d/runsc")),
            None
        );
        assert_eq!(cgroup_of_mount(Path::new("/home")), None);
    }
}
