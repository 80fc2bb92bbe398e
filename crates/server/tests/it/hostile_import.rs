//! Imports by callers that are hostile or many.

use bytes::Bytes;
use engine::fake::Call;
use futures_util::{FutureExt, stream};
use server::transfer::{EngineBuilds, ImportRequest, TransferError};

use crate::import_steps::{file, import, layers};
use crate::support::{Place, eventually};

fn request() -> ImportRequest {
    ImportRequest {
        name: None,
        memory: true,
        builds: EngineBuilds::Refuse,
    }
}

#[tokio::test]
async fn a_disk_that_the_engine_refuses_leaves_nothing_of_its_import() {
    let file = file().await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let before = layers(&place);
    place.host.fail(Call::CheckGivenDisk);
    match import(&sandboxes, &file).await {
        Err(TransferError::Damaged(text)) => assert!(text.contains("asks the host"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(layers(&place), before);
    place.assert_clean().await;
    import(&sandboxes, &file).await.unwrap();
    sandboxes.delete_snapshot("job").await.unwrap();
    place.assert_clean().await;
}

#[tokio::test]
async fn the_fifth_import_at_once_is_refused_until_another_has_ended() {
    let file = file().await;
    let place = Place::new();
    let sandboxes = place.open().await;
    let transfers = sandboxes.transfers();
    let mut slow = Vec::new();
    for _ in 0..4 {
        // A client that sends nothing and does not leave.
        let silent = stream::pending::<std::io::Result<Bytes>>();
        let mut import = Box::pin(transfers.import(silent, request()));
        assert!(import.as_mut().now_or_never().is_none());
        slow.push(import);
    }
    let refused = import(&sandboxes, &file).await;
    assert!(
        matches!(refused, Err(TransferError::Busy(4))),
        "{refused:?}"
    );
    // Creates and their database are not held up.
    let id = crate::support::create(&sandboxes).await;
    sandboxes.kill(&id).await.unwrap();
    drop(slow);
    let free = || {
        let import = Box::pin(transfers.import(stream::empty(), request()));
        !matches!(import.now_or_never(), Some(Err(TransferError::Busy(_))))
    };
    eventually("a turn", free).await;
}
