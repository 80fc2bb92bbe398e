//! Faults at the named steps of transitions, on the real engine and a real file system: SIGKILL of the
//! server, a runsc that fails, a data directory that is full, and one whose device fails to write.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Server, provided};

/// The server may be killed at each fault.
const LONGEST_WALK: Duration = Duration::from_secs(3600);

/// A file system of its own for a data directory: ext4 on a loop device, whose file is on a tmpfs.
/// Filled up, it is truly full; with the tmpfs made as small as what is in it, the device fails
/// whenever a new block is written, and the file system finds that out late. What the file system needs for itself (its journal, bitmaps, inodes) lies
/// at the beginning and has its blocks: without those it would go read-only for good.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sandbase-disk-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let disk = Self { folder };
        std::fs::create_dir(disk.device()).unwrap();
        std::fs::create_dir(disk.mount()).unwrap();
        let (device, mount) = (disk.device(), disk.mount());
        shell(&format!(
            "mount -t tmpfs -o size=2G sandbase-disk {device} && truncate -s 1G {device}/image && \
             mkfs.ext4 -q -m 0 -J size=32 -E packed_meta_blocks=1,nodiscard {device}/image && \
             fallocate -l 128M {device}/image && \
             mount -o loop {device}/image {mount}",
            device = device.display(),
            mount = mount.display(),
        ));
        disk
    }

    fn device(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    fn mount(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Tells a program how to break it and how to mend it.
    fn tell(&self, command: &mut Command) {
        let (device, mount) = (self.device(), self.mount());
        let (device, mount) = (device.display(), mount.display());
        let ballast = format!("{mount}/ballast");
        command
            // The last blocks one by one: what is left is less than anything needs.
            .env("FILL", format!("for size in 64M 1M 4K; do while fallocate -x -l $size {ballast}.$$.$((i=i+1)) 2>/dev/null; do :; done; done; true"))
            .env("FREE", format!("rm -f {ballast}.*"))
            .env("BREAK", format!("mount -o remount,size=$(($(df --output=used -B4096 {device} | tail -n1) * 4))k {device}"))
            .env("MEND", format!("mount -o remount,size=2G {device}"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let (device, mount) = (self.device(), self.mount());
        let ended = Command::new("umount").arg(mount).arg(device).status();
        let unmounted = ended.is_ok_and(|status| status.success());
        assert!(
            unmounted || std::thread::panicking(),
            "the disk of the test is still in use"
        );
    }
}

fn shell(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
}

/// A runsc that does what the line `VERB HOW` in `control` says, once: `fail` before doing anything,
/// say so `after` it is done, be `killed` at work, or `hang`.
fn write_runsc(path: &Path, control: &Path) {
    let real = provided("SANDBASE_RUNSC", "/usr/local/lib/sandbase/engine/runsc");
    let script = format!(
        r#"#!/bin/bash
if read -r verb how 2>/dev/null <'{control}'; then
    for argument in "$@"; do
        if [ "$argument" = "$verb" ]; then
            rm '{control}'
            case $how in
                fail) echo 'a failure that a test wanted' >&2; exit 128 ;;
                after) '{real}' "$@"; echo 'a failure that a test wanted' >&2; exit 128 ;;
                killed) '{real}' "$@" & sleep 0.01; kill -9 $!; exit 137 ;;
                hang) exec sleep 100000 ;;
            esac
        fi
    done
fi
exec '{real}' "$@"
"#,
        control = control.display(),
        real = real.display(),
    );
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn no_fault_at_any_step_loses_anything_or_leaves_anything() {
    // `SANDBASE_TEST_FAULT="Connect ResumeStart full"` is for looking into one.
    let walk = match std::env::var_os("SANDBASE_TEST_LONG") {
        Some(_) => "all",
        None => "sample",
    };
    let disk = SmallDisk::new();
    let mut server = Server::with_faults(disk.mount().join("data"), write_runsc);
    let mut program = server.program("faults.py");
    disk.tell(&mut program);
    let mut program = program
        .arg(walk)
        .args(std::env::var("SANDBASE_TEST_FAULT"))
        .env("FOLDER", server.folder())
        .env("DATA_DIR", server.data_dir())
        .env("RUN_DIR", server.run_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut answers = program.stdin.take().unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let (sender, receiver) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        for line in lines {
            let _ = sender.send(line.unwrap());
        }
    });
    let started = Instant::now();
    let status = loop {
        server.restart_if_killed();
        match receiver.recv_timeout(Duration::from_millis(10)) {
            Ok(line) if line == "look" => {
                server.assert_nothing_left();
                answers.write_all(b"clean\n").unwrap();
            }
            Ok(line) => println!("{line}"),
            Err(_) => {
                if let Some(status) = program.try_wait().unwrap() {
                    break status;
                }
            }
        }
        if started.elapsed() > LONGEST_WALK {
            program.kill().unwrap();
        }
    };
    reading.join().unwrap();
    for line in receiver.try_iter() {
        println!("{line}");
    }
    assert!(status.success(), "{status}\n{}", server.log());
    server.assert_nothing_left();
}

#[test]
fn a_log_that_cannot_be_written_costs_nothing() {
    let server = Server::without_log();
    let id = server.run("leave_running.py", &["create"]);
    server.run("leave_running.py", &["check", id.trim(), "running"]);
    server.assert_nothing_left();
}
