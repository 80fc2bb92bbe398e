//! What an engine leaves on the machine, looked for by its tag.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Everything on the machine that still carries the tag, or has to do with the folder.
pub(crate) fn all(tag: &str, folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let mut found = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // runsc pins one empty namespace for the gofers of all sandboxes.
    let mounts = mounts
        .lines()
        .filter(|line| line.contains(tag) && !line.contains("null-netns"));
    found.extend(mounts.map(|line| format!("mount {line}")));
    found.extend(named_in("/run/netns", |name| name.contains(tag)));
    found.extend(named_in("/sys/class/net", |name| {
        name.starts_with(&format!("sb{tag}"))
    }));
    let losetup = Command::new("losetup")
        .args(["-l", "-n", "-O", "NAME,BACK-FILE"])
        .output();
    let losetup = String::from_utf8(losetup.unwrap().stdout).unwrap();
    let losetup = losetup.lines().filter(|line| line.contains(&folder));
    found.extend(losetup.map(|line| format!("loop {line}")));
    let mut hierarchies = named_in("/sys/fs/cgroup", |_| true);
    hierarchies.push("/sys/fs/cgroup".to_owned());
    for hierarchy in hierarchies {
        let groups = format!("{hierarchy}/sandbase-{tag}");
        found.extend(named_in(&groups, |name| name.starts_with('x')));
    }
    for process in named_in("/proc", |name| name.parse::<u32>().is_ok()) {
        let line = std::fs::read(format!("{process}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!("/run/sandbase/{tag}")) {
            found.push(format!("process {line}"));
        }
    }
    for child in ["executions", "inspect", "runsc"] {
        let child = format!("/run/sandbase/{tag}/{child}");
        found.extend(named_in(&child, |name| name != "null-netns"));
    }
    let claims = named_in("/run/sandbase/slots", |_| true).into_iter();
    found.extend(claims.filter(|file| std::fs::read_to_string(file).is_ok_and(|own| own == tag)));
    found
}

/// Waits until nothing is left; the kernel takes interfaces away after their namespace.
pub(crate) fn none_within(tag: &str, folder: &Path, limit: Duration) {
    let begin = Instant::now();
    loop {
        let left = all(tag, folder);
        if left.is_empty() {
            return;
        }
        assert!(begin.elapsed() < limit, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what all executions of a data directory share, and every server would make again.
pub(crate) fn remove_shared(tag: &str) {
    let table = format!("sandbase_{tag}");
    // What is not there makes these complain and nothing else.
    let _ = Command::new("nft")
        .args(["delete", "table", "ip", &table])
        .output();
    let pinned = format!("/run/sandbase/{tag}/runsc/null-netns");
    let _ = Command::new("umount").arg(pinned).output();
    let _ = std::fs::remove_dir_all(format!("/run/sandbase/{tag}"));
    for hierarchy in named_in("/sys/fs/cgroup", |_| true) {
        let _ = std::fs::remove_dir(format!("{hierarchy}/sandbase-{tag}"));
    }
    let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/sandbase-{tag}"));
}

fn named_in(directory: &str, matches: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| matches(name))
        .map(|name| format!("{directory}/{name}"))
        .collect()
}
