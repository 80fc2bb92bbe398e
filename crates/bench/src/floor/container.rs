//! One container driven by runsc alone: no network, no cgroup, no server.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2b_client::Problem;
use serde_json::json;
use tokio::process::Command;

use super::overlay::{Overlay, PROGRAMS};
use super::{FloorOptions, failed, finish, run};

/// Longest time that a program needs to be ready.
const READY_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(10);
/// runsc resolves prefixes of ids, so all have the same length.
const ID: &str = "bench-container";
/// Where the agent listens.
const AGENT_PORT: u16 = 49983;

/// PID 1 of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// The agent, or an idle Python without one.
    Idle,
    /// Python that holds as many MiB of random memory.
    Hold(u64),
}

/// A container and its image.
#[derive(Debug)]
pub(crate) struct Container {
    runsc: PathBuf,
    overlay: Overlay,
    image: PathBuf,
    program: Program,
    has_agent: bool,
}

impl Container {
    /// Starts one and waits until its program is ready.
    pub(crate) async fn start(options: &FloorOptions, program: Program) -> Result<Self, Problem> {
        let container = Self::new(options, program, None)?;
        let bundle = container.overlay.directory().as_os_str();
        container
            .call("run", &["-detach".as_ref(), "-bundle".as_ref(), bundle])
            .await?;
        container.wait_until_ready().await?;
        Ok(container)
    }

    /// One that does not run yet and is restored from the image of another one.
    pub(crate) fn from_image_of(options: &FloorOptions, other: &Self) -> Result<Self, Problem> {
        Self::new(options, other.program, Some(other.image.clone()))
    }

    fn new(
        options: &FloorOptions,
        program: Program,
        image: Option<PathBuf>,
    ) -> Result<Self, Problem> {
        let overlay = Overlay::mount(options)?;
        let container = Self {
            runsc: options.runsc.clone(),
            image: image.unwrap_or_else(|| overlay.path("image")),
            overlay,
            program,
            has_agent: options.agent.is_some(),
        };
        let spec = container.spec().to_string();
        std::fs::write(container.overlay.path("config.json"), spec)
            .map_err(|error| failed("write a specification", &error))?;
        Ok(container)
    }

    fn spec(&self) -> serde_json::Value {
        let hold = |mib: u64| {
            let path = format!("/{PROGRAMS}/hold.py");
            vec![
                "python3".to_owned(),
                path,
                mib.to_string(),
                "/held".to_owned(),
            ]
        };
        let arguments = match self.program {
            Program::Idle if self.has_agent => vec![format!("/{PROGRAMS}/agent")],
            Program::Idle => hold(0),
            Program::Hold(mib) => hold(mib),
        };
        let namespaces = ["pid", "ipc", "uts", "mount", "network"];
        let namespaces = namespaces.map(|kind| json!({ "type": kind }));
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "cwd": "/",
                "args": arguments,
                "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            },
            "root": { "path": self.overlay.root() },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": namespaces },
        })
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.runsc);
        let mut root = std::ffi::OsString::from("--root=");
        root.push(self.state());
        command.arg(root);
        // As the server's engine does, but for the network.
        command.args(["--platform=systrap", "--network=none", "--overlay2=none"]);
        command.args([
            "--directfs=true",
            "--file-access=exclusive",
            "--allow-suid=true",
        ]);
        command.args(["--ignore-cgroups", verb]);
        command.stderr(Stdio::null());
        command
    }

    fn state(&self) -> PathBuf {
        self.overlay.path("state")
    }

    async fn call(&self, verb: &str, options: &[&OsStr]) -> Result<(), Problem> {
        let mut command = self.command(verb);
        run(&format!("runsc {verb}"), command.args(options).arg(ID)).await
    }

    async fn wait_until_ready(&self) -> Result<(), Problem> {
        if self.program != Program::Idle || !self.has_agent {
            return self.wait_held().await;
        }
        let started = Instant::now();
        let probe = format!("exec 3<>/dev/tcp/127.0.0.1/{AGENT_PORT}");
        loop {
            let mut command = self.command("exec");
            command.arg(ID).args(["/bin/bash", "-c", &probe]);
            match run("look whether the agent listens", &mut command).await {
                Ok(()) => return Ok(()),
                Err(problem) if started.elapsed() > READY_LIMIT => return Err(problem),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Waits until all memory is there, and forgets that it was.
    async fn wait_held(&self) -> Result<(), Problem> {
        let held = self.overlay.upper().join("held");
        let started = Instant::now();
        while !held.exists() {
            if started.elapsed() > READY_LIMIT {
                let text = "floor: a container that holds memory is not ready";
                return Err(Problem::Broken(text.to_owned()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Makes the sandbox that a restore then only has to fill.
    pub(crate) async fn prepare(&self) -> Result<(), Problem> {
        let bundle = self.overlay.directory().as_os_str();
        self.call("create", &["-bundle".as_ref(), bundle]).await
    }

    /// Restores the image, into the prepared sandbox or into one that it makes itself.
    pub(crate) async fn restore(&self) -> Result<(), Problem> {
        let options: [&OsStr; 6] = [
            "-detach".as_ref(),
            "-background".as_ref(),
            "-bundle".as_ref(),
            self.overlay.directory().as_os_str(),
            "-image-path".as_ref(),
            self.image.as_os_str(),
        ];
        self.call("restore", &options).await
    }

    /// Waits until all memory of a restored one is loaded and was touched.
    pub(crate) async fn settle(&self) -> Result<(), Problem> {
        self.call("wait", &["-restore".as_ref()]).await?;
        if let Program::Hold(_) = self.program {
            let held = self.overlay.root().join("held");
            std::fs::remove_file(held).map_err(|error| failed("forget a sum", &error))?;
            let mut command = self.command("kill");
            run("runsc kill", command.args([ID, "USR1"])).await?;
            self.wait_held().await?;
        }
        Ok(())
    }

    /// Freezes it and writes its image. It stays frozen.
    pub(crate) async fn checkpoint(&self) -> Result<(), Problem> {
        self.call("pause", &[]).await?;
        let options: [&OsStr; 6] = [
            "-leave-running".as_ref(),
            "-compression".as_ref(),
            "none".as_ref(),
            "-direct".as_ref(),
            "-image-path".as_ref(),
            self.image.as_os_str(),
        ];
        self.call("checkpoint", &options).await
    }

    /// Removes the image; a checkpoint writes into no directory that has one.
    pub(crate) fn forget_image(&self) -> Result<(), Problem> {
        match std::fs::remove_dir_all(&self.image) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failed("remove an image", &error))
            }
            _ => Ok(()),
        }
    }

    /// Where its image is.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    pub(crate) async fn delete(&self) -> Result<(), Problem> {
        self.call("delete", &["-force".as_ref()]).await
    }

    /// Runs a command inside. runsc itself carries its streams.
    pub(crate) async fn exec(
        &self,
        command: &[&str],
        input: Stdio,
        output: Stdio,
    ) -> Result<(), Problem> {
        let mut exec = self.command("exec");
        exec.arg(ID).args(command).stdin(input).stdout(output);
        finish("runsc exec", &mut exec).await
    }

    /// The directory that all its processes have in their command lines.
    pub(crate) fn directory(&self) -> &Path {
        self.overlay.directory()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut delete = std::process::Command::new(&self.runsc);
        let mut root = std::ffi::OsString::from("--root=");
        root.push(self.state());
        // Best effort: it may be gone, and a run that failed tells why.
        let _best_effort = delete
            .arg(root)
            .args(["delete", "-force", ID])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // `--network=none` leaves a mount.
        let _best_effort = std::process::Command::new("umount")
            .arg(self.state().join("null-netns"))
            .stderr(Stdio::null())
            .status();
    }
}
