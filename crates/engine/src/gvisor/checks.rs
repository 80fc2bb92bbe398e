//! Whether this host can run sandboxes, for people: each question, its answer and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::large_pages::{self, LargePages};
use super::{Config, builds, cgroup, disk, loopdev, mounts, netns};

/// Free space below which new sandboxes soon fail, in bytes.
const LITTLE_SPACE: u64 = 5 << 30;
/// Oldest kernel the used features exist in: overlayfs over user xattrs, pidfds, LOOP_CONFIGURE.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// Size of the disk that is made and mounted for a try.
const TRIAL_DISK: u64 = 64 << 20;

/// One question about the host.
#[derive(Clone, Debug)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// Whether it is as it has to be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What a person can do about it; empty when all is well.
    pub remedy: &'static str,
}

/// Answers every question, trying things out where a look would not tell. Leaves nothing behind
/// and needs no open engine. Blocks for about a second.
pub fn host_checks(config: &Config) -> Vec<Check> {
    let check = |name, remedy, result: Result<String, String>| match result {
        Ok(detail) => Check {
            name,
            ok: true,
            detail,
            remedy: "",
        },
        Err(detail) => Check {
            name,
            ok: false,
            detail,
            remedy,
        },
    };
    vec![
        check("root", "run sandbase as root", root()),
        check("kernel", "use Linux 5.15 or later", kernel()),
        check(
            "runsc",
            "run the set-up script, which installs gVisor",
            runsc(config),
        ),
        check("ip", "install iproute2", tool("ip", &["-V"])),
        check("nft", "install nftables", tool("nft", &["--version"])),
        check("mke2fs", "install e2fsprogs", tool("mke2fs", &["-V"])),
        check("e2fsck", "install e2fsprogs", tool("e2fsck", &["-V"])),
        check(
            "cgroups",
            "enable the cpu, memory and pids controllers (kernel command line, or the delegation \
             of the container this runs in)",
            controllers(),
        ),
        check(
            "disks",
            "load the modules loop, ext4 and overlay; in a container, allow mounts and loop devices",
            trial_disk(config),
        ),
        check(
            "network",
            "load the modules veth, nf_tables and nft_masq; in a container, allow network \
             namespaces",
            trial_network(),
        ),
        check(
            "forwarding",
            "allow writing net.ipv4.ip_forward",
            forwarding(),
        ),
        check(
            "firewall",
            "accept forwarded packets of interfaces named sb*: in Docker's case, with \
             `iptables -I DOCKER-USER -i sb+ -j ACCEPT` and the same with `-o sb+`",
            firewall(),
        ),
        check(
            "large pages",
            "allow reading /sys/kernel/mm/transparent_hugepage",
            large(config),
        ),
        check(
            "space",
            "free some space or move the data directory",
            space(config),
        ),
    ]
}

fn text(error: io::Error) -> String {
    error.to_string()
}

fn root() -> Result<String, String> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        Ok("yes".to_owned())
    } else {
        Err(format!("user {}", user.as_raw()))
    }
}

fn kernel() -> Result<String, String> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    if (next(), next()) >= OLDEST_KERNEL {
        Ok(release)
    } else {
        Err(release)
    }
}

fn runsc(config: &Config) -> Result<String, String> {
    if !config.runsc.is_file() {
        return Err(format!("{} does not exist", config.runsc.display()));
    }
    let version = builds::probe(&config.runsc)?;
    Ok(format!("{} version {version}", config.runsc.display()))
}

fn tool(name: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(text)?;
    // mke2fs tells its version on standard error.
    let mut words = output.stdout;
    words.extend_from_slice(&output.stderr);
    Ok(String::from_utf8_lossy(&words)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned())
}

fn controllers() -> Result<String, String> {
    let missing = cgroup::missing_controllers();
    if missing.is_empty() {
        Ok("cpu, memory, pids".to_owned())
    } else {
        Err(format!("missing: {}", missing.join(", ")))
    }
}

/// Makes a disk, mounts it with an overlay as a sandbox's, and sets a user attribute there.
fn trial_disk(config: &Config) -> Result<String, String> {
    // The data directory may not exist yet; what counts is the filesystem it will be on.
    let existing = config.data_dir.ancestors().find(|path| path.is_dir());
    let parent = existing.unwrap_or(Path::new("/"));
    let trial = parent.join(format!(".sandbase-check-{}", std::process::id()));
    let (trial_disk, layer) = (trial.join("disk"), trial.join("layer"));
    let (mounted, rootfs) = (trial.join("mounted"), trial.join("rootfs"));
    let attempt = || -> Result<(), String> {
        for directory in [&layer, &mounted, &rootfs] {
            std::fs::create_dir_all(directory).map_err(text)?;
        }
        disk::create(&trial_disk, TRIAL_DISK).map_err(|error| error.to_string())?;
        mounts::mount_disk(
            &disk::image(&trial_disk),
            &mounted,
            mounts::Access::ReadWrite,
        )
        .and_then(|()| disk::mount_rootfs(&[layer], &mounted, &rootfs))
        .map_err(|error| format!("mounting a disk and an overlay: {error}"))?;
        let file = rootfs.join("file");
        std::fs::write(&file, "").map_err(text)?;
        rustix::fs::setxattr(
            &file,
            "user.sandbase",
            b"1",
            rustix::fs::XattrFlags::empty(),
        )
        .map_err(|error| format!("setting a user attribute: {error}"))
    };
    let result = attempt();
    // Nothing is removed recursively before it is certain that nothing is mounted below.
    let cleaned = mounts::unmount_and_remove(&rootfs)
        .and_then(|()| mounts::unmount_and_remove(&mounted))
        .and_then(|()| loopdev::wait_released(&disk::image(&trial_disk)))
        .and_then(|()| match std::fs::remove_dir_all(&trial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
    result?;
    cleaned.map_err(|error| format!("{} was left behind: {error}", trial.display()))?;
    Ok(format!(
        "loop devices, ext4, overlayfs and attributes work at {}",
        parent.display()
    ))
}

/// Makes a namespace with a veth pair and a table as a sandbox's.
fn trial_network() -> Result<String, String> {
    let path = PathBuf::from(format!("/run/sandbase-check-{}", std::process::id()));
    let attempt = netns::create(&path, || {
        netns::run_tool(
            "ip",
            &["-batch", "-"],
            "link add sbcheck0 type veth peer name sbcheck1\n",
        )?;
        netns::run_tool(
            "nft",
            &["-f", "-"],
            "table ip sandbase {
               chain postrouting {
                 type nat hook postrouting priority srcnat
                 oifname sbcheck0 masquerade
               }
               chain forward {
                 type filter hook forward priority filter
                 ct state established accept
                 iifname sbcheck0 reject with icmp admin-prohibited
               }
             }",
        )
    });
    let cleaned = netns::remove(&path);
    attempt.map_err(text)?;
    cleaned.map_err(|error| format!("{} was left behind: {error}", path.display()))?;
    Ok("namespaces, veth and nftables work".to_owned())
}

fn forwarding() -> Result<String, String> {
    let key = "/proc/sys/net/ipv4/ip_forward";
    let value = std::fs::read_to_string(key).map_err(text)?;
    // Writing what is there changes nothing and tells whether it can be written.
    std::fs::write(key, &value).map_err(|error| format!("{key}: {error}"))?;
    Ok(if value.trim() == "1" {
        "on"
    } else {
        "off; the server turns it on"
    }
    .to_owned())
}

/// Another table that drops forwarded packets has the last word over ours, unless it names us.
fn firewall() -> Result<String, String> {
    let output = Command::new("nft")
        .args(["list", "ruleset"])
        .stdin(Stdio::null())
        .output();
    let rules = String::from_utf8_lossy(&output.map_err(text)?.stdout).into_owned();
    let drops = |line: &str| line.contains("hook forward") && line.contains("policy drop");
    let names_us = |line: &str| line.contains("\"sb*\"") && line.contains("accept");
    if rules.lines().any(drops) && !rules.lines().any(names_us) {
        return Err("a firewall on this host drops forwarded packets by default".to_owned());
    }
    Ok("forwarded packets of sandboxes are accepted".to_owned())
}

/// Never missing: without them all works, only slower where guests hold much memory.
fn large(config: &Config) -> Result<String, String> {
    Ok(match large_pages::look().map_err(text)? {
        LargePages::On => "on",
        LargePages::Off if config.large_pages => "off; the server turns them on",
        LargePages::Off => "off, as configured",
        LargePages::Chosen => "left as they were set on this host",
        LargePages::Unknown => {
            "this kernel has none; sandboxes with much memory pause and resume slower"
        }
    }
    .to_owned())
}

fn space(config: &Config) -> Result<String, String> {
    let existing = config.data_dir.ancestors().find(|path| path.is_dir());
    let stat = rustix::fs::statvfs(existing.unwrap_or(Path::new("/")))
        .map_err(|error| error.to_string())?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{} GiB free for {}", free >> 30, config.data_dir.display());
    if free < LITTLE_SPACE {
        Err(detail)
    } else {
        Ok(detail)
    }
}
