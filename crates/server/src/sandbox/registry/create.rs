//! New sandboxes, from templates, snapshots and running sandboxes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::{ExecutionId, NetworkPolicy};
use futures_util::StreamExt;
use tokio::sync::oneshot;

use super::Sandboxes;
use super::live::Admission;
use crate::sandbox::create::{self, Origin};
use crate::sandbox::driver::{Message, Request, Work};
use crate::sandbox::pool::Prepared;
use crate::sandbox::state::State;
use crate::sandbox::{
    CreateRequest, Disks, Ingress, Record, Run, SandboxError, SandboxId, SandboxSpec, SandboxView,
    SnapshotRequest, rollback,
};
use crate::snapshots::SnapshotUse;

/// Forks started at once: each is a restore, and more than the host has processors gain nothing.
const FORKS_AT_ONCE: usize = 4;

/// What a new sandbox has from its template or snapshot.
struct Base {
    template_id: String,
    alias: String,
    layers: Vec<PathBuf>,
    build: engine::BuildId,
    limits: engine::Limits,
}

impl Sandboxes {
    /// Makes a sandbox and returns when its agent answers.
    pub async fn create(&self, request: CreateRequest) -> Result<SandboxView, SandboxError> {
        let origin = self.origin(&request.template).await?;
        let base = match &origin {
            Origin::Template(template) => Base {
                template_id: template.id.clone(),
                alias: template.alias.clone(),
                layers: template.layers.clone(),
                build: engine::BuildId(template.manifest.engine.build.clone()),
                limits: template.limits,
            },
            Origin::Snapshot(snapshot) => Base {
                template_id: snapshot.id.to_string(),
                alias: snapshot
                    .name
                    .as_ref()
                    .map_or_else(String::new, |name| name.without_tag()),
                layers: snapshot.layers.clone(),
                build: snapshot.build.clone(),
                limits: snapshot.limits,
            },
        };
        let spec = SandboxSpec {
            template_id: base.template_id,
            alias: base.alias,
            layers: base.layers,
            build: base.build,
            limits: base.limits,
            metadata: request.metadata,
            env_vars: request.env_vars,
            access_token: crate::random::hex(32),
            allow_internet_access: request.allow_internet_access,
            ingress: Ingress::new(request.ingress),
            lifecycle: request.lifecycle,
            create_timeout: request.timeout,
        };
        if let Some(created) = self.create_prepared(&spec).await {
            return created;
        }
        self.create_from(origin, spec).await
    }

    /// Makes one of those started ahead of time, if there is one; `None` also when that fails.
    async fn create_prepared(
        &self,
        spec: &SandboxSpec,
    ) -> Option<Result<SandboxView, SandboxError>> {
        let mut pools = self.pools.iter();
        let pool = pools.find(|pool| pool.template_id() == spec.template_id)?;
        // The network of a prepared one is open already.
        if spec.network() != NetworkPolicy::Internet
            || self.check_timeout(spec.create_timeout).is_err()
        {
            return None;
        }
        let admitted = match self.live.admit(self.context.settings.max_running) {
            Ok(admitted) => admitted,
            Err(error) => return Some(Err(error)),
        };
        let Prepared { record, execution } = pool.take()?;
        let record = Record {
            generation: record.generation + 1,
            run: Run::starting_now(spec.create_timeout, self.context.settings.max_run),
            spec: spec.clone(),
            ..record
        };
        let context = Arc::clone(&self.context);
        let work = create::adopt(context, record.clone(), execution);
        match self.created(record, Box::pin(work), admitted).await {
            Ok(view) => Some(Ok(view)),
            Err(SandboxError::ShuttingDown) => Some(Err(SandboxError::ShuttingDown)),
            Err(error) => {
                tracing::warn!(%error, "a prepared sandbox is of no use; making another");
                None
            }
        }
    }

    async fn create_from(
        &self,
        origin: Origin,
        spec: SandboxSpec,
    ) -> Result<SandboxView, SandboxError> {
        self.check_timeout(spec.create_timeout)?;
        let admitted = self.live.admit(self.context.settings.max_running)?;
        let id = SandboxId::random();
        let execution = ExecutionId::random();
        let record = Record {
            id,
            generation: 1,
            state: State::Creating {
                execution: execution.clone(),
            },
            disks: match &origin {
                Origin::Template(_) => Disks::copied(),
                Origin::Snapshot(snapshot) => rollback::disks_on(snapshot),
            },
            run: Run::starting_now(spec.create_timeout, self.context.settings.max_run),
            spec,
        };
        self.context
            .db
            .insert(record.clone())
            .await
            .map_err(|error| SandboxError::Failed {
                action: "create",
                left_as: "gone",
                cause: format!("the journal cannot be written: {error:?}"),
            })?;
        let context = Arc::clone(&self.context);
        let work = create::create(context, record.clone(), origin, execution);
        self.created(record, Box::pin(work), admitted).await
    }

    /// Drives a sandbox that is being made, and answers when it runs.
    async fn created(
        &self,
        record: Record,
        work: Work,
        admitted: Admission,
    ) -> Result<SandboxView, SandboxError> {
        let (reply, answer) = oneshot::channel();
        let message = Message {
            request: Request::Created,
            reply,
        };
        self.drive(record, Some(work), Some(message));
        drop(admitted);
        let answered = answer.await.map_err(|_| SandboxError::ShuttingDown)??;
        answered.view.ok_or(SandboxError::ShuttingDown)
    }

    async fn origin(&self, reference: &str) -> Result<Origin, SandboxError> {
        if let Some(template) = self.templates.find(reference) {
            return Ok(Origin::Template(template));
        }
        let snapshot = self.context.snapshots.lease_named(reference).await;
        snapshot
            .map(Origin::Snapshot)
            .ok_or_else(|| SandboxError::TemplateNotFound(reference.to_owned()))
    }

    /// Starts `count` copies of a running sandbox, which goes on running. Each copy has an answer of
    /// its own.
    pub async fn fork(
        &self,
        id: &SandboxId,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Result<SandboxView, SandboxError>>, SandboxError> {
        self.check_timeout(timeout)?;
        let record = Arc::clone(&self.find(id)?.published.borrow().record);
        match &record.state {
            State::Creating { .. } | State::Killing { .. } => {
                return Err(SandboxError::NotFound(id.clone()));
            }
            state if state.counts_as_running() => {}
            _ => return Err(SandboxError::ForkOfPaused(id.clone())),
        }
        let request = SnapshotRequest {
            name: None,
            usage: SnapshotUse::Fork,
            memory: true,
        };
        let snapshot = self.snapshot(id, request).await?;
        let spec = SandboxSpec {
            create_timeout: timeout,
            ..record.spec.clone()
        };
        let lease = self.context.snapshots.lease(&snapshot.id).await;
        let lease = lease.ok_or_else(|| SandboxError::NotFound(id.clone()))?;
        let copies = futures_util::stream::iter(0..count).map(|_| {
            let spec = SandboxSpec {
                access_token: crate::random::hex(32),
                ingress: spec.ingress.for_another(),
                ..spec.clone()
            };
            self.create_from(Origin::Snapshot(lease.clone()), spec)
        });
        let forks = copies.buffered(FORKS_AT_ONCE).collect().await;
        drop(lease);
        // The copies have names of their own for all they need.
        if let Err(error) = self.context.snapshots.delete(&snapshot.id).await {
            tracing::warn!(snapshot.id = %snapshot.id, %error, "the snapshot of a fork is left for the next start");
        }
        Ok(forks)
    }
}
