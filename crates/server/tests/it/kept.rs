//! A start whose guest lives and has written, and cannot be reached: destroying it would give memory up.

use std::time::Duration;

use engine::ExitReason;
use engine::fake::Call;
use server::sandbox::state::{DiskReason, Saved, State};
use server::sandbox::{
    PauseMode, PublicState, ResumeFrom, SandboxError, SandboxId, Sandboxes, Step, WarmSettings,
};

use crate::crash::{Server, crash_at};
use crate::support::{FULL, MINUTE, Place, eventually, running, state_of};

/// A paused sandbox that has counted to one.
async fn paused(place: &Place, sandboxes: &Sandboxes) -> SandboxId {
    let id = running(place, sandboxes).await;
    sandboxes.pause(&id, FULL).await.unwrap();
    id
}

/// A connect during which the guest counts on, and its agent says nothing.
async fn connect_in_silence(place: &Place, sandboxes: &Sandboxes, id: &SandboxId) -> SandboxError {
    place.host.fail(Call::Agent);
    let connecting = sandboxes.connect(id, MINUTE, ResumeFrom::Saved);
    let count = eventually("a step of the silent guest", || {
        let executions = place.host.executions();
        executions.iter().any(|it| place.host.step(it))
    });
    let (connected, ()) = tokio::join!(connecting, count);
    connected.unwrap_err()
}

/// It goes on from `memory`, and nothing is left of what was before.
async fn assert_goes_on(place: &Place, sandboxes: &Sandboxes, id: &SandboxId, memory: u64) {
    let connected = sandboxes.connect(id, MINUTE, ResumeFrom::Saved).await;
    let (view, _) = connected.unwrap();
    assert_eq!((view.state, view.memory_lost), (PublicState::Running, None));
    assert_eq!(place.host.memory(&place.execution()), Some(memory));
    assert_eq!(place.host.violations(), Vec::<String>::new());
    sandboxes.kill(id).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn what_a_guest_did_whose_agent_is_silent_is_saved() {
    // The save fails in any way that may pass.
    for calls in [
        vec![],
        vec![Call::Freeze, Call::Freeze],
        vec![Call::Checkpoint, Call::SyncDisk],
        vec![Call::CheckpointNoSpace],
    ] {
        let place = Place::new();
        let sandboxes = place.open().await;
        let id = paused(&place, &sandboxes).await;
        let before = place.images();
        for call in calls {
            place.host.fail(call);
        }
        let asked = time::OffsetDateTime::now_utc();
        let error = connect_in_silence(&place, &sandboxes, &id).await;
        assert_eq!(place.host.pending_failures(), vec![]);
        let text = error.to_string();
        assert!(
            text.contains("does not answer") && text.contains("nothing is lost"),
            "{text}"
        );
        let view = sandboxes.get(&id).unwrap();
        assert_eq!(view.state, PublicState::Paused);
        assert_eq!(view.pause_mode, Some(PauseMode::Full));
        assert_eq!(view.memory_lost, None);
        assert!(view.agent_silent);
        assert!(view.end_at >= asked, "it was paused anew");
        let after = place.images();
        assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
        assert_goes_on(&place, &sandboxes, &id, 2).await;
    }
}

#[tokio::test]
async fn one_that_was_thawed_is_kept_as_well() {
    let place = Place {
        warm: WarmSettings {
            memory_bytes: 8192,
            keep: Duration::from_secs(3600),
            ..WarmSettings::OFF
        },
        ..Place::new()
    };
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let frozen = place.execution();
    // Silence of a guest lasts for its life: it begins when the image is restored.
    place.host.kill(&frozen, ExitReason::Exited);
    connect_in_silence(&place, &sandboxes, &id).await;
    let kept = place.execution();
    assert!(!place.host.step(&kept), "a paused one cannot execute");
    // It is thawed, writes and is silent once more.
    let connecting = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved);
    let count = eventually("a step", || place.host.step(&kept));
    let (connected, ()) = tokio::join!(connecting, count);
    connected.unwrap_err();
    let view = sandboxes.get(&id).unwrap();
    assert_eq!(view.pause_mode, Some(PauseMode::Full));
    place.host.kill(&kept, ExitReason::Exited);
    assert_goes_on(&place, &sandboxes, &id, 3).await;
}

#[tokio::test]
async fn a_thaw_that_fails_for_a_moment_is_tried_again() {
    let place = Place {
        warm: WarmSettings {
            memory_bytes: 8192,
            keep: Duration::from_secs(3600),
            ..WarmSettings::OFF
        },
        ..Place::new()
    };
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    let frozen = place.execution();
    for _ in 0..3 {
        place.host.fail(Call::Thaw);
    }
    let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    connected.unwrap();
    assert_eq!(place.execution(), frozen);
    assert_eq!(place.host.pending_failures(), vec![]);
}

#[tokio::test]
async fn one_that_dies_before_it_is_saved_is_told_as_lost() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let id = paused(&place, &sandboxes).await;
    place.host.fail(Call::DieInCheckpoint);
    let error = connect_in_silence(&place, &sandboxes, &id).await;
    assert!(!error.to_string().contains("nothing is lost"), "{error}");
    let saved = Saved::Disk {
        reason: DiskReason::MemoryStale,
    };
    assert_eq!(place.journaled(&id).await, Some(State::Paused { saved }));
    assert_eq!(place.images(), Vec::<std::path::PathBuf>::new());
    let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
    connected.unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(0));
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn who_comes_meanwhile_gets_a_start_of_his_own_and_a_kill_is_a_kill() {
    for killed in [false, true] {
        let place = Place::new();
        let sandboxes = place.open().await;
        let id = paused(&place, &sandboxes).await;
        // Tried again for some seconds.
        for _ in 0..4 {
            place.host.fail(Call::Checkpoint);
        }
        let late = async {
            let keeping = || place.host.pending_failures().len() < 4;
            eventually("the save", || keeping() && !place.images().is_empty()).await;
            let Some(State::Keeping { .. }) = place.journaled(&id).await else {
                panic!("it is not being kept")
            };
            assert_eq!(state_of(&sandboxes, &id), Some(PublicState::Paused));
            if killed {
                sandboxes.kill(&id).await.unwrap();
            } else {
                let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
                connected.unwrap();
            }
        };
        let (_, ()) = tokio::join!(connect_in_silence(&place, &sandboxes, &id), late);
        if killed {
            place.assert_clean().await;
        } else {
            assert_eq!(place.host.memory(&place.execution()), Some(2));
            assert_eq!(place.host.violations(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_crash_at_any_step_of_it_loses_nothing() {
    for step in [
        Step::PauseFreeze,
        Step::PauseCheckpoint,
        Step::PauseSync,
        Step::PauseCommit,
        Step::PauseDestroy,
        Step::PausePublish,
    ] {
        let place = Place::new();
        let server = Server::start(&place);
        let id = server.runtime.block_on(paused(&place, &server.sandboxes));
        crash_at(&place, server, step, async |sandboxes| {
            connect_in_silence(&place, sandboxes, &id).await;
        });
        let next = Server::start(&place);
        next.runtime.block_on(async {
            next.sandboxes.settle().await;
            let view = next.sandboxes.get(&id).unwrap();
            assert_eq!(view.pause_mode, Some(PauseMode::Full), "{step:?}");
            assert_goes_on(&place, &next.sandboxes, &id, 2).await;
        });
    }
}

#[test]
fn a_restart_of_the_server_keeps_a_started_guest_that_is_slow_or_silent() {
    for silent in [false, true] {
        let place = Place::new();
        let server = Server::start(&place);
        let id = server.runtime.block_on(paused(&place, &server.sandboxes));
        if silent {
            place.host.fail(Call::Agent);
        }
        crash_at(&place, server, Step::ResumeAgent, async |sandboxes| {
            let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved);
            let _ = connected.await;
        });
        assert!(place.host.step(&place.execution()));
        let execution = place.execution();
        for _ in 0..3 {
            place.host.fail(Call::Thaw);
        }
        let next = Server::start(&place);
        next.runtime.block_on(async {
            next.sandboxes.settle().await;
            assert_eq!(place.host.pending_failures(), vec![]);
            let view = next.sandboxes.get(&id).unwrap();
            if silent {
                assert_eq!(view.pause_mode, Some(PauseMode::Full));
                assert_goes_on(&place, &next.sandboxes, &id, 2).await;
            } else {
                assert_eq!(view.state, PublicState::Running);
                assert_eq!(place.execution(), execution);
                assert_eq!(place.host.memory(&execution), Some(2));
            }
        });
    }
}
