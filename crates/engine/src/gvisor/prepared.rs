//! Executions that are there but for their memory: mounts, network, sentry and gofer.
//!
//! Only memory of this process knows them. A server that finds one after a crash sees an execution
//! that was never fully started, and destroys it.

use std::path::Path;

use serde_json::Value;

use super::Gvisor;
use super::execution::{Live, note_restored};
use super::image::ImageRecord;
use crate::{EngineError, ExecutionId, ExecutionSpec, StartFrom};

/// What an execution was prepared for.
pub(super) struct Prepared {
    spec: ExecutionSpec,
    /// The specification in its image.
    saved: Value,
}

impl Gvisor {
    fn prepared(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<ExecutionId, Prepared>> {
        self.prepared
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) async fn prepare_execution(
        &self,
        spec: &ExecutionSpec,
        image: &Path,
    ) -> Result<(), EngineError> {
        let record = self.check(spec, StartFrom::Image(image))?;
        let record = record.expect("a start from an image has a record");
        let saved = record.oci_spec.clone();
        self.make_directory(spec)?;
        if let Err(error) = self.create_shell(spec, record).await {
            self.undo_start(&spec.id).await;
            return Err(error);
        }
        let spec = spec.clone();
        self.prepared()
            .insert(spec.id.clone(), Prepared { spec, saved });
        Ok(())
    }

    async fn create_shell(
        &self,
        spec: &ExecutionSpec,
        record: ImageRecord,
    ) -> Result<(), EngineError> {
        let directory = self.paths.execution(&spec.id);
        let _turn = self.lay_out(spec, Some(record)).await?;
        let limit = self.config.start_timeout;
        let runsc = self.runsc(&spec.build);
        runsc.create(&spec.id, &directory, limit).await
    }

    /// Whether what is needed was prepared. Anything else that was prepared under this id is removed.
    pub(super) async fn take_prepared(
        &self,
        spec: &ExecutionSpec,
        record: Option<&ImageRecord>,
    ) -> Result<bool, EngineError> {
        let Some(prepared) = self.prepared().remove(&spec.id) else {
            return Ok(false);
        };
        if prepared.spec == *spec && record.is_some_and(|it| it.oci_spec == prepared.saved) {
            return Ok(true);
        }
        self.destroy_execution(&spec.id).await?;
        Ok(false)
    }

    /// Restores into what was prepared.
    pub(super) async fn go_on(
        &self,
        spec: &ExecutionSpec,
        from: StartFrom<'_>,
        guest_may_have_run: &mut bool,
    ) -> Result<Live, EngineError> {
        let StartFrom::Image(image) = from else {
            unreachable!("only restores are prepared");
        };
        let id = &spec.id;
        let directory = self.paths.execution(id);
        let _turn = self.turns.acquire().await;
        note_restored(&directory)?;
        *guest_may_have_run = true;
        let limit = self.config.start_timeout;
        let runsc = self.runsc(&spec.build);
        runsc.restore(id, &directory, image, limit).await?;
        Live::read(&directory).map_err(super::failed(format!("read the state of {id}")))
    }

    /// Ends all that were prepared and not started: no later server could use them.
    pub(super) async fn end_prepared(&self) {
        let ids: Vec<ExecutionId> = self.prepared().keys().cloned().collect();
        for id in ids {
            self.undo_start(&id).await;
        }
    }

    /// Forgets that an execution was prepared, before it is destroyed.
    pub(super) fn forget_prepared(&self, id: &ExecutionId) {
        self.prepared().remove(id);
    }
}
