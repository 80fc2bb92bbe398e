//! Samples of resource use.

use std::collections::HashMap;

use rusqlite::{Row, params};

use super::{History, HistoryError, KEPT, text};
use crate::sandbox::SandboxId;

/// Seconds between two samples of a sandbox.
pub(super) const INTERVAL: i64 = 5;
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;

/// What a sandbox used at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Seconds since the epoch.
    pub at: i64,
    /// CPUs it may use.
    pub cpu_count: u32,
    /// Percent of all its CPUs since the sample before.
    pub cpu_used_pct: f64,
    /// Bytes its guest uses, without file cache.
    pub mem_used: u64,
    /// Bytes it may use.
    pub mem_total: u64,
    /// Bytes of file cache.
    pub mem_cache: u64,
    /// Bytes in use on its disk.
    pub disk_used: u64,
    /// Bytes of its disk.
    pub disk_total: u64,
}

impl History {
    /// Keeps samples that were taken at the same time.
    pub(super) async fn add_samples(
        &self,
        samples: Vec<(SandboxId, Sample)>,
    ) -> Result<(), HistoryError> {
        self.run(move |connection| {
            let transaction = connection.transaction()?;
            for (id, sample) in &samples {
                transaction.execute(
                    "INSERT OR REPLACE INTO samples VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        id.as_str(),
                        sample.at,
                        sample.cpu_count,
                        sample.cpu_used_pct,
                        sample.mem_used,
                        sample.mem_total,
                        sample.mem_cache,
                        sample.disk_used,
                        sample.disk_total,
                    ],
                )?;
            }
            Ok(transaction.commit()?)
        })
        .await
    }

    /// Samples of a sandbox in a range of seconds, oldest first; the longer the range, the further
    /// apart, each the average of its time.
    pub async fn samples(
        &self,
        id: &SandboxId,
        from: Option<i64>,
        to: i64,
    ) -> Result<Vec<Sample>, HistoryError> {
        let id = text(id);
        self.run(move |connection| {
            let first = "SELECT MIN(at) FROM samples WHERE sandbox = ?1";
            let oldest: Option<i64> = connection.query_row(first, [&id], |row| row.get(0))?;
            let Some(oldest) = oldest else {
                return Ok(Vec::new());
            };
            let from = from.unwrap_or(oldest);
            let mut statement = connection.prepare(
                "SELECT MIN(at), MAX(cpu_count), AVG(cpu_pct), CAST(AVG(mem_used) AS INTEGER),
                        MAX(mem_total), CAST(AVG(mem_cache) AS INTEGER),
                        CAST(AVG(disk_used) AS INTEGER), MAX(disk_total)
                 FROM samples WHERE sandbox = ?1 AND at BETWEEN ?2 AND ?3
                 GROUP BY at / ?4 ORDER BY 1",
            )?;
            let step = step_of(to.saturating_sub(from.max(oldest)));
            let samples = statement.query_map(params![id, from, to, step], sample)?;
            Ok(samples.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The newest sample of each of these sandboxes that has one.
    pub async fn newest(
        &self,
        ids: Vec<SandboxId>,
    ) -> Result<HashMap<SandboxId, Sample>, HistoryError> {
        self.run(move |connection| {
            let mut statement = connection.prepare(
                "SELECT at, cpu_count, cpu_pct, mem_used, mem_total, mem_cache, disk_used, disk_total
                 FROM samples WHERE sandbox = ?1 ORDER BY at DESC LIMIT 1",
            )?;
            let mut found = HashMap::new();
            for id in ids {
                let mut rows = statement.query([id.as_str()])?;
                if let Some(row) = rows.next()? {
                    found.insert(id, sample(row)?);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Deletes what is too old, and of what is older than an hour all but the samples that answers
    /// still tell apart.
    pub(super) async fn thin_out(&self, now: i64) -> Result<(), HistoryError> {
        self.run(move |connection| {
            let kept = i64::try_from(KEPT.as_secs()).unwrap_or(i64::MAX);
            connection.execute("DELETE FROM samples WHERE at < ?1", [now - kept])?;
            let at = (now - kept).saturating_mul(1000);
            connection.execute("DELETE FROM log_entries WHERE at < ?1", [at])?;
            for (age, step) in [(HOUR, 30), (24 * HOUR, 5 * MINUTE)] {
                connection.execute(
                    "DELETE FROM samples WHERE at < ?1 AND at % ?2 >= ?3",
                    params![now - age, step, INTERVAL],
                )?;
            }
            Ok(())
        })
        .await
    }
}

/// Seconds between the points of an answer, as upstream has them.
fn step_of(range: i64) -> i64 {
    let steps = [
        (HOUR, INTERVAL),
        (6 * HOUR, 30),
        (12 * HOUR, MINUTE),
        (24 * HOUR, 2 * MINUTE),
        (7 * 24 * HOUR, 5 * MINUTE),
    ];
    let step = steps.iter().find(|(below, _)| range < *below);
    step.map_or(15 * MINUTE, |(_, step)| *step)
}

fn sample(row: &Row<'_>) -> Result<Sample, rusqlite::Error> {
    Ok(Sample {
        at: row.get(0)?,
        cpu_count: row.get(1)?,
        cpu_used_pct: row.get(2)?,
        mem_used: row.get(3)?,
        mem_total: row.get(4)?,
        mem_cache: row.get(5)?,
        disk_used: row.get(6)?,
        disk_total: row.get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: i64, cpu_used_pct: f64) -> Sample {
        Sample {
            at,
            cpu_count: 2,
            cpu_used_pct,
            mem_used: 10,
            mem_total: 100,
            mem_cache: 5,
            disk_used: 7,
            disk_total: 70,
        }
    }

    async fn history() -> (tempfile::TempDir, History, SandboxId) {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(&folder.path().join("history.db")).unwrap();
        (folder, history, SandboxId::random())
    }

    #[tokio::test]
    async fn short_ranges_have_all_samples_and_long_ones_averages() {
        let (_folder, history, id) = history().await;
        let now = 1_000_000_000;
        let samples = [(0, 10.0), (5, 20.0), (10, 30.0), (7200, 50.0)];
        let samples = samples.map(|(at, cpu)| (id.clone(), sample(now + at, cpu)));
        history.add_samples(samples.to_vec()).await.unwrap();
        let short = history.samples(&id, Some(now), now + 60).await.unwrap();
        assert_eq!(
            short.iter().map(|s| s.at - now).collect::<Vec<_>>(),
            [0, 5, 10]
        );
        let all = history.samples(&id, None, now + 7200).await.unwrap();
        assert_eq!(all.len(), 2);
        assert!((all[0].cpu_used_pct - 20.0).abs() < 1e-9);
        assert!(
            history
                .samples(&id, Some(now - 60), now - 1)
                .await
                .unwrap()
                .is_empty()
        );

        let other = SandboxId::random();
        let newest = history.newest(vec![id.clone(), other]).await.unwrap();
        assert_eq!(newest.len(), 1);
        assert_eq!(newest[&id].at, now + 7200);
        history.forget(text(&id)).await.unwrap();
        assert!(history.known().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn old_samples_are_thinned_out_and_then_deleted() {
        let (_folder, history, id) = history().await;
        let now = 1_000_000_200;
        let kept = i64::try_from(KEPT.as_secs()).unwrap();
        let ages = (0..120).map(|n| n * 5);
        let samples = ages
            .flat_map(|age| [age, 2 * HOUR + age, 25 * HOUR + age, kept + 5 + age])
            .map(|age| (id.clone(), sample(now - age, 1.0)));
        history.add_samples(samples.collect()).await.unwrap();
        history.thin_out(now).await.unwrap();
        let left = async |from: i64, to: i64| {
            let id = text(&id);
            let count = "SELECT COUNT(*) FROM samples WHERE sandbox = ?1 AND at BETWEEN ?2 AND ?3";
            let counted = history.run(move |connection| {
                Ok(
                    connection.query_row(count, params![id, now - to, now - from], |row| {
                        row.get::<_, i64>(0)
                    })?,
                )
            });
            counted.await.unwrap()
        };
        assert_eq!(left(0, 595).await, 120);
        assert_eq!(left(2 * HOUR, 2 * HOUR + 595).await, 20);
        assert_eq!(left(25 * HOUR, 25 * HOUR + 595).await, 2);
        assert_eq!(left(kept + 1, i64::from(u32::MAX)).await, 0);
    }
}
