//! The end of an execution after its pause was answered: nobody waits for it but whoever needs the disk.

use engine::fake::Call;
use server::sandbox::{Fault, PublicState, ResumeFrom, SandboxId, Sandboxes, Step};

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
            assert_eq!(place.host.executions(), vec![], "{step:?}");
            assert_goes_on(&place, &server.sandboxes, &id).await;
            server.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}
