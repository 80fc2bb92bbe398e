//! The agent's ends of a process's pipes or terminal.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Uid, fchmod, fchown};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::messages::PtySize;
use crate::descriptor::register;
use crate::users::{self, User};

/// An end that is read or written without blocking the runtime.
pub(crate) type Channel = AsyncFd<OwnedFd>;

/// All ends of a process about to start.
pub(crate) struct Ends {
    /// What the child gets as standard input, output and error.
    pub(crate) child: [OwnedFd; 3],
    /// What the agent keeps.
    pub(crate) agent: AgentEnds,
}

/// The ends the agent keeps.
pub(crate) enum AgentEnds {
    /// Separate pipes; without `stdin` the process reads from `/dev/null`.
    Pipes {
        stdin: Option<Channel>,
        stdout: Channel,
        stderr: Channel,
    },
    /// The master of a terminal, and a second handle on it for input and its size.
    Terminal { output: Channel, input: Channel },
}

impl Ends {
    /// Pipes for a process without terminal.
    pub(crate) fn pipes(with_stdin: bool) -> io::Result<Self> {
        let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let (child_stdin, stdin) = if with_stdin {
            let (child, agent) = pipe_with(PipeFlags::CLOEXEC)?;
            (child, Some(channel(agent, Interest::WRITABLE)?))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        let stdout = channel(stdout, Interest::READABLE)?;
        let stderr = channel(stderr, Interest::READABLE)?;
        let agent = AgentEnds::Pipes {
            stdin,
            stdout,
            stderr,
        };
        Ok(Self {
            child: [child_stdin, child_stdout, child_stderr],
            agent,
        })
    }

    /// A terminal of the given size that belongs to `user`, so that programs may reopen it.
    pub(crate) fn terminal(size: PtySize, user: &User) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let slave: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(Path::new(std::ffi::OsStr::from_bytes(name.to_bytes())))?
            .into();
        // Best effort: a terminal of the wrong owner still works for most programs.
        let group = users::group_id("tty").map(Gid::from_raw);
        let _not_owned = fchown(&slave, Some(Uid::from_raw(user.uid)), group);
        let _not_shared = fchmod(&slave, Mode::from_raw_mode(0o620));
        resize(&master, size)?;
        let copies = [slave.try_clone()?, slave.try_clone()?, slave];
        let input = fcntl_dupfd_cloexec(&master, 3)?;
        let output = channel(master, Interest::READABLE)?;
        let input = channel(input, Interest::WRITABLE)?;
        Ok(Self {
            child: copies,
            agent: AgentEnds::Terminal { output, input },
        })
    }
}

/// Sets the size of a terminal; the kernel tells its programs.
pub(crate) fn resize(terminal: impl AsFd, size: PtySize) -> io::Result<()> {
    let size = Winsize {
        ws_row: truncate(size.rows),
        ws_col: truncate(size.cols),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// The contract cuts sizes to 16 bits.
fn truncate(length: u32) -> u16 {
    (length & 0xffff) as u16
}

fn channel(file: OwnedFd, interest: Interest) -> io::Result<Channel> {
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
    register(file, interest)
}

/// Reads without waiting.
pub(crate) fn read_now(file: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    match rustix::io::read(file, buffer) {
        Ok(count) => Ok(count),
        // A terminal nobody has open any more.
        Err(Errno::IO) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Writes all of `data`, waiting for room.
pub(crate) async fn write_all(channel: &Channel, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let written = channel
            .async_io(Interest::WRITABLE, |file| {
                Ok(rustix::io::write(file, data)?)
            })
            .await?;
        data = &data[written..];
    }
    Ok(())
}
