//! Fork and exec, by hand: the standard library waits for children itself, which fights with an
//! init process that collects them all.
//!
//! Everything the child needs is allocated before the fork. The child only makes system calls on
//! it, because other threads may have held locks (of the allocator, say) when it was copied.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use rustix::pipe::{PipeFlags, pipe_with};

use super::limits;
use crate::users::User;

/// What the shell answers for a missing program, and for one it may not run.
const NOT_FOUND: c_int = 127;
const NOT_EXECUTABLE: c_int = 126;
/// Makes the kernel prefer user processes to the agent when memory runs out.
const OOM_SCORE: &CStr = c"100";
const UMASK: libc::mode_t = 0o022;

/// A program to start, with everything resolved.
#[derive(Debug)]
pub(crate) struct Program {
    /// Paths to try, in the order of the child's `PATH`.
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Why a program was not started. A missing program is none of these: see [`Program::spawn`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// An argument holds a NUL byte.
    #[error("invalid argument: NUL byte in a string")]
    Nul(#[from] std::ffi::NulError),
    /// The agent could not fork.
    #[error("fork: {0}")]
    Fork(#[source] io::Error),
    /// The child could not become what was asked for.
    #[error("{step}: {source}")]
    Child {
        /// What it was doing.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What the child does before it runs the program, in order.
const STEPS: [&str; 7] = [
    "setsid",
    "set controlling terminal",
    "dup2",
    "setgroups",
    "setgid",
    "setuid",
    "chdir",
];

impl Program {
    /// Resolves a command against the child's environment.
    pub(crate) fn new<'a>(
        command: &str,
        arguments: &[String],
        environment: impl Iterator<Item = (&'a String, &'a String)>,
        directory: &str,
        user: &User,
        groups: Vec<u32>,
    ) -> Result<Self, SpawnError> {
        let mut search = String::new();
        let mut variables = Vec::new();
        for (key, value) in environment {
            if key == "PATH" {
                search.clone_from(value);
            }
            variables.push(CString::new(format!("{key}={value}"))?);
        }
        let mut argv = vec![CString::new(command)?];
        for argument in arguments {
            argv.push(CString::new(argument.as_str())?);
        }
        Ok(Self {
            candidates: candidates(command, &search)?,
            arguments: argv,
            environment: variables,
            directory: CString::new(directory)?,
            uid: user.uid,
            gid: user.gid,
            groups,
        })
    }

    /// Starts the program in a session of its own and returns its pid.
    ///
    /// With `terminal`, the first of the files becomes its controlling terminal. A program that
    /// cannot be executed is started all the same, as upstream's shell wrapper does: the child
    /// writes a line to standard error and exits with 127 or 126.
    pub(crate) fn spawn(&self, files: [&OwnedFd; 3], terminal: bool) -> Result<u32, SpawnError> {
        let image = Image::new(self, files, terminal);
        let (report, reporter) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| SpawnError::Fork(error.into()))?;
        let reporter_raw = reporter.as_raw_fd();

        #[expect(
            unsafe_code,
            reason = "the standard library collects its children itself"
        )]
        // SAFETY: the child runs only `Image::become_program`, which makes system calls on memory
        // prepared above and never returns.
        let pid = unsafe {
            match libc::fork() {
                0 => image.become_program(reporter_raw),
                pid => pid,
            }
        };
        if pid < 0 {
            return Err(SpawnError::Fork(io::Error::last_os_error()));
        }
        drop(reporter);
        match read_report(&report) {
            None => Ok(pid.unsigned_abs()),
            Some((step, errno)) => Err(SpawnError::Child {
                step: STEPS.get(step).copied().unwrap_or("start"),
                source: io::Error::from_raw_os_error(errno),
            }),
        }
    }
}

/// Waits until the child runs the program (the pipe closes) or says which step failed.
fn read_report(report: &OwnedFd) -> Option<(usize, i32)> {
    let mut bytes = [0_u8; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::read(report, &mut bytes[filled..]) {
            Ok(0) => return None,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    let [a, b, c, d, e, f, g, h] = bytes;
    Some((
        u32::from_ne_bytes([a, b, c, d]) as usize,
        i32::from_ne_bytes([e, f, g, h]),
    ))
}

fn candidates(command: &str, search: &str) -> Result<Vec<CString>, SpawnError> {
    if command.contains('/') {
        return Ok(vec![CString::new(command)?]);
    }
    let mut found = Vec::new();
    for directory in search.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        found.push(CString::new(
            Path::new(directory)
                .join(command)
                .to_string_lossy()
                .as_bytes(),
        )?);
    }
    Ok(found)
}

/// The program as arrays of pointers, ready for `execve`.
struct Image<'a> {
    program: &'a Program,
    arguments: Vec<*const c_char>,
    /// The same for a script without interpreter line: `/bin/sh`, a free slot, the arguments.
    script: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    not_found: CString,
    not_executable: CString,
    files: [RawFd; 3],
    terminal: bool,
    open_files: Option<libc::rlimit>,
}

impl<'a> Image<'a> {
    fn new(program: &'a Program, files: [&OwnedFd; 3], terminal: bool) -> Self {
        let mut arguments: Vec<_> = program.arguments.iter().map(|text| text.as_ptr()).collect();
        arguments.push(ptr::null());
        let mut script = vec![c"/bin/sh".as_ptr(), ptr::null()];
        script.extend_from_slice(&arguments[1..]);
        let mut environment: Vec<_> = program
            .environment
            .iter()
            .map(|text| text.as_ptr())
            .collect();
        environment.push(ptr::null());
        let name = program.arguments[0].to_string_lossy();
        let line = |text: &str| {
            CString::new(format!("{name}: {text}\n")).expect("the name was a C string before")
        };
        Self {
            program,
            arguments,
            script,
            environment,
            not_found: line("No such file or directory"),
            not_executable: line("Permission denied"),
            files: files.map(AsRawFd::as_raw_fd),
            terminal,
            open_files: limits::open_files(),
        }
    }

    /// Turns the forked child into the program. System calls only, no allocation.
    #[expect(unsafe_code, reason = "there is no safe way to set up a forked child")]
    unsafe fn become_program(mut self, reporter: RawFd) -> ! {
        // SAFETY: called in the child only; all pointers were made from live strings before the
        // fork, and every function is async-signal-safe.
        unsafe {
            self.inherit_nothing(reporter);
            if let Err(step) = self.set_up() {
                let errno = *libc::__errno_location();
                let mut report = [0_u8; 8];
                report[..4].copy_from_slice(&(step as u32).to_ne_bytes());
                report[4..].copy_from_slice(&errno.to_ne_bytes());
                libc::write(reporter, report.as_ptr().cast(), report.len());
                libc::_exit(NOT_FOUND);
            }
            let denied = self.execute();
            let (line, code) = if denied {
                (&self.not_executable, NOT_EXECUTABLE)
            } else {
                (&self.not_found, NOT_FOUND)
            };
            libc::write(2, line.as_ptr().cast(), line.as_bytes().len());
            libc::_exit(code)
        }
    }

    /// Default signals, ordinary priority, and no files but the three.
    #[expect(unsafe_code, reason = "runs in a forked child")]
    unsafe fn inherit_nothing(&self, reporter: RawFd) {
        // SAFETY: as in `become_program`.
        unsafe {
            // Exec resets handlers but keeps what is ignored: the runtime ignores SIGPIPE.
            for signal in 1..32 {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            libc::umask(UMASK);
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
            if let Some(limit) = &self.open_files {
                libc::setrlimit(libc::RLIMIT_NOFILE, limit);
            }
            let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY);
            if score >= 0 {
                libc::write(score, OOM_SCORE.as_ptr().cast(), OOM_SCORE.count_bytes());
                libc::close(score);
            }
            // All descriptors of the agent are close-on-exec already; this catches those it was
            // started with. Old kernels lack the call.
            let flags = libc::CLOSE_RANGE_CLOEXEC as c_int;
            libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flags);
            debug_assert!(reporter > 2);
        }
    }

    /// Session, terminal, files, identity, directory. The error is the index in [`STEPS`].
    ///
    /// The directory comes last: one the user may not enter has to fail.
    #[expect(unsafe_code, reason = "runs in a forked child")]
    unsafe fn set_up(&self) -> Result<(), usize> {
        // SAFETY: as in `become_program`.
        unsafe {
            succeeded(libc::setsid(), 0)?;
            if self.terminal {
                succeeded(libc::ioctl(self.files[0], libc::TIOCSCTTY, 0), 1)?;
            }
            for (target, file) in (0..).zip(self.files) {
                succeeded(libc::dup2(file, target), 2)?;
            }
            let groups = &self.program.groups;
            succeeded(libc::setgroups(groups.len(), groups.as_ptr()), 3)?;
            succeeded(libc::setgid(self.program.gid), 4)?;
            succeeded(libc::setuid(self.program.uid), 5)?;
            succeeded(libc::chdir(self.program.directory.as_ptr()), 6)
        }
    }

    /// Tries the candidates like a shell; returns whether one was there but may not be run.
    #[expect(unsafe_code, reason = "runs in a forked child")]
    unsafe fn execute(&mut self) -> bool {
        let mut denied = false;
        for candidate in &self.program.candidates {
            // SAFETY: as in `become_program`; the arrays end with a null pointer.
            unsafe {
                let environment = self.environment.as_ptr();
                libc::execve(candidate.as_ptr(), self.arguments.as_ptr(), environment);
                let mut errno = *libc::__errno_location();
                if errno == libc::ENOEXEC {
                    self.script[1] = candidate.as_ptr();
                    libc::execve(self.script[0], self.script.as_ptr(), environment);
                    errno = libc::EACCES;
                }
                denied |= errno != libc::ENOENT && errno != libc::ENOTDIR;
            }
        }
        denied
    }
}

fn succeeded(result: c_int, step: usize) -> Result<(), usize> {
    if result < 0 { Err(step) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_in_the_childs_path() {
        let paths = candidates("ls", "/bin::/usr/bin").unwrap();
        assert_eq!(
            paths,
            [
                c"/bin/ls".to_owned(),
                c"./ls".to_owned(),
                c"/usr/bin/ls".to_owned()
            ]
        );
        assert_eq!(candidates("./x", "/bin").unwrap(), [c"./x".to_owned()]);
    }
}
