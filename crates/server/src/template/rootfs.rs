//! The Debian tree of the base template, built from packages with mmdebstrap.
//!
//! Debian 12 is the suite whose signing keys every supported host has (the keyring of Ubuntu 24.04
//! knows no later one). The tree holds what E2B's SDKs and their users take for granted: users,
//! shells, Python, Node, git, compilers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// Changes whenever this file would build something else.
pub const RECIPE: &str = "debian12-4";

const SUITE: &str = "bookworm";
/// Where a finished tree says which recipe it was built by.
const MARK: &str = "etc/sandbase-recipe";

/// `libnss-myhostname` makes a sandbox's own name and `*.localhost` resolve.
const PACKAGES: &[&str] = &[
    "bash",
    "build-essential",
    "bzip2",
    "ca-certificates",
    "coreutils",
    "curl",
    "file",
    "git",
    "iproute2",
    "jq",
    "less",
    "libnss-myhostname",
    "lsof",
    "nano",
    "ncurses-bin",
    "ncurses-term",
    "netcat-openbsd",
    "nodejs",
    "npm",
    "openssh-client",
    "procps",
    "psmisc",
    "python-is-python3",
    "python3",
    "python3-pip",
    "python3-venv",
    "rsync",
    "sqlite3",
    "sudo",
    "unzip",
    "vim-tiny",
    "wget",
    "xz-utils",
    "zip",
];

/// Files written into the tree: path, mode, content.
const FILES: &[(&str, u32, &str)] = &[
    (
        "etc/resolv.conf",
        0o644,
        "nameserver 1.1.1.1\nnameserver 8.8.8.8\n",
    ),
    ("etc/hostname", 0o644, "sandbox\n"),
    (
        "etc/hosts",
        0o644,
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    ),
    (
        "etc/sudoers.d/user",
        0o440,
        "user ALL=(ALL:ALL) NOPASSWD: ALL\n",
    ),
    (
        "etc/profile.d/sandbase.sh",
        0o644,
        "export LANG=${LANG:-C.UTF-8}\n",
    ),
    (
        ".e2b",
        0o644,
        "ENV_ID=base\nTEMPLATE_ID=base\nBUILD_ID=base\n",
    ),
];

/// `LANG` is `C.UTF-8` for every command, and the C library looks for each of the twelve files of a locale
/// under two names. In an archive they are one file, which spares each program that minds its language
/// some sixty system calls. Without the archive, or in it another locale, the files still serve.
const LOCALE_ARCHIVE: &str = r#"chroot "$1" localedef --add-to-archive /usr/lib/locale/C.utf8"#;

/// Why the tree could not be built. What was built so far is removed at the next try.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// mmdebstrap cannot be started.
    #[error("start mmdebstrap; `apt-get install mmdebstrap` installs it")]
    Missing(#[source] io::Error),
    /// mmdebstrap failed.
    #[error("mmdebstrap failed ({status}): {last_lines}")]
    Failed {
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        last_lines: String,
    },
    /// The file system failed.
    #[error("{step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which path.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    let path = path.to_owned();
    move |source| RootfsError::Io { step, path, source }
}

/// Which recipe a tree says it was built by; empty when it says nothing.
pub(super) fn recipe_of(tree: &Path) -> String {
    fs::read_to_string(tree.join(MARK))
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

/// Builds the tree at `dest`, which is complete when it exists. `progress` gets a line now and
/// then; the whole takes some minutes. A tree of this recipe that is there already is kept.
pub async fn build(
    dest: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), RootfsError> {
    if recipe_of(dest) == RECIPE {
        return Ok(());
    }
    let partial = dest.with_extension("partial");
    let outdated = dest.with_extension("outdated");
    for leftover in [&partial, &outdated] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).map_err(io_error("remove", leftover))?;
        }
    }
    if let Some(parent) = dest.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    progress("building the base template's root file system from Debian packages (some minutes)");
    bootstrap(&partial, progress).await?;
    customise(&partial)?;
    let directory = File::open(&partial).map_err(io_error("open", &partial))?;
    rustix::fs::syncfs(&directory).map_err(|error| io_error("sync", &partial)(error.into()))?;
    // A tree of another recipe stays until this one can take its place.
    if dest.exists() {
        fs::rename(dest, &outdated).map_err(io_error("move away", dest))?;
    }
    fs::rename(&partial, dest).map_err(io_error("rename to", dest))?;
    if outdated.exists() {
        fs::remove_dir_all(&outdated).map_err(io_error("remove", &outdated))?;
    }
    Ok(())
}

async fn bootstrap(
    partial: &Path,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), RootfsError> {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .args(["--dpkgopt=path-exclude=/usr/share/man/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*"])
        .args(["--dpkgopt=path-include=/usr/share/doc/*/copyright"])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*"])
        .arg("--aptopt=Acquire::Retries \"3\"")
        .arg("--customize-hook=chroot \"$1\" useradd --create-home --uid 1000 --shell /bin/bash user")
        .arg(format!("--customize-hook={LOCALE_ARCHIVE}"))
        .arg(SUITE)
        .arg(partial)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(RootfsError::Missing)?;
    let mut last_lines: Vec<String> = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            // Its steps start with "I: "; the bars between them are for terminals.
            if let Some(step) = line.strip_prefix("I: ") {
                progress(&format!("  mmdebstrap: {step}"));
            }
            last_lines.push(line);
            if last_lines.len() > 12 {
                last_lines.remove(0);
            }
        }
    }
    let status = child.wait().await.map_err(RootfsError::Missing)?;
    if status.success() {
        return Ok(());
    }
    Err(RootfsError::Failed {
        status,
        last_lines: last_lines.join(" | "),
    })
}

fn customise(root: &Path) -> Result<(), RootfsError> {
    for (name, mode, content) in FILES {
        let path = root.join(name);
        // Some are links in a fresh tree; what they point to must not be written.
        if path
            .symlink_metadata()
            .is_ok_and(|found| found.is_symlink())
        {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        fs::write(&path, content).map_err(io_error("write", &path))?;
        set_mode(&path, *mode)?;
    }
    let profile = root.join("etc/profile");
    let text = fs::read_to_string(&profile).map_err(io_error("read", &profile))?;
    fs::write(&profile, quick_profile(&text)).map_err(io_error("write", &profile))?;
    let code = root.join("code");
    fs::create_dir_all(&code).map_err(io_error("create", &code))?;
    open_to_everybody(&code)?;
    // `pip install` and `npm install -g` of the ordinary user go there.
    open_to_everybody(&root.join("usr/local"))?;
    // A sandbox is its user's own machine: Debian's pip would install nothing outside of a venv.
    let libraries = root.join("usr/lib");
    for entry in fs::read_dir(&libraries).map_err(io_error("list", &libraries))? {
        let path = entry
            .map_err(io_error("list", &libraries))?
            .path()
            .join("EXTERNALLY-MANAGED");
        if path.exists() {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    let mark = root.join(MARK);
    fs::write(&mark, RECIPE).map_err(io_error("write", &mark))
}

/// Every command of a client is run by a login shell, and Debian's profile starts a program there only
/// to learn who it is, which bash knows: that is half the time of a short command.
fn quick_profile(text: &str) -> String {
    text.replace("$(id -u)", "${EUID:-$(id -u)}")
}

/// Makes a folder and all folders below it writable for every user.
fn open_to_everybody(folder: &Path) -> Result<(), RootfsError> {
    set_mode(folder, 0o777)?;
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let entry = entry.map_err(io_error("list", folder))?;
        // Links are left alone: what they point to may lie outside.
        if entry
            .file_type()
            .map_err(io_error("look at", folder))?
            .is_dir()
        {
            open_to_everybody(&entry.path())?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), RootfsError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(io_error("set the mode of", path))
}
