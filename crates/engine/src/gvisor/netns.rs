//! Network namespaces: threads that enter them, so that no tokio worker ever does.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::GUEST_ADDRESS;

/// Makes the directory of names a shared mount point of its own, as `ip netns` does at its first use.
///
/// Left to `ip`, that would lay the directory over itself at any moment. The pins below could not be
/// reached any more, so they could be neither unmounted nor removed, and no sandbox of that time
/// could be destroyed.
pub(super) fn share_directory(directory: &Path) -> io::Result<()> {
    let below = File::open(directory)?;
    // Two servers that start together must not lay it over itself twice.
    flock(&below, FlockOperation::LockExclusive)?;
    let shared = || mount_change(directory, MountPropagationFlags::SHARED);
    match shared() {
        Err(Errno::INVAL) => {}
        other => return Ok(other?),
    }
    mount_bind_recursive(directory, directory)?;
    shared()?;
    // Pins of an earlier server were copied to the new mount. The originals can still be reached
    // through what was opened before.
    let below = PathBuf::from(format!("/proc/self/fd/{}", below.as_raw_fd()));
    for entry in std::fs::read_dir(&below)? {
        match unmount(below.join(entry?.file_name()), UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes a network namespace and pins it at `path`. `prepare` runs inside it.
pub(super) fn create(
    path: &Path,
    prepare: impl FnOnce() -> io::Result<()> + Send,
) -> io::Result<()> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let made = on_own_thread(|| {
        unshare_network()?;
        prepare()?;
        mount_bind("/proc/thread-self/ns/net", path)?;
        Ok(())
    });
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Unpins a namespace; it ends with its last process and socket. A missing one is success.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs `work` inside the namespace pinned at `path`. Programs it starts are inside, too.
pub(super) fn inside<T: Send>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let namespace = File::open(path)?;
    on_own_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    })
}

/// Runs a configuration tool with `script` as its standard input.
pub(super) fn run_tool(program: &str, arguments: &[&str], script: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        // A tool that ends early tells more in its error text than the broken pipe does.
        let _ = input.write_all(script.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", message.trim())))
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        // The thread ends inside the namespace it entered, and nobody else ever runs on it.
        let thread = std::thread::Builder::new().name("netns".to_owned());
        match thread.spawn_scoped(scope, work)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[expect(
    unsafe_code,
    reason = "unshare is unsafe for flags that change the sharing of files"
)]
fn unshare_network() -> io::Result<()> {
    // SAFETY: NEWNET concerns network namespaces only: no descriptor table becomes unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Opens connections into guests. A socket belongs for ever to the namespace it was created in, so
/// one thread creates them, and tokio connects and uses them.
pub(super) struct Dialer {
    requests: mpsc::Sender<Request>,
}

struct Request {
    gateway: PathBuf,
    answer: oneshot::Sender<io::Result<OwnedFd>>,
}

impl Dialer {
    pub(super) fn start() -> io::Result<Self> {
        let host = File::open("/proc/self/ns/net")?;
        let (requests, inbox) = mpsc::channel::<Request>();
        // Ends when the last sender is dropped.
        std::thread::Builder::new()
            .name("netns-dialer".to_owned())
            .spawn(move || {
                for request in inbox {
                    let _ = request.answer.send(create_socket(&request.gateway));
                    // Staying would keep the namespace alive. Nothing may run here if going back fails.
                    let back =
                        move_into_link_name_space(host.as_fd(), Some(LinkNameSpaceType::Network));
                    if let Err(error) = back {
                        tracing::error!(%error, "the dialer cannot leave a sandbox's network");
                        return;
                    }
                }
            })?;
        Ok(Self { requests })
    }

    /// Connects to a port of the guest from its gateway. Refusal comes through as such.
    pub(super) async fn dial(
        &self,
        gateway: PathBuf,
        port: u16,
        limit: Duration,
    ) -> io::Result<TcpStream> {
        let (answer, socket) = oneshot::channel();
        let gone = || io::Error::other("the dialer thread is gone");
        self.requests
            .send(Request { gateway, answer })
            .map_err(|_| gone())?;
        let socket = StdTcpStream::from(socket.await.map_err(|_| gone())??);
        let socket = TcpSocket::from_std_stream(socket);
        socket.set_nodelay(true)?;
        let address = SocketAddr::from((GUEST_ADDRESS, port));
        match tokio::time::timeout(limit, socket.connect(address)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the guest does not answer",
            )),
        }
    }
}

fn create_socket(gateway: &Path) -> io::Result<OwnedFd> {
    let namespace = File::open(gateway)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `ip netns` would do to a directory that is no mount point.
    fn lay_over_itself(directory: &Path) -> bool {
        match mount_change(directory, MountPropagationFlags::SHARED) {
            Err(Errno::INVAL) => {
                mount_bind_recursive(directory, directory).unwrap();
                true
            }
            other => {
                other.unwrap();
                false
            }
        }
    }

    #[test]
    fn pins_can_be_removed_whatever_ip_netns_does_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().canonicalize().unwrap();
        let (old, new) = (directory.join("old"), directory.join("new"));
        create(&old, || Ok(())).unwrap();
        share_directory(&directory).unwrap();
        share_directory(&directory).unwrap();
        create(&new, || Ok(())).unwrap();
        assert!(!lay_over_itself(&directory));
        remove(&old).unwrap();
        remove(&new).unwrap();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        unmount(&directory, UnmountFlags::DETACH).unwrap();
    }
}
