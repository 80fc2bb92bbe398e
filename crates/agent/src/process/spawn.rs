//! Starting a program, by hand: the standard library waits for children itself, which fights with an
//! init process that collects them all.
//!
//! The child borrows the agent's memory until it runs the program, while the thread that started it
//! stands still (`CLONE_VM`, `CLONE_VFORK`): copying an address space is the dearest part of a fork in
//! gVisor. So everything the child needs is allocated before, and it only makes system calls on it:
//! it must take no lock, and call nothing that keeps records of threads, as `setuid` of libc does.
//! Once it is another user, kernels let nobody look into the shared memory until the program runs.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use super::limits;
use crate::users::User;

/// What the shell answers for a missing program, and for one it may not run.
const NOT_FOUND: c_int = 127;
const NOT_EXECUTABLE: c_int = 126;
/// Makes the kernel prefer user processes to the agent when memory runs out.
const OOM_SCORE: &CStr = c"100";
const UMASK: libc::mode_t = 0o022;
/// Stack of the child until it runs the program. Paths and arguments are not on it.
const CHILD_STACK: usize = 64 * 1024;

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
        let mut image = Image::new(self, files, terminal);
        let pid = start(&mut image).map_err(SpawnError::Fork)?;
        match image.failure {
            None => Ok(pid),
            Some((step, errno)) => Err(SpawnError::Child {
                step: STEPS.get(step).copied().unwrap_or("start"),
                source: io::Error::from_raw_os_error(errno),
            }),
        }
    }
}

/// Starts a child that becomes the program; returns when it has, or has given up.
#[expect(
    unsafe_code,
    reason = "the standard library collects its children itself"
)]
fn start(image: &mut Image<'_>) -> io::Result<u32> {
    extern "C" fn child(image: *mut c_void) -> c_int {
        // SAFETY: `image` is what `clone` was given below. Its owner stands still.
        unsafe { (*image.cast::<Image<'_>>()).become_program() }
    }
    let mut stack = vec![0_u128; CHILD_STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs on a stack of its own, makes only system calls on memory prepared above
    // and never returns; this thread goes on when the child no longer uses that memory. Signals are
    // blocked until the child has got rid of the agent's handlers, which would run in this memory.
    let (pid, error) = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let pid = libc::clone(child, top.cast(), flags, ptr::from_mut(image).cast());
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
        (pid, error)
    };
    u32::try_from(pid).map_err(|_negative| error)
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
    /// What the agent does not leave to the system.
    signals: &'static [c_int],
    /// Set by the child: index in [`STEPS`] and error number.
    failure: Option<(usize, c_int)>,
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
            signals: own_signals(),
            failure: None,
        }
    }

    /// Turns the child into the program. System calls only, no allocation.
    #[expect(unsafe_code, reason = "there is no safe way to set up a child")]
    unsafe fn become_program(&mut self) -> ! {
        // SAFETY: called in the child only; all pointers were made from live strings before, and
        // every function is async-signal-safe.
        unsafe {
            self.inherit_nothing();
            if let Err(step) = self.set_up() {
                self.failure = Some((step, *libc::__errno_location()));
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
    #[expect(unsafe_code, reason = "runs in the child")]
    unsafe fn inherit_nothing(&self) {
        // SAFETY: as in `become_program`.
        unsafe {
            // Exec resets handlers but keeps what is ignored: the runtime ignores SIGPIPE.
            for signal in self.signals {
                libc::signal(*signal, libc::SIG_DFL);
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
        }
    }

    /// Session, terminal, files, identity, directory. The error is the index in [`STEPS`].
    ///
    /// The directory comes last: one the user may not enter has to fail.
    #[expect(unsafe_code, reason = "runs in the child")]
    unsafe fn set_up(&self) -> Result<(), usize> {
        // SAFETY: as in `become_program`.
        unsafe {
            succeeded(libc::setsid().into(), 0)?;
            if self.terminal {
                succeeded(libc::ioctl(self.files[0], libc::TIOCSCTTY, 0).into(), 1)?;
            }
            for (target, file) in (0..).zip(self.files) {
                succeeded(libc::dup2(file, target).into(), 2)?;
            }
            let groups = &self.program.groups;
            let changed = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
            succeeded(changed, 3)?;
            succeeded(libc::syscall(libc::SYS_setgid, self.program.gid), 4)?;
            succeeded(libc::syscall(libc::SYS_setuid, self.program.uid), 5)?;
            succeeded(libc::chdir(self.program.directory.as_ptr()).into(), 6)
        }
    }

    /// Tries the candidates like a shell; returns whether one was there but may not be run.
    #[expect(unsafe_code, reason = "runs in the child")]
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

/// Signals that the agent handles or ignores. It settles that when it starts, before any child: so it
/// is looked up once, where to reset all of them would be half a child's system calls.
#[expect(unsafe_code, reason = "the standard library tells nothing of signals")]
fn own_signals() -> &'static [c_int] {
    static OWN: OnceLock<Vec<c_int>> = OnceLock::new();
    OWN.get_or_init(|| {
        let is_own = |signal: &c_int| {
            // The reaper may be about to handle it.
            if *signal == libc::SIGCHLD {
                return true;
            }
            // SAFETY: all bits zero are a valid `sigaction`, and it is only read into.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                libc::sigaction(*signal, ptr::null(), &raw mut action) == 0
                    && action.sa_sigaction != libc::SIG_DFL
            }
        };
        (1..32).filter(is_own).collect()
    })
}

fn succeeded(result: c_long, step: usize) -> Result<(), usize> {
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

    #[test]
    fn a_child_inherits_no_signal_that_is_ignored_or_blocked() {
        let user = User {
            name: "nobody".to_owned(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            home: "/".to_owned(),
        };
        let arguments = ["-E", "^Sig(Blk|Ign)", "/proc/self/status"].map(str::to_owned);
        let none = std::iter::empty();
        let program = Program::new("/bin/grep", &arguments, none, "/", &user, Vec::new()).unwrap();
        let (mut told, child) = std::io::pipe().unwrap();
        let child = OwnedFd::from(child);
        let pid = program.spawn([&child; 3], false).unwrap();
        drop(child);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut told, &mut text).unwrap();
        // Another test may have collected it already.
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
        let _ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        // Tests ignore SIGPIPE, as the agent does. What comes after the first 31 is left as it was.
        let sets: Vec<_> = text.split_whitespace().skip(1).step_by(2).collect();
        assert_eq!(sets.len(), 2, "{text}");
        for set in sets {
            assert_eq!(
                u64::from_str_radix(set, 16).unwrap() & 0x7fff_ffff,
                0,
                "{text}"
            );
        }
    }
}
