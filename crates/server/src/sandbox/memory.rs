//! How much memory the host has.

/// Bytes of memory, from `/proc/meminfo` (proc_meminfo(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostMemory {
    /// All of it.
    pub(crate) total: u64,
    /// What programs could still get without swapping.
    pub(crate) available: u64,
}

/// The host's memory; `None` where it cannot be read.
pub(crate) fn host_memory() -> Option<HostMemory> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Whether a part of the host's memory, one in `parts`, is available. Where that cannot be told it is
/// taken to be so, and other bounds have to do.
pub(super) fn is_memory_available(parts: u64) -> bool {
    host_memory().is_none_or(|memory| memory.available >= memory.total / parts)
}

fn parse(text: &str) -> Option<HostMemory> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    };
    Some(HostMemory {
        total: bytes("MemTotal:")?,
        available: bytes("MemAvailable:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24689664 kB\nMemFree: 1 kB\nMemAvailable:       1024 kB\n";
        let memory = parse(text).unwrap();
        assert_eq!(
            (memory.total, memory.available),
            (24_689_664 << 10, 1 << 20)
        );
        assert_eq!(parse("MemTotal: many kB\n"), None);
        assert!(host_memory().unwrap().total > 0);
    }
}
