//! The root file system of a floor: an overlay over the server's, in a directory of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use e2b_client::Problem;

use super::{FloorOptions, failed};

/// Where programs of ours are inside.
pub(super) const PROGRAMS: &str = "bench";

/// A mounted overlay. Its drop unmounts and removes it.
#[derive(Debug)]
pub(super) struct Overlay {
    directory: tempfile::TempDir,
}

impl Overlay {
    /// Mounts one. Programs of ours and the agent are in a layer below the writable one.
    pub(super) fn mount(options: &FloorOptions) -> Result<Self, Problem> {
        let directory = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(&options.scratch);
        let place = format!("make a directory in {}", options.scratch.display());
        let directory = directory.map_err(|error| failed(&place, &error))?;
        let overlay = Self { directory };
        let filled = overlay.fill(options);
        filled.map_err(|error| failed("fill a layer", &error))?;
        let mut layers = OsString::from("redirect_dir=on,lowerdir=");
        for (name, path) in [
            ("", &overlay.path("programs")),
            (":", &options.rootfs),
            (",upperdir=", &overlay.upper()),
            (",workdir=", &overlay.path("work")),
        ] {
            layers.push(name);
            layers.push(path);
        }
        let status = std::process::Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(layers)
            .arg(overlay.root())
            .status();
        match status {
            Ok(status) if status.success() => Ok(overlay),
            Ok(status) => Err(Problem::Broken(format!(
                "floor: mount an overlay: {status}"
            ))),
            Err(error) => Err(failed("mount", &error)),
        }
    }

    fn fill(&self, options: &FloorOptions) -> std::io::Result<()> {
        let programs = self.path("programs").join(PROGRAMS);
        for made in [&programs, &self.upper(), &self.path("work"), &self.root()] {
            std::fs::create_dir_all(made)?;
        }
        // The guest's own root may be anybody.
        open_to_all(self.directory.path())?;
        std::fs::write(programs.join("hold.py"), crate::guest::HOLD)?;
        std::fs::write(programs.join("work.py"), crate::guest::WORK)?;
        if let Some(agent) = &options.agent {
            std::fs::copy(agent, programs.join("agent"))?;
        }
        Ok(())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What was written, as seen from the host.
    pub(super) fn upper(&self) -> PathBuf {
        self.path("upper")
    }

    /// The whole file system.
    pub(super) fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Everything that belongs to it.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

fn open_to_all(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // Lazily: a command that was broken off may still be in it. The directory goes after it.
        let _best_effort = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(self.root())
            .stderr(std::process::Stdio::null())
            .status();
    }
}
