//! Resource usage of the guest (contract §6.5).

use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_api::Metrics;

const MIB: u64 = 1024 * 1024;

/// Remembers the CPU counters of the call before.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    last: Mutex<CpuTimes>,
}

/// Ticks since boot over all CPUs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    total: u64,
}

impl Meter {
    /// Measures now. CPU use counts from the call before, or from boot. `limit` is the memory the
    /// sandbox was promised: the guest's own total includes the engine's headroom.
    pub(crate) fn measure(&self, limit: Option<u64>) -> io::Result<Metrics> {
        let memory = Memory::read()?;
        let total = limit.map_or(memory.total, |limit| limit.min(memory.total));
        let now = CpuTimes::parse(&fs::read_to_string("/proc/stat").unwrap_or_default());
        let last = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *last, now)
        };
        let disk = rustix::fs::statvfs("/")?;
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Metrics {
            ts: i64::try_from(seconds).unwrap_or_default(),
            cpu_count: u32::try_from(cpus).unwrap_or(u32::MAX),
            cpu_used_pct: now.used_percent_since(last),
            mem_total: total,
            mem_used: memory.used(),
            mem_cache: memory.cache,
            mem_total_mib: total / MIB,
            mem_used_mib: memory.used() / MIB,
            disk_used: disk
                .f_blocks
                .saturating_sub(disk.f_bavail)
                .saturating_mul(disk.f_frsize),
            disk_total: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }
}

impl CpuTimes {
    fn parse(stat: &str) -> Self {
        let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else {
            return Self::default();
        };
        // user nice system idle iowait irq softirq steal; guest time is part of user time.
        let ticks: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let total: u64 = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Self {
            busy: total - idle,
            total,
        }
    }

    /// Two decimals.
    fn used_percent_since(self, last: Self) -> f64 {
        let total = self.total.saturating_sub(last.total);
        if total == 0 {
            return 0.0;
        }
        let busy = self.busy.saturating_sub(last.busy).min(total);
        (busy as f64 * 10_000.0 / total as f64).round() / 100.0
    }
}

/// What `/proc/meminfo` says, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    total: u64,
    free: u64,
    buffers: u64,
    /// File cache and slab that can be given back.
    cache: u64,
    /// Part of `cache` that cannot: files that exist in memory only.
    shared: u64,
}

impl Memory {
    /// Reads it now.
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/meminfo")?))
    }

    fn parse(meminfo: &str) -> Self {
        let bytes = |name: &str| -> Option<u64> {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes = line.strip_prefix(':')?.split_whitespace().next()?;
            Some(kibibytes.parse::<u64>().ok()? * 1024)
        };
        let number = |name: &str| bytes(name).unwrap_or(0);
        Self {
            total: number("MemTotal"),
            free: number("MemFree"),
            buffers: number("Buffers"),
            cache: number("Cached") + number("SReclaimable"),
            shared: number("Shmem"),
        }
    }

    /// What would be free if it were needed.
    pub(crate) fn reclaimable(&self) -> u64 {
        self.buffers + self.cache.saturating_sub(self.shared)
    }

    /// Not by `MemAvailable`, which gVisor gives without the cache.
    fn used(&self) -> u64 {
        self.total
            .saturating_sub(self.free)
            .saturating_sub(self.reclaimable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_use_is_counted_between_two_readings() {
        let before = CpuTimes::parse("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 1 1 1");
        let after = CpuTimes::parse("cpu  150 0 150 750 150 0 0 0 0 0");
        assert_eq!(
            before,
            CpuTimes {
                busy: 200,
                total: 1000
            }
        );
        assert!((after.used_percent_since(before) - 50.0).abs() < 1e-9);
        assert!(before.used_percent_since(before).abs() < 1e-9);
    }

    #[test]
    fn used_memory_is_neither_free_nor_cache_but_files_in_memory_count() {
        let text = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 400 kB\nCached: 200 kB\n\
                    SwapCached: 7 kB\nSReclaimable: 50 kB\nShmem: 30 kB\n";
        let memory = Memory::parse(text);
        assert_eq!((memory.used(), memory.cache), (680 * 1024, 250 * 1024));
    }
}
