//! Random work with a SIGKILL of the server in its midst, again and again, against a model that
//! knows what every sandbox must hold.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::ExecutionId;
use rand::prelude::*;
use server::sandbox::{
    Fault, PublicState, ResumeFrom, SandboxId, Sandboxes, SnapshotRequest, Step, WarmSettings,
};
use server::snapshots::SnapshotUse;

use crate::crash::Server;
use crate::snapshots::UNNAMED;
use crate::support::{FULL, MINUTE, Place, create, eventually, request};

const MOST_SANDBOXES: usize = 4;

/// Kills of the server; the long version is for `./test --long`.
fn kills() -> usize {
    if std::env::var_os("SANDBASE_TEST_LONG").is_some() {
        1000
    } else {
        60
    }
}

/// What is known to be so.
#[derive(Default)]
struct Model {
    /// The counter that a sandbox must have in memory.
    sandboxes: BTreeMap<SandboxId, u64>,
    /// Its counter may be this one as well: a rollback to it was interrupted.
    doubted: BTreeMap<SandboxId, u64>,
    /// A kill of it was interrupted: it may be gone.
    dying: Vec<SandboxId>,
    /// Snapshots by reference: their source and counter.
    snapshots: BTreeMap<String, (SandboxId, u64)>,
    /// Calls that were confirmed.
    calls: usize,
}

fn execution_of(sandboxes: &Sandboxes, id: &SandboxId) -> ExecutionId {
    sandboxes.route(id).unwrap().guest.execution().clone()
}

impl Model {
    /// One random call. What it changes is entered when it was confirmed; what an interruption
    /// leaves open is entered before.
    async fn act(&mut self, place: &Place, sandboxes: &Sandboxes, rng: &mut StdRng) {
        let ids: Vec<_> = self.sandboxes.keys().cloned().collect();
        let Some(id) = ids.choose(rng).filter(|_| rng.random_bool(0.85)).cloned() else {
            if ids.len() < MOST_SANDBOXES {
                self.create(place, sandboxes, rng).await;
            }
            return;
        };
        let running = sandboxes.get(&id).unwrap().state == PublicState::Running;
        match rng.random_range(0..8) {
            0 if running => sandboxes.pause(&id, FULL).await.unwrap(),
            1 => {
                let request = SnapshotRequest {
                    usage: SnapshotUse::Listed,
                    ..UNNAMED
                };
                let made = sandboxes.snapshot(&id, request).await.unwrap();
                let counter = self.sandboxes[&id];
                self.snapshots.insert(made.reference(), (id, counter));
            }
            2 => {
                let own = |(_, (source, _)): &(&String, &(SandboxId, u64))| *source == id;
                let own = self.snapshots.iter().filter(own).choose(rng);
                let Some((reference, counter)) = own.map(|(name, (_, it))| (name.clone(), *it))
                else {
                    return;
                };
                self.doubted.insert(id.clone(), counter);
                sandboxes.rollback(&id, &reference).await.unwrap();
                self.doubted.remove(&id);
                self.sandboxes.insert(id, counter);
            }
            3 if running && ids.len() < MOST_SANDBOXES => {
                let forks = sandboxes.fork(&id, 1, MINUTE).await.unwrap();
                for fork in forks {
                    self.sandboxes.insert(fork.unwrap().id, self.sandboxes[&id]);
                }
            }
            4 if rng.random_bool(0.3) => {
                self.dying.push(id.clone());
                sandboxes.kill(&id).await.unwrap();
                self.dying.clear();
                self.sandboxes.remove(&id);
            }
            _ if running => {
                assert!(place.host.step(&execution_of(sandboxes, &id)));
                *self.sandboxes.get_mut(&id).unwrap() += 1;
            }
            _ => {
                let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
                connected.unwrap();
            }
        }
    }

    async fn create(&mut self, _place: &Place, sandboxes: &Sandboxes, rng: &mut StdRng) {
        match self.snapshots.iter().choose(rng) {
            Some((reference, (_, counter))) if rng.random_bool(0.5) => {
                let mut request = request();
                request.template.clone_from(reference);
                let id = sandboxes.create(request).await.unwrap().id;
                self.sandboxes.insert(id, *counter);
            }
            _ => {
                let id = create(sandboxes).await;
                self.sandboxes.insert(id, 0);
            }
        }
    }

    /// After a restart: everything that was confirmed is there, with what it must hold.
    async fn check(&mut self, place: &Place, sandboxes: &Sandboxes) {
        sandboxes.settle().await;
        for id in std::mem::take(&mut self.dying) {
            if sandboxes.get(&id).is_err() {
                self.sandboxes.remove(&id);
            }
        }
        let known: Vec<_> = self.sandboxes.keys().cloned().collect();
        for id in known {
            let view = sandboxes.get(&id).unwrap();
            assert_eq!(view.memory_lost, None, "{id}");
            let was_paused = view.state == PublicState::Paused;
            if was_paused {
                let connected = sandboxes.connect(&id, MINUTE, ResumeFrom::Saved).await;
                connected.unwrap();
            }
            let execution = execution_of(sandboxes, &id);
            let seen = place.host.memory(&execution).unwrap();
            if self.doubted.remove(&id) == Some(seen) {
                self.sandboxes.insert(id.clone(), seen);
            }
            assert_eq!(seen, self.sandboxes[&id], "{id}");
            assert!(place.host.step(&execution), "{id} must go on");
            *self.sandboxes.get_mut(&id).unwrap() += 1;
            if was_paused {
                sandboxes.pause(&id, FULL).await.unwrap();
            }
        }
        self.doubted.clear();
        // A create or a fork whose answer was lost may be there.
        for stranger in sandboxes.list() {
            if !self.sandboxes.contains_key(&stranger.id) {
                sandboxes.kill(&stranger.id).await.unwrap();
            }
        }
        for (reference, (_, counter)) in &self.snapshots {
            let found = sandboxes.snapshots().find(reference);
            assert!(found.is_some(), "snapshot {reference} of {counter} is lost");
        }
        for stranger in sandboxes.snapshots().listed() {
            if !self.snapshots.contains_key(&stranger.reference()) {
                let reference = stranger.reference();
                sandboxes.delete_snapshot(&reference).await.unwrap();
            }
        }
        assert_eq!(place.host.violations(), Vec::<String>::new());
        assert_eq!(place.staging(), Vec::<std::path::PathBuf>::new());
        assert_eq!(place.snapshot_directories().len(), self.snapshots.len());
        let prepared = place.directories().len() - self.sandboxes.len();
        assert!(prepared <= place.pool, "{prepared} belong to nobody");
    }

    async fn tidy(&mut self, sandboxes: &Sandboxes) {
        // Snapshots nobody stands on go from time to time, so that the run stays small.
        for (reference, _) in std::mem::take(&mut self.snapshots) {
            match sandboxes.delete_snapshot(&reference).await {
                Ok(()) => {}
                Err(error) => {
                    assert!(error.to_string().contains("kill it first"), "{error}");
                    let found = sandboxes.snapshots().find(&reference).unwrap();
                    let source = found.source.clone();
                    let counter = self.counter_of(sandboxes, &reference).await;
                    self.snapshots.insert(reference, (source, counter));
                }
            }
        }
    }

    /// What a snapshot holds, seen in a sandbox made from it.
    async fn counter_of(&self, sandboxes: &Sandboxes, reference: &str) -> u64 {
        let mut request = request();
        request.template = reference.to_owned();
        let id = sandboxes.create(request).await.unwrap().id;
        let route = sandboxes.route(&id).unwrap();
        let stream = route.guest.dial(8080).await.unwrap();
        let counter = crate::support::ask_counter(stream).await;
        sandboxes.kill(&id).await.unwrap();
        counter
    }
}

#[test]
fn no_sequence_of_calls_and_kills_loses_anything() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut place = Place::new();
    let mut model = Model::default();
    let mut at_steps = 0;
    for kill in 0..kills() {
        // Room for none, a few or all of the paused ones in memory.
        place.warm = WarmSettings {
            memory_bytes: *[0, 8192, 1 << 20].choose(&mut rng).unwrap(),
            keep: *[Duration::ZERO, Duration::from_secs(3600)]
                .choose(&mut rng)
                .unwrap(),
            prepared: rng.random_range(0..3),
            prepared_keep: Duration::from_secs(3600),
        };
        place.pool = rng.random_range(0..3);
        let server = Server::start(&place);
        server.runtime.block_on(async {
            model.check(&place, &server.sandboxes).await;
            if kill % 20 == 19 {
                model.tidy(&server.sandboxes).await;
            }
        });
        // It stops dead at a step, or at any moment, whichever comes first.
        place.inject(*Step::ALL.choose(&mut rng).unwrap(), Fault::Stop);
        let limit = Duration::from_millis(rng.random_range(1..150));
        let mut dice = StdRng::from_rng(&mut rng);
        server.runtime.block_on(async {
            let working = async {
                loop {
                    model.act(&place, &server.sandboxes, &mut dice).await;
                    model.calls += 1;
                }
            };
            let stopped = eventually("the fault", || place.faults_left() == 0);
            tokio::select! {
                () = working => {}
                () = stopped => at_steps += 1,
                () = tokio::time::sleep(limit) => {}
            }
        });
        server.kill();
        place.faults.lock().unwrap().clear();
    }
    println!(
        "{} kills, {at_steps} of them at a named step, {} calls confirmed between",
        kills(),
        model.calls
    );
    assert!(
        model.calls > kills() && at_steps > kills() / 20,
        "too little was going on"
    );
    place.pool = 0;
    let server = Server::start(&place);
    server.runtime.block_on(async {
        model.check(&place, &server.sandboxes).await;
        for id in model.sandboxes.keys() {
            server.sandboxes.kill(id).await.unwrap();
        }
        for reference in model.snapshots.keys() {
            server.sandboxes.delete_snapshot(reference).await.unwrap();
        }
        place.assert_clean().await;
    });
}
