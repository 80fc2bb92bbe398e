//! Processes of the engine: found by id, watched by pidfd, never confused with a reused number.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that was alive when it was opened, and is meant by nothing else since.
pub(super) struct Process {
    fd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Opens a process if it is alive and `argument` is among its command line: numbers are reused.
    pub(super) fn open(pid: i32, argument: &str) -> io::Result<Option<Self>> {
        let Some(process) = Self::open_any(pid)? else {
            return Ok(None);
        };
        // Read after opening: what the number means now is what the descriptor means. A zombie has
        // no command line any more.
        if command_line(pid)?.iter().any(|word| word == argument) {
            return Ok(Some(process));
        }
        reap(process.fd.get_ref());
        Ok(None)
    }

    /// Opens whatever has this number, if anything has.
    pub(super) fn open_any(pid: i32) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => Ok(Some(Self { fd: watch(fd)? })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        // It may have ended by itself meanwhile; there is nothing else to do about a failure.
        let _ = pidfd_send_signal(self.fd.get_ref(), Signal::KILL);
    }

    /// Returns when it has ended.
    pub(super) async fn ended(&self) {
        // A pidfd becomes readable at the end of the process and stays so.
        let _ = self.fd.readable().await;
        reap(self.fd.get_ref());
    }

    /// Like [`ended`](Self::ended), for at most `limit`. Answers whether it has ended.
    pub(super) async fn ended_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.ended()).await.is_ok()
    }
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and the same for as long as the `AsyncFd` holds it; nothing
    // here replaces it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(Into::into)
}

/// Detached engine processes become children of init. Where that is us (in a container without an
/// init of its own), nobody else would collect them; elsewhere this does nothing.
fn reap(fd: &OwnedFd) {
    use std::os::fd::AsFd;
    let _ = waitid(
        WaitId::PidFd(fd.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    );
}

/// The words of a command line; empty for kernel threads, zombies and processes that are gone.
pub(super) fn command_line(pid: i32) -> io::Result<Vec<String>> {
    let raw = match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Err(error) if is_gone(&error) => Vec::new(),
        raw => raw?,
    };
    let words = raw
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned());
    Ok(words.collect())
}

/// Whether a read below `/proc` failed because the process ended.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// All process ids of this host.
pub(super) fn all() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}
