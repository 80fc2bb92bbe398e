//! A test host: one engine with a data directory of its own, and guests to talk to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::traces;
use engine::gvisor::{Config, Gvisor};
use engine::{Engine, ExecutionId, ExecutionSpec, Limits, NetworkPolicy, StartError, StartFrom};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const GUEST: &str = include_str!("guest.py");
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An engine on a data directory that is removed at the end.
pub(crate) struct Host {
    pub(crate) engine: Arc<Gvisor>,
    guard: Guard,
    pub(crate) config: Config,
    folder: tempfile::TempDir,
    rootfs: PathBuf,
}

impl Host {
    /// Opens an engine, or fails the test with what is missing.
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sandbase-engine-")
            .tempdir()
            .unwrap();
        let config = config(&folder.path().join("data"));
        let rootfs = from_environment("SANDBASE_TEST_ROOTFS", "/var/cache/sandbase/rootfs");
        assert!(
            rootfs.join("usr/bin/python3").exists(),
            "no test root filesystem with python3 at {}: set SANDBASE_TEST_ROOTFS",
            rootfs.display()
        );
        let engine = open(config.clone());
        let guard = Guard {
            engine: Some(engine.clone()),
            tag: tag_of(&config),
        };
        Self {
            engine,
            guard,
            config,
            folder,
            rootfs,
        }
    }

    /// Drops the engine as a server's end does, and opens another one on the same directory.
    pub(crate) fn restart(self) -> Self {
        let Self {
            engine,
            mut guard,
            config,
            folder,
            rootfs,
        } = self;
        guard.engine = None;
        drop(engine);
        let engine = open(config.clone());
        guard.engine = Some(engine.clone());
        Self {
            engine,
            guard,
            config,
            folder,
            rootfs,
        }
    }

    /// The tag that all names of this host carry.
    pub(crate) fn tag(&self) -> String {
        tag_of(&self.config)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A fresh empty directory.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    pub(crate) fn spec(&self, disk: &str) -> ExecutionSpec {
        ExecutionSpec {
            id: ExecutionId::random(),
            build: self.engine.build().id.clone(),
            layers: vec![self.rootfs.clone()],
            sealed: Vec::new(),
            disk: self.path(disk),
            hostname: "sandbox".to_owned(),
            limits: Limits {
                cpu_milli: 2000,
                memory_bytes: 512 * MIB,
                disk_bytes: 1024 * MIB,
                pids: 2048,
            },
            network: NetworkPolicy::Internet,
        }
    }

    /// Boots a guest on a new disk and waits until it answers.
    pub(crate) async fn boot(&self, disk: &str) -> ExecutionSpec {
        let spec = self.spec(disk);
        self.boot_with(&spec).await;
        spec
    }

    pub(crate) async fn boot_with(&self, spec: &ExecutionSpec) {
        self.engine
            .create_disk(&spec.disk, spec.limits.disk_bytes)
            .await
            .unwrap();
        self.engine
            .start(spec, StartFrom::Boot)
            .await
            .unwrap_or_else(|e| panic!("{e:?}"));
        self.answers(&spec.id).await;
    }

    /// Restores an image over the disk of `spec` under a new id.
    pub(crate) async fn restore(&self, spec: &ExecutionSpec, image: &Path) -> ExecutionSpec {
        let spec = self
            .try_restore(spec, image)
            .await
            .unwrap_or_else(|e| panic!("{e:?}"));
        self.answers(&spec.id).await;
        spec
    }

    pub(crate) async fn try_restore(
        &self,
        spec: &ExecutionSpec,
        image: &Path,
    ) -> Result<ExecutionSpec, StartError> {
        let spec = ExecutionSpec {
            id: ExecutionId::random(),
            ..spec.clone()
        };
        self.engine.start(&spec, StartFrom::Image(image)).await?;
        Ok(spec)
    }

    /// What a pause does: freeze, checkpoint, sync, destroy.
    pub(crate) async fn pause(&self, spec: &ExecutionSpec, image: &Path) {
        self.engine.freeze(&spec.id).await.unwrap();
        self.engine.checkpoint(&spec.id, image).await.unwrap();
        self.engine.sync_disk(&spec.id).await.unwrap();
        self.engine.destroy(&spec.id).await.unwrap();
    }

    pub(crate) async fn answers(&self, id: &ExecutionId) {
        let begin = Instant::now();
        loop {
            match self.try_run(id, "r = 1").await {
                Ok(_) => return,
                Err(error) if begin.elapsed() > PATIENCE => panic!("no answer: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Runs Python in the guest and answers the variable `r`.
    pub(crate) async fn run(&self, id: &ExecutionId, code: &str) -> Value {
        self.try_run(id, code)
            .await
            .unwrap_or_else(|error| panic!("{code}: {error}"))
    }

    pub(crate) async fn try_run(&self, id: &ExecutionId, code: &str) -> Result<Value, String> {
        let exchange = async {
            let mut stream = self.engine.dial(id, 9000).await?;
            let request = serde_json::to_string(code).unwrap() + "\n";
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| "timeout".to_owned())?
            .map_err(|error| error.to_string())?;
        let mut answer: Value =
            serde_json::from_str(&answer).map_err(|error| format!("{answer:?}: {error}"))?;
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer["ok"].take()),
        }
    }

    /// Destroys what is left, ends the engine and checks that the machine is as before.
    pub(crate) async fn close(self) {
        for found in self.engine.find().await.unwrap() {
            self.engine.destroy(&found.id).await.unwrap();
        }
        let tag = self.tag();
        let Self {
            engine,
            mut guard,
            folder,
            ..
        } = self;
        guard.engine = None;
        engine.close().await;
        drop(engine);
        traces::none_within(&tag, folder.path(), PATIENCE);
        let run = PathBuf::from(format!("/run/sandbase/{tag}"));
        assert!(!run.exists(), "{} is left behind", run.display());
    }
}

/// Cleans up after a test, after a failed one as well.
struct Guard {
    engine: Option<Arc<Gvisor>>,
    tag: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            // Not on this thread: it is one of a runtime that may be going down.
            let cleaning = std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(async {
                    for found in engine.find().await.unwrap_or_default() {
                        if let Err(error) = engine.destroy(&found.id).await {
                            println!("cleaning up: {error}");
                        }
                    }
                });
            });
            let _ = cleaning.join();
        }
        traces::remove_shared(&self.tag);
    }
}

fn tag_of(config: &Config) -> String {
    use std::os::unix::fs::MetadataExt;
    let data = config.data_dir.metadata().unwrap();
    let place = [data.dev().to_le_bytes(), data.ino().to_le_bytes()].concat();
    blake3::hash(&place).to_hex()[..8].to_owned()
}

fn open(config: Config) -> Arc<Gvisor> {
    let engine = Gvisor::open(config).unwrap_or_else(|error| {
        use std::error::Error;
        panic!(
            "the engine cannot be opened (these tests need root): {error}: {:?}",
            error.source()
        )
    });
    Arc::new(engine)
}

pub(crate) fn config(data_dir: &Path) -> Config {
    let runsc = from_environment("SANDBASE_RUNSC", "/usr/local/lib/sandbase/engine/runsc");
    assert!(
        runsc.exists(),
        "no runsc at {}: set SANDBASE_RUNSC",
        runsc.display()
    );
    let mut config = Config::new(data_dir, runsc);
    config.init = ["/usr/bin/python3", "-c", GUEST].map(str::to_owned).into();
    config.command_timeout = Duration::from_secs(15);
    config
}

pub(crate) fn from_environment(name: &str, default: &str) -> PathBuf {
    std::env::var_os(name).map_or_else(|| default.into(), PathBuf::from)
}
