//! The configuration file, read once at start. `config.example.toml` lists every key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::Limits;
use serde::Deserialize;

use crate::sandbox::{HookFailure, HookSettings, Settings, WarmSettings, host_memory};

/// Port of the API and the edge unless told otherwise; E2B's debug mode uses the same.
pub const DEFAULT_PORT: u16 = 3000;
/// Where everything durable is kept unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/sandbase";
/// Seconds of a year.
const LONGEST: u64 = 31_536_000;
/// Destroying an execution takes a second at most unless something is wrong on the host.
const DISK_WAIT: Duration = Duration::from_secs(60);
/// Where set-up installs the engine.
pub const DEFAULT_RUNSC: &str = "/usr/local/lib/sandbase/engine/runsc";

/// Everything that can be configured.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Where everything durable is kept.
    pub data_dir: PathBuf,
    /// Domain told to clients; `localhost:<port>` when absent.
    pub domain: Option<String>,
    /// Further host names on which sandboxes may be addressed by header.
    pub sandbox_hosts: Vec<String>,
    /// See [`EngineConfig`].
    pub engine: EngineConfig,
    /// See [`TemplateConfig`].
    pub template: TemplateConfig,
    /// See [`SandboxConfig`].
    pub sandbox: SandboxConfig,
    /// See [`PoolConfig`].
    pub pool: PoolConfig,
    /// See [`WarmConfig`].
    pub warm: WarmConfig,
    /// See [`ColdConfig`].
    pub cold: ColdConfig,
    /// See [`ImportConfig`].
    pub import: ImportConfig,
}

/// The engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// The `runsc` to start sandboxes with.
    pub runsc: PathBuf,
    /// Network from which sandboxes get their uplink addresses.
    pub uplink_network: Ipv4Addr,
    /// Prefix length of that network.
    pub uplink_prefix: u8,
    /// Network slots kept ready.
    pub ready_slots: usize,
    /// Whether to turn on pages of 16 KiB for the memory of guests, a setting of the whole host.
    pub large_pages: bool,
}

/// The base template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TemplateConfig {
    /// A root file system to use in place instead of building one.
    pub base_rootfs: Option<PathBuf>,
    /// The agent's binary; beside the server's when absent.
    pub agent: Option<PathBuf>,
}

/// Sandboxes that are started before anybody asks for them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Most of them per template; 0 turns this off.
    pub most: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { most: 4 }
    }
}

/// Paused sandboxes that also stay in memory for a while, frozen, or whose next start is prepared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmConfig {
    /// Part of the host's memory that they may hold together; 0 turns this off.
    pub memory_percent: u8,
    /// How long one stays.
    pub seconds: u64,
    /// For how many of those that do not stay the next start is prepared; 0 turns this off.
    pub prepared: usize,
    /// How long after its pause.
    pub prepared_seconds: u64,
}

impl Default for WarmConfig {
    fn default() -> Self {
        Self {
            memory_percent: 10,
            seconds: 600,
            prepared: 4,
            prepared_seconds: 3600,
        }
    }
}

impl WarmConfig {
    /// `slots` is how many network slots there are.
    fn settings(&self, slots: u32) -> WarmSettings {
        let wanted = if self.prepared_seconds > 0 {
            self.prepared
        } else {
            0
        };
        // Where the host's memory cannot be told, none of it is taken.
        let total = host_memory().map_or(0, |memory| memory.total);
        WarmSettings {
            memory_bytes: total / 100 * u64::from(self.memory_percent),
            keep: Duration::from_secs(self.seconds),
            // Each holds a slot that a create may need.
            prepared: wanted.min(slots as usize / 4),
            prepared_keep: Duration::from_secs(self.prepared_seconds),
        }
    }
}

/// Sandboxes that have been paused for long.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColdConfig {
    /// Their images are compressed after this time; 0 turns this off.
    pub seconds: u64,
}

impl Default for ColdConfig {
    fn default() -> Self {
        Self { seconds: 24 * 3600 }
    }
}

/// Imports of snapshots.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImportConfig {
    /// Whether engine builds are kept that come with an import. They run as root on this host.
    pub engine_builds: bool,
}

/// Limits of sandboxes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxConfig {
    /// CPUs of a sandbox.
    pub vcpus: u32,
    /// Memory of a sandbox.
    pub memory_mib: u64,
    /// Disk of a sandbox.
    pub disk_mib: u64,
    /// Host tasks of a sandbox, engine threads included.
    pub pids: u32,
    /// Sandboxes running at once.
    pub max_running: usize,
    /// Longest time without a pause.
    pub max_run_seconds: u64,
    /// How long an agent may take to answer after a start.
    pub agent_start_seconds: u64,
    /// How long an agent may take to prepare for a pause.
    pub agent_prepare_seconds: u64,
    /// What a failing pre-pause hook means for the pause: `ignore` or `fatal`.
    pub pre_pause_hook_failure: HookFailure,
    /// How long one hook inside a sandbox may take.
    pub hook_seconds: u64,
    /// How long all hooks of one kind may take.
    pub hooks_seconds: u64,
    /// What an orderly stop of the server does with running sandboxes.
    pub on_shutdown: OnShutdown,
    /// Whether a sandbox whose memory image cannot be used is booted from its disk, or stays paused.
    pub boot_without_memory: bool,
    /// Space that stays free on the data directory's file system.
    pub free_space_reserve_mib: u64,
}

/// What an orderly stop of the server does with running sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnShutdown {
    /// They run on and the next server takes them over: a restart is not noticed.
    Leave,
    /// They are paused with their memory: right where the host goes down as well.
    Pause,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![
                SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT),
                SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), DEFAULT_PORT),
            ],
            data_dir: DEFAULT_DATA_DIR.into(),
            domain: None,
            sandbox_hosts: Vec::new(),
            engine: EngineConfig::default(),
            template: TemplateConfig::default(),
            sandbox: SandboxConfig::default(),
            pool: PoolConfig::default(),
            warm: WarmConfig::default(),
            cold: ColdConfig::default(),
            import: ImportConfig::default(),
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            runsc: DEFAULT_RUNSC.into(),
            uplink_network: Ipv4Addr::new(10, 219, 0, 0),
            uplink_prefix: 16,
            ready_slots: 2,
            large_pages: true,
        }
    }
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            vcpus: 2,
            memory_mib: 512,
            disk_mib: 10240,
            pids: 4096,
            max_running: 200,
            max_run_seconds: 24 * 3600,
            agent_start_seconds: 30,
            agent_prepare_seconds: 5,
            pre_pause_hook_failure: HookFailure::Ignore,
            hook_seconds: 10,
            hooks_seconds: 20,
            on_shutdown: OnShutdown::Leave,
            boot_without_memory: true,
            free_space_reserve_mib: 512,
        }
    }
}

impl SandboxConfig {
    /// As the engine takes them.
    pub fn limits(&self) -> Limits {
        Limits {
            cpu_milli: self.vcpus * 1000,
            memory_bytes: self.memory_mib << 20,
            disk_bytes: self.disk_mib << 20,
            pids: self.pids,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self {
                vcpus: 0 | 65.., ..
            } => Err("sandbox.vcpus must be 1 to 64"),
            Self {
                memory_mib: ..128, ..
            } => Err("sandbox.memory_mib must be at least 128"),
            Self { disk_mib: ..64, .. } => Err("sandbox.disk_mib must be at least 64"),
            Self { max_running: 0, .. } => Err("sandbox.max_running must be at least 1"),
            Self {
                max_run_seconds: 0 | 31_536_001..,
                ..
            } => Err("sandbox.max_run_seconds must be 1 to 31536000 (a year)"),
            Self {
                hook_seconds: 0 | 31..,
                ..
            } => Err("sandbox.hook_seconds must be 1 to 30"),
            // Clients wait a minute for a pause.
            Self {
                hooks_seconds: 0 | 41..,
                ..
            } => Err("sandbox.hooks_seconds must be 1 to 40"),
            Self { .. } => Ok(()),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the configuration {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {path} is wrong: {problem}")]
    Wrong {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
}

impl Config {
    /// Reads a configuration file; keys that are absent have their defaults.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let wrong = |problem: String| ConfigError::Wrong {
            path: path.to_owned(),
            problem,
        };
        let config: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        config
            .sandbox
            .check()
            .map_err(|problem| wrong(problem.to_owned()))?;
        if config.cold.seconds > LONGEST {
            return Err(wrong(format!(
                "cold.seconds must be at most {LONGEST} (a year)"
            )));
        }
        if config.warm.seconds > LONGEST || config.warm.prepared_seconds > LONGEST {
            return Err(wrong(format!(
                "warm.seconds and warm.prepared_seconds must be at most {LONGEST} (a year)"
            )));
        }
        if config.warm.prepared > 100 {
            return Err(wrong("warm.prepared must be at most 100".to_owned()));
        }
        if config.pool.most > 100 {
            return Err(wrong("pool.most must be at most 100".to_owned()));
        }
        if config.warm.memory_percent > 90 {
            return Err(wrong("warm.memory_percent must be at most 90".to_owned()));
        }
        if config.listen.is_empty() {
            return Err(wrong("listen needs at least one address".to_owned()));
        }
        Ok(config)
    }

    /// Bounds of the lifecycle.
    pub fn settings(&self) -> Settings {
        let sandbox = &self.sandbox;
        let slots = crate::app::engine_config(self, &self.data_dir).slot_count();
        Settings {
            max_run: Duration::from_secs(sandbox.max_run_seconds),
            max_running: sandbox.max_running,
            agent_start_timeout: Duration::from_secs(sandbox.agent_start_seconds),
            agent_prepare_timeout: Duration::from_secs(sandbox.agent_prepare_seconds),
            disk_wait: DISK_WAIT,
            hooks: HookSettings {
                each: Duration::from_secs(sandbox.hook_seconds),
                all: Duration::from_secs(sandbox.hooks_seconds),
                pre_pause_failure: sandbox.pre_pause_hook_failure,
            },
            boot_without_memory: sandbox.boot_without_memory,
            pool: self.pool.most,
            warm: self.warm.settings(slots),
            pack_after: (self.cold.seconds > 0).then(|| Duration::from_secs(self.cold.seconds)),
            free_space_reserve: sandbox.free_space_reserve_mib << 20,
        }
    }

    /// The domain told to clients.
    pub fn domain(&self) -> String {
        let port = self.listen.first().map_or(DEFAULT_PORT, SocketAddr::port);
        self.domain
            .clone()
            .unwrap_or_else(|| format!("localhost:{port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_lists_every_key_with_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config.example.toml");
        let example = Config::read(&path).unwrap();
        assert_eq!(format!("{example:?}"), format!("{:?}", Config::default()));
        let text = std::fs::read_to_string(path).unwrap();
        for key in [
            "domain",
            "sandbox_hosts",
            "base_rootfs",
            "agent ",
            "free_space_reserve_mib",
        ] {
            assert!(
                text.contains(key),
                "{key} is missing in config.example.toml"
            );
        }
    }

    #[test]
    fn few_network_slots_are_not_spent_on_prepared_starts() {
        let mut config = Config::default();
        assert_eq!(config.settings().warm.prepared, config.warm.prepared);
        config.engine.uplink_prefix = 28;
        assert_eq!(config.settings().warm.prepared, 1);
        config.warm.prepared_seconds = 0;
        assert_eq!(config.settings().warm.prepared, 0);
    }

    #[test]
    fn an_unknown_key_and_a_senseless_value_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        for text in [
            "nonsense = 1",
            "[sandbox]\nvcpus = 0",
            "[cold]\nseconds = 99999999999",
            "[warm]\nmemory_percent = 91",
            "[warm]\nprepared = 101",
            "[warm]\nprepared_seconds = 99999999999",
            "[pool]\nmost = 101",
            "[sandbox]\nmemory_mib = \"x\"",
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(
                matches!(Config::read(&path), Err(ConfigError::Wrong { .. })),
                "{text}"
            );
        }
    }
}
