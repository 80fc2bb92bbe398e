//! The lifecycle, exhaustively: every state with every command, outcome and finding; and random
//! walks against the invariants.

use engine::ExecutionStatus;

use super::*;
use crate::sandbox::{PauseMode, PauseRequest};

fn executions() -> [ExecutionId; 2] {
    ["xaaaaaaaaaaaaaaaaaaaa", "xbbbbbbbbbbbbbbbbbbbb"].map(|id| ExecutionId::parse(id).unwrap())
}

fn image(letter: char) -> ImageId {
    ImageId::parse(&format!("m{}", letter.to_string().repeat(20))).unwrap()
}

fn snapshot_id() -> SnapshotId {
    SnapshotId::parse("ssssssssssssssssssss").unwrap()
}

fn rollback_target() -> RollbackTarget {
    RollbackTarget {
        snapshot: snapshot_id(),
        saved: Saved::Memory { image: image('r') },
    }
}

fn reasons() -> Vec<DiskReason> {
    vec![
        DiskReason::Asked,
        DiskReason::ExecutionLost(ExitReason::Exited),
        DiskReason::ExecutionLost(ExitReason::OutOfMemory),
        DiskReason::MemoryStale,
    ]
}

fn all_saved() -> Vec<Saved> {
    let mut all = vec![Saved::Memory { image: image('a') }];
    all.extend(reasons().into_iter().map(|reason| Saved::Disk { reason }));
    all
}

fn states() -> Vec<State> {
    let [execution, _] = executions();
    let mut all = vec![
        State::Creating {
            execution: execution.clone(),
        },
        State::Running {
            execution: execution.clone(),
        },
        State::Pausing {
            execution: execution.clone(),
            target: PauseTarget::Memory { image: image('b') },
        },
        State::Pausing {
            execution: execution.clone(),
            target: PauseTarget::Disk,
        },
        State::Killing { execution: None },
        State::Killing {
            execution: Some(execution.clone()),
        },
    ];
    for saved in all_saved() {
        all.push(State::Paused {
            saved: saved.clone(),
        });
        for (from, unusable) in [
            (StartPoint::Memory, None),
            (StartPoint::Disk, None),
            (StartPoint::Disk, Some("damaged".to_owned())),
        ] {
            let (execution, saved) = (execution.clone(), saved.clone());
            all.push(State::Resuming {
                execution,
                saved,
                from,
                unusable,
            });
        }
        all.push(State::Keeping {
            execution: execution.clone(),
            saved: saved.clone(),
            image: image('k'),
        });
        all.extend(of_snapshots(&execution, &saved));
    }
    all
}

/// All states of snapshots and rollbacks that have to do with an execution or something saved.
fn of_snapshots(execution: &ExecutionId, saved: &Saved) -> Vec<State> {
    let [_, restart] = executions();
    let (snapshot, target) = (snapshot_id(), rollback_target().saved);
    let mut steps = vec![SnapshotStep::Saving {
        execution: execution.clone(),
        image: image('b'),
        restart: restart.clone(),
    }];
    let mut rollback_steps = Vec::new();
    for restart in [None, Some(restart.clone())] {
        steps.push(SnapshotStep::Sealing {
            saved: saved.clone(),
            restart: restart.clone(),
        });
        let before = match restart {
            Some(_) => Before::Running {
                execution: execution.clone(),
            },
            None => Before::Paused {
                saved: saved.clone(),
            },
        };
        rollback_steps.push(RollbackStep::Staging {
            before,
            saved: target.clone(),
            restart: restart.clone(),
        });
        rollback_steps.push(RollbackStep::Replacing {
            execution: restart.as_ref().map(|_| execution.clone()),
            saved: target.clone(),
            restart,
        });
    }
    let snapshotting = steps.into_iter().map(|step| State::Snapshotting {
        snapshot: snapshot.clone(),
        step,
    });
    let rolling_back = rollback_steps.into_iter().map(|step| State::RollingBack {
        snapshot: snapshot.clone(),
        step,
    });
    let restarting = [None, Some("damaged".to_owned())].map(|unusable| State::Restarting {
        execution: restart.clone(),
        saved: saved.clone(),
        unusable,
    });
    snapshotting.chain(rolling_back).chain(restarting).collect()
}

fn pauses() -> Vec<PauseRequest> {
    let mut all = Vec::new();
    for mode in [PauseMode::Full, PauseMode::Filesystem] {
        for require_healthy_guest in [false, true] {
            all.push(PauseRequest {
                mode,
                require_healthy_guest,
            });
        }
    }
    all
}

fn commands() -> Vec<Command> {
    let mut all: Vec<_> = pauses().into_iter().map(Command::Pause).collect();
    all.extend([
        Command::Resume,
        Command::Connect,
        Command::Kill,
        Command::SetDeadline,
        Command::Snapshot,
        Command::Rollback(rollback_target()),
    ]);
    for execution in executions() {
        for reason in [ExitReason::Exited, ExitReason::OutOfMemory] {
            all.push(Command::Lost(execution.clone(), reason));
        }
    }
    all
}

fn outcomes() -> Vec<Outcome> {
    vec![
        Outcome::Done,
        Outcome::Undone,
        Outcome::ExecutionLost(ExitReason::Exited),
        Outcome::ExecutionLost(ExitReason::OutOfMemory),
        Outcome::MemoryStale,
        Outcome::MemoryUnusable("damaged".to_owned()),
        Outcome::Unreached(image('k')),
    ]
}

fn fresh() -> FreshNames {
    let [_, execution] = executions();
    FreshNames {
        execution,
        image: image('z'),
        snapshot: snapshot_id(),
    }
}

/// The contract's concurrency matrix, one letter per answer: B begin, J join, W wait, S already
/// so, and for refusals N not found, P already paused, R already running, T not running (404 for
/// deadlines), Y busy, K being killed.
#[test]
fn every_command_in_every_state_is_answered_as_the_contract_says() {
    let table = [
        //            pause resume connect kill deadline snapshot rollback
        ("creating", "NNNNNNN"),
        ("running", "BRSBSBB"),
        ("pausing", "JWWWYYY"),
        ("paused", "PBBBTBB"),
        ("resuming", "WJJWTTY"),
        ("keeping", "WWWWTTY"),
        ("snapshotting", "WYWWYYY"),
        ("rolling back", "WYWWYYY"),
        ("restarting", "WYWWYYY"),
        ("killing", "NNKJNNN"),
    ];
    for state in states() {
        let (_, row) = table
            .iter()
            .find(|(name, _)| *name == state.name())
            .unwrap();
        for command in commands() {
            let column = match command {
                Command::Pause(_) => 0,
                Command::Resume => 1,
                Command::Connect => 2,
                Command::Kill => 3,
                Command::SetDeadline => 4,
                Command::Snapshot => 5,
                Command::Rollback(_) => 6,
                Command::Lost(..) => continue,
            };
            let letter = match decide(&state, &command) {
                Decision::Begin(_) => 'B',
                Decision::Join => 'J',
                Decision::Wait => 'W',
                Decision::AlreadySo => 'S',
                Decision::Refuse(Refusal::NotFound) => 'N',
                Decision::Refuse(Refusal::AlreadyPaused) => 'P',
                Decision::Refuse(Refusal::AlreadyRunning) => 'R',
                Decision::Refuse(Refusal::NotRunning) => 'T',
                Decision::Refuse(Refusal::Busy) => 'Y',
                Decision::Refuse(Refusal::BeingKilled) => 'K',
                Decision::Stale => '-',
            };
            assert_eq!(
                row.chars().nth(column),
                Some(letter),
                "{state:?} {command:?}"
            );
        }
    }
}

#[test]
fn the_end_of_an_execution_matters_only_to_the_run_it_belongs_to() {
    let [live, other] = executions();
    for state in states() {
        for (execution, reason) in [
            (&live, ExitReason::Exited),
            (&other, ExitReason::OutOfMemory),
        ] {
            let decision = decide(&state, &Command::Lost(execution.clone(), reason.clone()));
            let expected = match &state {
                State::Running { execution: running } if running == execution => {
                    Decision::Begin(Transition::Lose(reason))
                }
                _ => Decision::Stale,
            };
            assert_eq!(decision, expected, "{state:?}");
        }
    }
}

#[test]
fn whatever_is_decided_to_begin_can_begin_and_nothing_else_can() {
    let [live, _] = executions();
    let mut transitions: Vec<_> = pauses().into_iter().map(Transition::Pause).collect();
    transitions.extend([
        Transition::Resume,
        Transition::Kill,
        Transition::Snapshot,
        Transition::Rollback(rollback_target()),
        Transition::Lose(ExitReason::Exited),
    ]);
    for state in states() {
        for transition in &transitions {
            let command = match transition {
                Transition::Pause(request) => Command::Pause(*request),
                Transition::Resume => Command::Resume,
                Transition::Kill => Command::Kill,
                Transition::Snapshot => Command::Snapshot,
                Transition::Rollback(target) => Command::Rollback(target.clone()),
                Transition::Lose(reason) => Command::Lost(live.clone(), reason.clone()),
            };
            let wanted = decide(&state, &command) == Decision::Begin(transition.clone());
            let begun = begin(&state, transition, StartPoint::Memory, fresh());
            assert_eq!(wanted, begun.is_some(), "{state:?} {transition:?}");
        }
    }
}

#[test]
fn a_resume_uses_what_is_saved_and_keeps_it_until_it_ended() {
    for saved in all_saved() {
        for from in [StartPoint::Memory, StartPoint::Disk] {
            let paused = State::Paused {
                saved: saved.clone(),
            };
            let begun = begin(&paused, &Transition::Resume, from, fresh()).unwrap();
            let State::Resuming {
                execution,
                saved: kept,
                from: used,
                unusable: None,
            } = &begun
            else {
                panic!("{begun:?}")
            };
            assert_eq!(*execution, fresh().execution);
            assert_eq!(*kept, saved);
            let expected = match saved {
                Saved::Memory { .. } => from,
                Saved::Disk { .. } => StartPoint::Disk,
            };
            assert_eq!(*used, expected);
        }
    }
}

#[test]
fn a_failed_resume_leaves_the_sandbox_paused() {
    for state in states() {
        let State::Resuming { saved, from, .. } = &state else {
            continue;
        };
        for outcome in outcomes() {
            let next = after(&state, &outcome);
            match outcome {
                Outcome::MemoryUnusable(_) if *from == StartPoint::Memory => {
                    // Its disk is tried, and what is saved is not let go before that has worked.
                    let Next::State(State::Resuming {
                        saved: kept,
                        from: StartPoint::Disk,
                        unusable: Some(_),
                        ..
                    }) = next
                    else {
                        panic!("{next:?}")
                    };
                    assert_eq!(kept, *saved);
                }
                Outcome::Done => assert!(matches!(next, Next::State(State::Running { .. }))),
                Outcome::Unreached(image) => {
                    let State::Resuming { execution, .. } = &state else {
                        unreachable!()
                    };
                    let keeping = State::Keeping {
                        execution: execution.clone(),
                        saved: saved.clone(),
                        image,
                    };
                    assert_eq!(next, Next::State(keeping));
                }
                Outcome::Undone | Outcome::ExecutionLost(_) | Outcome::MemoryUnusable(_) => {
                    assert_eq!(
                        next,
                        Next::State(State::Paused {
                            saved: saved.clone()
                        })
                    );
                }
                Outcome::MemoryStale => {
                    let Next::State(State::Paused { saved: left }) = next else {
                        panic!()
                    };
                    assert!(
                        matches!(left, Saved::Disk { .. }),
                        "stale memory must not be kept"
                    );
                }
            }
        }
    }
}

#[test]
fn a_guest_that_is_kept_ends_paused_with_the_best_memory_there_is() {
    for state in states() {
        let State::Keeping { saved, image, .. } = &state else {
            continue;
        };
        for outcome in outcomes() {
            let next = after(&state, &outcome);
            let left = match outcome {
                Outcome::Done => Saved::Memory {
                    image: image.clone(),
                },
                // The guest died, and what was saved before fits or does not.
                Outcome::Undone | Outcome::ExecutionLost(_) | Outcome::MemoryUnusable(_) => {
                    saved.clone()
                }
                Outcome::MemoryStale => match saved {
                    Saved::Memory { .. } => Saved::Disk {
                        reason: DiskReason::MemoryStale,
                    },
                    Saved::Disk { .. } => saved.clone(),
                },
                Outcome::Unreached(_) => {
                    assert_eq!(next, Next::State(state.clone()), "it is still being saved");
                    continue;
                }
            };
            assert_eq!(next, Next::State(State::Paused { saved: left }));
        }
    }
}

#[test]
fn a_failed_pause_never_ends_a_sandbox() {
    for state in states() {
        let State::Pausing { execution, .. } = &state else {
            continue;
        };
        for outcome in outcomes() {
            let next = after(&state, &outcome);
            match outcome {
                Outcome::Undone
                | Outcome::MemoryStale
                | Outcome::MemoryUnusable(_)
                | Outcome::Unreached(_) => assert_eq!(
                    next,
                    Next::State(State::Running {
                        execution: execution.clone()
                    })
                ),
                Outcome::Done | Outcome::ExecutionLost(_) => {
                    assert!(matches!(next, Next::State(State::Paused { .. })));
                }
            }
        }
    }
}

#[test]
fn only_a_failed_create_or_a_finished_kill_ends_in_nothing() {
    for state in states() {
        for outcome in outcomes() {
            let gone = after(&state, &outcome) == Next::Gone;
            let expected = match state {
                State::Creating { .. } => outcome != Outcome::Done,
                State::Killing { .. } => outcome == Outcome::Done,
                State::Running { .. }
                | State::Pausing { .. }
                | State::Paused { .. }
                | State::Resuming { .. }
                | State::Keeping { .. }
                | State::Snapshotting { .. }
                | State::RollingBack { .. }
                | State::Restarting { .. } => false,
            };
            assert_eq!(gone, expected, "{state:?} {outcome:?}");
        }
    }
}

/// Follows a snapshot or rollback to the state it rests in; every step ends with this outcome.
fn rest_of(mut state: State, outcome: &Outcome) -> State {
    for _ in 0..4 {
        match after(&state, outcome) {
            Next::State(next) => state = next,
            Next::Gone => panic!("{state:?} must not end in nothing"),
        }
        if matches!(state, State::Running { .. } | State::Paused { .. }) {
            return state;
        }
    }
    panic!("{state:?} does not come to rest");
}

#[test]
fn snapshots_and_rollbacks_leave_a_running_sandbox_running_and_a_paused_one_paused() {
    let [live, _] = executions();
    for transition in [
        Transition::Snapshot,
        Transition::Rollback(rollback_target()),
    ] {
        let running = State::Running {
            execution: live.clone(),
        };
        let begun = begin(&running, &transition, StartPoint::Memory, fresh()).unwrap();
        assert!(begun.counts_as_running());
        let rest = rest_of(begun.clone(), &Outcome::Done);
        let started = State::Running {
            execution: fresh().execution,
        };
        assert_eq!(rest, started, "it goes on in a new execution");
        // Undone at the first step, nothing has happened at all.
        assert_eq!(after(&begun, &Outcome::Undone), Next::State(running));
        for saved in all_saved() {
            let paused = State::Paused {
                saved: saved.clone(),
            };
            let begun = begin(&paused, &transition, StartPoint::Memory, fresh()).unwrap();
            assert!(!begun.counts_as_running());
            assert_eq!(after(&begun, &Outcome::Undone), Next::State(paused.clone()));
            let expected = match &transition {
                Transition::Rollback(target) => State::Paused {
                    saved: target.saved.clone(),
                },
                _ => paused,
            };
            assert_eq!(rest_of(begun, &Outcome::Done), expected);
        }
    }
}

#[test]
fn what_is_saved_is_never_let_go_by_a_failed_step() {
    for state in states() {
        let saved = match &state {
            State::Snapshotting {
                step: SnapshotStep::Sealing { saved, .. },
                ..
            }
            | State::Restarting { saved, .. } => saved,
            _ => continue,
        };
        for outcome in [
            Outcome::Undone,
            Outcome::ExecutionLost(ExitReason::OutOfMemory),
            Outcome::Unreached(image('k')),
        ] {
            let Next::State(next) = after(&state, &outcome) else {
                panic!("{state:?}")
            };
            let kept = match &next {
                State::Paused { saved }
                | State::Restarting { saved, .. }
                | State::Keeping { saved, .. } => saved,
                other => panic!("{state:?} must not lead to {other:?}"),
            };
            assert_eq!(kept, saved);
        }
    }
}

#[test]
fn recovery_keeps_every_announced_sandbox_and_respects_the_commit_point() {
    let findings = [
        None,
        Some(ExecutionStatus::Running),
        Some(ExecutionStatus::Frozen),
        Some(ExecutionStatus::Dead),
    ];
    for state in states() {
        for found in findings {
            for committed in [false, true] {
                let alive = matches!(
                    found,
                    Some(ExecutionStatus::Running | ExecutionStatus::Frozen)
                );
                let recovery = recover(&state, found, committed);
                let context = format!("{state:?} {found:?} {committed}");
                match (&state, &recovery) {
                    (State::Creating { .. } | State::Killing { .. }, Recovery::Delete)
                    | (State::Paused { .. }, Recovery::Rest) => {}
                    (State::Running { .. }, Recovery::Adopt(_, Outcome::Done)) => {
                        assert!(alive, "{context}");
                    }
                    (State::Running { .. }, Recovery::CleanUp(_, outcome)) => {
                        assert!(!alive, "{context}");
                        assert!(matches!(outcome, Outcome::ExecutionLost(_)), "{context}");
                    }
                    (State::Pausing { target, .. }, Recovery::Adopt(_, Outcome::Undone)) => {
                        assert!(alive, "{context}");
                        assert!(!committed || *target == PauseTarget::Disk, "{context}");
                    }
                    (
                        State::Pausing {
                            target: PauseTarget::Memory { .. },
                            ..
                        },
                        Recovery::CleanUp(_, Outcome::Done),
                    ) => assert!(committed, "{context}"),
                    (
                        State::Pausing { target, .. },
                        Recovery::CleanUp(_, Outcome::ExecutionLost(_)),
                    ) => {
                        assert!(!alive, "{context}");
                        assert!(!committed || *target == PauseTarget::Disk, "{context}");
                    }
                    (State::Resuming { .. }, Recovery::FinishStart(_)) => {
                        assert!(alive, "{context}");
                    }
                    (State::Resuming { .. }, Recovery::UndoStart(_)) => {
                        assert!(!alive, "{context}");
                    }
                    (State::Keeping { image, .. }, Recovery::Keep(_, under)) => {
                        assert!(alive && !committed, "{context}");
                        assert_eq!(image, under);
                    }
                    (State::Keeping { .. }, Recovery::CleanUp(_, Outcome::Done)) => {
                        assert!(committed, "{context}");
                    }
                    (State::Keeping { .. }, Recovery::UndoStart(_)) => {
                        assert!(!alive && !committed, "{context}");
                    }
                    (
                        State::Snapshotting {
                            step: SnapshotStep::Saving { .. },
                            ..
                        },
                        recovery,
                    ) => match recovery {
                        Recovery::CleanUp(_, Outcome::Done) => assert!(committed, "{context}"),
                        Recovery::Adopt(_, Outcome::Undone) => {
                            assert!(!committed && alive, "{context}");
                        }
                        Recovery::CleanUp(_, Outcome::ExecutionLost(_)) => {
                            assert!(!committed && !alive, "{context}");
                        }
                        other => panic!("{context} must not lead to {other:?}"),
                    },
                    (
                        State::Snapshotting {
                            step: SnapshotStep::Sealing { .. },
                            ..
                        },
                        Recovery::AbandonSnapshot(_),
                    )
                    | (
                        State::RollingBack {
                            step: RollbackStep::Replacing { .. },
                            ..
                        },
                        Recovery::FinishRollback,
                    ) => {}
                    (
                        State::RollingBack {
                            step: RollbackStep::Staging { before, .. },
                            ..
                        },
                        recovery,
                    ) => match (before, recovery) {
                        (Before::Running { .. }, Recovery::Adopt(_, Outcome::Undone)) => {
                            assert!(alive, "{context}");
                        }
                        (
                            Before::Running { .. },
                            Recovery::CleanUp(_, Outcome::ExecutionLost(_)),
                        ) => assert!(!alive, "{context}"),
                        (Before::Paused { .. }, Recovery::Undo) => {}
                        other => panic!("{context} must not lead to {other:?}"),
                    },
                    (State::Restarting { .. }, Recovery::FinishStart(_)) => {
                        assert!(alive, "{context}");
                    }
                    (State::Restarting { .. }, Recovery::StartAgain(_)) => {
                        assert!(!alive, "{context}");
                    }
                    _ => panic!("{context} must not lead to {recovery:?}"),
                }
                // Whatever the recovery's work reports, an announced sandbox is still there.
                if !matches!(state, State::Creating { .. } | State::Killing { .. }) {
                    for outcome in outcomes() {
                        assert_ne!(after(&state, &outcome), Next::Gone, "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_journal_reads_back_what_it_wrote() {
    for state in states() {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}

/// Random commands and outcomes against a model that only knows the rules: at most one execution,
/// none while paused, and no way back from killing.
#[test]
fn random_walks_keep_the_invariants() {
    use rand::prelude::*;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for _ in 0..2_000 {
        let [first, _] = executions();
        let mut state = State::Creating { execution: first };
        let mut killing = false;
        for _ in 0..60 {
            let transient = !matches!(state, State::Running { .. } | State::Paused { .. });
            let next = if transient {
                after(&state, outcomes().choose(&mut rng).unwrap())
            } else {
                match decide(&state, commands().choose(&mut rng).unwrap()) {
                    Decision::Begin(transition) => {
                        let fresh = FreshNames {
                            execution: ExecutionId::random(),
                            image: image('c'),
                            snapshot: snapshot_id(),
                        };
                        Next::State(begin(&state, &transition, StartPoint::Memory, fresh).unwrap())
                    }
                    _ => Next::State(state.clone()),
                }
            };
            let Next::State(next) = next else { break };
            killing |= matches!(next, State::Killing { .. });
            assert_eq!(killing, matches!(next, State::Killing { .. }), "{next:?}");
            if let State::Paused { .. } = next {
                assert_eq!(next.execution(), None);
            }
            state = next;
        }
    }
}
