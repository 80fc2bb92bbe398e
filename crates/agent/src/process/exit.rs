//! How a process ended, in the words of the contract (§4.5).

use super::messages::EndEvent;

/// The raw status `wait` gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub(crate) i32);

impl ExitStatus {
    /// The end event of a process that ended like this.
    ///
    /// Signals are exit code -1 and not 128+n: E2B's command line tool recognises a closed terminal
    /// by (-1, `signal: killed`).
    pub(crate) fn end_event(self) -> EndEvent {
        if libc::WIFEXITED(self.0) {
            let code = libc::WEXITSTATUS(self.0);
            let status = format!("exit status {code}");
            let error = (code != 0).then(|| status.clone());
            return EndEvent {
                exit_code: code,
                exited: true,
                status,
                error,
            };
        }
        let mut status = format!("signal: {}", signal_words(libc::WTERMSIG(self.0)));
        if libc::WCOREDUMP(self.0) {
            status.push_str(" (core dumped)");
        }
        EndEvent {
            exit_code: -1,
            exited: false,
            error: Some(status.clone()),
            status,
        }
    }
}

fn signal_words(signal: i32) -> String {
    let words = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        other => return format!("signal {other}"),
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_and_signals_have_the_words_of_the_contract() {
        let zero = ExitStatus(0).end_event();
        assert_eq!((zero.exit_code, zero.exited, zero.error), (0, true, None));
        let three = ExitStatus(3 << 8).end_event();
        assert_eq!(
            (three.exit_code, three.error.as_deref()),
            (3, Some("exit status 3"))
        );
        let killed = ExitStatus(9).end_event();
        assert_eq!((killed.exit_code, killed.exited), (-1, false));
        assert_eq!(killed.status, "signal: killed");
        assert_eq!(
            ExitStatus(6 | 0x80).end_event().status,
            "signal: aborted (core dumped)"
        );
    }
}
