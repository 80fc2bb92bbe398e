//! Settings of the gVisor engine.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the gVisor engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's data directory; kept builds live in `engines/` below it. Created if missing.
    pub data_dir: PathBuf,
    /// Directory for mounts and sockets, lost at reboot. Paths of unix sockets are short, so this
    /// one must be, too. `None`: `/run/sandbase/<tag of the data directory>`.
    pub run_dir: Option<PathBuf>,
    /// The `runsc` to start new executions with. A `gvisor-bin` directory beside it belongs to it.
    pub runsc: PathBuf,
    /// Program and arguments of PID 1, as seen inside the guest. Recorded in every image.
    pub init: Vec<String>,
    /// Least memory added to the guest's limit for the engine itself, in bytes.
    pub memory_headroom_bytes: u64,
    /// First address of the range for the uplinks of sandboxes; every slot takes four addresses.
    pub uplink_network: Ipv4Addr,
    /// Prefix length of that range: 16 gives 16384 slots.
    pub uplink_prefix: u8,
    /// Starts that work at the same time; others wait for their turn. A bound on the memory and the
    /// processes of a rush, not a way to be faster: a start waits for the kernel much of its time, and
    /// fewer at a time make the whole take longer.
    pub starts_at_once: usize,
    /// Network slots kept ready in advance.
    pub ready_slots: usize,
    /// Whether to turn on pages of 16 KiB for the memory of guests where the kernel has them and nobody
    /// chose otherwise. The switch is one for all memfds of the host and stays on.
    pub large_pages: bool,
    /// Limit for `runsc` calls that only talk to a sandbox, and for its end to take effect.
    pub command_timeout: Duration,
    /// Limit for booting or restoring, until `runsc` returns.
    pub start_timeout: Duration,
    /// Limit for writing or loading a whole memory image.
    pub image_timeout: Duration,
    /// Limit for a TCP connection into the guest.
    pub dial_timeout: Duration,
}

impl Config {
    /// The defaults, for a data directory and a `runsc`.
    pub fn new(data_dir: impl Into<PathBuf>, runsc: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            run_dir: None,
            runsc: runsc.into(),
            init: vec!["/usr/local/bin/sandbase-agent".to_owned()],
            memory_headroom_bytes: 128 << 20,
            uplink_network: Ipv4Addr::new(10, 219, 0, 0),
            uplink_prefix: 16,
            starts_at_once: 64,
            ready_slots: 2,
            large_pages: true,
            command_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(60),
            image_timeout: Duration::from_secs(600),
            dial_timeout: Duration::from_secs(5),
        }
    }

    /// How many network slots the uplink range holds. Each execution takes one.
    pub fn slot_count(&self) -> u32 {
        let host_bits = 32u32.saturating_sub(u32::from(self.uplink_prefix));
        1u32.checked_shl(host_bits.saturating_sub(2))
            .unwrap_or(u32::MAX / 4)
    }
}
