//! The next execution of a paused sandbox, prepared before anybody connects. It may only ever be seen in
//! the time that a connect takes.

use std::time::Duration;

use engine::fake::Call;
use engine::{ExecutionId, ExitReason};
use server::sandbox::{
    Fault, PauseMode, PublicState, ResumeFrom, SandboxId, Sandboxes, Step, WarmSettings,
};

use crate::crash::Server;
use crate::snapshots::UNNAMED;
use crate::support::{DISK_ONLY, FULL, MINUTE, Place, create, eventually, running, state_of};

const TWO: WarmSettings = WarmSettings {
    prepared: 2,
    prepared_keep: Duration::from_secs(3600),
    ..WarmSettings::OFF
};

fn place() -> Place {
    Place {
        warm: TWO,
        ..Place::new()
    }
}

/// Pauses the only sandbox and waits for its next execution.
async fn pause(place: &Place, sandboxes: &Sandboxes, id: &SandboxId) -> ExecutionId {
    sandboxes.pause(id, FULL).await.unwrap();
    eventually("preparing", || place.host.prepared().len() == 1).await;
    place.execution()
}

/// Connects the only sandbox, which must go on counting from `memory`.
async fn connect(place: &Place, sandboxes: &Sandboxes, id: &SandboxId, memory: u64) {
    let connected = sandboxes.connect(id, MINUTE, ResumeFrom::Saved).await;
    assert_eq!(connected.unwrap().0.state, PublicState::Running);
    assert_eq!(place.host.memory(&place.execution()), Some(memory));
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_connect_starts_what_was_prepared_and_every_pause_prepares_anew() {
    let place = place();
    let sandboxes = place.open().await;
    let id = running(&place, &sandboxes).await;
    for round in 1..5 {
        let before = place.execution();
        let prepared = pause(&place, &sandboxes, &id).await;
        assert_ne!(prepared, before);
        assert_eq!(place.host.memory(&prepared), None, "it has no guest");
        assert!(sandboxes.route(&id).is_err());
        connect(&place, &sandboxes, &id, round).await;
        assert_eq!(place.execution(), prepared);
        let timings = sandboxes.timings(&id);
        assert!(timings.parts().iter().any(|(part, _)| *part == "start"));
        assert!(place.host.step(&prepared));
    }
    pause(&place, &sandboxes, &id).await;
    sandboxes.close().await;
    assert_eq!(place.host.executions(), vec![]);
    connect(&place, &sandboxes, &id, 5).await;
    sandboxes.pause(&id, FULL).await.unwrap();
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn one_that_leaves_the_warm_tier_is_prepared() {
    let place = Place {
        warm: WarmSettings {
            memory_bytes: 8192,
            keep: Duration::from_millis(1),
            ..TWO
        },
        ..Place::new()
    };
    let sandboxes = place.open().await;
    let id = running(&place, &sandboxes).await;
    let prepared = pause(&place, &sandboxes, &id).await;
    connect(&place, &sandboxes, &id, 1).await;
    assert_eq!(place.execution(), prepared);
}

#[tokio::test]
async fn whatever_else_is_done_with_it_its_disk_has_one_user() {
    let place = place();
    let sandboxes = place.open().await;
    let id = running(&place, &sandboxes).await;
    pause(&place, &sandboxes, &id).await;
    let snapshot = sandboxes.snapshot(&id, UNNAMED).await.unwrap();
    assert_eq!(place.host.executions(), vec![], "sealing needs the disk");
    connect(&place, &sandboxes, &id, 1).await;
    assert!(place.host.step(&place.execution()));

    pause(&place, &sandboxes, &id).await;
    let reference = snapshot.reference();
    sandboxes.rollback(&id, &reference).await.unwrap();
    assert_eq!(place.host.executions(), vec![], "so does a rollback");
    connect(&place, &sandboxes, &id, 1).await;

    pause(&place, &sandboxes, &id).await;
    let (files, _) = sandboxes.readable_files(&id).await.unwrap();
    assert_eq!(place.host.executions(), vec![], "so does whoever reads it");
    drop(files);
    connect(&place, &sandboxes, &id, 1).await;

    pause(&place, &sandboxes, &id).await;
    drop(sandboxes.export(&id, true).await.unwrap());
    assert_eq!(place.host.executions(), vec![], "so does an export");
    connect(&place, &sandboxes, &id, 1).await;

    let prepared = pause(&place, &sandboxes, &id).await;
    let booted = sandboxes.connect(&id, MINUTE, ResumeFrom::Disk).await;
    booted.unwrap();
    assert_ne!(place.execution(), prepared, "a boot is a boot");
    assert_eq!(place.host.memory(&place.execution()), Some(0));

    sandboxes.pause(&id, DISK_ONLY).await.unwrap();
    let packed = sandboxes.storage(&id).await.unwrap();
    assert!(packed.own_bytes > 0);
    let gone = || place.host.executions().is_empty();
    eventually("the end, for there is no memory to load", gone).await;
    connect(&place, &sandboxes, &id, 0).await;
    pause(&place, &sandboxes, &id).await;
    sandboxes.kill(&id).await.unwrap();
    sandboxes.delete_snapshot(&reference).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn one_that_is_of_no_use_costs_no_connect() {
    let place = place();
    let sandboxes = place.open().await;
    let id = running(&place, &sandboxes).await;
    // It cannot be prepared, or only half, which does not go away by itself.
    for failure in [Call::PrepareStart, Call::PrepareStartLate] {
        place.host.fail(failure);
        sandboxes.pause(&id, FULL).await.unwrap();
        eventually("the failure", || place.host.pending_failures().is_empty()).await;
        eventually("nothing left", || place.host.executions().is_empty()).await;
        connect(&place, &sandboxes, &id, 1).await;
    }

    let breaks: [&dyn Fn(&ExecutionId); 3] = [
        &|prepared| place.host.kill(prepared, ExitReason::OutOfMemory),
        &|_| place.host.fail(Call::Restore),
        // Twice is what a start from the image survives.
        &|_| {
            place.host.fail(Call::Restore);
            place.host.fail(Call::Restore);
        },
    ];
    for break_it in breaks {
        let prepared = pause(&place, &sandboxes, &id).await;
        break_it(&prepared);
        connect(&place, &sandboxes, &id, 1).await;
        assert_eq!(place.host.pending_failures(), vec![]);
        assert_eq!(sandboxes.get(&id).unwrap().memory_lost, None);
    }
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn those_paused_last_are_prepared_until_their_time_is_over() {
    let place = place();
    let sandboxes = place.open().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = running(&place, &sandboxes).await;
        sandboxes.pause(&id, FULL).await.unwrap();
        ids.push(id);
    }
    let two = || place.host.executions().len() == 2 && place.host.prepared().len() == 2;
    eventually("two that are prepared", two).await;
    let prepared = place.host.prepared();
    for id in &ids[2..] {
        let connected = sandboxes.connect(id, MINUTE, ResumeFrom::Saved).await;
        connected.unwrap();
        let execution = sandboxes.route(id).unwrap().guest.execution().clone();
        assert!(prepared.contains(&execution));
    }
    assert_eq!(place.host.prepared(), vec![], "no others in their place");

    let short = Place {
        warm: WarmSettings {
            prepared_keep: Duration::from_millis(300),
            ..TWO
        },
        ..Place::new()
    };
    let sandboxes = short.open().await;
    let id = running(&short, &sandboxes).await;
    pause(&short, &sandboxes, &id).await;
    eventually("the end of its time", || short.host.executions().is_empty()).await;
    connect(&short, &sandboxes, &id, 1).await;
}

#[tokio::test]
async fn nothing_is_prepared_while_somebody_waits_for_a_start() {
    let place = place();
    let sandboxes = place.open().await;
    let id = running(&place, &sandboxes).await;
    place.inject(Step::CreateStart, Fault::Stop);
    tokio::select! {
        _ = create(&sandboxes) => unreachable!("it stands still"),
        () = eventually("the create", || place.faults_left() == 0) => {}
    }
    // A driver goes on without its caller.
    sandboxes.pause(&id, FULL).await.unwrap();
    eventually("the end", || place.host.executions().is_empty()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(place.host.prepared(), vec![]);
    connect(&place, &sandboxes, &id, 1).await;
}

#[test]
fn a_sigkill_of_the_server_at_any_moment_costs_nothing() {
    for step in [
        None,
        Some(Step::ResumeCheck),
        Some(Step::ResumeStart),
        Some(Step::ResumeAgent),
        Some(Step::ResumePublish),
    ] {
        let place = place();
        let server = Server::start(&place);
        let id = server.runtime.block_on(async {
            let id = running(&place, &server.sandboxes).await;
            pause(&place, &server.sandboxes, &id).await;
            if let Some(step) = step {
                place.inject(step, Fault::Stop);
                let stopped = eventually("the fault", || place.faults_left() == 0);
                tokio::select! {
                    () = stopped => {}
                    () = connect(&place, &server.sandboxes, &id, 1) => {}
                }
            }
            id
        });
        server.kill();
        assert_eq!(place.host.executions().len(), 1, "{step:?}: a leftover");

        let server = Server::start(&place);
        server.runtime.block_on(async {
            let stable = || state_of(&server.sandboxes, &id).is_some();
            eventually("recovery", stable).await;
            server.sandboxes.settle().await;
            let view = server.sandboxes.get(&id).unwrap();
            if view.state == PublicState::Paused {
                assert_eq!(view.pause_mode, Some(PauseMode::Full), "{step:?}");
                eventually("the end", || place.host.executions().is_empty()).await;
                connect(&place, &server.sandboxes, &id, 1).await;
            }
            assert_eq!(place.host.memory(&place.execution()), Some(1), "{step:?}");
            server.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}
