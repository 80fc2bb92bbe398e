//! How a process ended, in the words of the contract (§4.5).

use super::messages::EndEvent;

/// The raw status `wait` gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub(crate) i32);

impl ExitStatus {
    /// The end event of a process that ended like this; `killed` says what the memory guard killed of
    /// it.
    ///
    /// Signals are exit code -1 and not 128+n: E2B's command line tool recognises a closed terminal
    /// by (-1, `signal: killed`).
    pub(crate) fn end_event(self, killed: Option<&str>) -> EndEvent {
        let explain = |error: &str| match killed {
            Some(killed) => format!("{error}: {killed}"),
            None => error.to_owned(),
        };
        if libc::WIFEXITED(self.0) {
            let code = libc::WEXITSTATUS(self.0);
            let status = format!("exit status {code}");
            let error = (code != 0).then(|| explain(&status));
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
            error: Some(explain(&status)),
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
        let zero = ExitStatus(0).end_event(None);
        assert_eq!((zero.exit_code, zero.exited, zero.error), (0, true, None));
        let three = ExitStatus(3 << 8).end_event(None);
        assert_eq!(
            (three.exit_code, three.error.as_deref()),
            (3, Some("exit status 3"))
        );
        let killed = ExitStatus(9).end_event(None);
        assert_eq!((killed.exit_code, killed.exited), (-1, false));
        assert_eq!(killed.status, "signal: killed");
        assert_eq!(
            ExitStatus(6 | 0x80).end_event(None).status,
            "signal: aborted (core dumped)"
        );
    }

    #[test]
    fn an_end_for_want_of_memory_says_so_and_success_stays_success() {
        let killed = ExitStatus(9).end_event(Some("out of memory"));
        assert_eq!(killed.status, "signal: killed");
        assert_eq!(
            killed.error.as_deref(),
            Some("signal: killed: out of memory")
        );
        let shell = ExitStatus(137 << 8).end_event(Some("out of memory"));
        assert_eq!(
            shell.error.as_deref(),
            Some("exit status 137: out of memory")
        );
        assert_eq!(ExitStatus(0).end_event(Some("out of memory")).error, None);
    }
}
