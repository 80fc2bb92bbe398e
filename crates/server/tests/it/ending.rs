//! The end of an execution after its pause was answered: nobody waits for it but whoever needs the disk.

use std::time::Duration;

use engine::ExitReason;
use engine::fake::Call;
use server::sandbox::state::State;
use server::sandbox::{Fault, PublicState, ResumeFrom, SandboxError, SandboxId, Sandboxes, Step};

use crate::crash::Server;
use crate::snapshots::UNNAMED;
use crate::support::{FULL, MINUTE, Place, create, eventually, running, state_of};

/// As many failures of a destruction that it takes some hundred milliseconds.
fn slow_down(place: &Place) {
    for _ in 0..3 {
        place.host.fail(Call::Destroy);
    }
}

fn is_ending(place: &Place) -> bool {
    !place.host.pending_failures().is_empty()
}

/// A sandbox that has counted to one and was just paused; its execution is not gone yet.
async fn just_paused(place: &Place, sandboxes: &Sandboxes) -> SandboxId {
    let id = running(place, sandboxes).await;
    slow_down(place);
    sandboxes.pause(&id, FULL).await.unwrap();
    assert!(is_ending(place), "the pause waited for the end");
    assert_eq!(state_of(sandboxes, &id), Some(PublicState::Paused));
    id
}

async fn assert_goes_on(place: &Place, sandboxes: &Sandboxes, id: &SandboxId) {
    let connected = sandboxes.connect(id, MINUTE, ResumeFrom::Saved).await;
    assert_eq!(connected.unwrap().0.state, PublicState::Running);
    assert!(!is_ending(place));
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pause_is_answered_before_its_execution_is_gone_and_that_executes_no_more() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = just_paused(&place, &sandboxes).await;
    let ending = place.execution();
    assert!(!place.host.step(&ending), "a paused one cannot execute");
    assert!(sandboxes.route(&id).is_err(), "nor be reached");
    assert_goes_on(&place, &sandboxes, &id).await;
    assert_ne!(place.execution(), ending, "it comes from its image");
    for _ in 0..5 {
        slow_down(&place);
        sandboxes.pause(&id, FULL).await.unwrap();
        assert_goes_on(&place, &sandboxes, &id).await;
    }
    sandboxes.pause(&id, FULL).await.unwrap();
    eventually("the end", || place.host.executions().is_empty()).await;
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn whatever_is_asked_right_after_a_pause_has_the_disk_for_itself() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = just_paused(&place, &sandboxes).await;
    let snapshot = sandboxes.snapshot(&id, UNNAMED).await.unwrap();
    assert!(!is_ending(&place));
    assert_goes_on(&place, &sandboxes, &id).await;
    assert!(place.host.step(&place.execution()));

    let again = async || {
        slow_down(&place);
        sandboxes.pause(&id, FULL).await.unwrap();
        assert!(is_ending(&place));
    };
    again().await;
    let back = sandboxes.rollback(&id, &snapshot.reference()).await;
    back.unwrap();
    assert_goes_on(&place, &sandboxes, &id).await;
    again().await;
    let (opened, _) = sandboxes.readable_files(&id).await.unwrap();
    assert!(!is_ending(&place));
    drop(opened);
    assert_goes_on(&place, &sandboxes, &id).await;
    again().await;
    let exported = sandboxes.export(&id, true).await.unwrap();
    drop(exported);
    assert_goes_on(&place, &sandboxes, &id).await;
    again().await;
    let booted = sandboxes.connect(&id, MINUTE, ResumeFrom::Disk).await;
    booted.unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(0));

    again().await;
    sandboxes.kill(&id).await.unwrap();
    let reference = snapshot.reference();
    sandboxes.delete_snapshot(&reference).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn an_orderly_stop_waits_for_the_end() {
    let place = Place::new();
    let sandboxes = place.open().await;
    for _ in 0..2 {
        just_paused(&place, &sandboxes).await;
    }
    sandboxes.close().await;
    assert_eq!(place.host.executions(), vec![]);
    let late = create(&sandboxes).await;
    slow_down(&place);
    sandboxes.pause(&late, FULL).await.unwrap();
    sandboxes.close().await;
    assert_eq!(place.host.executions(), vec![], "one that came afterwards");
}

#[test]
fn a_sigkill_of_the_server_meanwhile_costs_nothing() {
    for step in [None, Some(Step::PausePublish)] {
        let place = Place::new();
        let server = Server::start(&place);
        let id = server.runtime.block_on(async {
            let id = create(&server.sandboxes).await;
            assert!(place.host.step(&place.execution()));
            slow_down(&place);
            let paused = server.sandboxes.pause(&id, FULL);
            if let Some(step) = step {
                place.inject(step, Fault::Stop);
                let stopped = eventually("the fault", || place.faults_left() == 0);
                tokio::select! {
                    () = stopped => {}
                    paused = paused => paused.unwrap(),
                }
            } else {
                paused.await.unwrap();
            }
            id
        });
        server.kill();
        assert!(is_ending(&place), "{step:?}");
        assert_eq!(place.host.executions().len(), 1);

        let server = Server::start(&place);
        server.runtime.block_on(async {
            server.sandboxes.settle().await;
            eventually("the end", || place.host.executions().is_empty()).await;
            assert_goes_on(&place, &server.sandboxes, &id).await;
            server.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}

/// More failures of a destruction than a test lives.
fn break_for_good(place: &Place) {
    for _ in 0..1000 {
        place.host.fail(Call::Destroy);
    }
}

#[tokio::test]
async fn whoever_needs_a_disk_that_is_not_let_go_is_told_so_and_can_come_again() {
    let place = Place {
        disk_wait: Duration::from_millis(100),
        ..Place::new()
    };
    let sandboxes = place.open().await;
    let id = running(&place, &sandboxes).await;
    break_for_good(&place);
    sandboxes.pause(&id, FULL).await.unwrap();
    let connect = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    let boot = sandboxes.connect(&id, MINUTE, ResumeFrom::Disk).await;
    let snapshot = sandboxes.snapshot(&id, UNNAMED).await;
    let errors = [connect.err(), boot.err(), snapshot.err()];
    for error in errors.map(Option::unwrap) {
        assert!(matches!(error, SandboxError::DiskInUse { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("injected failure"), "{text}");
    }
    let readable = sandboxes.readable_files(&id).await.map(drop);
    let readable = readable.unwrap_err().to_string();
    assert!(readable.contains("still uses its disk"), "{readable}");
    assert_eq!(state_of(&sandboxes, &id), Some(PublicState::Paused));
    assert_eq!(place.host.executions().len(), 1, "nothing was started");
    place.host.mend(Call::Destroy);
    eventually("the end", || place.host.executions().is_empty()).await;
    assert_goes_on(&place, &sandboxes, &id).await;
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[test]
fn a_kill_is_journaled_at_once_whatever_the_last_execution_does() {
    for (died, waiting) in [(false, false), (false, true), (true, false), (true, true)] {
        let place = Place::new();
        let server = Server::start(&place);
        let sandboxes = &server.sandboxes;
        let id = server.runtime.block_on(async {
            let id = running(&place, sandboxes).await;
            break_for_good(&place);
            if died {
                place.host.kill(&place.execution(), ExitReason::Exited);
                let paused = || state_of(sandboxes, &id) == Some(PublicState::Paused);
                eventually("the loss", paused).await;
            } else {
                sandboxes.pause(&id, FULL).await.unwrap();
            }
            let connect = async {
                if waiting {
                    let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
                    let error = connected.unwrap_err();
                    assert!(matches!(error, SandboxError::BeingKilled(_)), "{error}");
                }
            };
            let killed = async {
                // The connect first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                tokio::select! {
                    killed = sandboxes.kill(&id) => panic!("{killed:?} while its execution is there"),
                    () = tokio::time::sleep(Duration::from_millis(200)) => {}
                }
            };
            tokio::join!(connect, killed);
            let journaled = place.journaled(&id).await;
            let killing = State::Killing { execution: None };
            assert_eq!(journaled, Some(killing), "{died} {waiting}");
            assert_eq!(state_of(sandboxes, &id), None);
            id
        });
        server.kill();
        place.host.mend(Call::Destroy);
        let next = Server::start(&place);
        assert_eq!(
            state_of(&next.sandboxes, &id),
            None,
            "a killed one returned"
        );
        next.runtime.block_on(async {
            let _joined = next.sandboxes.kill(&id).await;
            place.assert_clean().await;
        });
    }
}
