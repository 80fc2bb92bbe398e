//! The root file system of the server's template on the same disk, and nothing between.

use e2b_client::Problem;
use tokio::process::Command;

use super::overlay::{Overlay, PROGRAMS};
use super::{FloorOptions, run};

/// Devices and processes come with each command and go with its mount namespace.
const ENTER: &str = r#"mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" &&
exec chroot --userspec="$1" "$0" /bin/bash -l -c "$2""#;

/// An overlay to run commands in.
#[derive(Debug)]
pub(crate) struct Chroot {
    overlay: Overlay,
    /// Numbers of user and group, with a colon.
    user: String,
}

impl Chroot {
    /// Commands are run by this user, given as `<uid>:<gid>`.
    pub(crate) fn new(options: &FloorOptions, user: String) -> Result<Self, Problem> {
        let overlay = Overlay::mount(options)?;
        Ok(Self { overlay, user })
    }

    /// Where [`crate::guest::WORK`] is inside.
    pub(crate) fn work_program() -> String {
        format!("/{PROGRAMS}/work.py")
    }

    /// Runs a command of the shell to its end, which must be a good one.
    pub(crate) async fn run(&self, command: &str) -> Result<(), Problem> {
        let mut enter = Command::new("unshare");
        enter
            .args([
                "--mount",
                "--propagation",
                "private",
                "/bin/sh",
                "-c",
                ENTER,
            ])
            .arg(self.overlay.root())
            .args([&self.user, command])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/home/user");
        run(&format!("`{command}` in a chroot"), &mut enter).await
    }
}
