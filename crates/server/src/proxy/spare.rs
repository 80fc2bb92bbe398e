//! A connection to the agent of a sandbox that is used, opened before the next request needs it.
//!
//! Opening one takes a turn of the thread that enters network namespaces and a handshake with the
//! guest's network stack, about a millisecond in all: much of what a short command takes. A spare has
//! never carried a request and the agent closes none by itself, so using one is as safe as opening one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::ENVD_PORT;
use engine::ExecutionId;
use rustix::net::{RecvFlags, recv};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::sandbox::Route;

/// How long one waits for a request.
const KEEP: Duration = Duration::from_secs(5);

/// At most one spare for each execution.
#[derive(Clone, Default)]
pub(super) struct Spares {
    kept: Arc<Mutex<HashMap<ExecutionId, Spare>>>,
}

enum Spare {
    /// Somebody opens it.
    Opening,
    Open {
        stream: TcpStream,
        /// Of the run that it leads into: a thawed execution begins another one.
        ended: CancellationToken,
    },
}

impl Spares {
    /// The spare for a run, if there is one and the agent has not left.
    pub(super) fn take(&self, route: &Route) -> Option<TcpStream> {
        let mut kept = self.kept();
        let execution = route.guest.execution();
        if matches!(kept.get(execution), Some(Spare::Opening)) {
            return None;
        }
        let Some(Spare::Open { stream, ended }) = kept.remove(execution) else {
            return None;
        };
        let quiet = recv(&stream, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let waits = quiet == Err(rustix::io::Errno::AGAIN);
        (waits && !ended.is_cancelled()).then_some(stream)
    }

    /// Opens one in the background, which ends with the run or when nobody wants it.
    pub(super) fn open(&self, route: &Route) {
        let execution = route.guest.execution().clone();
        {
            let mut kept = self.kept();
            if kept.contains_key(&execution) {
                return;
            }
            kept.insert(execution.clone(), Spare::Opening);
        }
        let (this, route) = (self.clone(), route.clone());
        // An orderly stop need not wait for it.
        tokio::spawn(async move {
            let opened = tokio::select! {
                () = route.ended.cancelled() => None,
                opened = route.guest.dial(ENVD_PORT) => opened.ok(),
            };
            let Some(stream) = opened else {
                this.kept().remove(&execution);
                return;
            };
            let ended = route.ended.clone();
            this.kept()
                .insert(execution.clone(), Spare::Open { stream, ended });
            let _ = tokio::time::timeout(KEEP, route.ended.cancelled()).await;
            // It may be a later one by now, which is no loss.
            let mut kept = this.kept();
            if matches!(kept.get(&execution), Some(Spare::Open { .. })) {
                kept.remove(&execution);
            }
        });
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<ExecutionId, Spare>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
