//! Snapshots, forks and rollbacks on a fake host: what they leave behind, and what failures do.

use std::sync::Arc;

use engine::ExecutionId;
use server::sandbox::{
    PublicState, ResumeFrom, SandboxError, SandboxId, Sandboxes, SnapshotRequest, Step,
};
use server::snapshots::{Snapshot, SnapshotName, SnapshotPage, SnapshotUse};

use crate::support::{
    FULL, MINUTE, Place, assert_told, create, eventually, failures, request, state_of,
};

/// A snapshot without a name, with memory.
pub(crate) const UNNAMED: SnapshotRequest = SnapshotRequest {
    name: None,
    usage: SnapshotUse::Listed,
    memory: true,
};

pub(crate) fn named(text: &str) -> SnapshotRequest {
    SnapshotRequest {
        name: Some(SnapshotName::parse(text).unwrap()),
        ..UNNAMED
    }
}

/// A new sandbox from a snapshot, and its execution.
pub(crate) async fn create_from(
    place: &Place,
    sandboxes: &Sandboxes,
    snapshot: &Snapshot,
) -> (SandboxId, ExecutionId) {
    let others = place.host.executions();
    let mut request = request();
    request.template = snapshot.reference();
    let id = sandboxes.create(request).await.unwrap().id;
    (id, place.execution_beside(&others))
}

#[tokio::test]
async fn a_snapshot_is_one_moment_of_a_sandbox_that_goes_on() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    let before = sandboxes.get(&source).unwrap();
    let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    let after = sandboxes.get(&source).unwrap();
    assert_eq!(after.state, PublicState::Running);
    assert_eq!(after.end_at, before.end_at);
    assert_eq!(after.started_at, before.started_at);
    assert_eq!(after.access_token, before.access_token);
    let of_source = place.execution();
    assert_eq!(place.host.memory(&of_source), Some(1));
    assert!(place.host.step(&of_source), "the source goes on");

    // Two children, each at the moment of the snapshot, none aware of the others.
    let (first, of_first) = create_from(&place, &sandboxes, &snapshot).await;
    assert!(place.host.step(&of_first));
    let (second, of_second) = create_from(&place, &sandboxes, &snapshot).await;
    assert_eq!(place.host.memory(&of_second), Some(1));
    assert_eq!(place.host.memory(&of_first), Some(2));
    let tokens = [&source, &first, &second].map(|id| sandboxes.get(id).unwrap().access_token);
    assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2] && tokens[0] != tokens[2]);

    // Each comes back from pauses of its own, also when its snapshot is gone.
    sandboxes.kill(&second).await.unwrap();
    sandboxes.pause(&first, FULL).await.unwrap();
    let refused = sandboxes.delete_snapshot(&snapshot.reference()).await;
    assert!(
        matches!(refused, Err(SandboxError::SnapshotInUse { .. })),
        "{refused:?}"
    );
    sandboxes
        .connect(&first, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    sandboxes.kill(&first).await.unwrap();
    sandboxes
        .delete_snapshot(&snapshot.reference())
        .await
        .unwrap();
    sandboxes.pause(&source, FULL).await.unwrap();
    sandboxes
        .connect(&source, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(2));
    sandboxes.kill(&source).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_snapshot_outlives_its_source_and_may_be_taken_of_a_paused_one() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    sandboxes.pause(&source, FULL).await.unwrap();
    let end_at = sandboxes.get(&source).unwrap().end_at;
    let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    // A second one of the same moment, with nothing new to seal.
    let second = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    assert_eq!(snapshot.disks, second.disks);
    let view = sandboxes.get(&source).unwrap();
    assert_eq!((view.state, view.end_at), (PublicState::Paused, end_at));
    sandboxes
        .connect(&source, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    sandboxes.kill(&source).await.unwrap();
    for snapshot in [&snapshot, &second] {
        let (id, execution) = create_from(&place, &sandboxes, snapshot).await;
        assert_eq!(place.host.memory(&execution), Some(1));
        sandboxes.kill(&id).await.unwrap();
        sandboxes
            .delete_snapshot(&snapshot.reference())
            .await
            .unwrap();
    }
    place.assert_clean().await;
}

#[tokio::test]
async fn disks_never_pile_up_beyond_their_bound() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    let mut snapshots: Vec<Arc<Snapshot>> = Vec::new();
    for _ in 0..20 {
        assert!(place.host.step(&place.execution()));
        snapshots.push(sandboxes.snapshot(&source, UNNAMED).await.unwrap());
    }
    for (round, snapshot) in (1..).zip(&snapshots) {
        assert!(snapshot.disks.len() <= 16, "{} disks", snapshot.disks.len());
        let others = place.host.executions();
        let (id, execution) = create_from(&place, &sandboxes, snapshot).await;
        assert_eq!(place.host.memory(&execution), Some(round));
        // And one more on top, which stays within the bound, too.
        assert!(place.host.step(&execution));
        let child = sandboxes.snapshot(&id, UNNAMED).await.unwrap();
        assert!(child.disks.len() <= 16);
        let execution = place.execution_beside(&others);
        assert_eq!(place.host.memory(&execution), Some(round + 1));
        sandboxes.kill(&id).await.unwrap();
        sandboxes.delete_snapshot(&child.reference()).await.unwrap();
        sandboxes
            .delete_snapshot(&snapshot.reference())
            .await
            .unwrap();
    }
    sandboxes.kill(&source).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn forks_are_copies_with_an_answer_each() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    let before = sandboxes.get(&source).unwrap();
    // Ten may run at once: one does, so nine of eleven forks get in.
    let forks = sandboxes.fork(&source, 11, MINUTE).await.unwrap();
    assert_eq!(forks.len(), 11);
    let (made, refused): (Vec<_>, Vec<_>) = forks.into_iter().partition(Result::is_ok);
    assert_eq!(made.len(), 9);
    for error in refused {
        assert!(matches!(error, Err(SandboxError::TooMany(10))), "{error:?}");
    }
    let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    let mut tokens = vec![before.access_token.clone()];
    for fork in &made {
        assert_eq!(fork.metadata, before.metadata);
        assert_eq!(fork.template_id, before.template_id);
        assert!(!tokens.contains(&fork.access_token), "tokens are distinct");
        tokens.push(fork.access_token.clone());
    }
    for execution in place.host.executions() {
        assert_eq!(place.host.memory(&execution), Some(1));
        assert!(place.host.step(&execution));
    }
    assert_eq!(sandboxes.get(&source).unwrap().end_at, before.end_at);
    assert_eq!(sandboxes.snapshots().listed().len(), 0);
    for fork in &made {
        sandboxes.kill(&fork.id).await.unwrap();
    }
    sandboxes.pause(&source, FULL).await.unwrap();
    let paused = sandboxes.fork(&source, 1, MINUTE).await;
    assert!(
        matches!(paused, Err(SandboxError::ForkOfPaused(_))),
        "{paused:?}"
    );
    sandboxes.kill(&source).await.unwrap();
    let gone = sandboxes.fork(&source, 1, MINUTE).await;
    assert!(matches!(gone, Err(SandboxError::NotFound(_))), "{gone:?}");
    place.assert_clean().await;
}

#[tokio::test]
async fn a_rollback_puts_a_sandbox_back_in_place() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    for paused in [false, true, false] {
        let before = sandboxes.get(&source).unwrap();
        for _ in 0..3 {
            assert!(place.host.step(&place.execution()));
        }
        if paused {
            sandboxes.pause(&source, FULL).await.unwrap();
        }
        let reference = snapshot.reference();
        let view = sandboxes.rollback(&source, &reference).await.unwrap();
        assert_eq!(view.access_token, before.access_token);
        if paused {
            assert_eq!(view.state, PublicState::Paused);
            sandboxes
                .connect(&source, MINUTE, ResumeFrom::Saved)
                .await
                .unwrap();
        } else {
            assert_eq!(view.state, PublicState::Running);
            assert_eq!(view.end_at, before.end_at);
        }
        assert_eq!(place.host.memory(&place.execution()), Some(1));
    }
    // Not to what another sandbox was, and not to what is not there.
    let stranger = create(&sandboxes).await;
    let refused = sandboxes.rollback(&stranger, &snapshot.reference()).await;
    assert!(matches!(refused, Err(SandboxError::SnapshotOfAnother(_))));
    let refused = sandboxes.rollback(&stranger, "no-such-snapshot").await;
    assert!(matches!(refused, Err(SandboxError::SnapshotNotFound(_))));
    for id in [&source, &stranger] {
        sandboxes.kill(id).await.unwrap();
    }
    let gone = sandboxes.rollback(&source, &snapshot.reference()).await;
    assert!(matches!(gone, Err(SandboxError::NotFound(_))));
    sandboxes
        .delete_snapshot(&snapshot.reference())
        .await
        .unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn names_are_found_replaced_listed_and_deleted() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    let old = sandboxes.snapshot(&source, named("job:v1")).await.unwrap();
    assert!(place.host.step(&place.execution()));
    let v2 = sandboxes.snapshot(&source, named("job:v2")).await.unwrap();
    let v1 = sandboxes.snapshot(&source, named("job:v1")).await.unwrap();
    let other = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    assert_eq!(v1.reference(), "sandbase/job:v1");
    let snapshots = sandboxes.snapshots();
    for (reference, expected) in [
        ("job:v1", Some(&v1)),
        ("sandbase/job:v2", Some(&v2)),
        ("job", Some(&v1)),
        ("JOB:V1", Some(&v1)),
        ("job:v3", None),
        (old.id.as_str(), None),
        (other.id.as_str(), Some(&other)),
    ] {
        let found = snapshots.find(reference);
        assert_eq!(
            found.as_ref().map(|it| &it.id),
            expected.map(|it| &it.id),
            "{reference}"
        );
    }
    // What had the name before is gone, and sandboxes get what has it now.
    let removed = || place.snapshot_directories().len() == 3;
    eventually("the removal", removed).await;
    let (id, execution) = create_from(&place, &sandboxes, &v1).await;
    assert_eq!(place.host.memory(&execution), Some(1));
    sandboxes.kill(&id).await.unwrap();

    let page = SnapshotPage {
        limit: 1,
        ..SnapshotPage::default()
    };
    let listed = page.of(snapshots.listed());
    assert_eq!(listed.snapshots[0].id, other.id);
    assert!(listed.more);
    let all = SnapshotPage {
        limit: 10,
        ..SnapshotPage::default()
    };
    let listed = all.of(snapshots.listed());
    let ids: Vec<_> = listed.snapshots.iter().map(|it| &it.id).collect();
    assert_eq!(ids, [&other.id, &v1.id], "newest first, one entry per name");

    sandboxes.kill(&source).await.unwrap();
    sandboxes.delete_snapshot("sandbase/job:v2").await.unwrap();
    assert_eq!(snapshots.listed().len(), 1, "all tags of a name go");
    sandboxes.delete_snapshot(other.id.as_str()).await.unwrap();
    let again = sandboxes.delete_snapshot(other.id.as_str()).await;
    assert!(matches!(again, Err(SandboxError::SnapshotNotFound(_))));
    place.assert_clean().await;
}

#[tokio::test]
async fn a_failure_at_any_step_of_a_snapshot_leaves_the_source_as_it_was() {
    for (step, fault) in failures() {
        let name = format!("{step:?}");
        let at_once = ["Pause", "Snapshot"].iter().any(|of| name.starts_with(of));
        if !(at_once || name.starts_with("Resume")) {
            continue;
        }
        let place = Place::new();
        let sandboxes = place.open().await;
        let source = create(&sandboxes).await;
        assert!(place.host.step(&place.execution()));
        place.inject(step, fault);
        let made = sandboxes.snapshot(&source, UNNAMED).await;
        assert_eq!(place.faults_left(), 0, "{step:?} was not reached");
        let committed = matches!(
            step,
            Step::PauseDestroy | Step::PausePublish | Step::SnapshotCommitted
        ) || !at_once;
        if committed {
            let snapshot = made.unwrap();
            sandboxes
                .delete_snapshot(&snapshot.reference())
                .await
                .unwrap();
        } else {
            assert_told(fault, &made.unwrap_err());
        }
        assert_eq!(
            place.snapshot_directories(),
            Vec::<std::path::PathBuf>::new(),
            "{step:?}"
        );
        // An injected failure of the restart is no reason to try again: the sandbox is paused.
        if name.starts_with("Resume") {
            assert_eq!(
                state_of(&sandboxes, &source),
                Some(PublicState::Paused),
                "{step:?}"
            );
            sandboxes
                .connect(&source, MINUTE, ResumeFrom::Saved)
                .await
                .unwrap();
        }
        assert_eq!(
            state_of(&sandboxes, &source),
            Some(PublicState::Running),
            "{step:?}"
        );
        assert_eq!(place.host.memory(&place.execution()), Some(1), "{step:?}");
        assert!(place.host.step(&place.execution()));
        let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
        sandboxes.kill(&source).await.unwrap();
        sandboxes
            .delete_snapshot(&snapshot.reference())
            .await
            .unwrap();
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn a_failure_at_any_step_of_a_rollback_leaves_one_of_the_two_states() {
    for (step, fault) in failures() {
        let name = format!("{step:?}");
        if !(name.starts_with("Rollback") || name.starts_with("Resume")) {
            continue;
        }
        let place = Place::new();
        let sandboxes = place.open().await;
        let source = create(&sandboxes).await;
        assert!(place.host.step(&place.execution()));
        let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
        assert!(place.host.step(&place.execution()));
        place.inject(step, fault);
        let done = sandboxes.rollback(&source, &snapshot.reference()).await;
        assert_eq!(place.faults_left(), 0, "{step:?} was not reached");
        let before_commit = matches!(step, Step::RollbackLink | Step::RollbackCommit);
        let restart_failed = name.starts_with("Resume");
        assert_eq!(
            done.is_err(),
            before_commit || restart_failed,
            "{step:?}: {done:?}"
        );
        if restart_failed {
            assert_eq!(
                state_of(&sandboxes, &source),
                Some(PublicState::Paused),
                "{step:?}"
            );
            sandboxes
                .connect(&source, MINUTE, ResumeFrom::Saved)
                .await
                .unwrap();
        }
        let expected = if before_commit { 2 } else { 1 };
        assert_eq!(
            place.host.memory(&place.execution()),
            Some(expected),
            "{step:?}"
        );
        sandboxes
            .rollback(&source, &snapshot.reference())
            .await
            .unwrap();
        assert_eq!(place.host.memory(&place.execution()), Some(1), "{step:?}");
        sandboxes.kill(&source).await.unwrap();
        sandboxes
            .delete_snapshot(&snapshot.reference())
            .await
            .unwrap();
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn a_start_from_a_snapshot_may_fail_half_way_and_be_repeated() {
    use engine::fake::Call;
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    // The restart's first guest writes to its disk and dies: the disk was fresh, so the memory still
    // fits a new one.
    place.host.fail(Call::StartLate);
    let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    place.host.fail(Call::StartLate);
    let (child, execution) = create_from(&place, &sandboxes, &snapshot).await;
    assert_eq!(place.host.memory(&execution), Some(1));
    // Twice is too often: it is booted, and says so.
    place.host.fail(Call::StartLate);
    place.host.fail(Call::StartLate);
    let (booted, execution) = create_from(&place, &sandboxes, &snapshot).await;
    assert_eq!(place.host.memory(&execution), Some(0));
    assert!(sandboxes.get(&booted).unwrap().memory_lost.is_some());
    // When that fails, too, nothing of it stays.
    for _ in 0..4 {
        place.host.fail(Call::StartLate);
    }
    let mut request = request();
    request.template = snapshot.reference();
    sandboxes.create(request).await.unwrap_err();
    for id in [&source, &child, &booted] {
        sandboxes.kill(id).await.unwrap();
    }
    sandboxes
        .delete_snapshot(&snapshot.reference())
        .await
        .unwrap();
    assert_eq!(place.host.pending_failures(), vec![]);
    place.assert_clean().await;
}

#[tokio::test]
async fn a_start_on_a_fresh_disk_that_cannot_be_made_again_keeps_the_memory() {
    use engine::fake::Call;
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    sandboxes.pause(&source, FULL).await.unwrap();
    let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    // The guest of the first start writes and dies; no disk can be made for another one.
    place.host.fail(Call::StartLate);
    place.host.fail(Call::MakeDisk);
    let failed = sandboxes.connect(&source, MINUTE, ResumeFrom::Saved).await;
    failed.unwrap_err();
    assert_eq!(place.host.pending_failures(), vec![]);
    assert_eq!(state_of(&sandboxes, &source), Some(PublicState::Paused));
    sandboxes
        .connect(&source, MINUTE, ResumeFrom::Saved)
        .await
        .unwrap();
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    sandboxes.kill(&source).await.unwrap();
    sandboxes
        .delete_snapshot(&snapshot.reference())
        .await
        .unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn of_snapshots_made_at_once_under_one_name_the_last_one_stays() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(create(&sandboxes).await);
    }
    for _ in 0..5 {
        let made = ids.iter().map(|id| sandboxes.snapshot(id, named("ready")));
        let made = futures_util::future::join_all(made).await;
        let last = made
            .into_iter()
            .map(Result::unwrap)
            .map(|snapshot| snapshot.id.clone())
            .collect::<Vec<_>>();
        let listed = sandboxes.snapshots().listed();
        assert_eq!(listed.len(), 1, "one has the name");
        assert!(last.contains(&listed[0].id));
        let removed = || place.snapshot_directories().len() == 1;
        eventually("the removal", removed).await;
        // It is whole: a sandbox can be made from it.
        let mut request = request();
        request.template = "ready".to_owned();
        let child = sandboxes.create(request).await.unwrap().id;
        sandboxes.kill(&child).await.unwrap();
    }
    for id in &ids {
        sandboxes.kill(id).await.unwrap();
    }
    sandboxes.delete_snapshot("ready").await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_rollback_right_after_the_snapshot_finds_its_image() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    let snapshot = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    for _ in 0..5 {
        let reference = snapshot.reference();
        let view = sandboxes.rollback(&source, &reference).await.unwrap();
        assert_eq!(view.memory_lost, None);
        assert_eq!(place.host.memory(&place.execution()), Some(1));
    }
    sandboxes.kill(&source).await.unwrap();
    sandboxes
        .delete_snapshot(&snapshot.reference())
        .await
        .unwrap();
    place.assert_clean().await;
}
