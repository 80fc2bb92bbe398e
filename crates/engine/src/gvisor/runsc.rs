//! Calls of the `runsc` program.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::image;
use super::paths::ExecutionDir;
use crate::{EngineError, ExecutionId};

/// How much of an error text is passed on, in bytes from its end.
const DETAIL_LIMIT: usize = 2000;

/// More than an idle sentry has open, and below the usual limit of 1024.
const HIGH_DESCRIPTOR: libc::c_int = 1000;

/// One build of runsc with our state directory.
#[derive(Clone, Debug)]
pub(super) struct Runsc {
    program: PathBuf,
    root: PathBuf,
}

impl Runsc {
    pub(super) fn new(program: PathBuf, root: PathBuf) -> Self {
        Self { program, root }
    }

    /// Starts PID 1 of a bundle and returns when it runs.
    pub(super) async fn run(
        &self,
        id: &ExecutionId,
        directory: &ExecutionDir,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let arguments = ["run".into(), "-detach".into()];
        self.detach(&arguments, "run", id, directory, limit).await
    }

    /// Starts the sentry of a bundle, to be restored into.
    pub(super) async fn create(
        &self,
        id: &ExecutionId,
        directory: &ExecutionDir,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let arguments = ["create".into()];
        self.detach(&arguments, "create", id, directory, limit)
            .await
    }

    /// Restores a bundle from an image, into what `create` started if it did. Memory goes on loading after this returns.
    pub(super) async fn restore(
        &self,
        id: &ExecutionId,
        directory: &ExecutionDir,
        image: &Path,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let mut arguments: Vec<OsString> = ["restore", "-detach", "-background"]
            .map(OsString::from)
            .into();
        if image::reads_directly(image) {
            arguments.push("-direct".into());
        }
        arguments.push("-image-path".into());
        arguments.push(image.into());
        self.detach(&arguments, "restore", id, directory, limit)
            .await
    }

    /// Runs a command that leaves a sandbox behind. The sandbox inherits its streams: so they are
    /// /dev/null, since a pipe would never end and a file would let the guest fill the host's disk.
    /// What runsc itself has to say goes to its log.
    async fn detach(
        &self,
        arguments: &[OsString],
        verb: &str,
        id: &ExecutionId,
        directory: &ExecutionDir,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let step = format!("runsc {verb} {id}");
        let mut command = self.command(Some(directory));
        command
            .args(arguments)
            .arg("-bundle")
            .arg(directory.bundle());
        command
            .arg("-pid-file")
            .arg(directory.pid())
            .arg(id.as_str());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        grow_descriptor_table(&mut command);
        let mut child = command.spawn().map_err(super::failed(step.clone()))?;
        let Ok(status) = tokio::time::timeout(limit, child.wait()).await else {
            // Dropping the child kills it.
            return Err(EngineError::Timeout { step, limit });
        };
        let status = status.map_err(super::failed(step.clone()))?;
        if status.success() {
            return Ok(());
        }
        let mut detail = format!("{status}");
        for log in [directory.log(), directory.panic_log()] {
            let text = std::fs::read(log).unwrap_or_default();
            push_tail(&mut detail, &text);
        }
        Err(EngineError::Failed { step, detail })
    }

    /// Runs a command about an existing sandbox and answers its standard output. `options` come
    /// before the id.
    pub(super) async fn control(
        &self,
        verb: &str,
        options: &[OsString],
        id: &ExecutionId,
        limit: Duration,
    ) -> Result<String, EngineError> {
        let step = format!("runsc {verb} {id}");
        let mut command = self.command(None);
        command.arg(verb).args(options).arg(id.as_str());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(super::failed(step.clone()))?;
        let Ok(output) = tokio::time::timeout(limit, child.wait_with_output()).await else {
            return Err(EngineError::Timeout { step, limit });
        };
        let output = output.map_err(super::failed(step.clone()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut detail = format!("{}", output.status);
        push_tail(&mut detail, &output.stderr);
        Err(EngineError::Failed { step, detail })
    }

    /// The command with all global flags, which must come first.
    fn command(&self, directory: Option<&ExecutionDir>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(flag("--root=", &self.root));
        if let Some(directory) = directory {
            command
                .arg(flag("--log=", &directory.log()))
                .arg("--log-format=text");
            command.arg(flag("--panic-log=", &directory.panic_log()));
        }
        command.args([
            "--platform=systrap",
            "--network=sandbox",
            // The root filesystem is a host overlay: the disk stays outside the memory image.
            "--overlay2=none",
            "--directfs=true",
            "--file-access=exclusive",
            // sudo.
            "--allow-suid=true",
            // Connections to peers long gone are closed at restore instead of hanging.
            "--allow-live-tcp-migration=false",
        ]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        // A Ctrl-C at our terminal is for the server alone.
        command.process_group(0);
        command
    }
}

/// Lets the command inherit a high descriptor.
///
/// The kernel grows the descriptor table of a process with threads only after all processors have
/// passed through a quiet state, which takes 10 ms and more each time, and a sentry grows its table
/// several times on its way up. A table that a process is born with is as large as the highest
/// descriptor of its parent asks for. So one high descriptor in `runsc` spares its sentry and gofer,
/// which do not inherit it, the waiting.
#[expect(unsafe_code, reason = "code between fork and exec is unsafe to run")]
fn grow_descriptor_table(command: &mut Command) {
    let grow = || {
        // Where it fails the start is slower, that is all.
        // SAFETY: `fcntl` may be called between fork and exec; it takes a number that is free.
        unsafe { libc::fcntl(0, libc::F_DUPFD, HIGH_DESCRIPTOR) };
        Ok(())
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(grow) };
}

fn flag(name: &str, value: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(value);
    flag
}

fn push_tail(detail: &mut String, text: &[u8]) {
    let tail = &text[text.len().saturating_sub(DETAIL_LIMIT)..];
    let tail = String::from_utf8_lossy(tail);
    if !tail.trim().is_empty() {
        detail.push_str(": ");
        detail.push_str(tail.trim());
    }
}
