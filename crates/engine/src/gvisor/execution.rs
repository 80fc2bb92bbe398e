//! One execution from its start to its end.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::SemaphorePermit;

use super::control::{self, CallError, Control};
use super::image::ImageRecord;
use super::mounts::DamagedDisk;
use super::paths::ExecutionDir;
use super::process::Process;
use super::runsc::Runsc;
use super::{Gvisor, blocking, boot_mark, builds, cgroup, disk, failed, image, network, spec};
use crate::{BuildId, EngineError, ExecutionId, ExecutionSpec, ExitReason, StartError, StartFrom};

/// After a failed try to watch a sentry.
const WATCH_RETRY: Duration = Duration::from_secs(1);

/// What is needed to work with a started execution. All of it is in its directory, too.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) slot: u32,
    pub(super) build: BuildId,
    /// What the guest was promised.
    pub(super) memory_bytes: u64,
    /// The sentry.
    pid: i32,
    restored: bool,
}

impl Live {
    /// Reads it back; fails for an execution that was never fully started.
    pub(super) fn read(directory: &ExecutionDir) -> io::Result<Self> {
        let spec = read_spec(directory)?;
        Ok(Self {
            slot: read_number(&directory.slot())?,
            build: spec.build,
            memory_bytes: spec.limits.memory_bytes,
            pid: read_number(&directory.pid())?,
            restored: directory.restored().exists(),
        })
    }
}

impl Live {
    /// Whether its sentry runs. An error says nothing about that.
    pub(super) fn is_alive(&self, id: &ExecutionId) -> io::Result<bool> {
        Process::open(self.pid, id.as_str()).map(|sentry| sentry.is_some())
    }
}

impl Gvisor {
    pub(super) fn runsc(&self, build: &BuildId) -> Runsc {
        Runsc::new(builds::runsc(&self.paths, build), self.paths.runsc_root())
    }

    pub(super) async fn start_execution(
        &self,
        spec: &ExecutionSpec,
        from: StartFrom<'_>,
    ) -> Result<(), StartError> {
        let before = |source| StartError {
            guest_may_have_run: false,
            source,
        };
        let record = self.check(spec, from).map_err(before)?;
        let prepared = self
            .take_prepared(spec, record.as_ref())
            .await
            .map_err(before)?;
        if !prepared {
            self.make_directory(spec).map_err(before)?;
        }

        let mut guest_may_have_run = false;
        let started = if prepared {
            self.go_on(spec, from, &mut guest_may_have_run).await
        } else {
            self.bring_up(spec, from, record, &mut guest_may_have_run)
                .await
        };
        match started {
            Ok(live) => {
                self.live().insert(spec.id.clone(), live);
                Ok(())
            }
            Err(source) => {
                self.undo_start(&spec.id).await;
                Err(StartError {
                    guest_may_have_run,
                    source,
                })
            }
        }
    }

    /// Fails for an id in use, which must then not be cleaned up.
    pub(super) fn make_directory(&self, spec: &ExecutionSpec) -> Result<(), EngineError> {
        write_directory(&self.paths.execution(&spec.id), spec)
            .map_err(failed(format!("create the directory of {}", spec.id)))
    }

    pub(super) async fn undo_start(&self, id: &ExecutionId) {
        if let Err(error) = self.destroy_execution(id).await {
            tracing::error!(execution.id = %id, %error, "a failed start left something behind");
        }
    }

    /// Checks all that can be checked before anything exists.
    pub(super) fn check(
        &self,
        spec: &ExecutionSpec,
        from: StartFrom<'_>,
    ) -> Result<Option<ImageRecord>, EngineError> {
        if !builds::is_kept(&self.paths, &spec.build) {
            return Err(EngineError::Failed {
                step: format!("start {}", spec.id),
                detail: format!("the gvisor build {} is not kept on this host", spec.build.0),
            });
        }
        match from {
            StartFrom::Boot => Ok(None),
            StartFrom::Image(image) => ImageRecord::read_for(image, &spec.build).map(Some),
        }
    }

    async fn bring_up(
        &self,
        spec: &ExecutionSpec,
        from: StartFrom<'_>,
        record: Option<ImageRecord>,
        guest_may_have_run: &mut bool,
    ) -> Result<Live, EngineError> {
        let id = &spec.id;
        let directory = self.paths.execution(id);
        let _turn = self.lay_out(spec, record).await?;
        let runsc = self.runsc(&spec.build);
        let limit = self.config.start_timeout;
        *guest_may_have_run = true;
        match from {
            StartFrom::Boot => runsc.run(id, &directory, limit).await?,
            StartFrom::Image(image) => {
                note_restored(&directory)?;
                runsc.restore(id, &directory, image, limit).await?;
            }
        }
        Live::read(&directory).map_err(failed(format!("read the state of {id}")))
    }

    /// Makes the network, the mounts and the specification that runsc reads. Answers the turn that
    /// the start may go on with.
    pub(super) async fn lay_out(
        &self,
        spec: &ExecutionSpec,
        record: Option<ImageRecord>,
    ) -> Result<SemaphorePermit<'_>, EngineError> {
        let id = &spec.id;
        let directory = self.paths.execution(id);
        // Making a network is mostly waiting for the kernel: that needs no turn.
        let mount = async {
            let turn = self.turns.acquire().await;
            let turn = turn.expect("nobody closes the turns");
            (turn, self.mount(spec, record.is_none()).await)
        };
        let (slot, (turn, mounted)) = tokio::join!(self.take_slot(spec), mount);
        let slot = slot.map_err(failed(format!("prepare the network of {id}")))?;
        mounted.map_err(|error| match DamagedDisk::is_in(&error) {
            true => EngineError::DiskDamaged {
                detail: error.to_string(),
            },
            false => failed(format!("mount the disk of {id}"))(error),
        })?;

        let (paths, config) = (&self.paths, &self.config);
        let netns = network::inner_name(&paths.tag, slot);
        let oci = match record {
            None => spec::for_boot(spec, &directory, paths, config, &netns),
            Some(record) => {
                spec::for_restore(record.oci_spec, spec, &directory, paths, config, &netns)
            }
        };
        write_json(&directory.oci_spec(), &oci).map_err(failed(format!("write spec of {id}")))?;
        // Not waited for: runsc needs about as long until it joins.
        tokio::task::spawn_blocking(cgroup::expect_joins);
        Ok(turn)
    }

    /// Takes a slot and writes its number down before anything else can go wrong.
    async fn take_slot(&self, spec: &ExecutionSpec) -> io::Result<u32> {
        let (take, back) = (self.slots.take(), self.slots.handle());
        let (paths, policy) = (self.paths.clone(), spec.network);
        let working = self.work_on(&spec.id).read_owned().await;
        let file = self.paths.execution(&spec.id).slot();
        blocking(move || {
            let _working = working;
            let slot = take()?;
            let used = std::fs::write(file, slot.to_string())
                .and_then(|()| network::apply(&paths, slot, policy));
            if used.is_err() {
                back.discard(slot)?;
            }
            used.map(|()| slot)
        })
        .await
    }

    async fn mount(&self, spec: &ExecutionSpec, boots: bool) -> io::Result<()> {
        let directory = self.paths.execution(&spec.id);
        let spec = spec.clone();
        let working = self.work_on(&spec.id).read_owned().await;
        blocking(move || {
            let _working = working;
            disk::mount_all(&spec.disk, &spec.sealed, &spec.layers, &directory)?;
            if boots {
                boot_mark::put(&directory.rootfs(), &directory.disk_mount())
            } else {
                Ok(())
            }
        })
        .await
    }

    /// Runs a command that brings the guest into a state; being in it already is success.
    pub(super) async fn switch(
        &self,
        id: &ExecutionId,
        verb: &str,
        goal: &str,
    ) -> Result<(), EngineError> {
        let live = self.require(id)?;
        let limit = self.config.command_timeout;
        let Err(error) = self.runsc(&live.build).control(verb, &[], id, limit).await else {
            return Ok(());
        };
        match self.status(id, &live.build).await {
            Ok(status) if status == goal => Ok(()),
            _ => Err(error),
        }
    }

    /// What runsc says of the sandbox: `running`, `paused`, `stopped` and so on.
    pub(super) async fn status(
        &self,
        id: &ExecutionId,
        build: &BuildId,
    ) -> Result<String, EngineError> {
        let limit = self.config.command_timeout;
        let text = self.runsc(build).control("state", &[], id, limit).await?;
        let state: Value = serde_json::from_str(&text).map_err(|error| EngineError::Failed {
            step: format!("read the state of {id}"),
            detail: error.to_string(),
        })?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    pub(super) async fn write_image(
        &self,
        id: &ExecutionId,
        image: &Path,
    ) -> Result<(), EngineError> {
        let live = self.require(id)?;
        let step = format!("write the memory image of {id}");
        let oci = std::fs::read(self.paths.execution(id).oci_spec())
            .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from))
            .map_err(failed(step.clone()))?;
        // Never without -leave-running: a checkpoint that fails would take the sandbox with it.
        let mut options: Vec<OsString> = ["-leave-running", "-compression", "none"]
            .map(OsString::from)
            .into();
        if supports_direct_io(image) {
            options.push("-direct".into());
        }
        options.push("-image-path".into());
        options.push(image.into());
        let runsc = self.runsc(&live.build);
        let limit = self.config.image_timeout;
        let written = match runsc.control("checkpoint", &options, id, limit).await {
            Ok(_) => {
                let version = builds::describe(&self.paths, &live.build).version;
                let record = ImageRecord::new(live.build, version, oci);
                record.write(image).map_err(failed(step))
            }
            Err(EngineError::Failed { step, detail })
                if detail.contains("no space left on device") =>
            {
                tracing::debug!(execution.id = %id, detail, "no space for the image");
                Err(EngineError::NoSpace { step })
            }
            Err(error) => Err(error),
        };
        if written.is_err() {
            let image = image.to_owned();
            blocking(move || image::discard(&image)).await;
        }
        written
    }

    pub(super) async fn wait_for_image_release(&self, id: &ExecutionId) -> Result<(), EngineError> {
        let live = self.require(id)?;
        if !live.restored {
            return Ok(());
        }
        let limit = self.config.image_timeout;
        let control = Control::of(id, &self.paths);
        match control.call(control::WAIT_RESTORE, limit).await {
            Ok(_) => return Ok(()),
            Err(CallError::Failed(error)) => return Err(error),
            Err(CallError::NotAsked(why)) => {
                tracing::debug!(execution.id = %id, why, "waiting with runsc");
            }
        }
        self.runsc(&live.build)
            .control("wait", &["-restore".into()], id, limit)
            .await
            .map(|_| ())
    }

    pub(super) async fn wait_for_exit(&self, id: &ExecutionId) -> ExitReason {
        if let Some(live) = self.known(id) {
            loop {
                match Process::open(live.pid, id.as_str()) {
                    Ok(Some(sentry)) => break sentry.ended().await,
                    Ok(None) => break,
                    // For want of descriptors, perhaps. Whoever hears of an exit gives the guest up.
                    Err(error) => {
                        tracing::warn!(execution.id = %id, %error, "cannot watch the engine, trying again");
                        tokio::time::sleep(WATCH_RETRY).await;
                    }
                }
            }
        }
        if cgroup::was_out_of_memory(&self.paths.cgroup(id)) {
            ExitReason::OutOfMemory
        } else {
            ExitReason::Exited
        }
    }
}

/// Notes that the execution comes from an image, before it does.
pub(super) fn note_restored(directory: &ExecutionDir) -> Result<(), EngineError> {
    let step = format!("note the restore in {}", directory.path().display());
    std::fs::write(directory.restored(), "").map_err(failed(step))
}

/// Creates the directory of an execution that must not have one.
fn write_directory(directory: &ExecutionDir, spec: &ExecutionSpec) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700).create(directory.path())?;
    write_json(&directory.spec(), spec)?;
    for child in [
        directory.disk_mount(),
        directory.rootfs(),
        directory.bundle(),
    ] {
        builder.create(child)?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> io::Result<()> {
    std::fs::write(path, serde_json::to_vec(value)?)
}

pub(super) fn read_spec(directory: &ExecutionDir) -> io::Result<ExecutionSpec> {
    Ok(serde_json::from_slice(&std::fs::read(directory.spec())?)?)
}

pub(super) fn read_number<T: std::str::FromStr>(path: &Path) -> io::Result<T> {
    let text = std::fs::read_to_string(path)?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::other(format!("{} has no number", path.display())))
}

/// Not every filesystem can do direct I/O; asking is cheaper than a failed checkpoint.
fn supports_direct_io(directory: &Path) -> bool {
    let probe = directory.join(".direct");
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT);
    let supported = options.open(&probe).is_ok();
    // A refused open may still have created the file.
    let _ = std::fs::remove_file(probe);
    supported
}
