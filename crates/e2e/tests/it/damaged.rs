//! Disks that are damaged: a clear error, and the files that can be read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::Server;

/// The image of a paused sandbox's own disk.
fn image(server: &Server, id: &str) -> PathBuf {
    let disks = server.data_dir().join("sandboxes").join(id).join("disks");
    let mut found = std::fs::read_dir(disks).unwrap();
    let disk = found.next().unwrap().unwrap().path();
    assert!(found.next().is_none(), "it has one disk");
    disk.join("disk.img")
}

/// What debugfs answers about an image that nobody has mounted.
fn debugfs(image: &Path, question: &str) -> String {
    let output = Command::new("debugfs")
        .args(["-R", question])
        .arg(image)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn overwrite(image: &Path, offset: u64, length: usize) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(&vec![0xa5; length], offset).unwrap();
    file.sync_all().unwrap();
}

/// The first block of a file's data, in bytes from the begin of the image.
fn data_of(image: &Path, path: &str) -> u64 {
    let blocks = debugfs(image, &format!("blocks {path}"));
    let first = blocks
        .split_whitespace()
        .next()
        .unwrap_or_else(|| panic!("{path}: {blocks}"));
    first.parse::<u64>().unwrap() * 4096
}

/// Where the inode of a file is.
fn inode_of(image: &Path, path: &str) -> u64 {
    let place = debugfs(image, &format!("imap {path}"));
    // "... located at block 1058, offset 0x0a00"
    let block = place.split("block ").last().unwrap();
    let (block, offset) = block.split_once(", offset 0x").unwrap();
    let offset = u64::from_str_radix(offset.trim(), 16).unwrap();
    block.trim().parse::<u64>().unwrap() * 4096 + offset
}

/// Content by path of everything in an archive.
fn content(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(File::open(archive).unwrap());
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        found.insert(path, bytes);
    }
    found
}

/// A paused sandbox with files; a further directory that will be damaged.
fn filled(server: &Server) -> String {
    let id = server
        .verb(&["sandbox", "create", "--timeout", "600"])
        .unwrap();
    server.run("rescue.py", &["fill", &id]);
    server.verb(&["sandbox", "pause", &id]).unwrap();
    id
}

#[test]
fn the_files_of_a_damaged_disk_that_can_be_read_are_exported_and_the_others_named() {
    let server = Server::start("");
    let id = filled(&server);
    let image = image(&server, &id);
    // The inode of one file, and the names in a directory; file data have no checksums on ext4.
    overwrite(&image, inode_of(&image, "/upper/home/user/lost"), 128);
    overwrite(&image, data_of(&image, "/upper/home/user/folder"), 4096);

    let file = server.data_dir().with_file_name("rescued.tar");
    let export = ["sandbox", "export", "--readable-files", &id, "--output"];
    let export: Vec<_> = export.into_iter().chain([file.to_str().unwrap()]).collect();
    let told = server.verb(&export).unwrap_err();
    for named in ["/home/user/lost", "/home/user/folder"] {
        assert!(told.contains(named), "{told}");
    }
    let found = content(&file);
    let report: Value = serde_json::from_slice(&found["missing.json"]).unwrap();
    assert_eq!(report["complete"], false);
    let missing = report["missing"].as_array().unwrap();
    let paths: Vec<_> = missing
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        ["/home/user/folder", "/home/user/lost"],
        "{report:#}"
    );
    assert_eq!(found["files/home/user/kept"], b"kept");
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(found["files/home/user/big"], big);
    assert!(!found.contains_key("files/home/user/lost"));
    // The layers below are there, and what the sandbox deleted of them is not.
    assert!(found.contains_key("files/etc/passwd"));
    assert!(
        !found.contains_key("files/etc/motd"),
        "deleted in the sandbox"
    );
    assert!(
        Command::new("tar")
            .arg("-tf")
            .arg(&file)
            .output()
            .unwrap()
            .status
            .success()
    );

    // It stays paused, and can be killed.
    let shown = server.verb(&["sandbox", "get", &id]).unwrap();
    assert!(shown.contains("paused"), "{shown}");
    server.verb(&["sandbox", "kill", &id]).unwrap();
    server.assert_nothing_left();
}

#[test]
fn a_disk_that_cannot_be_mounted_is_a_clear_error_and_its_copies_are_read() {
    let server = Server::start("");
    let id = filled(&server);
    let image = image(&server, &id);
    let whole = {
        let mut bytes = vec![0; 8192];
        File::open(&image)
            .unwrap()
            .read_exact_at(&mut bytes, 0)
            .unwrap();
        bytes
    };
    // Superblock and group descriptors.
    overwrite(&image, 0, 8192);
    let refused = server.verb(&["sandbox", "connect", &id]).unwrap_err();
    assert!(
        refused.contains("damaged")
            && refused.contains("paused")
            && refused.contains("--readable-files"),
        "{refused}"
    );
    let file = server.data_dir().with_file_name("rescued.tar");
    let export = ["sandbox", "export", "--readable-files", &id, "--output"];
    let export: Vec<_> = export.into_iter().chain([file.to_str().unwrap()]).collect();
    let told = server.verb(&export).unwrap();
    assert!(told.starts_with("wrote "), "{told}");
    assert_eq!(content(&file)["files/home/user/kept"], b"kept");

    // Mended, it is what it was.
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .write_all_at(&whole, 0)
        .unwrap();
    server.verb(&["sandbox", "connect", &id]).unwrap();
    server.run("rescue.py", &["check", &id]);
    let running = server.verb(&export).unwrap_err();
    assert!(running.contains("exists"), "{running}");
    std::fs::remove_file(&file).unwrap();
    let running = server.verb(&export).unwrap_err();
    assert!(running.contains("pause it first"), "{running}");

    // Cut short it is told as that, and nothing is made up.
    server.verb(&["sandbox", "pause", &id]).unwrap();
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let refused = server.verb(&["sandbox", "connect", &id]).unwrap_err();
    assert!(refused.contains("damaged"), "{refused}");
    let nothing = server.verb(&export).unwrap_err();
    assert!(nothing.contains("cut short"), "{nothing}");
    assert!(!file.exists());
    server.verb(&["sandbox", "kill", &id]).unwrap();
    server.assert_nothing_left();
}

#[test]
fn a_connect_goes_before_an_export_that_nobody_reads() {
    let server = Server::start("");
    let id = filled(&server);
    let file = server.data_dir().with_file_name("stalled.tar");
    // A reader that takes a little and then nothing.
    let mut stalled = server.curl(&format!(
        "/sandboxes/{id}/export?compression=none&files=readable"
    ));
    let mut first = [0; 4096];
    stalled
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert!(!file.exists());
    server.verb(&["sandbox", "connect", &id]).unwrap();
    server.run("rescue.py", &["check", &id]);
    let output = stalled.wait_with_output().unwrap();
    assert!(
        !output.status.success(),
        "what was cut off is not taken for whole"
    );
    server.verb(&["sandbox", "kill", &id]).unwrap();
    server.assert_nothing_left();
}

#[test]
fn a_second_server_on_a_data_directory_refuses_to_start() {
    let server = Server::start("");
    let id = filled(&server);
    let refused = server.second();
    assert!(
        refused.contains("another sandbase server is using"),
        "{refused}"
    );
    assert!(refused.contains("--data-dir"), "{refused}");
    // The first one goes on.
    server.verb(&["sandbox", "connect", &id]).unwrap();
    server.run("rescue.py", &["check", &id]);
    server.verb(&["sandbox", "kill", &id]).unwrap();
    let events = server.verb(&["sandbox", "events", &id]).unwrap();
    let labels: Vec<_> = events
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().nth(2))
        .collect();
    let expected = ["created", "paused", "resumed", "killed"].map(Some);
    assert_eq!(labels, expected, "{events}");
    server.assert_nothing_left();
}
