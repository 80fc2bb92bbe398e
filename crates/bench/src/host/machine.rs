//! What machine a run was made on.

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// The machine that the bench runs on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// As the processor calls itself.
    pub processor: String,
    /// Cores that this program may use.
    pub cores: usize,
    /// Bytes.
    pub memory_bytes: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// File system of the directory that floors work in, else of the server's data; `None` when
    /// neither is known to be here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
}

impl Machine {
    /// This one; what cannot be read is `unknown`.
    pub(crate) fn this(directory: Option<&Path>) -> Self {
        let unknown = || "unknown".to_owned();
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = value(&read("/proc/meminfo"), "MemTotal").and_then(|memory| {
            let kib: u64 = memory.split_whitespace().next()?.parse().ok()?;
            Some(kib * 1024)
        });
        let kernel = read("/proc/sys/kernel/osrelease");
        Self {
            processor: value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory.unwrap_or(0),
            kernel: kernel.trim().to_owned(),
            file_system: directory.map(|directory| {
                file_system(directory, &read("/proc/self/mounts")).unwrap_or_else(unknown)
            }),
        }
    }
}

/// Type of the file system that a directory is on: of the longest mount point above it.
fn file_system(directory: &Path, mounts: &str) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((Path::new(fields.next()?), fields.next()?))
    });
    let above = mounts.filter(|(point, _)| directory.starts_with(point));
    let (_, kind) = above.max_by_key(|(point, _)| point.as_os_str().len())?;
    Some(kind.to_owned())
}

impl fmt::Display for Machine {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(
            text,
            "{} cores of {}, {gib:.0} GiB, Linux {}",
            self.cores, self.processor, self.kernel
        )?;
        match &self.file_system {
            Some(file_system) => write!(text, ", {file_system}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_above_a_directory_counts() {
        let mounts = "a / ext4 rw 0 0\nb /proc proc rw 0 0\n";
        assert_eq!(file_system(Path::new("/"), mounts).as_deref(), Some("ext4"));
        let proc = file_system(Path::new("/proc/self"), mounts);
        assert_eq!(proc.as_deref(), Some("proc"));
    }
}
