//! Imports that fail or are killed at each of their steps.

use bytes::Bytes;
use futures_util::stream;
use server::sandbox::{Fault, Sandboxes, Step};
use server::snapshots::SnapshotName;
use server::transfer::{Compression, EngineBuilds, ImportRequest, TransferError};

use crate::crash::{Server, crash_at, is_of};
use crate::export::collect;
use crate::snapshots::{create_from, named};
use crate::support::{Place, create, eventually, failures};

/// The export of a sandbox that counted to one, with layers that only it has.
pub(crate) async fn file() -> Vec<u8> {
    let place = Place::new();
    std::fs::create_dir_all(place.folder.path().join("tree/etc")).unwrap();
    std::fs::write(place.folder.path().join("tree/etc/motd"), "hello").unwrap();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    assert!(place.host.step(&place.execution()));
    let exported = sandboxes.export(&id, true).await.unwrap();
    collect(exported, Compression::None).await
}

pub(crate) async fn import(sandboxes: &Sandboxes, file: &[u8]) -> Result<(), TransferError> {
    let request = ImportRequest {
        name: Some(SnapshotName::parse("job").unwrap()),
        memory: true,
        builds: EngineBuilds::Refuse,
    };
    let chunk = Ok(Bytes::copy_from_slice(file));
    let input = stream::iter([chunk]);
    sandboxes.transfers().import(input, request).await.map(drop)
}

pub(crate) fn layers(place: &Place) -> usize {
    std::fs::read_dir(place.data_dir().join("layers"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name() != ".hashes")
        .count()
}

/// Of an import either nothing is left, or all.
async fn assert_whole_or_nothing(
    place: &Place,
    sandboxes: &Sandboxes,
    layers_before: usize,
    committed: bool,
    step: Step,
) {
    let listed = sandboxes.snapshots().listed();
    // A snapshot of this name from before is there until another one takes its place.
    assert_eq!(listed.len(), 1, "{step:?}");
    let removed = || place.snapshot_directories().len() == 1;
    eventually("the removal", removed).await;
    let imported = usize::from(committed);
    assert_eq!(layers(place), layers_before + 2 * imported, "{step:?}");
    let expected = if committed { 1 } else { 0 };
    let (child, execution) = create_from(place, sandboxes, &listed[0]).await;
    assert_eq!(place.host.memory(&execution), Some(expected), "{step:?}");
    sandboxes.kill(&child).await.unwrap();
}

/// A snapshot of the same name, of a sandbox that did not count.
async fn older(sandboxes: &Sandboxes) {
    let id = create(sandboxes).await;
    sandboxes.snapshot(&id, named("job")).await.unwrap();
    sandboxes.kill(&id).await.unwrap();
}

#[tokio::test]
async fn a_failure_at_any_step_of_an_import_leaves_nothing_of_it() {
    let file = file().await;
    for (step, fault) in failures().filter(|(step, _)| is_of(*step, "Import")) {
        let place = Place::new();
        let sandboxes = place.open().await;
        older(&sandboxes).await;
        let before = layers(&place);
        place.inject(step, fault);
        let imported = import(&sandboxes, &file).await;
        assert_eq!(place.faults_left(), 0, "{step:?} was not reached");
        // A commit that was told as failed and is there has worked.
        let committed = step == Step::ImportCommitted;
        match (&imported, fault) {
            (Ok(()), _) => assert!(committed, "{step:?}"),
            (Err(TransferError::NoSpace(_)), Fault::NoSpace) => assert!(!committed),
            (Err(TransferError::Io { .. }), Fault::Fail | Fault::Io) => assert!(!committed),
            other => panic!("{step:?}: {other:?}"),
        }
        assert_whole_or_nothing(&place, &sandboxes, before, committed, step).await;
        import(&sandboxes, &file).await.unwrap();
        assert_whole_or_nothing(&place, &sandboxes, before, true, step).await;
        sandboxes.delete_snapshot("job").await.unwrap();
        place.assert_clean().await;
    }
}

#[test]
fn a_crash_at_any_step_of_an_import_leaves_nothing_or_all_of_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let file = runtime.block_on(file());
    for step in Step::ALL.into_iter().filter(|step| is_of(*step, "Import")) {
        let place = Place::new();
        let server = Server::start(&place);
        server.runtime.block_on(older(&server.sandboxes));
        let before = layers(&place);
        crash_at(&place, server, step, async |sandboxes| {
            let _ = import(sandboxes, &file).await;
        });
        let next = Server::start(&place);
        next.runtime.block_on(async {
            let committed = step == Step::ImportCommitted;
            assert_whole_or_nothing(&place, &next.sandboxes, before, committed, step).await;
            import(&next.sandboxes, &file).await.unwrap();
            assert_whole_or_nothing(&place, &next.sandboxes, before, true, step).await;
            next.sandboxes.delete_snapshot("job").await.unwrap();
            place.assert_clean().await;
        });
    }
}
