//! A server's sandboxes on a fake host that outlives them.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::fake::{Fake, FakeHost};
use engine::{Engine, ExecutionId, Limits};
use server::db::Db;
use server::sandbox::state::State;
use server::sandbox::{
    CreateRequest, Event, Events, Fault, Faults, HookFailure, HookSettings, Lifecycle, OnTimeout,
    Parts, PauseMode, PauseRequest, PublicState, SandboxError, SandboxId, Sandboxes, Settings,
    Step, WarmSettings,
};
use server::template::{BaseOptions, Template, Templates, ensure_base};
use tokio_util::task::TaskTracker;

pub(crate) const FULL: PauseRequest = PauseRequest {
    mode: PauseMode::Full,
    require_healthy_guest: false,
};
pub(crate) const DISK_ONLY: PauseRequest = PauseRequest {
    mode: PauseMode::Filesystem,
    require_healthy_guest: false,
};
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A data directory and a host; servers come and go on them.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) host: Arc<FakeHost>,
    pub(crate) faults: Arc<Mutex<VecDeque<(Step, Fault)>>>,
    pub(crate) boot_without_memory: bool,
    pub(crate) free_space_reserve: u64,
    /// Where the servers tell what happens.
    pub(crate) events: Events,
    pub(crate) warm: WarmSettings,
    pub(crate) pool: usize,
    pub(crate) pack_after: Option<Duration>,
    pub(crate) disk_wait: Duration,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            host: FakeHost::new(),
            faults: Arc::default(),
            boot_without_memory: true,
            free_space_reserve: 0,
            events: Events::default(),
            warm: WarmSettings::OFF,
            pool: 0,
            pack_after: None,
            disk_wait: MINUTE,
        }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// At the next reach of `step` this happens, once.
    pub(crate) fn inject(&self, step: Step, fault: Fault) {
        self.faults.lock().unwrap().push_back((step, fault));
    }

    pub(crate) fn faults_left(&self) -> usize {
        self.faults.lock().unwrap().len()
    }

    async fn template(&self, engine: &Arc<dyn Engine>) -> Template {
        let (agent, rootfs) = (
            self.folder.path().join("agent"),
            self.folder.path().join("tree"),
        );
        std::fs::write(&agent, b"agent").unwrap();
        std::fs::create_dir_all(&rootfs).unwrap();
        std::fs::create_dir_all(self.data_dir()).unwrap();
        let options = BaseOptions {
            data_dir: self.data_dir(),
            agent,
            rootfs: Some(rootfs),
            limits: Limits {
                cpu_milli: 2000,
                memory_bytes: 512 << 20,
                disk_bytes: 1 << 30,
                pids: 100,
            },
        };
        ensure_base(engine, &options, &|_| {}).await.unwrap()
    }

    /// Starts a server here, on the runtime it is called on.
    pub(crate) async fn open(&self) -> Sandboxes {
        let engine: Arc<dyn Engine> = Arc::new(Fake::new(Arc::clone(&self.host)));
        let template = self.template(&engine).await;
        let faults = Arc::clone(&self.faults);
        let faults = Faults::new(move |step| {
            let mut waiting = faults.lock().unwrap();
            match waiting.iter().position(|(at, _)| *at == step) {
                Some(index) => waiting.remove(index).unwrap().1,
                None => Fault::None,
            }
        });
        let parts = Parts {
            engine,
            db: Db::open(&self.data_dir().join("sandbase.db")).unwrap(),
            data_dir: self.data_dir(),
            settings: Settings {
                max_run: Duration::from_secs(3600),
                max_running: 10,
                agent_start_timeout: Duration::from_secs(2),
                agent_prepare_timeout: Duration::from_secs(2),
                hooks: HookSettings {
                    each: Duration::from_secs(1),
                    all: Duration::from_secs(2),
                    pre_pause_failure: HookFailure::Ignore,
                },
                boot_without_memory: self.boot_without_memory,
                warm: self.warm,
                pool: self.pool,
                pack_after: self.pack_after,
                disk_wait: self.disk_wait,
                free_space_reserve: self.free_space_reserve,
            },
            templates: Templates::new(vec![Arc::new(template)]),
            events: self.events.clone(),
            faults,
            tasks: TaskTracker::new(),
        };
        Sandboxes::open(parts).await.unwrap()
    }

    /// The one execution on the host.
    pub(crate) fn execution(&self) -> ExecutionId {
        let all = self.host.executions();
        assert_eq!(all.len(), 1, "exactly one execution is expected: {all:?}");
        all[0].clone()
    }

    /// Nothing is left of any sandbox, and no rule was broken.
    pub(crate) async fn assert_clean(&self) {
        assert_eq!(self.host.executions(), vec![]);
        assert_eq!(self.directories(), Vec::<PathBuf>::new());
        let db = Db::open(&self.data_dir().join("sandbase.db")).unwrap();
        assert_eq!(db.load_all().await.unwrap(), vec![]);
        assert_eq!(db.load_snapshots().await.unwrap(), vec![]);
        assert_eq!(self.snapshot_directories(), Vec::<PathBuf>::new());
        assert_eq!(self.host.violations(), Vec::<String>::new());
    }

    /// Directories of sandboxes.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let listed = std::fs::read_dir(self.data_dir().join("sandboxes"));
        listed
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    /// Images of sandboxes, finished or not.
    pub(crate) fn images(&self) -> Vec<PathBuf> {
        let listed = self.directories().into_iter().map(|it| it.join("images"));
        let listed = listed.filter_map(|images| std::fs::read_dir(images).ok());
        listed
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    /// Directories of snapshots, finished or not.
    pub(crate) fn snapshot_directories(&self) -> Vec<PathBuf> {
        let listed = std::fs::read_dir(self.data_dir().join("snapshots"));
        listed
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    /// What was told of a sandbox and nobody took yet, oldest first.
    pub(crate) fn events_of(&self, id: &SandboxId) -> Vec<Event> {
        let events = self.events.waiting();
        events
            .into_iter()
            .filter(|event| event.sandbox == *id)
            .collect()
    }

    /// The execution that is not one of these.
    pub(crate) fn execution_beside(&self, others: &[ExecutionId]) -> ExecutionId {
        let all = self.host.executions();
        let mut new = all.iter().filter(|id| !others.contains(id));
        let found = new.next().expect("another execution").clone();
        assert_eq!(new.next(), None, "only one other execution is expected");
        found
    }

    /// What the journal says about a sandbox.
    pub(crate) async fn journaled(&self, id: &SandboxId) -> Option<State> {
        let db = Db::open(&self.data_dir().join("sandbase.db")).unwrap();
        let all = db.load_all().await.unwrap();
        all.into_iter()
            .find(|record| record.id == *id)
            .map(|record| record.state)
    }

    /// Staging directories of any sandbox.
    pub(crate) fn staging(&self) -> Vec<PathBuf> {
        fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(".staging-") {
                    found.push(entry.path());
                }
                if entry.path().is_dir() {
                    walk(&entry.path(), found);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.data_dir().join("sandboxes"), &mut found);
        walk(&self.data_dir().join("snapshots"), &mut found);
        found
    }
}

/// Every step with every way to fail there.
pub(crate) fn failures() -> impl Iterator<Item = (Step, Fault)> {
    let faults = [Fault::Fail, Fault::NoSpace, Fault::Io];
    let steps = Step::ALL.into_iter();
    steps.flat_map(move |step| faults.map(|fault| (step, fault)))
}

/// The caller is told what it was.
pub(crate) fn assert_told(fault: Fault, error: &SandboxError) {
    let right = match fault {
        Fault::NoSpace => matches!(error, SandboxError::NoSpace(_)),
        Fault::Fail | Fault::Io => matches!(error, SandboxError::Failed { .. }),
        Fault::None | Fault::Stop => false,
    };
    assert!(right, "{fault:?}: {error}");
}

/// What a fake guest answers on its ports: the counter in its memory.
pub(crate) async fn ask_counter(mut stream: tokio::net::TcpStream) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.parse().unwrap()
}

pub(crate) fn request() -> CreateRequest {
    CreateRequest {
        template: "base".to_owned(),
        timeout: MINUTE,
        lifecycle: Lifecycle {
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
        },
        metadata: BTreeMap::from([("job".to_owned(), "42".to_owned())]),
        env_vars: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
        allow_internet_access: None,
        ingress: Default::default(),
    }
}

/// A running sandbox that has counted to one.
pub(crate) async fn running(place: &Place, sandboxes: &Sandboxes) -> SandboxId {
    let others = place.host.executions();
    let id = create(sandboxes).await;
    assert!(place.host.step(&place.execution_beside(&others)));
    id
}

pub(crate) async fn create(sandboxes: &Sandboxes) -> SandboxId {
    sandboxes.create(request()).await.unwrap().id
}

pub(crate) fn state_of(sandboxes: &Sandboxes, id: &SandboxId) -> Option<PublicState> {
    sandboxes.get(id).ok().map(|view| view.state)
}

/// Waits until `reached`, at most ten seconds.
pub(crate) async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "{what} did not happen"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
