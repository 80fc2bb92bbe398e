//! What the stacks of a sentry's goroutines tell about a freeze.
//!
//! The names looked for are those of gVisor's kernel: a task of the guest is a goroutine in `Task.run`,
//! one that is stopped stands in `doStop`, and `Kernel.Pause` takes a lock, tells all tasks to stop, and
//! waits in a wait group until they do.

/// What a dump of goroutines shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// No task is stopped, or there is none.
    Running,
    /// Some tasks are stopped, which is no freeze: it may be a stopped program or the parent of a
    /// vfork, or a thaw that is just taking effect.
    SomeStand,
    /// All tasks were told to stop, and not all stand yet.
    Freezing,
    /// All tasks stand. Only a freeze does that: PID 1 is among them.
    Frozen,
    /// A freeze or a thaw was asked and waits for its turn, or for its end.
    CallWaiting,
}

impl Seen {
    pub(super) fn of(stacks: &str) -> Self {
        let (mut tasks, mut standing) = (0, 0);
        let (mut freezing, mut sleeping) = (false, false);
        for goroutine in stacks.split("\n\n") {
            let shows = |frame| goroutine.contains(frame);
            if shows("(*Kernel).Unpause(") || shows("(*containerManager).Resume(") {
                return Self::CallWaiting;
            }
            if shows("(*Kernel).Pause(") {
                if !shows("(*WaitGroup).Wait(") {
                    return Self::CallWaiting;
                }
                freezing = true;
            }
            if shows("kernel.(*Task).run(") {
                tasks += 1;
                standing += usize::from(shows("kernel.(*Task).doStop("));
                sleeping |= shows("kernel.(*Task).block(");
            }
        }
        match (tasks, standing) {
            (0, _) => Self::Running,
            _ if tasks == standing => Self::Frozen,
            // A freeze wakes the tasks that sleep, to stand. One that was undone before they all stood
            // may go on waiting for that, and says nothing.
            _ if freezing && !sleeping => Self::Freezing,
            (_, 0) => Self::Running,
            _ => Self::SomeStand,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDING: &str = "goroutine 1 [sync.Cond.Wait]:\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).doStop(0xc0)\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0xc0, 0x1)";
    const SLEEPING: &str = "goroutine 2 [select]:\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).block(0xc0, 0x0, 0x0)\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0xc0, 0x2)";
    const IN_HOST_CALL: &str = "goroutine 3 [syscall]:\n\
        gvisor.dev/gvisor/pkg/sentry/fsimpl/gofer.(*handle).sync(0xc0)\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0xc0, 0x3)";
    const PAUSE: &str = "goroutine 4 [sync.WaitGroup.Wait]:\n\
        sync.(*WaitGroup).Wait(0xc0)\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Kernel).Pause(0xc0)\n\
        gvisor.dev/gvisor/runsc/boot.(*containerManager).Pause(...)";
    const PAUSE_IN_LINE: &str = "goroutine 5 [sync.Mutex.Lock]:\n\
        internal/sync.(*Mutex).lockSlow(0xc0)\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Kernel).Pause(0xc0)";
    const RESUME: &str = "goroutine 6 [sync.Mutex.Lock]:\n\
        internal/sync.(*Mutex).lockSlow(0xc0)\n\
        gvisor.dev/gvisor/pkg/sentry/kernel.(*Kernel).Unpause(0xc0)\n\
        gvisor.dev/gvisor/runsc/boot.(*containerManager).Resume(0xc0)";
    const OTHER: &str = "goroutine 7 [IO wait]:\nmain.main()";

    fn seen(goroutines: &[&str]) -> Seen {
        Seen::of(&goroutines.join("\n\n"))
    }

    #[test]
    fn a_guest_is_frozen_when_all_its_tasks_stand() {
        assert_eq!(seen(&[OTHER, STANDING, STANDING]), Seen::Frozen);
        assert_eq!(seen(&[STANDING, PAUSE]), Seen::Frozen);
        assert_eq!(seen(&[SLEEPING, IN_HOST_CALL]), Seen::Running);
        assert_eq!(seen(&[OTHER]), Seen::Running);
    }

    #[test]
    fn a_guest_half_of_which_stands_is_frozen_only_by_a_freeze() {
        assert_eq!(seen(&[STANDING, IN_HOST_CALL]), Seen::SomeStand);
        assert_eq!(seen(&[STANDING, SLEEPING]), Seen::SomeStand);
        assert_eq!(seen(&[STANDING, IN_HOST_CALL, PAUSE]), Seen::Freezing);
        assert_eq!(seen(&[IN_HOST_CALL, PAUSE]), Seen::Freezing);
    }

    #[test]
    fn a_freeze_that_was_undone_before_all_stood_is_none() {
        assert_eq!(seen(&[SLEEPING, IN_HOST_CALL, PAUSE]), Seen::Running);
        assert_eq!(seen(&[STANDING, SLEEPING, PAUSE]), Seen::SomeStand);
    }

    #[test]
    fn a_call_that_waits_for_its_turn_is_not_asked_again() {
        assert_eq!(seen(&[STANDING, RESUME]), Seen::CallWaiting);
        assert_eq!(seen(&[SLEEPING, PAUSE_IN_LINE]), Seen::CallWaiting);
    }
}
