//! Memory of guests in larger pages.
//!
//! A guest's memory is a memfd of its sentry, which the kernel fills 4 KiB at a time unless told
//! otherwise. Filling a GiB of it from an image, writing it to one and giving it back is then mostly the
//! kernel's work on single pages. What larger ones gain and cost: docs/decisions/012.
//!
//! The kernel has one switch per size for all memfds, shared anonymous mappings and System V shared
//! memory of the host (Documentation/admin-guide/mm/transhuge.rst, "internal shmem mount"; mounts of
//! tmpfs have options of their own). `within_size` leaves anything smaller than a folio alone.

use std::io;
use std::path::Path;

const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-16kB/shmem_enabled";
const UNTOUCHED: &str = "never";
const WANTED: &str = "within_size";

/// What became of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LargePages {
    /// On, by us or by somebody else.
    On,
    /// Off, as kernels start; writing would turn it on.
    Off,
    /// Something else that somebody chose.
    Chosen,
    /// This kernel has none: it came with Linux 6.11, and may be left out of a build.
    Unknown,
}

/// Turns the switch on unless somebody chose its value.
pub(super) fn turn_on() -> io::Result<LargePages> {
    turn_on_at(Path::new(SWITCH))
}

/// How the switch stands.
pub(super) fn look() -> io::Result<LargePages> {
    look_at(Path::new(SWITCH))
}

fn turn_on_at(switch: &Path) -> io::Result<LargePages> {
    match look_at(switch)? {
        LargePages::Off => std::fs::write(switch, WANTED).map(|()| LargePages::On),
        other => Ok(other),
    }
}

fn look_at(switch: &Path) -> io::Result<LargePages> {
    let text = match std::fs::read_to_string(switch) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LargePages::Unknown),
        Err(error) => return Err(error),
    };
    // All values on one line, the one in force in brackets.
    let value = text.split(['[', ']']).nth(1).unwrap_or(text.trim());
    Ok(match value {
        UNTOUCHED => LargePages::Off,
        WANTED | "always" => LargePages::On,
        _ => LargePages::Chosen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switch(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn a_switch_nobody_touched_is_turned_on() {
        let file = switch("always inherit within_size advise [never]\n");
        assert_eq!(look_at(file.path()).unwrap(), LargePages::Off);
        assert_eq!(turn_on_at(file.path()).unwrap(), LargePages::On);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), WANTED);
        assert_eq!(look_at(file.path()).unwrap(), LargePages::On);
    }

    #[test]
    fn what_somebody_chose_stays() {
        for (text, found) in [
            (
                "always [inherit] within_size advise never\n",
                LargePages::Chosen,
            ),
            (
                "always inherit within_size [advise] never\n",
                LargePages::Chosen,
            ),
            (
                "[always] inherit within_size advise never\n",
                LargePages::On,
            ),
        ] {
            let file = switch(text);
            assert_eq!(turn_on_at(file.path()).unwrap(), found);
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn a_kernel_without_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let none = folder.path().join("shmem_enabled");
        assert_eq!(turn_on_at(&none).unwrap(), LargePages::Unknown);
        assert!(!none.exists());
    }
}
