//! SIGKILL of the server at every step: the next one on the same folder and host loses nothing.

use std::time::Duration;

use engine::ExitReason;
use engine::fake::Call;
use server::sandbox::{Fault, PublicState, ResumeFrom, SandboxId, Sandboxes, Step};

use crate::snapshots::UNNAMED;
use crate::support::{
    DISK_ONLY, FULL, MINUTE, Place, create, eventually, request, running, state_of,
};

/// A server that can be stopped dead: dropping its runtime drops every task where it stands.
pub(crate) struct Server {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) sandboxes: Sandboxes,
}

impl Server {
    pub(crate) fn start(place: &Place) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let sandboxes = runtime.block_on(place.open());
        Self { runtime, sandboxes }
    }

    /// Drops every task where it stands. Calls into the kernel that are under way end first, as after
    /// a SIGKILL, before anybody else looks.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_timeout(Duration::from_secs(10));
    }

    fn settled(&self, id: &SandboxId, state: PublicState) {
        self.runtime.block_on(eventually("recovery", || {
            state_of(&self.sandboxes, id) == Some(state)
        }));
    }
}

/// Runs one call on a server that stops dead at `step`.
pub(crate) fn crash_at(
    place: &Place,
    server: Server,
    step: Step,
    call: impl AsyncFnOnce(&Sandboxes),
) {
    place.inject(step, Fault::Stop);
    let Server { runtime, sandboxes } = server;
    runtime.block_on(async {
        let stopped = eventually("the fault", || place.faults_left() == 0);
        tokio::select! {
            () = stopped => {}
            () = call(&sandboxes) => {}
        }
    });
    assert_eq!(place.faults_left(), 0, "{step:?} was not reached");
    runtime.shutdown_background();
}

pub(crate) fn is_of(step: Step, prefix: &str) -> bool {
    format!("{step:?}").starts_with(prefix)
}

#[test]
fn a_crash_at_any_step_of_create_leaves_nothing() {
    for step in Step::ALL.into_iter().filter(|step| is_of(*step, "Create")) {
        let place = Place::new();
        let server = Server::start(&place);
        crash_at(&place, server, step, async |sandboxes| {
            let _ = sandboxes.create(request()).await;
        });
        let next = Server::start(&place);
        next.runtime.block_on(async {
            eventually("the clean-up", || {
                place.host.executions().is_empty() && place.directories().is_empty()
            })
            .await;
            next.sandboxes.settle().await;
            assert_eq!(next.sandboxes.list().len(), 0);
            // The server works on as if nothing had been.
            let id = create(&next.sandboxes).await;
            next.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}

#[test]
fn a_living_execution_that_does_not_thaw_at_once_is_kept() {
    let place = Place::new();
    let server = Server::start(&place);
    let id = server.runtime.block_on(create(&server.sandboxes));
    let execution = place.execution();
    assert!(place.host.step(&execution));
    crash_at(&place, server, Step::PauseCheckpoint, async |sandboxes| {
        let _ = sandboxes.pause(&id, FULL).await;
    });
    place.host.fail(Call::Thaw);
    place.host.fail(Call::Thaw);
    let next = Server::start(&place);
    next.settled(&id, PublicState::Running);
    assert_eq!(place.host.pending_failures(), vec![]);
    assert_eq!(place.execution(), execution);
    assert!(place.host.step(&execution), "the guest must go on");
    assert_eq!(place.host.memory(&execution), Some(2));
    next.runtime.block_on(async {
        next.sandboxes.kill(&id).await.unwrap();
        place.assert_clean().await;
    });
}

#[test]
fn a_crash_at_any_step_of_a_pause_is_undone_before_the_commit_and_finished_after_it() {
    for step in Step::ALL.into_iter().filter(|step| is_of(*step, "Pause")) {
        let place = Place::new();
        let server = Server::start(&place);
        let id = server.runtime.block_on(create(&server.sandboxes));
        assert!(place.host.step(&place.execution()));
        crash_at(&place, server, step, async |sandboxes| {
            let _ = sandboxes.pause(&id, FULL).await;
        });
        let committed = matches!(
            step,
            Step::PauseCommitted | Step::PauseDestroy | Step::PausePublish
        );
        let next = Server::start(&place);
        if committed {
            next.settled(&id, PublicState::Paused);
            next.runtime.block_on(async {
                eventually("the end of the execution", || {
                    place.host.executions().is_empty()
                })
                .await;
                next.sandboxes
                    .connect(&id, MINUTE, ResumeFrom::Saved)
                    .await
                    .unwrap();
            });
        } else {
            next.settled(&id, PublicState::Running);
        }
        let execution = place.execution();
        assert_eq!(place.host.memory(&execution), Some(1), "{step:?}");
        assert!(
            place.host.step(&execution),
            "{step:?}: the guest must go on"
        );
        assert_eq!(
            place.staging(),
            Vec::<std::path::PathBuf>::new(),
            "{step:?}"
        );
        next.runtime.block_on(async {
            next.sandboxes.pause(&id, FULL).await.unwrap();
            next.sandboxes
                .connect(&id, MINUTE, ResumeFrom::Saved)
                .await
                .unwrap();
            assert_eq!(place.host.memory(&place.execution()), Some(2), "{step:?}");
            next.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}

#[test]
fn a_pause_without_memory_is_committed_by_the_journal_and_by_nothing_else() {
    for step in Step::ALL.into_iter().filter(|step| is_of(*step, "Pause")) {
        // Steps of a pause with memory.
        if matches!(
            step,
            Step::PauseCheckpoint | Step::PauseCommit | Step::PauseCommitted
        ) {
            continue;
        }
        for reboot in [false, true] {
            let place = Place::new();
            let server = Server::start(&place);
            let id = server.runtime.block_on(running(&place, &server.sandboxes));
            crash_at(&place, server, step, async |sandboxes| {
                let _ = sandboxes.pause(&id, DISK_ONLY).await;
            });
            // Its memory is there until the journal says that nobody wants it.
            let execution = place.execution();
            if reboot {
                place.host.kill(&execution, ExitReason::Exited);
            }
            let next = Server::start(&place);
            if reboot {
                next.settled(&id, PublicState::Paused);
            } else {
                next.settled(&id, PublicState::Running);
                assert!(place.host.step(&execution), "{step:?}: it must go on");
            }
            next.runtime.block_on(async {
                let connected = next.sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
                let lost = connected.unwrap().0.memory_lost;
                assert_eq!(lost.is_some(), reboot, "{step:?}: {lost:?}");
                let expected = if reboot { 0 } else { 2 };
                let memory = place.host.memory(&place.execution());
                assert_eq!(memory, Some(expected), "{step:?}");
                next.sandboxes.kill(&id).await.unwrap();
                place.assert_clean().await;
            });
        }
    }
}

#[test]
fn a_crash_after_a_pause_without_memory_leaves_it_paused() {
    let place = Place::new();
    let server = Server::start(&place);
    let id = server.runtime.block_on(async {
        let id = running(&place, &server.sandboxes).await;
        for _ in 0..3 {
            place.host.fail(Call::Destroy);
        }
        server.sandboxes.pause(&id, DISK_ONLY).await.unwrap();
        id
    });
    server.kill();
    let left = place.execution();
    assert!(!place.host.step(&left), "a paused one cannot execute");
    let next = Server::start(&place);
    next.settled(&id, PublicState::Paused);
    next.runtime.block_on(async {
        let connected = next.sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
        assert_eq!(connected.unwrap().0.memory_lost, None, "nobody wanted it");
        assert_ne!(place.execution(), left);
        next.sandboxes.kill(&id).await.unwrap();
        place.assert_clean().await;
    });
}

#[test]
fn a_crash_at_any_step_of_a_resume_loses_nothing() {
    for step in Step::ALL.into_iter().filter(|step| is_of(*step, "Resume")) {
        for guest_wrote in [false, true] {
            let place = Place::new();
            let server = Server::start(&place);
            let id = server.runtime.block_on(async {
                let id = create(&server.sandboxes).await;
                assert!(place.host.step(&place.execution()));
                server.sandboxes.pause(&id, FULL).await.unwrap();
                id
            });
            crash_at(&place, server, step, async |sandboxes| {
                let _ = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
            });
            let mut expected = 1;
            let started = !place.host.executions().is_empty();
            if started && guest_wrote {
                assert!(place.host.step(&place.execution()));
                expected = 2;
            }
            let next = Server::start(&place);
            next.runtime.block_on(async {
                next.sandboxes
                    .connect(&id, MINUTE, ResumeFrom::Saved)
                    .await
                    .unwrap();
                assert_eq!(
                    place.host.memory(&place.execution()),
                    Some(expected),
                    "{step:?}"
                );
                next.sandboxes.kill(&id).await.unwrap();
                place.assert_clean().await;
            });
        }
    }
}

#[test]
fn an_execution_that_dies_during_a_crashed_resume_is_booted_only_if_it_wrote() {
    for guest_wrote in [false, true] {
        let place = Place::new();
        let server = Server::start(&place);
        let id = server.runtime.block_on(async {
            let id = create(&server.sandboxes).await;
            assert!(place.host.step(&place.execution()));
            server.sandboxes.pause(&id, FULL).await.unwrap();
            id
        });
        crash_at(&place, server, Step::ResumeAgent, async |sandboxes| {
            let _ = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
        });
        if guest_wrote {
            assert!(place.host.step(&place.execution()));
        }
        place.host.kill(&place.execution(), ExitReason::Exited);
        let next = Server::start(&place);
        next.settled(&id, PublicState::Paused);
        next.runtime.block_on(async {
            let settle = || place.images().len() == usize::from(!guest_wrote);
            eventually("the end of what was given up", settle).await;
            next.sandboxes
                .connect(&id, MINUTE, ResumeFrom::Saved)
                .await
                .unwrap();
            let expected = if guest_wrote { 0 } else { 1 };
            assert_eq!(place.host.memory(&place.execution()), Some(expected));
            next.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}

#[test]
fn a_crash_at_any_step_of_a_kill_is_finished() {
    for step in Step::ALL.into_iter().filter(|step| is_of(*step, "Kill")) {
        for paused in [false, true] {
            let place = Place::new();
            let server = Server::start(&place);
            let id = server.runtime.block_on(async {
                let id = create(&server.sandboxes).await;
                if paused {
                    server.sandboxes.pause(&id, FULL).await.unwrap();
                }
                id
            });
            crash_at(&place, server, step, async |sandboxes| {
                let _ = sandboxes.kill(&id).await;
            });
            let next = Server::start(&place);
            assert_eq!(
                state_of(&next.sandboxes, &id),
                None,
                "a killed sandbox never returns"
            );
            next.runtime.block_on(async {
                eventually("the deletion", || {
                    place.host.executions().is_empty() && place.directories().is_empty()
                })
                .await;
                // Joins the kill that is being finished, or finds nothing any more.
                let _ = next.sandboxes.kill(&id).await;
                assert!(next.sandboxes.list().is_empty());
                place.assert_clean().await;
            });
        }
    }
}

#[test]
fn running_and_paused_sandboxes_survive_a_crash_at_rest() {
    let place = Place::new();
    let server = Server::start(&place);
    let (running, paused) = server.runtime.block_on(async {
        let paused = create(&server.sandboxes).await;
        assert!(place.host.step(&place.execution()));
        server.sandboxes.pause(&paused, FULL).await.unwrap();
        (create(&server.sandboxes).await, paused)
    });
    let execution = place.execution();
    let before = server.sandboxes.get(&running).unwrap();
    server.kill();
    assert!(
        place.host.step(&execution),
        "sandboxes run on without a server"
    );
    let next = Server::start(&place);
    next.settled(&running, PublicState::Running);
    let after = next.sandboxes.get(&running).unwrap();
    assert_eq!(after.end_at, before.end_at);
    assert_eq!(after.access_token, before.access_token);
    next.runtime.block_on(async {
        let route = next.sandboxes.route(&running).unwrap();
        assert!(route.guest.health().await.is_ok());
        next.sandboxes.kill(&running).await.unwrap();
        next.sandboxes
            .connect(&paused, MINUTE, ResumeFrom::Saved)
            .await
            .unwrap();
        assert_eq!(place.host.memory(&place.execution()), Some(1));
        next.sandboxes.kill(&paused).await.unwrap();
        place.assert_clean().await;
    });
}

#[test]
fn a_deadline_that_passed_while_no_server_ran_is_met_at_once() {
    let place = Place::new();
    let server = Server::start(&place);
    let id = server.runtime.block_on(async {
        let id = create(&server.sandboxes).await;
        server
            .sandboxes
            .set_timeout(&id, Duration::from_secs(1))
            .await
            .unwrap();
        id
    });
    let deadline = server.sandboxes.get(&id).unwrap().end_at;
    server.kill();
    while time::OffsetDateTime::now_utc() < deadline {
        std::thread::yield_now();
    }
    let next = Server::start(&place);
    next.runtime.block_on(async {
        eventually("the kill", || state_of(&next.sandboxes, &id).is_none()).await;
        next.sandboxes.settle().await;
        eventually("the end of the execution", || {
            place.host.executions().is_empty()
        })
        .await;
    });
}

/// The snapshots that a crash left are whole, and the source went on from all of them.
fn after_a_crashed_snapshot(place: &Place, server: &Server, source: &SandboxId, step: Step) {
    server.settled(source, PublicState::Running);
    server.runtime.block_on(server.sandboxes.settle());
    let execution = place.execution();
    assert_eq!(place.host.memory(&execution), Some(1), "{step:?}");
    assert!(
        place.host.step(&execution),
        "{step:?}: the guest must go on"
    );
    assert_eq!(
        place.staging(),
        Vec::<std::path::PathBuf>::new(),
        "{step:?}"
    );
    let listed = server.sandboxes.snapshots().listed();
    assert_eq!(place.snapshot_directories().len(), listed.len(), "{step:?}");
    server.runtime.block_on(async {
        for snapshot in listed {
            let mut request = request();
            request.template = snapshot.reference();
            let child = server.sandboxes.create(request).await.unwrap().id;
            let of_child = place.execution_beside(std::slice::from_ref(&execution));
            assert_eq!(place.host.memory(&of_child), Some(1), "{step:?}");
            server.sandboxes.kill(&child).await.unwrap();
            let reference = snapshot.reference();
            server.sandboxes.delete_snapshot(&reference).await.unwrap();
        }
        server.sandboxes.pause(source, FULL).await.unwrap();
        let connected = server
            .sandboxes
            .connect(source, MINUTE, ResumeFrom::Saved)
            .await;
        connected.unwrap();
        assert_eq!(place.host.memory(&place.execution()), Some(2), "{step:?}");
        server.sandboxes.kill(source).await.unwrap();
        place.assert_clean().await;
    });
}

#[test]
fn a_crash_at_any_step_of_a_snapshot_leaves_the_source_running() {
    let of_snapshot = |step: &Step| {
        ["Pause", "Snapshot", "Resume"]
            .iter()
            .any(|of| is_of(*step, of))
    };
    for step in Step::ALL.into_iter().filter(of_snapshot) {
        let place = Place::new();
        let server = Server::start(&place);
        let source = server.runtime.block_on(create(&server.sandboxes));
        assert!(place.host.step(&place.execution()));
        crash_at(&place, server, step, async |sandboxes| {
            let _ = sandboxes.snapshot(&source, UNNAMED).await;
        });
        let next = Server::start(&place);
        after_a_crashed_snapshot(&place, &next, &source, step);
    }
}

#[test]
fn a_crash_at_any_step_of_a_snapshot_of_a_paused_sandbox_leaves_it_paused() {
    let of_snapshot = |step: &Step| is_of(*step, "Snapshot");
    for step in Step::ALL.into_iter().filter(of_snapshot) {
        let place = Place::new();
        let server = Server::start(&place);
        let source = server.runtime.block_on(async {
            let source = create(&server.sandboxes).await;
            assert!(place.host.step(&place.execution()));
            server.sandboxes.pause(&source, FULL).await.unwrap();
            source
        });
        crash_at(&place, server, step, async |sandboxes| {
            let _ = sandboxes.snapshot(&source, UNNAMED).await;
        });
        let next = Server::start(&place);
        next.settled(&source, PublicState::Paused);
        next.runtime.block_on(async {
            let connected = next.sandboxes.connect(&source, MINUTE, ResumeFrom::Saved);
            connected.await.unwrap();
        });
        after_a_crashed_snapshot(&place, &next, &source, step);
    }
}

#[test]
fn a_crash_at_any_step_of_a_fork_leaves_the_source_and_no_trace() {
    let of_others = |step: Step| {
        ["Rollback", "Kill", "Import"]
            .iter()
            .any(|of| is_of(step, of))
    };
    for step in Step::ALL.into_iter().filter(|step| !of_others(*step)) {
        let place = Place::new();
        let server = Server::start(&place);
        let source = server.runtime.block_on(create(&server.sandboxes));
        assert!(place.host.step(&place.execution()));
        crash_at(&place, server, step, async |sandboxes| {
            let _ = sandboxes.fork(&source, 1, MINUTE).await;
        });
        let next = Server::start(&place);
        next.settled(&source, PublicState::Running);
        next.runtime.block_on(async {
            eventually("the clean-up", || place.host.executions().len() == 1).await;
            assert_eq!(next.sandboxes.list().len(), 1, "{step:?}");
        });
        after_a_crashed_snapshot(&place, &next, &source, step);
    }
}

#[test]
fn a_crash_at_any_step_of_a_rollback_leaves_one_of_the_two_states() {
    let of_rollback = |step: &Step| ["Rollback", "Resume"].iter().any(|of| is_of(*step, of));
    for step in Step::ALL.into_iter().filter(of_rollback) {
        let place = Place::new();
        let server = Server::start(&place);
        let (source, snapshot) = server.runtime.block_on(async {
            let source = create(&server.sandboxes).await;
            assert!(place.host.step(&place.execution()));
            let snapshot = server.sandboxes.snapshot(&source, UNNAMED).await.unwrap();
            (source, snapshot)
        });
        assert!(place.host.step(&place.execution()));
        crash_at(&place, server, step, async |sandboxes| {
            let _ = sandboxes.rollback(&source, &snapshot.reference()).await;
        });
        let committed = !matches!(step, Step::RollbackLink | Step::RollbackCommit);
        let next = Server::start(&place);
        next.settled(&source, PublicState::Running);
        next.runtime.block_on(async {
            next.sandboxes.settle().await;
            let expected = if committed { 1 } else { 2 };
            let memory = place.host.memory(&place.execution());
            assert_eq!(memory, Some(expected), "{step:?}");
            let reference = snapshot.reference();
            next.sandboxes.rollback(&source, &reference).await.unwrap();
            assert_eq!(place.host.memory(&place.execution()), Some(1), "{step:?}");
            next.sandboxes.kill(&source).await.unwrap();
            next.sandboxes.delete_snapshot(&reference).await.unwrap();
            place.assert_clean().await;
        });
    }
}

#[test]
fn an_execution_that_dies_after_a_crash_in_a_restart_is_started_again() {
    let place = Place::new();
    let server = Server::start(&place);
    let source = server.runtime.block_on(create(&server.sandboxes));
    assert!(place.host.step(&place.execution()));
    crash_at(&place, server, Step::ResumeAgent, async |sandboxes| {
        let _ = sandboxes.snapshot(&source, UNNAMED).await;
    });
    // It even wrote to its fresh disk; that life is dropped as a whole.
    assert!(place.host.step(&place.execution()));
    place.host.kill(&place.execution(), ExitReason::Exited);
    let next = Server::start(&place);
    after_a_crashed_snapshot(&place, &next, &source, Step::ResumeAgent);
}

/// As version 1 wrote it: nothing about ports.
fn make_journal_old(place: &Place) {
    let journal = rusqlite::Connection::open(place.data_dir().join("sandbase.db")).unwrap();
    let changed = journal
        .execute(
            "UPDATE sandboxes SET spec = json_remove(spec, '$.ingress')",
            [],
        )
        .unwrap();
    assert_eq!(changed, 2);
    journal.pragma_update(None, "user_version", 1).unwrap();
}

#[test]
fn a_journal_of_version_1_is_taken_over_and_then_closed_to_older_builds() {
    let place = Place::new();
    let server = Server::start(&place);
    let (running, paused) = server.runtime.block_on(async {
        let paused = create(&server.sandboxes).await;
        assert!(place.host.step(&place.execution()));
        server.sandboxes.pause(&paused, FULL).await.unwrap();
        (create(&server.sandboxes).await, paused)
    });
    server.kill();
    make_journal_old(&place);
    let next = Server::start(&place);
    next.settled(&running, PublicState::Running);
    next.settled(&paused, PublicState::Paused);
    for id in [&running, &paused] {
        assert_eq!(
            next.sandboxes.get(id).unwrap().ingress.traffic_token,
            None,
            "its ports are as open as before"
        );
    }
    next.runtime.block_on(async {
        let connect = next.sandboxes.connect(&paused, MINUTE, ResumeFrom::Saved);
        assert_eq!(connect.await.unwrap().0.state, PublicState::Running);
    });
    let journal = rusqlite::Connection::open(place.data_dir().join("sandbase.db")).unwrap();
    let version = journal.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
    assert_eq!(version, Ok(2));
}
