//! Fills the history: one task takes the samples, one per running sandbox reads its log.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::ExecutionId;
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::metrics::{INTERVAL, Sample};
use super::{History, HistoryError, events};
use crate::guest::{Guest, GuestError};
use crate::sandbox::{PublicState, Route, SandboxId, SandboxView, Sandboxes};

/// A broken connection to an agent's log is made anew after this, then ever later.
const RECONNECT: Duration = Duration::from_secs(1);
const RECONNECT_LONGEST: Duration = Duration::from_secs(60);
/// Entries that are written together.
const BATCH: usize = 256;
/// How often old samples and entries are deleted.
const THIN_OUT: Duration = Duration::from_secs(600);

/// Records until `stop`.
pub async fn record(sandboxes: Arc<Sandboxes>, history: History, stop: CancellationToken) {
    let events = history.clone();
    tokio::join!(
        record_use(sandboxes, history, &stop),
        events::keep(&events, &stop)
    );
}

async fn record_use(sandboxes: Arc<Sandboxes>, history: History, stop: &CancellationToken) {
    let mut recorder = Recorder {
        known: history.known().await.unwrap_or_default(),
        sandboxes,
        history,
        readers: HashMap::new(),
        counters: HashMap::new(),
    };
    let mut changes = recorder.sandboxes.changes();
    changes.mark_changed();
    let mut samples = tokio::time::interval(Duration::from_secs(INTERVAL.unsigned_abs()));
    samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut cleanings = tokio::time::interval(THIN_OUT);
    loop {
        let done = tokio::select! {
            () = stop.cancelled() => break,
            _now = samples.tick() => recorder.sample().await,
            // The sender is part of the sandboxes that are held here.
            _always = changes.changed() => recorder.follow_changes().await,
            _now = cleanings.tick() => recorder.clean().await,
        };
        if let Err(error) = done {
            tracing::warn!(error = ?error, "metrics or logs could not be kept");
        }
    }
    for (_, reader) in recorder.readers {
        reader.abort();
    }
}

/// How long the CPU time of a run that has ended is remembered, in case it is thawed.
const COUNTER_KEPT: Duration = Duration::from_secs(3600);

struct Recorder {
    sandboxes: Arc<Sandboxes>,
    history: History,
    /// Sandboxes of which something may be kept.
    known: HashSet<String>,
    /// Who reads the log of which run.
    readers: HashMap<ExecutionId, JoinHandle<()>>,
    /// CPU time at the last sample of each run.
    counters: HashMap<ExecutionId, Counter>,
}

#[derive(Clone, Copy)]
struct Counter {
    at: Instant,
    cpu_time: Duration,
}

impl Recorder {
    /// Reads the logs of new runs and forgets sandboxes that are gone.
    async fn follow_changes(&mut self) -> Result<(), HistoryError> {
        let views = self.sandboxes.list();
        let running = self.running(&views);
        let executions: HashSet<_> = running
            .iter()
            .map(|(_, route)| route.guest.execution().clone())
            .collect();
        // A paused one that is thawed goes on counting.
        self.counters.retain(|execution, counter| {
            executions.contains(execution) || counter.at.elapsed() < COUNTER_KEPT
        });
        let ended: Vec<_> = self
            .readers
            .extract_if(|execution, _| !executions.contains(execution))
            .collect();
        for (_, reader) in ended {
            reader.abort();
            // Nothing may be written of a sandbox once it was forgotten.
            let _cancelled = reader.await;
        }
        for (view, route) in &running {
            self.known.insert(view.id.to_string());
            self.readers
                .entry(route.guest.execution().clone())
                .or_insert_with(|| {
                    // Owned by the recorder, which aborts it at the end of the run.
                    let history = self.history.clone();
                    tokio::spawn(read_log(view.id.clone(), route.guest.clone(), history))
                });
        }
        let there: HashSet<_> = views.iter().map(|view| view.id.to_string()).collect();
        let gone: Vec<_> = self.known.difference(&there).cloned().collect();
        for id in gone {
            self.history.forget(id.clone()).await?;
            self.known.remove(&id);
        }
        Ok(())
    }

    /// Deletes what is old, and what a write that was cut off left of a sandbox that is gone.
    async fn clean(&mut self) -> Result<(), HistoryError> {
        self.history.thin_out(now()).await?;
        self.history.thin_out_events().await?;
        self.known.extend(self.history.known().await?);
        self.follow_changes().await
    }

    fn running<'a>(&self, views: &'a [SandboxView]) -> Vec<(&'a SandboxView, Route)> {
        views
            .iter()
            .filter(|view| view.state == PublicState::Running)
            .filter_map(|view| Some((view, self.sandboxes.route(&view.id).ok()?)))
            .collect()
    }

    async fn sample(&mut self) -> Result<(), HistoryError> {
        let views = self.sandboxes.list();
        let mut samples = Vec::new();
        for (view, route) in self.running(&views) {
            match self.measure(view, &route.guest).await {
                Ok(sample) => samples.push((view.id.clone(), sample)),
                // It may just be ending.
                Err(error) => tracing::debug!(sandbox.id = %view.id, %error, "no sample"),
            }
        }
        if samples.is_empty() {
            return Ok(());
        }
        self.known
            .extend(samples.iter().map(|(id, _)| id.to_string()));
        self.history.add_samples(samples).await
    }

    async fn measure(
        &mut self,
        view: &SandboxView,
        guest: &Guest,
    ) -> Result<Sample, engine::EngineError> {
        let usage = guest.usage().await?;
        let new = Counter {
            at: Instant::now(),
            cpu_time: usage.cpu_time,
        };
        let last = self.counters.insert(guest.execution().clone(), new);
        let age = OffsetDateTime::now_utc() - view.started_at;
        let age = Duration::try_from(age).unwrap_or_default();
        // A run that begins had used nothing; one that was taken over shows its average.
        let (elapsed, used) = match last {
            Some(last) => {
                let used = new.cpu_time.saturating_sub(last.cpu_time);
                ((new.at - last.at).min(age), used)
            }
            None => (age, new.cpu_time),
        };
        Ok(Sample {
            at: now(),
            cpu_count: view.cpu_count,
            cpu_used_pct: percent(used, elapsed, view.cpu_count),
            mem_used: usage.memory_bytes,
            mem_total: view.memory_mb << 20,
            mem_cache: usage.cache_bytes,
            disk_used: usage.disk_used_bytes,
            disk_total: usage.disk_total_bytes,
        })
    }
}

/// Of all CPUs, with two decimals. Work of the moment before the sample may count into it, so it is
/// cut at 100.
fn percent(used: Duration, elapsed: Duration, cpus: u32) -> f64 {
    let most = elapsed.as_secs_f64() * f64::from(cpus.max(1));
    if most <= 0.0 {
        return 0.0;
    }
    let percent = (used.as_secs_f64() / most * 100.0).min(100.0);
    (percent * 100.0).round() / 100.0
}

/// Keeps what the agent of one run logs, until it is aborted.
async fn read_log(id: SandboxId, guest: Guest, history: History) {
    let mut pause = RECONNECT;
    loop {
        match read_until_broken(&id, &guest, &history).await {
            Ok(read) => {
                if read {
                    pause = RECONNECT;
                }
            }
            Err(error) => {
                tracing::debug!(sandbox.id = %id, %error, "the agent's log cannot be read")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_LONGEST);
    }
}

/// Whether anything was read before the connection broke.
async fn read_until_broken(
    id: &SandboxId,
    guest: &Guest,
    history: &History,
) -> Result<bool, ReadError> {
    let (boot, number) = history.log_position(id).await?;
    let mut log = guest.log(&boot, number).await?;
    let mut read = false;
    while let Some(line) = log.next().await.map_err(GuestError::from)? {
        let mut lines = vec![line];
        while lines.len() < BATCH
            && let Some(line) = log.arrived().map_err(GuestError::from)?
        {
            lines.push(line);
        }
        history.add_log(id, log.boot.clone(), lines).await?;
        read = true;
    }
    Ok(read)
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    History(#[from] HistoryError),
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_use_is_a_share_of_all_cpus() {
        let second = Duration::from_secs(1);
        assert!((percent(second, second * 5, 2) - 10.0).abs() < 1e-9);
        assert!((percent(second, second * 3, 1) - 33.33).abs() < 1e-9);
        assert!((percent(second * 9, second, 2) - 100.0).abs() < 1e-9);
        assert!(percent(second, Duration::ZERO, 2).abs() < 1e-9);
    }
}
