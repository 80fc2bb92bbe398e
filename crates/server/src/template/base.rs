//! The template named `base`: built at first start, then reused until something it is made of
//! changes (the tree, the agent, the engine build, the limits).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::PrepareRequest;
use engine::{Engine, EngineError, ExecutionId, ExecutionSpec, Limits, NetworkPolicy, StartFrom};
use serde::{Deserialize, Serialize};
use snapshot::{EngineIdentity, ImageError, ImageId, Images, Subject};
use time::OffsetDateTime;

use super::{Template, rootfs};
use crate::guest::{Guest, GuestError};

const ALIAS: &str = "base";
const DESCRIPTION: &str = "template.json";
/// How long the agent of the template's only boot may take.
const AGENT_LIMIT: Duration = Duration::from_secs(60);

/// What the base template is made of.
#[derive(Clone, Debug)]
pub struct BaseOptions {
    /// The server's data directory.
    pub data_dir: PathBuf,
    /// The agent's static binary.
    pub agent: PathBuf,
    /// A tree to use in place instead of building one.
    pub rootfs: Option<PathBuf>,
    /// What sandboxes may use.
    pub limits: Limits,
}

/// Why the base template could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The Debian tree could not be built.
    #[error("build the root file system of the base template")]
    Rootfs(#[from] rootfs::RootfsError),
    /// The engine failed.
    #[error("run the base template once")]
    Engine(#[from] EngineError),
    /// Its agent did not come up.
    #[error("the agent of the base template did not answer within {AGENT_LIMIT:?}")]
    Agent(#[source] GuestError),
    /// Its image could not be written or read.
    #[error("store the base template's image")]
    Image(#[from] ImageError),
    /// The file system failed.
    #[error("{step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which path.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TemplateError {
    let path = path.to_owned();
    move |source| TemplateError::Io { step, path, source }
}

/// `template.json`.
#[derive(Serialize, Deserialize)]
struct Description {
    alias: String,
    layers: Vec<PathBuf>,
    limits: Limits,
    image: ImageId,
}

/// The base template, built now if it is not there yet. `progress` is told each long step.
pub async fn ensure_base(
    engine: &Arc<dyn Engine>,
    options: &BaseOptions,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<Template, TemplateError> {
    let layers = ensure_layers(options, progress).await?;
    let recipe = rootfs::recipe_of(&options.data_dir.join(&layers[1]));
    let id = template_id(engine, &layers, &recipe, &options.limits);
    let directory = options.data_dir.join("templates").join(&id);
    match open(&id, &directory) {
        Ok(Some(template)) => return Ok(template),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(template.id = id, error = %error, "the base template is damaged, building it again");
        }
    }
    progress("starting the base template once, to snapshot it with its agent up");
    let started = Instant::now();
    build(engine, options, &layers, &directory).await?;
    tracing::info!(
        template.id = id,
        duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "base template snapshot made"
    );
    let built = open(&id, &directory)?;
    built.ok_or_else(|| io_error("open", &directory)(io::ErrorKind::NotFound.into()))
}

/// The layers, topmost first: agent, then tree.
async fn ensure_layers(
    options: &BaseOptions,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<[PathBuf; 2], TemplateError> {
    let rootfs = match &options.rootfs {
        Some(given) => fs::canonicalize(given).map_err(io_error("find", given))?,
        None => {
            let layer = PathBuf::from("layers").join(format!("rootfs-{}", rootfs::RECIPE));
            let target = options.data_dir.join(&layer);
            if !target.exists() {
                rootfs::build(&target, progress).await?;
            }
            layer
        }
    };
    let content = fs::read(&options.agent).map_err(io_error("read the agent", &options.agent))?;
    let hash = blake3::hash(&content).to_hex();
    let layer = PathBuf::from("layers").join(format!("agent-{}", &hash[..16]));
    let target = options.data_dir.join(&layer);
    if !target.exists() {
        write_agent_layer(&content, &target)?;
    }
    Ok([layer, rootfs])
}

/// A layer with the agent and nothing else, complete under its name or not there.
fn write_agent_layer(content: &[u8], target: &Path) -> Result<(), TemplateError> {
    use std::os::unix::fs::PermissionsExt;
    let partial = target.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io_error("remove", &partial))?;
    }
    let bin = partial.join("usr/local/bin");
    fs::create_dir_all(&bin).map_err(io_error("create", &bin))?;
    for directory in [
        &partial,
        &partial.join("usr"),
        &partial.join("usr/local"),
        &bin,
    ] {
        // /usr/local and its bin are writable for everybody in the tree below (`npm -g`, pip); this
        // layer must not hide that.
        let local = directory.ends_with("usr/local") || *directory == bin;
        let mode = if local { 0o777 } else { 0o755 };
        fs::set_permissions(directory, fs::Permissions::from_mode(mode))
            .map_err(io_error("set the mode of", directory))?;
    }
    let agent = bin.join("sandbase-agent");
    fs::write(&agent, content).map_err(io_error("write", &agent))?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))
        .map_err(io_error("set the mode of", &agent))?;
    let file = fs::File::open(&agent).map_err(io_error("open", &agent))?;
    file.sync_all().map_err(io_error("fsync", &agent))?;
    fs::rename(&partial, target).map_err(io_error("rename", target))
}

/// Named by everything it depends on, so that a change makes another template. A tree used in place
/// may be rebuilt under its path: what it says of itself counts, too.
fn template_id(
    engine: &Arc<dyn Engine>,
    layers: &[PathBuf],
    recipe: &str,
    limits: &Limits,
) -> String {
    let ingredients = format!("2 {:?} {layers:?} {recipe} {limits:?}", engine.build().id);
    blake3::hash(ingredients.as_bytes()).to_hex()[..20].to_owned()
}

/// The finished template, `None` when there is none.
fn open(id: &str, directory: &Path) -> Result<Option<Template>, TemplateError> {
    let path = directory.join(DESCRIPTION);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let description: Description = serde_json::from_slice(&text)
        .map_err(|error| io_error("understand", &path)(io::Error::other(error)))?;
    let images = Images::new(directory.join("images"));
    let manifest = images.check(&description.image)?;
    Ok(Some(Template {
        id: id.to_owned(),
        alias: description.alias,
        layers: description.layers,
        disk: directory.join("disk"),
        images,
        manifest,
        limits: description.limits,
    }))
}

/// Boots the layers once, waits for the agent, and keeps disk and memory.
async fn build(
    engine: &Arc<dyn Engine>,
    options: &BaseOptions,
    layers: &[PathBuf],
    directory: &Path,
) -> Result<(), TemplateError> {
    let partial = directory.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io_error("remove", &partial))?;
    }
    fs::create_dir_all(&partial).map_err(io_error("create", &partial))?;
    let disk = partial.join("disk");
    engine.create_disk(&disk, options.limits.disk_bytes).await?;
    let execution = ExecutionId::random();
    let spec = ExecutionSpec {
        id: execution.clone(),
        build: engine.build().id.clone(),
        layers: layers
            .iter()
            .map(|layer| options.data_dir.join(layer))
            .collect(),
        sealed: Vec::new(),
        disk,
        hostname: ALIAS.to_owned(),
        limits: options.limits,
        network: NetworkPolicy::Closed,
    };
    engine
        .start(&spec, StartFrom::Boot)
        .await
        .map_err(|error| error.source)?;
    let made = snapshot(engine, options, layers, &execution, &partial).await;
    engine.destroy(&execution).await?;
    let image = made?;
    let description = Description {
        alias: ALIAS.to_owned(),
        layers: layers.to_vec(),
        limits: options.limits,
        image,
    };
    let path = partial.join(DESCRIPTION);
    let text = serde_json::to_vec_pretty(&description)
        .map_err(|error| io_error("encode", &path)(io::Error::other(error)))?;
    fs::write(&path, text).map_err(io_error("write", &path))?;
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(io_error("remove", directory))?;
    }
    let synced = fs::File::open(&path).map_err(io_error("open", &path))?;
    rustix::fs::syncfs(&synced).map_err(|error| io_error("sync", &path)(error.into()))?;
    fs::rename(&partial, directory).map_err(io_error("rename", directory))
}

async fn snapshot(
    engine: &Arc<dyn Engine>,
    options: &BaseOptions,
    layers: &[PathBuf],
    execution: &ExecutionId,
    partial: &Path,
) -> Result<ImageId, TemplateError> {
    let guest = Guest::new(Arc::clone(engine), execution.clone());
    wait_for_agent(&guest).await?;
    let prepare = PrepareRequest::default();
    let prepared = guest.prepare(&prepare).await;
    prepared.map_err(TemplateError::Agent)?;
    engine.freeze(execution).await?;
    let image = ImageId::random();
    let staging = Images::new(partial.join("images")).stage(&image)?;
    engine.checkpoint(execution, staging.path()).await?;
    engine.sync_disk(execution).await?;
    let build = engine.build_of(execution)?;
    let identity = EngineIdentity {
        engine: build.engine,
        version: build.version,
        build: build.id.0,
    };
    let subject = Subject {
        owner: ALIAS.to_owned(),
        layers: layers.to_vec(),
        memory_bytes: options.limits.memory_bytes,
        cpu_milli: options.limits.cpu_milli,
        frozen_at_ns: OffsetDateTime::now_utc().unix_timestamp_nanos(),
    };
    staging.commit(identity, subject)?;
    Ok(image)
}

async fn wait_for_agent(guest: &Guest) -> Result<(), TemplateError> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match guest.health().await {
            Ok(()) => return Ok(()),
            Err(error) if started.elapsed() > AGENT_LIMIT => {
                return Err(TemplateError::Agent(error));
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
