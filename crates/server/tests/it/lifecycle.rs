//! What a sandbox goes through while the server stays up: the contract, and failures of the engine
//! at every step.

use std::time::{Duration, Instant};

use engine::ExitReason;
use engine::fake::Call;
use server::sandbox::state::{DiskReason, Saved, State};
use server::sandbox::{
    Connected, Lifecycle, OnTimeout, PauseMode, PauseRequest, PublicState, ResumeFrom,
    SandboxError, SandboxId, Step,
};

use crate::support::{
    DISK_ONLY, FULL, MINUTE, Place, assert_told, create, eventually, failures, request, state_of,
};

#[tokio::test]
async fn memory_and_disk_come_back_over_many_rounds_and_a_kill_leaves_nothing() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    let created = sandboxes.get(&id).unwrap();
    for round in 1..=5 {
        assert!(place.host.step(&place.execution()));
        sandboxes.pause(&id, FULL).await.unwrap();
        assert_eq!(
            place.host.executions(),
            vec![],
            "a paused sandbox has no execution"
        );
        assert_eq!(state_of(&sandboxes, &id), Some(PublicState::Paused));
        let (view, how) = sandboxes
            .connect(&id, MINUTE, ResumeFrom::Saved)
            .await
            .unwrap();
        assert_eq!(
            (view.state, how),
            (PublicState::Running, Connected::Resumed)
        );
        assert_eq!(place.host.memory(&place.execution()), Some(round));
        assert_eq!(view.access_token, created.access_token);
        assert_eq!(view.metadata, created.metadata);
        assert_eq!(view.lifecycle, created.lifecycle);
        assert!(
            view.started_at > created.started_at,
            "every resume starts a new run"
        );
    }
    sandboxes.kill(&id).await.unwrap();
    assert!(matches!(
        sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await,
        Err(SandboxError::NotFound(_))
    ));
    assert!(matches!(
        sandboxes.kill(&id).await,
        Err(SandboxError::NotFound(_))
    ));
    place.assert_clean().await;
}

#[tokio::test]
async fn refusals_are_those_of_the_contract() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let unknown = SandboxId::parse("iunknown").unwrap();
    assert!(matches!(
        sandboxes.pause(&unknown, FULL).await,
        Err(SandboxError::NotFound(_))
    ));
    let mut bad = request();
    bad.template = "../../etc".to_owned();
    assert!(matches!(
        sandboxes.create(bad).await,
        Err(SandboxError::TemplateNotFound(_))
    ));
    let mut long = request();
    long.timeout = Duration::from_secs(3601);
    assert!(matches!(
        sandboxes.create(long).await,
        Err(SandboxError::TimeoutTooLong { .. })
    ));

    let id = create(&sandboxes).await;
    assert!(matches!(
        sandboxes.resume(&id, MINUTE, ResumeFrom::Saved).await,
        Err(SandboxError::AlreadyRunning(_))
    ));
    sandboxes.pause(&id, FULL).await.unwrap();
    assert!(matches!(
        sandboxes.pause(&id, FULL).await,
        Err(SandboxError::AlreadyPaused(_))
    ));
    assert!(matches!(
        sandboxes.set_timeout(&id, MINUTE).await,
        Err(SandboxError::Paused(_))
    ));
    assert!(matches!(sandboxes.route(&id), Err(SandboxError::Paused(_))));
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn parallel_requests_share_one_transition() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    let pauses = futures_util::future::join_all((0..5).map(|_| sandboxes.pause(&id, FULL))).await;
    assert!(pauses.iter().all(Result::is_ok), "{pauses:?}");
    let connects = (0..5).map(|_| async {
        let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
        (connected.is_ok(), state_of(&sandboxes, &id))
    });
    for (ok, state) in futures_util::future::join_all(connects).await {
        assert!(ok);
        assert_eq!(state, Some(PublicState::Running));
    }
    let (paused, connected, killed) = tokio::join!(
        sandboxes.pause(&id, FULL),
        sandboxes.connect(&id, MINUTE, ResumeFrom::Saved),
        sandboxes.kill(&id),
    );
    assert!(paused.is_ok() && connected.is_ok() && killed.is_ok());
    place.assert_clean().await;
}

#[tokio::test]
async fn a_connect_only_extends_the_deadline_of_a_running_sandbox() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    let before = sandboxes.get(&id).unwrap().end_at;
    let (view, how) = sandboxes
        .connect(&id, Duration::from_secs(5), ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!((view.end_at, how), (before, Connected::AlreadyRunning));
    let (view, _) = sandboxes
        .connect(&id, 10 * MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert!(view.end_at > before);
    sandboxes
        .set_timeout(&id, Duration::from_secs(5))
        .await
        .unwrap();
    assert!(sandboxes.get(&id).unwrap().end_at < before);
    // However often it is asked for, a run has an end.
    sandboxes
        .set_timeout(&id, Duration::from_secs(7200))
        .await
        .unwrap();
    let view = sandboxes.get(&id).unwrap();
    assert_eq!(view.end_at - view.started_at, time::Duration::seconds(3600));
}

#[tokio::test]
async fn the_deadline_kills_or_pauses_and_time_spent_paused_costs_nothing() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let dying = create(&sandboxes).await;
    let mut kept = request();
    kept.lifecycle = Lifecycle {
        on_timeout: OnTimeout::Pause(PauseMode::Full),
        auto_resume: true,
    };
    let kept = sandboxes.create(kept).await.unwrap().id;
    sandboxes.set_timeout(&dying, Duration::ZERO).await.unwrap();
    sandboxes.set_timeout(&kept, Duration::ZERO).await.unwrap();
    eventually("the kill", || state_of(&sandboxes, &dying).is_none()).await;
    eventually("the pause", || {
        state_of(&sandboxes, &kept) == Some(PublicState::Paused)
    })
    .await;

    let route = sandboxes.route_or_resume(&kept).await.unwrap();
    assert!(route.guest.health().await.is_ok());
    let view = sandboxes.get(&kept).unwrap();
    assert!(view.end_at - view.started_at >= time::Duration::seconds(300));
    sandboxes.kill(&kept).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_pause_that_fails_at_any_step_leaves_the_sandbox_running_and_nothing_behind() {
    let calls = [
        Call::WriteBack,
        Call::Freeze,
        Call::Checkpoint,
        Call::CheckpointNoSpace,
        Call::SyncDisk,
    ];
    for call in calls {
        let place = Place::new();
        let sandboxes = place.open().await;
        let id = create(&sandboxes).await;
        let execution = place.execution();
        assert!(place.host.step(&execution));
        let before = sandboxes.get(&id).unwrap();
        place.host.fail(call);
        let error = sandboxes.pause(&id, FULL).await.unwrap_err();
        assert_eq!(
            place.host.pending_failures(),
            vec![],
            "{call:?} was not met"
        );
        let no_space = call == Call::CheckpointNoSpace;
        assert_eq!(
            matches!(error, SandboxError::NoSpace(_)),
            no_space,
            "{call:?}: {error}"
        );
        let after = sandboxes.get(&id).unwrap();
        assert_eq!(after.state, PublicState::Running, "{call:?}");
        assert_eq!(
            after.end_at, before.end_at,
            "a failed pause does not move the deadline"
        );
        assert!(
            place.host.step(&execution),
            "{call:?}: the guest must go on"
        );
        assert_eq!(
            place.staging(),
            Vec::<std::path::PathBuf>::new(),
            "{call:?}"
        );
        sandboxes.pause(&id, FULL).await.unwrap();
        sandboxes
            .connect(&id, MINUTE, ResumeFrom::Saved)
            .await
            .unwrap();
        assert_eq!(place.host.memory(&place.execution()), Some(2), "{call:?}");
        sandboxes.kill(&id).await.unwrap();
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn an_injected_failure_at_every_step_is_undone_or_finished() {
    let of_snapshots = |step: &Step| {
        let name = format!("{step:?}");
        ["Snapshot", "Rollback", "Import"]
            .iter()
            .any(|of| name.starts_with(of))
    };
    for (step, fault) in failures().filter(|(step, _)| !of_snapshots(step)) {
        let place = Place::new();
        let sandboxes = place.open().await;
        place.inject(step, fault);
        let created = sandboxes.create(request()).await;
        let id = match created {
            Ok(view) => view.id,
            Err(error) => {
                assert_told(fault, &error);
                assert_eq!(place.faults_left(), 0);
                assert_eq!(sandboxes.list().len(), 0);
                place.assert_clean().await;
                create(&sandboxes).await
            }
        };
        assert!(place.host.step(&place.execution()));
        if sandboxes.pause(&id, FULL).await.is_err() {
            assert_eq!(
                state_of(&sandboxes, &id),
                Some(PublicState::Running),
                "{step:?}"
            );
            sandboxes.pause(&id, FULL).await.unwrap();
        }
        assert_eq!(place.host.executions(), vec![], "{step:?}");
        if sandboxes
            .connect(&id, MINUTE, ResumeFrom::Saved)
            .await
            .is_err()
        {
            assert_eq!(
                state_of(&sandboxes, &id),
                Some(PublicState::Paused),
                "{step:?}"
            );
            sandboxes
                .connect(&id, MINUTE, ResumeFrom::Saved)
                .await
                .unwrap();
        }
        assert_eq!(place.host.memory(&place.execution()), Some(1), "{step:?}");
        sandboxes.kill(&id).await.unwrap();
        assert_eq!(place.faults_left(), 0, "{step:?} was not reached");
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn a_failed_start_is_tried_once_more() {
    let place = Place::new();
    let sandboxes = place.open().await;
    place.host.fail(Call::StartLate);
    let id = create(&sandboxes).await;
    sandboxes.pause(&id, FULL).await.unwrap();
    place.host.fail(Call::Start);
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    sandboxes.pause(&id, FULL).await.unwrap();
    place.host.fail(Call::Agent);
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_resume_that_fails_twice_leaves_the_sandbox_paused_with_its_memory() {
    let mut place = Place::new();
    place.boot_without_memory = false;
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    sandboxes.pause(&id, FULL).await.unwrap();
    place.host.fail(Call::Start);
    place.host.fail(Call::Start);
    let error = sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("the sandbox is paused"),
        "{error}"
    );
    assert_eq!(
        sandboxes.get(&id).unwrap().pause_mode,
        Some(PauseMode::Full)
    );
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(1));
}

#[tokio::test]
async fn memory_that_no_longer_fits_the_disk_is_given_up_and_this_is_said() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    sandboxes.pause(&id, FULL).await.unwrap();
    // The guest of the failing start writes to its disk before it dies.
    place.host.fail(Call::StartLate);
    assert!(
        sandboxes
            .connect(&id, MINUTE, ResumeFrom::Saved)
            .await
            .is_err()
    );
    assert_eq!(
        sandboxes.get(&id).unwrap().pause_mode,
        Some(PauseMode::Filesystem)
    );
    let expected = State::Paused {
        saved: Saved::Disk {
            reason: DiskReason::MemoryStale,
        },
    };
    assert_eq!(place.journaled(&id).await, Some(expected));
    assert_eq!(place.images(), Vec::<std::path::PathBuf>::new());
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(
        place.host.memory(&place.execution()),
        Some(0),
        "a boot has a fresh memory"
    );
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_lost_execution_leaves_a_paused_sandbox_with_its_disk() {
    for reason in [ExitReason::Exited, ExitReason::OutOfMemory] {
        let place = Place::new();
        let sandboxes = place.open().await;
        let id = create(&sandboxes).await;
        let ended = sandboxes.route(&id).unwrap().ended;
        place.host.kill(&place.execution(), reason.clone());
        ended.cancelled().await;
        eventually("the loss", || {
            state_of(&sandboxes, &id) == Some(PublicState::Paused)
        })
        .await;
        let saved = Saved::Disk {
            reason: DiskReason::ExecutionLost(reason),
        };
        assert_eq!(place.journaled(&id).await, Some(State::Paused { saved }));
        sandboxes
            .connect(&id, MINUTE, ResumeFrom::Saved)
            .await
            .unwrap();
        sandboxes.kill(&id).await.unwrap();
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn an_execution_that_dies_while_it_is_being_saved_keeps_its_disk() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    place.host.fail(Call::DieInCheckpoint);
    assert!(sandboxes.pause(&id, FULL).await.is_err());
    assert_eq!(
        sandboxes.get(&id).unwrap().pause_mode,
        Some(PauseMode::Filesystem)
    );
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn an_agent_that_hangs_prevents_only_the_pauses_that_need_it() {
    let place = Place::new();
    let sandboxes = place.open().await;
    place.host.fail(Call::Prepare);
    let id = create(&sandboxes).await;
    let strict = PauseRequest {
        mode: PauseMode::Full,
        require_healthy_guest: true,
    };
    for refused in [strict, DISK_ONLY] {
        let error = sandboxes.pause(&id, refused).await.unwrap_err();
        assert!(
            matches!(error, SandboxError::GuestUnresponsive(_)),
            "{error}"
        );
        assert_eq!(state_of(&sandboxes, &id), Some(PublicState::Running));
    }
    sandboxes.pause(&id, FULL).await.unwrap();
    assert!(sandboxes.get(&id).unwrap().agent_silent, "this is told");
    // The guest that comes back has a healthy agent.
    let connect = || sandboxes.connect(&id, MINUTE, ResumeFrom::Saved);
    assert!(!connect().await.unwrap().0.agent_silent);
    sandboxes.pause(&id, strict).await.unwrap();
    assert!(!sandboxes.get(&id).unwrap().agent_silent);
}

#[tokio::test]
async fn a_silent_agent_does_not_keep_a_sandbox_beyond_its_deadline() {
    let place = Place::new();
    let sandboxes = place.open().await;
    place.host.fail(Call::Prepare);
    let mut request = request();
    request.lifecycle.on_timeout = OnTimeout::Pause(PauseMode::Filesystem);
    let id = sandboxes.create(request).await.unwrap().id;
    assert!(place.host.step(&place.execution()));
    sandboxes.set_timeout(&id, Duration::ZERO).await.unwrap();
    let begun = tokio::time::Instant::now();
    // While it is being paused it is told as paused.
    while !matches!(place.journaled(&id).await, Some(State::Paused { .. })) {
        assert!(begun.elapsed() < MINUTE, "it runs beyond its deadline");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its memory is not wanted: the agent is asked again first, and not all the time.
    assert!(begun.elapsed() > Duration::from_secs(15), "at once");
    let view = sandboxes.get(&id).unwrap();
    assert!(view.agent_silent, "this is told");
    assert_eq!(view.pause_mode, Some(PauseMode::Full));
    let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    assert_eq!(connected.unwrap().0.memory_lost, None);
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_filesystem_only_pause_boots_on_connect() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    sandboxes.pause(&id, DISK_ONLY).await.unwrap();
    assert_eq!(
        sandboxes.get(&id).unwrap().pause_mode,
        Some(PauseMode::Filesystem)
    );
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(0));

    assert!(place.host.step(&place.execution()));
    sandboxes.pause(&id, FULL).await.unwrap();
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Disk)
        .await
        .unwrap();
    assert_eq!(
        place.host.memory(&place.execution()),
        Some(0),
        "memory was discarded on request"
    );
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stubborn_execution_is_destroyed_in_the_end() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    place.host.fail(Call::Destroy);
    place.host.fail(Call::Destroy);
    sandboxes.pause(&id, DISK_ONLY).await.unwrap();
    assert_ne!(place.host.pending_failures(), vec![], "it was waited for");
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    place.host.fail(Call::Destroy);
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_pause_and_a_kill_end_the_routes_to_a_run() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    let first = sandboxes.route(&id).unwrap().ended;
    sandboxes.pause(&id, FULL).await.unwrap();
    assert!(first.is_cancelled());
    sandboxes
        .connect(&id, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    let second = sandboxes.route(&id).unwrap().ended;
    assert!(!second.is_cancelled());
    sandboxes.kill(&id).await.unwrap();
    assert!(second.is_cancelled());
}

#[tokio::test]
async fn no_more_sandboxes_run_than_the_maximum() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(create(&sandboxes).await);
    }
    assert!(matches!(
        sandboxes.create(request()).await,
        Err(SandboxError::TooMany(10))
    ));
    sandboxes.pause(&ids[0], FULL).await.unwrap();
    ids.push(create(&sandboxes).await);
    assert!(matches!(
        sandboxes.connect(&ids[0], MINUTE, ResumeFrom::Saved).await,
        Err(SandboxError::TooMany(10))
    ));
    assert_eq!(state_of(&sandboxes, &ids[0]), Some(PublicState::Paused));
    for id in ids {
        sandboxes.kill(&id).await.unwrap();
    }
    place.assert_clean().await;
}

#[tokio::test]
async fn after_a_pause_at_the_deadline_the_next_run_has_a_deadline_of_its_own() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let mut request = request();
    request.lifecycle.on_timeout = OnTimeout::Pause(PauseMode::Full);
    let id = sandboxes.create(request).await.unwrap().id;
    sandboxes.set_timeout(&id, Duration::ZERO).await.unwrap();
    eventually("the pause", || {
        state_of(&sandboxes, &id) == Some(PublicState::Paused)
    })
    .await;
    sandboxes.settle().await;
    let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    connected.unwrap();
    // The next deadline is a minute away: the driver must not act on an older one, neither now nor
    // when it would have tried a failed pause again.
    let until = Instant::now() + Duration::from_secs(11);
    while Instant::now() < until {
        assert_eq!(state_of(&sandboxes, &id), Some(PublicState::Running));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn nobody_is_told_of_an_end_that_the_journal_does_not_have() {
    let place = Place::new();
    let sandboxes = std::sync::Arc::new(place.open().await);
    let path = place.data_dir().join("sandbase.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON sandboxes
                  WHEN NEW.state LIKE '%\"state\":\"running\"%'
                  BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    other.execute_batch(refuse).unwrap();
    let creating = {
        let sandboxes = std::sync::Arc::clone(&sandboxes);
        tokio::spawn(async move { sandboxes.create(request()).await })
    };
    eventually("the start", || !place.host.executions().is_empty()).await;
    // Long enough for several tries of the driver.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(
        !creating.is_finished(),
        "the journal does not say that it runs"
    );
    assert_eq!(sandboxes.list().len(), 0);
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    let id = creating.await.unwrap().unwrap().id;
    let journaled = place.journaled(&id).await;
    assert!(
        matches!(journaled, Some(State::Running { .. })),
        "{journaled:?}"
    );
    sandboxes.kill(&id).await.unwrap();
    place.assert_clean().await;
}
