//! Watches the memory of running guests from outside, so that their agents need not: each look from
//! inside wakes an idle guest up, and costs a hundred times as much.
//!
//! ```text
//! plenty left ──► a watch is open: the agent does not look
//! little left, or no figure ──► no watch: the agent looks for itself, and kills if it must
//! ```
//!
//! An agent without a watch guards alone. So nothing depends on this: not on a connection into the
//! guest, and not on a server that runs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use agent_api::{MEMORY_WATCH_LIMIT, MemoryWatch};
use engine::ExecutionId;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::guest::Guest;
use crate::sandbox::{PublicState, Route, Sandboxes};

const MIB: u64 = 1024 * 1024;
/// How fast memory may be filled; with what is left it gives the time to the next look.
const FASTEST_GROWTH_PER_MS: u64 = 4 * MIB;
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// The agent looks for itself when no more than this is left, or an eighth. It has to learn of it and
/// to look before the rest, and the engine's headroom after it, are filled.
const LITTLE: u64 = 64 * MIB;
/// For opening a watch, during which nobody looks.
const OPEN_LIMIT: Duration = Duration::from_millis(100);
/// After a watch that could not be opened.
const RETRY: Duration = Duration::from_secs(2);
/// A watch is replaced at this age.
const RENEWAL: Duration = Duration::from_secs(MEMORY_WATCH_LIMIT.as_secs() / 2);

/// Watches all running guests until `stop`.
pub async fn watch(sandboxes: Arc<Sandboxes>, stop: CancellationToken) {
    let mut changes = sandboxes.changes();
    changes.mark_changed();
    let mut runs = JoinSet::new();
    let mut watched = HashSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // The sender is part of the sandboxes that are held here.
            _always = changes.changed() => {}
        }
        let running = running(&sandboxes);
        watched.retain(|run| running.contains_key(run));
        while runs.try_join_next().is_some() {}
        for (run, (route, limit)) in running {
            if watched.insert(run) {
                runs.spawn(async move {
                    tokio::select! {
                        () = route.ended.cancelled() => {}
                        () = watch_run(&route.guest, limit) => {}
                    }
                });
            }
        }
    }
}

/// An execution and when its run began: one that is thawed begins another.
type Run = (ExecutionId, OffsetDateTime);

/// The ways into all runs, and how much memory each may use.
fn running(sandboxes: &Sandboxes) -> HashMap<Run, (Route, u64)> {
    let views = sandboxes.list().into_iter();
    views
        .filter(|view| view.state == PublicState::Running)
        .filter_map(|view| {
            let route = sandboxes.route(&view.id).ok()?;
            let run = (route.guest.execution().clone(), view.started_at);
            Some((run, (route, view.memory_mb * MIB)))
        })
        .collect()
}

/// Watches one run, until dropped.
async fn watch_run(guest: &Guest, limit: u64) {
    let mut watch: Option<(MemoryWatch, Instant)> = None;
    let mut next_try = Instant::now();
    loop {
        // Without a figure the agent has to look.
        let left = guest.memory().map_or(0, |used| limit.saturating_sub(used));
        let now = Instant::now();
        if !is_plenty(left, limit, watch.is_some()) {
            watch = None;
        } else if next_try <= now
            && watch
                .as_ref()
                .is_none_or(|(_, since)| now - *since > RENEWAL)
        {
            match timeout(OPEN_LIMIT, guest.watch_memory()).await {
                // The one before it is closed only now.
                Ok(Ok(new)) => watch = Some((new, now)),
                // Its agent may be older than this, or busy.
                Ok(Err(_)) | Err(_) => next_try = now + RETRY,
            }
            // Nobody has looked meanwhile.
            continue;
        }
        match &mut watch {
            Some((open, _)) => tokio::select! {
                () = sleep(pause(left)) => {}
                () = open.ended() => {
                    watch = None;
                    next_try = Instant::now() + RETRY;
                }
            },
            None => sleep(LONGEST_PAUSE).await,
        }
    }
}

/// Whether nobody has to look from inside. A watch that was closed is opened again only when clearly
/// more is left.
fn is_plenty(left: u64, limit: u64, watching: bool) -> bool {
    let little = LITTLE.max(limit / 8);
    left > if watching {
        little
    } else {
        little + little / 2
    }
}

/// The time in which what is `left` cannot be filled.
fn pause(left: u64) -> Duration {
    Duration::from_millis(left / FASTEST_GROWTH_PER_MS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_closed_before_memory_is_short_and_opened_when_it_clearly_is_not() {
        let limit = 512 * MIB;
        assert!(is_plenty(512 * MIB, limit, false));
        assert!(!is_plenty(64 * MIB, limit, true));
        assert!(is_plenty(80 * MIB, limit, true));
        assert!(!is_plenty(80 * MIB, limit, false));
        assert!(!is_plenty(900 * MIB, 8192 * MIB, true));
        assert!(!is_plenty(0, 0, false));
    }

    #[test]
    fn looks_come_more_often_the_less_is_left() {
        assert_eq!(pause(u64::MAX), LONGEST_PAUSE);
        assert_eq!(pause(128 * MIB), Duration::from_millis(32));
        assert_eq!(pause(0), SHORTEST_PAUSE);
    }
}
