//! Kept builds of runsc: an image only restores with the very build that wrote it, so each build
//! that was ever configured stays in the data directory under the hash of its contents.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::paths::Paths;
use super::{Config, OpenError};
use crate::{BuildId, EngineBuild, EngineError};

/// Programs that releases since 2026-07 expect beside `runsc`.
const SIDECARS: &str = "gvisor-bin";
/// File of a kept build with what it calls itself.
const VERSION: &str = "version";
/// The version of a build that was made without one.
const UNKNOWN: &str = "unknown";
/// Hex digits of the hash that make a build id: 128 bits.
const ID_LENGTH: usize = 32;

/// The runsc of a kept build.
pub(super) fn runsc(paths: &Paths, build: &BuildId) -> PathBuf {
    paths.build(build).join("runsc")
}

/// A kept build, by its id.
pub(super) fn describe(paths: &Paths, build: &BuildId) -> EngineBuild {
    let version = std::fs::read_to_string(paths.build(build).join(VERSION));
    let version = version.unwrap_or_else(|_| UNKNOWN.to_owned());
    EngineBuild {
        engine: "gvisor".to_owned(),
        version,
        id: build.clone(),
    }
}

/// Whether the build is there. Ids come from records: anything but plain hex is not a build.
pub(super) fn is_kept(paths: &Paths, build: &BuildId) -> bool {
    build.0.len() == ID_LENGTH
        && build.0.bytes().all(|b| b.is_ascii_hexdigit())
        && runsc(paths, build).is_file()
}

/// Copies the configured build into the data directory unless it is there, and checks that it can
/// do what sandboxes need.
pub(super) fn keep(config: &Config, paths: &Paths) -> Result<EngineBuild, OpenError> {
    let unsuitable = |reason: String| OpenError::UnsuitableRunsc {
        runsc: config.runsc.clone(),
        reason,
    };
    let source = config
        .runsc
        .canonicalize()
        .map_err(|error| unsuitable(error.to_string()))?;
    let files = files_of(&source).map_err(|error| unsuitable(error.to_string()))?;
    let id = hash(&files).map_err(|error| unsuitable(error.to_string()))?;
    let version = probe(&source).map_err(unsuitable)?;
    if !is_kept(paths, &id) {
        copy(&files, paths, &id, &version).map_err(super::host_error("keep a copy of runsc"))?;
    }
    Ok(describe(paths, &id))
}

/// Keeps a build of another data directory, whose directory `from` is. What is there must hash to the
/// very id it claims.
pub(super) fn keep_given(paths: &Paths, id: &BuildId, from: &Path) -> Result<(), EngineError> {
    let step = format!("keep the gvisor build {}", id.0);
    if is_kept(paths, id) {
        return Ok(());
    }
    let files = files_of(&from.join("runsc")).map_err(super::failed(step.clone()))?;
    let found = hash(&files).map_err(super::failed(step.clone()))?;
    if found != *id {
        let detail = format!("its files are those of the build {}", found.0);
        return Err(EngineError::Failed { step, detail });
    }
    // For people; it is no part of the hash.
    let version = std::fs::read_to_string(from.join(VERSION)).unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_+".contains(c);
    let version = match version.len() {
        1..=64 if version.chars().all(plain) => version,
        _ => UNKNOWN.to_owned(),
    };
    copy(&files, paths, id, &version).map_err(super::failed(step))
}

/// The files of a build: name below its directory, and where it is now.
fn files_of(runsc: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = vec![(PathBuf::from("runsc"), runsc.to_owned())];
    let sidecars = runsc.with_file_name(SIDECARS);
    if sidecars.is_dir() {
        for entry in std::fs::read_dir(&sidecars)? {
            let entry = entry?;
            if entry.path().is_file() {
                files.push((Path::new(SIDECARS).join(entry.file_name()), entry.path()));
            }
        }
        files.sort();
    }
    Ok(files)
}

fn hash(files: &[(PathBuf, PathBuf)]) -> io::Result<BuildId> {
    let mut hasher = blake3::Hasher::new();
    for (name, source) in files {
        // Names and lengths separate the files, so that no two sets of files look the same.
        let file = std::fs::File::open(source)?;
        hasher.update(name.as_os_str().as_encoded_bytes());
        hasher.update(&[0]);
        hasher.update(&file.metadata()?.len().to_le_bytes());
        hasher.update_reader(file)?;
    }
    let mut hex = hasher.finalize().to_hex().to_string();
    hex.truncate(ID_LENGTH);
    Ok(BuildId(hex))
}

/// Copies by way of a new directory and a rename, so that a kept build is always complete. A copy
/// and no hard link: whoever overwrites the source in place must not change what we keep.
fn copy(
    files: &[(PathBuf, PathBuf)],
    paths: &Paths,
    id: &BuildId,
    version: &str,
) -> io::Result<()> {
    let staging = paths
        .engines()
        .join(format!(".staging-{}", std::process::id()));
    remove_tree(&staging)?;
    for (name, source) in files {
        let target = staging.join(name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::copy(source, &target)?;
        std::fs::File::open(&target)?.sync_all()?;
    }
    std::fs::write(staging.join(VERSION), version)?;
    std::fs::File::open(staging.join(VERSION))?.sync_all()?;
    std::fs::File::open(&staging)?.sync_all()?;
    remove_tree(&paths.build(id))?;
    std::fs::rename(&staging, paths.build(id))?;
    std::fs::File::open(paths.engines())?.sync_all()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Asks a runsc for its version and for the abilities without which pausing would lose state.
/// Answers the version for people. Dates in version strings say nothing: distributions change them.
pub(super) fn probe(runsc: &Path) -> Result<String, String> {
    let flags = ask(runsc, &["flags"])?;
    let checkpoint = ask(runsc, &["help", "checkpoint"])?;
    let restore = ask(runsc, &["help", "restore"])?;
    let needed = [
        (&flags, "-allow-suid", "set-user-id programs (sudo)"),
        (
            &flags,
            "-allow-live-tcp-migration",
            "closing stale TCP connections at restore",
        ),
        (
            &flags,
            "-overlay2",
            "a root filesystem without an overlay of its own",
        ),
        (&flags, "-directfs", "direct access to the root filesystem"),
        (
            &checkpoint,
            "-leave-running",
            "checkpoints that survive their own failure",
        ),
        (
            &checkpoint,
            "-direct",
            "checkpoints that bypass the page cache",
        ),
        (&restore, "-background", "restoring in the background"),
    ];
    for (text, flag, purpose) in needed {
        if !text.split_whitespace().any(|word| word == flag) {
            return Err(format!(
                "it has no `{flag}`, needed for {purpose}; install a gVisor release of 2026-07 or \
                 later"
            ));
        }
    }
    let version = ask(runsc, &["--version"])?;
    let version = version.lines().next().unwrap_or_default();
    let version = version.rsplit(' ').next().unwrap_or_default();
    // A build without a linker-set version says this.
    let named = !version.is_empty() && version != "VERSION_MISSING";
    Ok(if named {
        version.to_owned()
    } else {
        UNKNOWN.to_owned()
    })
}

/// Standard output and error together: `runsc flags` has used either.
fn ask(runsc: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(runsc)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("running `runsc {}`: {error}", arguments.join(" ")))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_from_elsewhere_is_kept_when_it_is_what_it_claims() {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(there.path().join(SIDECARS)).unwrap();
        std::fs::write(there.path().join("runsc"), "program").unwrap();
        std::fs::write(there.path().join(SIDECARS).join("gofer"), "other").unwrap();
        std::fs::write(there.path().join(VERSION), "release-20260701.0").unwrap();
        let id = hash(&files_of(&there.path().join("runsc")).unwrap()).unwrap();
        let paths = Paths::new(&Config::new(here.path(), "")).unwrap();
        std::fs::create_dir(paths.engines()).unwrap();

        for _ in 0..2 {
            keep_given(&paths, &id, there.path()).unwrap();
            assert!(is_kept(&paths, &id));
            assert_eq!(describe(&paths, &id).version, "release-20260701.0");
        }
        let kept = files_of(&runsc(&paths, &id)).unwrap();
        assert_eq!(hash(&kept).unwrap(), id);

        let other = BuildId("0".repeat(ID_LENGTH));
        keep_given(&paths, &other, there.path()).unwrap_err();
        keep_given(&paths, &BuildId("../x".to_owned()), there.path()).unwrap_err();
        let count = std::fs::read_dir(paths.engines()).unwrap().count();
        assert_eq!(count, 1, "what is refused leaves nothing");
    }
}
