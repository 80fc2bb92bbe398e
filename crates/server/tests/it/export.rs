//! Exports and imports on fake hosts: what comes out is what went in, and what is refused leaves
//! nothing.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use engine::BuildId;
use engine::fake::Call;
use futures_util::{StreamExt, stream};
use server::sandbox::{ExportError, PublicState, SandboxError, SandboxId, Sandboxes};
use server::snapshots::{Snapshot, SnapshotName};
use server::transfer::{Compression, EngineBuilds, Exported, ImportRequest, TransferError};

use crate::snapshots::{UNNAMED, create_from};
use crate::support::{DISK_ONLY, FULL, Place, create, eventually, state_of};

/// Everything of a stream that comes to its proper end.
pub(crate) async fn collect(exported: Exported, compression: Compression) -> Vec<u8> {
    let mut stream = std::pin::pin!(exported.stream(compression));
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    bytes
}

async fn export(sandboxes: &Sandboxes, snapshot: &Arc<Snapshot>) -> Vec<u8> {
    let exported = sandboxes.transfers().export(snapshot, true).await;
    collect(exported.unwrap(), Compression::None).await
}

async fn export_sandbox(sandboxes: &Sandboxes, id: &SandboxId) -> Vec<u8> {
    let exported = sandboxes.export(id, true).await.unwrap();
    collect(exported, Compression::Zstd).await
}

/// As a client sends it: in small pieces.
fn sent(bytes: &[u8]) -> impl futures_util::Stream<Item = io::Result<Bytes>> {
    let pieces: Vec<_> = bytes.chunks(1000).map(Bytes::copy_from_slice).collect();
    stream::iter(pieces.into_iter().map(Ok))
}

const ALL: ImportRequest = ImportRequest {
    name: None,
    memory: true,
    builds: EngineBuilds::Refuse,
};

async fn import(sandboxes: &Sandboxes, bytes: &[u8]) -> Result<Arc<Snapshot>, TransferError> {
    let transfers = sandboxes.transfers();
    transfers.import(sent(bytes), ALL).await
}

/// Everything in the folder of layers, but what is remembered about them.
fn layers(place: &Place) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(place.data_dir().join("layers")).unwrap();
    let mut layers: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    layers.retain(|path| !path.ends_with(".hashes"));
    layers.sort();
    layers
}

/// A server with a snapshot of a sandbox that counted to two, and the export of it.
struct Source {
    place: Place,
    sandboxes: Sandboxes,
    snapshot: Arc<Snapshot>,
    file: Vec<u8>,
}

async fn source() -> Source {
    let place = Place::new();
    std::fs::create_dir_all(place.folder.path().join("tree/etc")).unwrap();
    std::fs::write(place.folder.path().join("tree/etc/motd"), "hello").unwrap();
    let sandboxes = place.open().await;
    let id = create(&sandboxes).await;
    for _ in 0..2 {
        assert!(place.host.step(&place.execution()));
    }
    let snapshot = sandboxes.snapshot(&id, UNNAMED).await.unwrap();
    sandboxes.kill(&id).await.unwrap();
    let file = export(&sandboxes, &snapshot).await;
    Source {
        place,
        sandboxes,
        snapshot,
        file,
    }
}

#[tokio::test]
async fn an_export_is_imported_elsewhere_with_memory_disks_and_layers() {
    let from = source().await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let here = layers(&place);
    let snapshot = import(&sandboxes, &from.file).await.unwrap();
    assert_ne!(snapshot.id, from.snapshot.id);
    assert_eq!(snapshot.source, from.snapshot.source);
    assert_eq!(snapshot.disks, from.snapshot.disks);
    let listed = sandboxes.snapshots().listed();
    assert_eq!(listed, [Arc::clone(&snapshot)]);
    // The source goes: nothing of it is needed.
    drop(from);
    for _ in 0..2 {
        let (id, execution) = create_from(&place, &sandboxes, &snapshot).await;
        assert_eq!(place.host.memory(&execution), Some(2));
        assert!(place.host.step(&execution));
        sandboxes.pause(&id, FULL).await.unwrap();
        sandboxes.kill(&id).await.unwrap();
    }
    let tree = place.data_dir().join(snapshot.layers.last().unwrap());
    let text = std::fs::read_to_string(tree.join("etc/motd")).unwrap();
    assert_eq!(text, "hello");

    // It is there after a restart, with its layers, and these go when nothing needs them.
    drop(sandboxes);
    let sandboxes = place.open().await;
    let (id, execution) = create_from(&place, &sandboxes, &snapshot).await;
    assert_eq!(place.host.memory(&execution), Some(2));
    sandboxes.delete_snapshot("nothing").await.unwrap_err();
    sandboxes.kill(&id).await.unwrap();
    sandboxes
        .delete_snapshot(&snapshot.reference())
        .await
        .unwrap();
    assert_ne!(layers(&place), here);
    drop(sandboxes);
    drop(place.open().await);
    assert_eq!(layers(&place), here);
    place.assert_clean().await;
}

#[tokio::test]
async fn layers_that_are_here_already_are_not_written_again() {
    let from = source().await;
    let before = layers(&from.place);
    // At home everything is known, by its content.
    let again = import(&from.sandboxes, &from.file).await.unwrap();
    assert_eq!(again.layers, from.snapshot.layers);
    assert_eq!(layers(&from.place), before);
    // Elsewhere the first import brings them and the others find them, also at the same time.
    let place = Place::new();
    let sandboxes = place.open().await;
    let (first, second) = tokio::join!(
        import(&sandboxes, &from.file),
        import(&sandboxes, &from.file)
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    let after_two = layers(&place);
    let third = import(&sandboxes, &from.file).await.unwrap();
    assert_eq!(first.layers, second.layers);
    assert_eq!(first.layers, third.layers);
    assert_eq!(layers(&place), after_two);
    assert_eq!(place.staging(), Vec::<PathBuf>::new());
    for snapshot in [&first, &second, &third] {
        let (id, execution) = create_from(&place, &sandboxes, snapshot).await;
        assert_eq!(place.host.memory(&execution), Some(2));
        sandboxes.kill(&id).await.unwrap();
        sandboxes
            .delete_snapshot(&snapshot.reference())
            .await
            .unwrap();
    }
    place.assert_clean().await;
}

#[tokio::test]
async fn a_running_or_paused_sandbox_is_exported_and_stays_what_it_was() {
    for paused in [None, Some(FULL), Some(DISK_ONLY)] {
        let place = Place::new();
        let sandboxes = place.open().await;
        let id = create(&sandboxes).await;
        assert!(place.host.step(&place.execution()));
        if let Some(pause) = paused {
            sandboxes.pause(&id, pause).await.unwrap();
        }
        let before = state_of(&sandboxes, &id);
        let file = export_sandbox(&sandboxes, &id).await;
        assert_eq!(state_of(&sandboxes, &id), before);
        assert_eq!(sandboxes.snapshots().listed(), []);
        assert_eq!(place.snapshot_directories(), Vec::<PathBuf>::new());
        if paused.is_none() {
            assert!(place.host.step(&place.execution()), "it goes on");
        }
        let elsewhere = Place::new();
        let others = elsewhere.open().await;
        let snapshot = import(&others, &file).await.unwrap();
        let (_, execution) = create_from(&elsewhere, &others, &snapshot).await;
        let memory = if paused == Some(DISK_ONLY) { 0 } else { 1 };
        assert_eq!(elsewhere.host.memory(&execution), Some(memory));
        assert_eq!(elsewhere.host.violations(), Vec::<String>::new());
        sandboxes.kill(&id).await.unwrap();
        place.assert_clean().await;
    }
}

#[tokio::test]
async fn an_export_of_what_is_not_there_is_refused() {
    let place = Place::new();
    let sandboxes = place.open().await;
    let refused = sandboxes.export(&SandboxId::random(), true).await.map(drop);
    assert!(
        matches!(
            refused,
            Err(ExportError::Sandbox(SandboxError::NotFound(_)))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_damaged_snapshot_is_an_error_before_the_first_byte() {
    let from = source().await;
    let files = from.sandboxes.snapshots().files(&from.snapshot.id);
    let image = files.images().path(from.snapshot.image.as_ref().unwrap());
    std::fs::write(image.join("checkpoint.img"), "2 altered").unwrap();
    let transfers = from.sandboxes.transfers();
    let refused = transfers.export(&from.snapshot, true).await;
    let refused = refused.map(drop);
    assert!(
        matches!(refused, Err(TransferError::Source(_))),
        "{refused:?}"
    );
    // Its files are still to be had.
    let files = transfers.export(&from.snapshot, false).await;
    let files = collect(files.unwrap(), Compression::Zstd).await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let snapshot = import(&sandboxes, &files).await.unwrap();
    let (_, execution) = create_from(&place, &sandboxes, &snapshot).await;
    assert_eq!(place.host.memory(&execution), Some(0), "it was booted");
    let disk = place
        .data_dir()
        .join("snapshots")
        .join(snapshot.id.as_str());
    let disk = disk.join("disks").join(snapshot.disks[0].as_str());
    let counted = std::fs::read_to_string(disk.join(engine::fake::DISK_FILE)).unwrap();
    assert_eq!(counted, "1\n2\n");
}

#[tokio::test]
async fn an_import_that_would_fill_the_disk_is_refused() {
    let from = source().await;
    let mut place = Place::new();
    place.free_space_reserve = u64::MAX / 2;
    let sandboxes = place.open().await;
    let refused = import(&sandboxes, &from.file).await;
    assert!(
        matches!(refused, Err(TransferError::NoSpace(_))),
        "{refused:?}"
    );
    place.assert_clean().await;
}

#[tokio::test]
async fn an_export_of_the_first_format_is_read_for_ever() {
    let golden = include_bytes!("golden/export-1.tar.zst");
    let place = Place::new();
    let sandboxes = place.open().await;
    let snapshot = import(&sandboxes, golden).await.unwrap();
    let (_, execution) = create_from(&place, &sandboxes, &snapshot).await;
    assert_eq!(place.host.memory(&execution), Some(2));
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_snapshot_that_is_deleted_meanwhile_is_exported_to_its_end() {
    let from = source().await;
    let transfers = from.sandboxes.transfers();
    let exported = transfers.export(&from.snapshot, true).await.unwrap();
    let reference = from.snapshot.reference();
    from.sandboxes.delete_snapshot(&reference).await.unwrap();
    assert_eq!(collect(exported, Compression::None).await, from.file);
    from.place.assert_clean().await;
}

#[tokio::test]
async fn a_reader_that_leaves_ends_an_export() {
    let from = source().await;
    let transfers = from.sandboxes.transfers();
    let exported = transfers.export(&from.snapshot, true).await.unwrap();
    let reference = from.snapshot.reference();
    drop(exported.stream(Compression::Zstd));
    from.sandboxes.delete_snapshot(&reference).await.unwrap();
    from.place.assert_clean().await;
}

#[tokio::test]
async fn whatever_is_cut_altered_or_no_export_is_refused_and_leaves_nothing() {
    let from = source().await;
    let exported = from
        .sandboxes
        .transfers()
        .export(&from.snapshot, true)
        .await;
    let packed = collect(exported.unwrap(), Compression::Zstd).await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let here = layers(&place);
    for file in [&from.file, &packed] {
        let mut bad: Vec<(String, Vec<u8>)> = Vec::new();
        // Around every block border, and at the very end.
        let borders = (0..file.len())
            .step_by(512)
            .flat_map(|at| [at, at + 1, at + 511]);
        for length in borders
            .chain([file.len() - 1])
            .filter(|at| *at < file.len())
        {
            bad.push((format!("{length} bytes"), file[..length].to_vec()));
        }
        // 131 has no divisor in common with the size of a block, so every place in one is met.
        for at in (0..file.len()).step_by(131) {
            let mut altered = file.clone();
            altered[at] ^= 0x10;
            bad.push((format!("byte {at}"), altered));
        }
        let mut longer = file.clone();
        longer.extend_from_slice(b"more");
        bad.push(("more bytes".to_owned(), longer));
        for (what, bytes) in bad {
            // A few bits of a compressed file mean nothing: then nothing is altered.
            if zstd::decode_all(&bytes[..]).is_ok_and(|archive| archive == from.file) {
                continue;
            }
            let refused = import(&sandboxes, &bytes).await;
            assert!(
                matches!(
                    refused,
                    Err(TransferError::Damaged(_) | TransferError::NotAnExport(_))
                ),
                "{what}: {refused:?}"
            );
            assert_eq!(
                place.snapshot_directories(),
                Vec::<PathBuf>::new(),
                "{what}"
            );
            assert_eq!(layers(&place), here, "{what}");
        }
    }
    for garbage in [&b""[..], b"hello", &[0; 4096], &packed[..4]] {
        let refused = import(&sandboxes, garbage).await;
        assert!(
            matches!(refused, Err(TransferError::NotAnExport(_))),
            "{refused:?}"
        );
    }
    place.assert_clean().await;
    // And the very same server takes the whole file.
    import(&sandboxes, &packed).await.unwrap();
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let mut from = source().await;
    let version = b"\"format_version\": 1,";
    let at = from
        .file
        .windows(version.len())
        .position(|bytes| bytes == version);
    let digit = at.unwrap() + version.len() - 2;
    from.file[digit] = b'2';
    let refused = import(&from.sandboxes, &from.file).await;
    assert!(
        matches!(refused, Err(TransferError::Newer { found: 2 })),
        "{refused:?}"
    );
    assert_eq!(from.place.staging(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let from = source().await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let half = from.file[..from.file.len() / 2].to_vec();
    let broken = sent(&half).chain(stream::iter([Err(io::Error::other("gone"))]));
    let transfers = sandboxes.transfers();
    let refused = transfers.import(broken, ALL).await;
    assert!(
        matches!(&refused, Err(TransferError::Damaged(what)) if what.contains("gone")),
        "{refused:?}"
    );
    place.assert_clean().await;
}

#[tokio::test]
async fn a_name_is_given_at_import_and_replaces_what_had_it() {
    let from = source().await;
    let name = SnapshotName::parse("job:v1").unwrap();
    let transfers = from.sandboxes.transfers();
    for _ in 0..2 {
        let named = ImportRequest {
            name: Some(name.clone()),
            ..ALL
        };
        let made = transfers.import(sent(&from.file), named).await.unwrap();
        let found = from.sandboxes.snapshots().find("job").unwrap();
        assert_eq!(found.id, made.id);
        assert_eq!(from.sandboxes.snapshots().listed().len(), 2);
        let removed = || from.place.snapshot_directories().len() == 2;
        eventually("the removal", removed).await;
    }
}

#[tokio::test]
async fn engine_builds_come_along_only_where_that_is_allowed() {
    let origin = Place::new();
    let build = tempfile::tempdir().unwrap();
    std::fs::write(build.path().join("engine"), "program").unwrap();
    origin.host.install("build-of-origin", build.path());
    let sandboxes = origin.open().await;
    let id = create(&sandboxes).await;
    assert!(origin.host.step(&origin.execution()));
    let file = export_sandbox(&sandboxes, &id).await;

    let place = Place::new();
    let sandboxes = place.open().await;
    let refused = import(&sandboxes, &file).await;
    assert!(
        matches!(&refused, Err(TransferError::BuildRefused { build, .. }) if build == "build-of-origin"),
        "{refused:?}"
    );
    let transfers = sandboxes.transfers();
    // The files need no engine.
    let files_only = ImportRequest {
        memory: false,
        ..ALL
    };
    let files = transfers.import(sent(&file), files_only).await.unwrap();
    let (id, execution) = create_from(&place, &sandboxes, &files).await;
    assert_eq!(place.host.memory(&execution), Some(0), "it was booted");
    sandboxes.kill(&id).await.unwrap();
    let reference = files.reference();
    sandboxes.delete_snapshot(&reference).await.unwrap();
    // The layers of it stay until the next start.
    drop(sandboxes);
    let sandboxes = place.open().await;
    let transfers = sandboxes.transfers();

    let with_build = ImportRequest {
        builds: EngineBuilds::Keep,
        ..ALL
    };
    let keep = || transfers.import(sent(&file), with_build.clone());
    let here = layers(&place);
    place.host.fail(Call::KeepBuild);
    let failed = keep().await;
    assert!(
        matches!(failed, Err(TransferError::Engine(_))),
        "{failed:?}"
    );
    assert_eq!(
        layers(&place),
        here,
        "layers of a failed import are removed"
    );
    place.assert_clean().await;
    assert_eq!(place.host.kept_builds(), vec![]);

    let snapshot = keep().await.unwrap();
    let kept = BuildId("build-of-origin".to_owned());
    assert_eq!(place.host.kept_builds(), [kept]);
    let (id, execution) = create_from(&place, &sandboxes, &snapshot).await;
    assert_eq!(place.host.memory(&execution), Some(1));
    assert_eq!(state_of(&sandboxes, &id), Some(PublicState::Running));
    // Now that it is kept, it may come again.
    import(&sandboxes, &file).await.unwrap();
    assert_eq!(place.staging(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn layers_stay_as_long_as_there_is_something_the_database_does_not_know() {
    let from = source().await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let here = layers(&place);
    let snapshot = import(&sandboxes, &from.file).await.unwrap();
    let with_imported = layers(&place);
    drop(sandboxes);
    // As with a database that was lost and made anew.
    let db = server::db::Db::open(&place.data_dir().join("sandbase.db")).unwrap();
    db.delete_snapshot(snapshot.id.clone()).await.unwrap();
    drop(place.open().await);
    assert_eq!(layers(&place), with_imported);
    std::fs::remove_dir_all(&place.snapshot_directories()[0]).unwrap();
    drop(place.open().await);
    assert_eq!(layers(&place), here);
}

#[tokio::test]
async fn a_crash_before_the_commit_of_an_import_leaves_nothing() {
    let from = source().await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let here = layers(&place);
    let snapshot = import(&sandboxes, &from.file).await.unwrap();
    drop(sandboxes);
    // As it is between the rename and the commit.
    let db = server::db::Db::open(&place.data_dir().join("sandbase.db")).unwrap();
    db.mark_snapshot_deleting(snapshot.id.clone())
        .await
        .unwrap();
    drop(place.open().await);
    assert_eq!(layers(&place), here);
    place.assert_clean().await;
}

mod over_http {
    use http::StatusCode;

    use super::*;
    use crate::served::Served;

    /// A server with a sandbox that counted to one, and the export of it.
    async fn exported() -> (Served, SandboxId, Bytes) {
        let served = Served::start().await;
        let id = served.create("").await;
        assert!(served.place.host.step(&served.place.execution()));
        let line = format!("GET /sandboxes/{id}/export");
        let answer = served.api(&line, "").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["content-type"], "application/zstd");
        let named = format!("attachment; filename=\"{id}.sandbase.tar.zst\"");
        assert_eq!(answer.headers["content-disposition"], named.as_str());
        (served, id, answer.body)
    }

    async fn import(served: &Served, query: &str, body: Bytes) -> crate::served::Answer {
        let line = format!("POST /snapshots/import{query}");
        let key = served.key.e2b();
        served.send(&line, &[("x-api-key", &key)], body).await
    }

    #[tokio::test]
    async fn a_sandbox_goes_from_one_server_to_another() {
        let (from, id, file) = exported().await;
        let to = Served::start().await;
        let answer = import(&to, "?name=moved", file).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let info = answer.json();
        assert_eq!(info["snapshotID"], "sandbase/moved:default");
        assert_eq!(info["sandboxID"], id.as_str());
        assert_eq!(info["memory"], true);
        let body = r#"{"templateID":"moved"}"#;
        let created = to.api("POST /v2/sandboxes", body).await;
        assert_eq!(created.status, StatusCode::CREATED, "{}", created.text());
        let execution = to.place.execution();
        assert_eq!(to.place.host.memory(&execution), Some(1));
        // The source never noticed.
        assert!(from.place.host.step(&from.place.execution()));
    }

    #[tokio::test]
    async fn a_snapshot_is_exported_by_its_name_as_plain_tar() {
        let (served, id, _) = exported().await;
        let made = served.post(&id, "snapshots", r#"{"name":"job:v1"}"#).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
        let line = "GET /snapshots/sandbase%2Fjob:v1/export?compression=none";
        let answer = served.api(line, "").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["content-type"], "application/x-tar");
        assert!(answer.body.starts_with(b"manifest.json\0"));
        for (line, status) in [
            ("GET /snapshots/nothing/export", StatusCode::NOT_FOUND),
            ("GET /sandboxes/nothing/export", StatusCode::NOT_FOUND),
            (
                "GET /snapshots/job/export?compression=gzip",
                StatusCode::BAD_REQUEST,
            ),
            ("POST /snapshots/import?name=a.b", StatusCode::BAD_REQUEST),
            ("POST /snapshots/import?memory=1", StatusCode::BAD_REQUEST),
            ("POST /snapshots/import", StatusCode::BAD_REQUEST),
        ] {
            let refused = served.api(line, "").await;
            assert_eq!(refused.status, status, "{line}");
            assert_eq!(refused.json()["code"], status.as_u16(), "{line}");
        }
    }

    #[tokio::test]
    async fn a_refused_file_is_answered_with_the_reason_however_long_it_is() {
        let (served, id, _) = exported().await;
        let line = format!("GET /sandboxes/{id}/export?compression=none");
        let file = served.api(&line, "").await.body;
        // Longer than what fits into the buffers of the connection.
        let garbage = Bytes::from(vec![b'x'; 32 << 20]);
        let half = file.slice(..file.len() / 2);
        for (body, reason) in [(garbage, "not an export"), (half, "is damaged")] {
            let answer = import(&served, "", body).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST);
            assert!(answer.text().contains(reason), "{}", answer.text());
        }
        assert_eq!(served.place.snapshot_directories(), Vec::<PathBuf>::new());
        let unknown = served.send("POST /snapshots/import", &[], file).await;
        assert_eq!(unknown.status, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn a_client_that_leaves_half_way_leaves_nothing_behind() {
        use tokio::io::AsyncWriteExt;
        let (served, _, file) = exported().await;
        let mut stream = tokio::net::TcpStream::connect(served.address)
            .await
            .unwrap();
        let key = served.key.e2b();
        let head = format!(
            "POST /snapshots/import HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n\
             content-length: {}\r\n\r\n",
            file.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&file[..file.len() - 1]).await.unwrap();
        let begun = || served.place.snapshot_directories().len() == 1;
        crate::support::eventually("the import begins", begun).await;
        drop(stream);
        let gone = || served.place.snapshot_directories().is_empty();
        crate::support::eventually("the import is given up", gone).await;
    }
}
