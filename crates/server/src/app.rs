//! From a configuration to a serving server, and down again.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use engine::Engine;
use engine::gvisor::{self, Gvisor};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{ApiKey, HttpState};
use crate::config::{Config, OnShutdown};
use crate::db::Db;
use crate::history::{self, History};
use crate::listener;
use crate::memory_watch;
use crate::sandbox::{Faults, Parts, Sandboxes};
use crate::template::{self, BaseOptions, Templates};
use crate::transfer::EngineBuilds;

/// How long transitions in flight may take to end when the server is told to stop. Whatever does
/// not end in this time is finished or undone at the next start.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);
/// How long writing the last events may take.
const EVENTS_LIMIT: Duration = Duration::from_secs(5);
/// How long pausing all running sandboxes may take before, if that is wanted.
const PAUSE_LIMIT: Duration = Duration::from_secs(600);

/// Serves until SIGTERM or SIGINT. Running sandboxes go on running without the server and are
/// taken over by the next one. `faults` is for tests; [`Faults::default`] has none.
pub async fn serve(config: Config, faults: Faults) -> anyhow::Result<()> {
    crate::limits::raise_open_files();
    let data_dir = prepare_data_dir(&config.data_dir)?;
    let _only_server = lock(&data_dir)?;
    let key = ApiKey::load_or_create(&data_dir.join("api-key")).context("get the API key")?;
    // Before anything slow: an address in use is said at once.
    let listeners = bind(&config).await?;
    let engine = open_engine(&config, &data_dir)?;

    let base = BaseOptions {
        data_dir: data_dir.clone(),
        agent: agent_binary(&config)?,
        rootfs: config.template.base_rootfs.clone(),
        limits: config.sandbox.limits(),
    };
    let say = |step: &str| tracing::info!("{step}");
    let base = template::ensure_base(&engine, &base, &say)
        .await
        .context("make template base")?;

    let db = Db::open(&data_dir.join("sandbase.db")).context("open the journal")?;
    let history = History::open(&data_dir.join("history.db"));
    let history = history.context("open metrics, logs and events")?;
    let journaled = db.load_all().await.context("read the journal")?;
    if let Err(error) = history.catch_up(&journaled).await {
        tracing::warn!(error = ?error, "events could not be caught up with the journal");
    }
    let tasks = TaskTracker::new();
    let sandboxes = Sandboxes::open(Parts {
        engine: Arc::clone(&engine),
        db,
        data_dir,
        settings: config.settings(),
        templates: Templates::new(vec![Arc::new(base)]),
        events: history.queue().clone(),
        faults,
        tasks: tasks.clone(),
    });
    let sandboxes = Arc::new(sandboxes.await.context("take over the sandboxes")?);

    let domain = config.domain();
    print_exports(&domain, &key).context("print how to use the server")?;
    let mut state = HttpState::new(
        Arc::clone(&sandboxes),
        history.clone(),
        key,
        domain,
        config.sandbox_hosts.clone(),
    );
    if config.import.engine_builds {
        state.engine_builds = EngineBuilds::Keep;
    }
    let requests = state.tasks.clone();
    let shutdown = CancellationToken::new();
    let recording = history::record(Arc::clone(&sandboxes), history.clone(), shutdown.clone());
    tasks.spawn(recording);
    tasks.spawn(memory_watch::watch(
        Arc::clone(&sandboxes),
        shutdown.clone(),
    ));
    let serving = tokio::spawn(listener::serve(listeners, state, shutdown.clone()));
    wait_for_signal().await?;
    let on_shutdown = config.sandbox.on_shutdown;
    match on_shutdown {
        OnShutdown::Leave => tracing::info!("stopping; running sandboxes go on without the server"),
        OnShutdown::Pause => tracing::info!("stopping; running sandboxes are paused first"),
    }
    shutdown.cancel();
    requests.close();
    // The pauses first: open connections into sandboxes end with them, and with nothing else.
    if on_shutdown == OnShutdown::Pause
        && tokio::time::timeout(PAUSE_LIMIT, sandboxes.pause_all())
            .await
            .is_err()
    {
        tracing::error!(limit = ?PAUSE_LIMIT, "not all sandboxes were paused in time; the others run on");
    }
    let settled = async { tokio::join!(sandboxes.settle(), requests.wait()) };
    if tokio::time::timeout(SHUTDOWN_LIMIT, settled).await.is_err() {
        tracing::warn!("a transition did not end in time; the next start finishes or undoes it");
    }
    // Those that do not get written in time are caught up with by the next start.
    if let Ok(Err(error)) = tokio::time::timeout(EVENTS_LIMIT, history.write_events()).await {
        tracing::warn!(error = ?error, "the last events could not be written");
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), serving).await;
    if tokio::time::timeout(SHUTDOWN_LIMIT, sandboxes.close())
        .await
        .is_err()
    {
        tracing::warn!("not all that was held in memory is gone; the next start removes it");
    }
    engine.close().await;
    Ok(())
}

fn prepare_data_dir(path: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)
        .with_context(|| format!("create the data directory {}", path.display()))?;
    // It holds the memory of every sandbox.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("make {} private", path.display()))?;
    path.canonicalize()
        .with_context(|| format!("resolve {}", path.display()))
}

/// Two servers on one data directory would both drive its sandboxes.
fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    if locked.is_err() {
        bail!(
            "another sandbase server is using {}; stop it, or choose another --data-dir",
            data_dir.display()
        );
    }
    Ok(file)
}

async fn bind(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            // A host without IPv6 still has its first address.
            Err(error) if !listeners.is_empty() && address.is_ipv6() => {
                tracing::warn!(%address, %error, "not listening on this address");
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("listen on {address}; choose another with --listen ADDR:PORT")
                });
            }
        }
    }
    Ok(listeners)
}

/// The engine's settings for this configuration.
pub fn engine_config(config: &Config, data_dir: &Path) -> gvisor::Config {
    let mut engine = gvisor::Config::new(data_dir, &config.engine.runsc);
    engine.uplink_network = config.engine.uplink_network;
    engine.uplink_prefix = config.engine.uplink_prefix;
    engine.ready_slots = config.engine.ready_slots;
    engine.large_pages = config.engine.large_pages;
    engine
}

fn open_engine(config: &Config, data_dir: &Path) -> anyhow::Result<Arc<dyn Engine>> {
    let engine = Gvisor::open(engine_config(config, data_dir));
    let engine = engine.context("open the engine; `sandbase doctor` checks this host")?;
    tracing::info!(
        version = engine.build().version,
        build = engine.build().id.0,
        "engine ready"
    );
    Ok(Arc::new(engine))
}

/// The configured agent, else the one beside the server's program, else the installed one.
pub fn agent_binary(config: &Config) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("find the server's own program")?;
    let candidates = match &config.template.agent {
        Some(agent) => vec![agent.clone()],
        None => vec![
            program.with_file_name("sandbase-agent"),
            PathBuf::from("/usr/local/lib/sandbase/sandbase-agent"),
        ],
    };
    if let Some(found) = candidates.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    let tried = candidates
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>();
    bail!(
        "the agent's binary is missing (looked for {}); ./run builds it",
        tried.join(" and ")
    )
}

#[expect(
    clippy::print_stdout,
    reason = "the lines a user copies belong on standard output"
)]
fn print_exports(domain: &str, key: &ApiKey) -> std::io::Result<()> {
    let url = format!("http://{domain}");
    println!("SandBase is ready. In the shell of your E2B programs:\n");
    println!("export E2B_API_URL={url}");
    println!("export E2B_SANDBOX_URL={url}");
    println!("export E2B_API_KEY={}\n", key.e2b());
    std::io::stdout().flush()
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
