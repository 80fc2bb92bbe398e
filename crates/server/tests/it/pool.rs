//! Sandboxes started ahead of time: nobody sees them but in the time a create takes.

use std::collections::BTreeSet;

use engine::ExitReason;
use engine::fake::Call;
use server::sandbox::{Fault, Step};

use crate::crash::Server;
use crate::support::{Place, create, eventually, request, state_of};

fn pool_place(most: usize) -> Place {
    Place {
        pool: most,
        ..Place::new()
    }
}

async fn filled(place: &Place, count: usize) {
    eventually("the pool is filled", || {
        place.host.executions().len() == count
    })
    .await;
}

#[tokio::test]
async fn a_create_greets_one_that_is_there_and_another_takes_its_place() {
    let place = pool_place(1);
    let sandboxes = place.open().await;
    filled(&place, 1).await;
    let prepared = place.execution();
    assert_eq!(sandboxes.list().len(), 0, "nobody sees it");
    let view = sandboxes.create(request()).await.unwrap();
    let route = sandboxes.route(&view.id).unwrap();
    assert_eq!(*route.guest.execution(), prepared);
    assert_eq!(view.metadata, request().metadata);
    assert_eq!(view.lifecycle, request().lifecycle);
    filled(&place, 2).await;
    sandboxes.kill(&view.id).await.unwrap();
    sandboxes.close().await;
    place.assert_clean().await;
}

#[tokio::test]
async fn what_was_asked_for_is_in_the_journal_as_for_any_other() {
    let place = pool_place(1);
    let sandboxes = place.open().await;
    filled(&place, 1).await;
    let view = sandboxes.create(request()).await.unwrap();
    sandboxes.close().await;
    drop(sandboxes);
    let sandboxes = place.open().await;
    let after = sandboxes.get(&view.id).unwrap();
    assert_eq!(format!("{after:?}"), format!("{view:?}"));
    sandboxes.kill(&view.id).await.unwrap();
    sandboxes.close().await;
    place.assert_clean().await;
}

#[tokio::test]
async fn as_many_are_ready_as_were_asked_for_lately_within_the_bound() {
    let place = pool_place(3);
    let sandboxes = place.open().await;
    filled(&place, 1).await;
    let mut tokens = BTreeSet::new();
    for count in 1..=5_usize {
        let view = sandboxes.create(request()).await.unwrap();
        tokens.insert(view.access_token);
        filled(&place, count + count.min(3)).await;
    }
    assert_eq!(tokens.len(), 5, "each has a token of its own");
    sandboxes.close().await;
    assert_eq!(place.host.executions().len(), 5);
    assert_eq!(place.host.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_sandbox_without_the_internet_is_not_one_that_had_it() {
    let place = pool_place(1);
    let sandboxes = place.open().await;
    filled(&place, 1).await;
    let prepared = place.execution();
    let mut closed = request();
    closed.allow_internet_access = Some(false);
    let view = sandboxes.create(closed).await.unwrap();
    let route = sandboxes.route(&view.id).unwrap();
    assert_ne!(*route.guest.execution(), prepared);
    sandboxes.close().await;
}

#[tokio::test]
async fn one_that_died_or_does_not_answer_is_replaced_without_the_caller_noticing() {
    let place = pool_place(1);
    let sandboxes = place.open().await;
    filled(&place, 1).await;
    let dead = place.execution();
    place.host.kill(&dead, ExitReason::Exited);
    let id = create(&sandboxes).await;
    let route = sandboxes.route(&id).unwrap();
    assert_ne!(*route.guest.execution(), dead);
    sandboxes.kill(&id).await.unwrap();
    sandboxes.close().await;
    place.assert_clean().await;
}

#[tokio::test]
async fn a_failure_to_prepare_is_no_failure_to_create() {
    let mut place = pool_place(0);
    drop(place.open().await);
    place.pool = 1;
    // The template is there. Each start is tried twice.
    place.host.fail(Call::Start);
    place.host.fail(Call::Start);
    let sandboxes = place.open().await;
    eventually("two failures", || place.host.pending_failures().is_empty()).await;
    let id = create(&sandboxes).await;
    assert!(sandboxes.route(&id).is_ok());
    sandboxes.kill(&id).await.unwrap();
    sandboxes.close().await;
    place.assert_clean().await;
}

#[test]
fn a_sigkill_leaves_none_behind() {
    for step in [None, Some(Step::CreateAgent), Some(Step::CreatePublish)] {
        let mut place = pool_place(1);
        let server = Server::start(&place);
        server.runtime.block_on(async {
            filled(&place, 1).await;
            let Some(step) = step else { return };
            place.inject(step, Fault::Stop);
            let stopped = eventually("the fault", || place.faults_left() == 0);
            tokio::select! {
                () = stopped => {}
                made = server.sandboxes.create(request()) => panic!("{step:?}: {made:?}"),
            }
        });
        server.kill();

        place.pool = 0;
        let server = Server::start(&place);
        server.runtime.block_on(async {
            eventually("recovery", || place.host.executions().is_empty()).await;
            let id = create(&server.sandboxes).await;
            assert!(state_of(&server.sandboxes, &id).is_some());
            server.sandboxes.kill(&id).await.unwrap();
            place.assert_clean().await;
        });
    }
}
