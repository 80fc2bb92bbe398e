//! The warm tier: a paused sandbox that stays frozen in memory for a while. It may only ever be seen in
//! the time a connect takes.

use std::time::Duration;

use engine::ExitReason;
use engine::fake::Call;
use server::sandbox::{
    Fault, PauseMode, PublicState, ResumeFrom, SandboxId, Sandboxes, Step, WarmSettings,
};

use crate::crash::Server;
use crate::snapshots::UNNAMED;
use crate::support::{DISK_ONLY, FULL, MINUTE, Place, create, eventually, running, state_of};

/// Room for two of the fake's guests, which hold a page each.
const TWO: WarmSettings = WarmSettings {
    memory_bytes: 8192,
    keep: Duration::from_secs(3600),
    ..WarmSettings::OFF
};

fn warm_place() -> Place {
    Place {
        warm: TWO,
        ..Place::new()
    }
}

/// A paused sandbox that has counted to one.
async fn paused(place: &Place, sandboxes: &Sandboxes) -> SandboxId {
    let id = running(place, sandboxes).await;
    sandboxes.pause(&id, FULL).await.unwrap();
    id
}

async fn connect(sandboxes: &Sandboxes, id: &SandboxId) {
    let connected = sandboxes.connect(id, MINUTE, ResumeFrom::Saved).await;
    assert_eq!(connected.unwrap().0.state, PublicState::Running);
}

#[tokio::test]
async fn a_connect_thaws_the_very_execution_and_the_next_pause_saves_it_again() {
    let place = warm_place();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let frozen = place.execution();
    assert!(!place.host.step(&frozen), "a paused one cannot execute");
    assert!(sandboxes.route(&id).is_err(), "nor be reached");
    for round in 1..5 {
        connect(&sandboxes, &id).await;
        assert_eq!(place.execution(), frozen);
        assert_eq!(place.host.memory(&frozen), Some(round));
        let thawed = sandboxes.timings(&id);
        assert!(thawed.parts().iter().any(|(part, _)| *part == "thaw"));
        assert!(place.host.step(&frozen));
        sandboxes.pause(&id, FULL).await.unwrap();
    }
    sandboxes.close().await;
    assert_eq!(place.host.executions(), vec![]);
    connect(&sandboxes, &id).await;
    assert_eq!(
        place.host.memory(&place.execution()),
        Some(5),
        "the image has all of it"
    );
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn whatever_else_is_done_with_it_its_disk_has_one_user() {
    let place = warm_place();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let snapshot = sandboxes.snapshot(&id, UNNAMED).await.unwrap();
    assert_eq!(place.host.executions(), vec![], "sealing needs the disk");
    connect(&sandboxes, &id).await;
    assert!(place.host.step(&place.execution()));
    sandboxes.pause(&id, FULL).await.unwrap();

    let reference = snapshot.reference();
    sandboxes.rollback(&id, &reference).await.unwrap();
    assert_eq!(place.host.executions(), vec![], "so does a rollback");
    connect(&sandboxes, &id).await;
    assert_eq!(place.host.memory(&place.execution()), Some(1));

    sandboxes.pause(&id, FULL).await.unwrap();
    let before = place.execution();
    let booted = sandboxes.connect(&id, MINUTE, ResumeFrom::Disk).await;
    booted.unwrap();
    assert_ne!(place.execution(), before, "a boot is a boot");
    assert_eq!(place.host.memory(&place.execution()), Some(0));

    sandboxes.pause(&id, DISK_ONLY).await.unwrap();
    let gone = || place.host.executions().is_empty();
    eventually("the end, for memory was not wanted", gone).await;
    connect(&sandboxes, &id).await;
    sandboxes.pause(&id, FULL).await.unwrap();
    sandboxes.kill(&id).await.unwrap();
    sandboxes.delete_snapshot(&reference).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn one_that_cannot_be_thawed_comes_back_from_its_image() {
    let place = warm_place();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let breaks: [&dyn Fn(); 2] = [&|| place.host.fail(Call::Thaw), &|| {
        place.host.kill(&place.execution(), ExitReason::OutOfMemory)
    }];
    for (attempt, break_it) in breaks.iter().enumerate() {
        break_it();
        connect(&sandboxes, &id).await;
        assert_eq!(
            place.host.memory(&place.execution()),
            Some(1),
            "attempt {attempt}"
        );
        assert_eq!(place.host.pending_failures(), vec![]);
        sandboxes.pause(&id, FULL).await.unwrap();
    }
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn one_that_lives_and_does_not_thaw_for_long_comes_back_from_its_image() {
    let place = warm_place();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    // More often than it is asked to.
    for _ in 0..100 {
        place.host.fail(Call::Thaw);
    }
    connect(&sandboxes, &id).await;
    assert_ne!(place.host.pending_failures(), vec![]);
    let timings = sandboxes.timings(&id);
    assert!(timings.parts().iter().any(|(part, _)| *part == "start"));
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn the_oldest_give_way_to_the_budget_and_to_time() {
    let place = warm_place();
    let sandboxes = place.open().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(paused(&place, &sandboxes).await);
        eventually("room for two", || place.host.executions().len() <= 2).await;
    }
    for id in &ids {
        assert_eq!(state_of(&sandboxes, id), Some(PublicState::Paused));
        connect(&sandboxes, id).await;
    }
    let memories: Vec<_> = place.host.executions();
    for execution in &memories {
        assert_eq!(place.host.memory(execution), Some(1));
    }
    assert_eq!(memories.len(), 4);

    let short = Place {
        warm: WarmSettings {
            keep: Duration::from_millis(1),
            ..TWO
        },
        ..Place::new()
    };
    let sandboxes = short.open().await;
    let id = paused(&short, &sandboxes).await;
    eventually("the end of its time", || short.host.executions().is_empty()).await;
    connect(&sandboxes, &id).await;
    assert_eq!(short.host.memory(&short.execution()), Some(1));
    assert_eq!(short.host.violations(), Vec::<String>::new());
}

#[test]
fn a_sigkill_of_the_server_at_any_moment_costs_nothing() {
    for step in [
        None,
        Some(Step::PausePublish),
        Some(Step::ResumeStart),
        Some(Step::ResumeAgent),
        Some(Step::ResumePublish),
    ] {
        let place = warm_place();
        let server = Server::start(&place);
        let id = server.runtime.block_on(async {
            let id = create(&server.sandboxes).await;
            assert!(place.host.step(&place.execution()));
            let call = async {
                server.sandboxes.pause(&id, FULL).await.unwrap();
                if step.is_some() {
                    connect(&server.sandboxes, &id).await;
                }
            };
            if let Some(step) = step {
                place.inject(step, Fault::Stop);
                let stopped = eventually("the fault", || place.faults_left() == 0);
                tokio::select! {
                    () = stopped => {}
                    () = call => {}
                }
            } else {
                call.await;
            }
            id
        });
        server.kill();

        let server = Server::start(&place);
        server.runtime.block_on(async {
            let stable = || state_of(&server.sandboxes, &id).is_some();
            eventually("recovery", stable).await;
            server.sandboxes.settle().await;
            let view = server.sandboxes.get(&id).unwrap();
            if view.state == PublicState::Paused {
                assert_eq!(view.pause_mode, Some(PauseMode::Full), "{step:?}");
                eventually("the end", || place.host.executions().is_empty()).await;
                connect(&server.sandboxes, &id).await;
            }
            assert_eq!(place.host.memory(&place.execution()), Some(1), "{step:?}");
            server.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}

#[tokio::test]
async fn a_pause_does_not_wait_for_the_one_that_makes_room() {
    let place = warm_place();
    let sandboxes = place.open().await;
    for _ in 0..2 {
        paused(&place, &sandboxes).await;
    }
    let others = place.host.executions();
    let third = create(&sandboxes).await;
    assert!(place.host.step(&place.execution_beside(&others)));
    // Tried again for some seconds.
    for _ in 0..6 {
        place.host.fail(Call::Destroy);
    }
    sandboxes.pause(&third, FULL).await.unwrap();
    assert_ne!(place.host.pending_failures(), vec![], "it was waited for");
    eventually("room", || place.host.executions().len() == 2).await;
    connect(&sandboxes, &third).await;
    assert_eq!(place.host.violations(), Vec::<String>::new());
}
