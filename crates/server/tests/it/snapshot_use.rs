//! Snapshots that are deleted, replaced or committed while something is made from them, and those
//! whose memory cannot be used.

use std::sync::Arc;
use std::time::Duration;

use engine::fake::{Call, DISK_FILE};
use server::sandbox::{Fault, PublicState, ResumeFrom, SandboxError, SandboxId, Sandboxes, Step};
use server::snapshots::Snapshot;

use crate::snapshots::{UNNAMED, create_from, named};
use crate::support::{FULL, MINUTE, Place, create, eventually, request, state_of};

/// A running sandbox that counted to one, and a snapshot of it.
async fn snapshotted(place: &Place, sandboxes: &Sandboxes) -> (SandboxId, Arc<Snapshot>) {
    let source = create(sandboxes).await;
    assert!(place.host.step(&place.execution()));
    let snapshot = sandboxes.snapshot(&source, named("job")).await.unwrap();
    (source, snapshot)
}

fn from(snapshot: &Snapshot) -> server::sandbox::CreateRequest {
    server::sandbox::CreateRequest {
        template: snapshot.reference(),
        ..request()
    }
}

#[tokio::test]
async fn what_is_being_used_is_not_deleted() {
    for step in [Step::CreateDisk, Step::RollbackLink] {
        let place = Place::new();
        let sandboxes = Arc::new(place.open().await);
        let (source, snapshot) = snapshotted(&place, &sandboxes).await;
        place.inject(step, Fault::Stop);
        let (user, used) = (Arc::clone(&sandboxes), Arc::clone(&snapshot));
        let using = tokio::spawn(async move {
            if step == Step::CreateDisk {
                user.create(from(&used)).await.map(drop)
            } else {
                user.rollback(&source, &used.reference()).await.map(drop)
            }
        });
        eventually("the use", || place.faults_left() == 0).await;
        let refused = sandboxes.delete_snapshot("job").await;
        assert!(
            matches!(refused, Err(SandboxError::SnapshotBusy(_))),
            "{step:?}: {refused:?}"
        );
        assert!(!using.is_finished());
        // It is whole.
        let (child, execution) = create_from(&place, &sandboxes, &snapshot).await;
        assert_eq!(place.host.memory(&execution), Some(1));
        let refused = sandboxes.delete_snapshot("job").await;
        assert!(matches!(refused, Err(SandboxError::SnapshotBusy(_))));
        sandboxes.kill(&child).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn either_the_use_or_the_deletion_of_a_snapshot_wins() {
    let place = Place::new();
    let sandboxes = Arc::new(place.open().await);
    let (source, _) = snapshotted(&place, &sandboxes).await;
    let (mut used, mut deleted) = (0, 0);
    for round in 0_u64..60 {
        let snapshot = sandboxes.snapshot(&source, named("race")).await.unwrap();
        let (user, request) = (Arc::clone(&sandboxes), from(&snapshot));
        let (rolled, use_first) = (round % 3 == 0, round % 2 == 0);
        let source_id = source.clone();
        let using = tokio::spawn(async move {
            if !use_first {
                tokio::time::sleep(Duration::from_micros(round % 7 * 150)).await;
            }
            if rolled {
                let done = user.rollback(&source_id, &request.template).await;
                return done.map(|_| None);
            }
            user.create(request).await.map(|view| Some(view.id))
        });
        if use_first {
            tokio::time::sleep(Duration::from_millis(round % 5)).await;
        }
        let deletion = sandboxes.delete_snapshot("race").await;
        let using = using.await.unwrap();
        match (&using, &deletion) {
            (Ok(_), Ok(())) if rolled => {}
            (Ok(_), Err(SandboxError::SnapshotBusy(_) | SandboxError::SnapshotInUse { .. })) => {
                used += 1
            }
            (
                Err(SandboxError::TemplateNotFound(_) | SandboxError::SnapshotNotFound(_)),
                Ok(()),
            ) => deleted += 1,
            other => panic!("round {round}: {other:?}"),
        }
        if let Ok(Some(child)) = using {
            sandboxes.kill(&child).await.unwrap();
        }
        let again = sandboxes.delete_snapshot("race").await;
        assert_eq!(again.is_err(), deletion.is_ok(), "{again:?}");
    }
    println!("used {used} times, deleted {deleted} times");
    assert!(
        used > 0 && deleted > 0,
        "no race: {used} used, {deleted} deleted"
    );
    sandboxes.kill(&source).await.unwrap();
    sandboxes.delete_snapshot("job").await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn a_snapshot_that_is_replaced_keeps_its_files_for_those_who_use_it() {
    let place = Place::new();
    let sandboxes = Arc::new(place.open().await);
    let (source, old) = snapshotted(&place, &sandboxes).await;
    place.inject(Step::CreateDisk, Fault::Stop);
    let user = Arc::clone(&sandboxes);
    let request = from(&old);
    let using = tokio::spawn(async move { user.create(request).await });
    eventually("the use", || place.faults_left() == 0).await;
    assert!(place.host.step(&place.execution()));
    let new = sandboxes.snapshot(&source, named("job")).await.unwrap();
    assert_eq!(place.snapshot_directories().len(), 2, "both are there");
    let (child, execution) = create_from(&place, &sandboxes, &new).await;
    assert_eq!(
        place.host.memory(&execution),
        Some(2),
        "the name is the new one's"
    );
    sandboxes.kill(&child).await.unwrap();
    using.abort();
    drop(sandboxes);
    // What the user that never ends left is removed by the next server.
    let sandboxes = place.open().await;
    eventually("the removal", || place.snapshot_directories().len() == 1).await;
    sandboxes.kill(&source).await.unwrap();
    sandboxes.delete_snapshot("job").await.unwrap();
}

#[tokio::test]
async fn a_commit_that_is_told_as_failed_counts_if_it_is_there() {
    for fault in [Fault::Fail, Fault::NoSpace, Fault::Io] {
        let place = Place::new();
        let sandboxes = place.open().await;
        let source = create(&sandboxes).await;
        assert!(place.host.step(&place.execution()));
        place.inject(Step::SnapshotCommitted, fault);
        let snapshot = sandboxes.snapshot(&source, named("job")).await.unwrap();
        assert_eq!(place.faults_left(), 0);
        assert!(place.host.step(&place.execution()));
        place.inject(Step::RollbackCommitted, fault);
        sandboxes.rollback(&source, "job").await.unwrap();
        assert_eq!(place.faults_left(), 0);
        assert_eq!(place.host.memory(&place.execution()), Some(1));
        // The next server finds the same.
        sandboxes.pause(&source, FULL).await.unwrap();
        drop(sandboxes);
        let sandboxes = place.open().await;
        let (child, execution) = create_from(&place, &sandboxes, &snapshot).await;
        assert_eq!(place.host.memory(&execution), Some(1));
        sandboxes.kill(&child).await.unwrap();
        sandboxes.kill(&source).await.unwrap();
        sandboxes.delete_snapshot("job").await.unwrap();
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn a_commit_that_failed_is_undone_only_when_the_journal_says_so() {
    let place = Place::new();
    let sandboxes = Arc::new(place.open().await);
    let source = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    let path = place.data_dir().join("sandbase.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    // Neither the commit nor the end without it can be written.
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON sandboxes
                  WHEN NEW.state LIKE '%\"state\":\"restarting\"%'
                  BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";
    other.execute_batch(refuse).unwrap();
    let user = Arc::clone(&sandboxes);
    let id = source.clone();
    let making = tokio::spawn(async move { user.snapshot(&id, UNNAMED).await });
    eventually("the end of the run", || place.host.executions().is_empty()).await;
    let written = || place.snapshot_directories().len() == 1 && place.staging().is_empty();
    eventually("the snapshot's files", written).await;
    // Long enough for several tries of the driver.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!making.is_finished());
    assert_eq!(
        place.snapshot_directories().len(),
        1,
        "its files are kept until then"
    );
    other.execute_batch("DROP TRIGGER refuse").unwrap();
    let failed = making.await.unwrap();
    assert!(
        matches!(failed, Err(SandboxError::Failed { .. })),
        "{failed:?}"
    );
    assert_eq!(state_of(&sandboxes, &source), Some(PublicState::Running));
    assert_eq!(place.host.memory(&place.execution()), Some(1));
    sandboxes.kill(&source).await.unwrap();
    place.assert_clean().await;
}

/// Files of this name below the snapshots' directories.
fn of_snapshots(place: &Place, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut pending = place.snapshot_directories();
    while let Some(path) = pending.pop() {
        if path.file_name().is_some_and(|file| file == name) {
            found.push(path.clone());
        }
        for entry in std::fs::read_dir(&path).into_iter().flatten() {
            pending.push(entry.unwrap().path());
        }
    }
    found
}

/// In place of the file, so that other names of it are no concern.
fn damage(path: &std::path::Path) {
    let mut content = std::fs::read(path).unwrap();
    content[0] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, content).unwrap();
}

#[tokio::test]
async fn memory_of_a_snapshot_that_cannot_be_used_does_not_cost_its_files() {
    for case in ["damaged", "not kept on this host", "twice"] {
        let place = Place::new();
        let sandboxes = place.open().await;
        let (source, snapshot) = snapshotted(&place, &sandboxes).await;
        match case {
            "damaged" => damage(&of_snapshots(&place, "checkpoint.img")[0]),
            "twice" => {
                place.host.fail(Call::Restore);
                place.host.fail(Call::Restore);
            }
            _ => {
                let manifest = of_snapshots(&place, "manifest.json").remove(0);
                let text = std::fs::read_to_string(&manifest).unwrap();
                std::fs::remove_file(&manifest).unwrap();
                std::fs::write(&manifest, text.replace("fake-build", "gone")).unwrap();
            }
        }
        let created = sandboxes.create(from(&snapshot)).await.unwrap();
        let why = created.memory_lost.clone().unwrap();
        assert!(why.contains(case), "'{why}' does not say '{case}'");
        let told = sandboxes.get(&created.id).unwrap().memory_lost;
        assert_eq!(told, Some(why), "get_info says it, too");
        let events = place.events_of(&created.id);
        assert_eq!(events[0].kind.name(), "created");
        assert!(
            events[0].data["memory_lost"]
                .as_str()
                .unwrap()
                .contains(case)
        );
        let own = place.data_dir().join("sandboxes").join(created.id.as_str());
        let mut lines = Vec::new();
        for disk in std::fs::read_dir(own.join("disks")).unwrap() {
            let text = std::fs::read_to_string(disk.unwrap().path().join(DISK_FILE)).unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
        assert_eq!(lines, ["1"], "{case}: its files are as they were");
        // From here on it is like any other.
        sandboxes.pause(&created.id, FULL).await.unwrap();
        let connected = sandboxes
            .connect(&created.id, MINUTE, ResumeFrom::Saved)
            .await;
        assert_eq!(connected.unwrap().0.memory_lost, None);
        sandboxes.kill(&created.id).await.unwrap();

        // What the source is now is not given up for memory that is known to be of no use.
        assert!(place.host.step(&place.execution()));
        if case == "twice" {
            place.host.fail(Call::Restore);
            place.host.fail(Call::Restore);
        }
        let rolled_back = sandboxes.rollback(&source, "job").await;
        if case == "twice" {
            let rolled_back = rolled_back.unwrap();
            assert!(rolled_back.memory_lost.unwrap().contains(case));
            assert_eq!(place.host.memory(&place.execution()), Some(0), "booted");
            let events = place.events_of(&source);
            let kinds: Vec<_> = events.iter().map(|event| event.kind.name()).collect();
            assert_eq!(kinds, ["created", "checkpointed", "rolled_back", "resumed"]);
        } else {
            let refused = rolled_back.unwrap_err().to_string();
            assert!(
                refused.contains(case) && refused.contains("running as before"),
                "{refused}"
            );
            assert_eq!(place.host.memory(&place.execution()), Some(2), "as it was");
        }
        sandboxes.kill(&source).await.unwrap();
        sandboxes.delete_snapshot("job").await.unwrap();
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn forks_whose_memory_is_refused_boot_and_say_so() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    let first = place.execution();
    assert!(place.host.step(&first));
    // Those of the source's own restart come first.
    for _ in 0..4 {
        place.host.fail(Call::Restore);
    }
    let forks = sandboxes.fork(&source, 1, MINUTE).await.unwrap();
    assert_eq!(place.host.pending_failures(), vec![]);
    let fork = forks.into_iter().next().unwrap().unwrap();
    assert!(fork.memory_lost.unwrap().contains("twice"));
    let source_view = sandboxes.get(&source).unwrap();
    assert!(source_view.memory_lost.unwrap().contains("twice"));
    sandboxes.kill(&fork.id).await.unwrap();
    sandboxes.kill(&source).await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn where_it_is_not_wanted_a_create_fails_and_leaves_nothing() {
    let mut place = Place::new();
    place.boot_without_memory = false;
    let sandboxes = place.open().await;
    let (source, snapshot) = snapshotted(&place, &sandboxes).await;
    damage(&of_snapshots(&place, "checkpoint.img")[0]);
    let failed = sandboxes.create(from(&snapshot)).await.unwrap_err();
    assert!(failed.to_string().contains("damaged"), "{failed}");
    assert_eq!(place.directories().len(), 1);
    sandboxes.kill(&source).await.unwrap();
    sandboxes.delete_snapshot("job").await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn names_that_mean_something_else_are_refused() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let source = create(&sandboxes).await;
    let unnamed = sandboxes.snapshot(&source, UNNAMED).await.unwrap();
    for name in ["base", "base:v1", unnamed.id.as_str()] {
        let refused = sandboxes.snapshot(&source, named(name)).await;
        assert!(
            matches!(refused, Err(SandboxError::NameTaken(_))),
            "{name}: {refused:?}"
        );
    }
    assert_eq!(sandboxes.snapshots().listed().len(), 1);
    assert!(
        place.host.step(&place.execution()),
        "it was not even stopped"
    );
    sandboxes.kill(&source).await.unwrap();
    let gone = sandboxes.snapshot(&source, UNNAMED).await;
    assert!(matches!(gone, Err(SandboxError::NotFound(_))), "{gone:?}");
    sandboxes
        .delete_snapshot(unnamed.id.as_str())
        .await
        .unwrap();
    place.assert_clean().await;
}
