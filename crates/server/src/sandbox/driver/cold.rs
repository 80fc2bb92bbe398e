//! The image of a sandbox that has been paused for long is packed.
//!
//! Nothing about the sandbox changes by it. It is the driver's own work, so that nobody reads the image
//! meanwhile, and it stops as soon as anything is asked of the sandbox.

use std::sync::Arc;

use snapshot::Packing;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Driver;
use crate::sandbox::state::State;
use crate::sandbox::transition::blocking;

/// Packing under way, or done with.
pub(super) struct Cooling {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Driver {
    /// When the image is to be packed; `None` when there is none, or this was tried already.
    pub(super) fn cold_at(&self) -> Option<OffsetDateTime> {
        let after = Duration::try_from(self.context.settings.pack_after?).ok()?;
        match &self.record.state {
            State::Paused { saved } if self.cooling.is_none() && saved.image().is_some() => {
                // Beyond the end of time means never.
                self.record.run.end_at.checked_add(after)
            }
            _ => None,
        }
    }

    /// Begins to pack the image.
    pub(super) fn cool(&mut self) {
        let State::Paused { saved } = &self.record.state else {
            return;
        };
        let Some(image) = saved.image().cloned() else {
            return;
        };
        let images = self.context.files(&self.record).images();
        let stop = CancellationToken::new();
        let (context, stopped) = (Arc::clone(&self.context), stop.clone());
        let sandbox = self.record.id.clone();
        let task = self.context.tasks.spawn(async move {
            // One at a time, and there may be many whose turn comes late.
            let _turn = tokio::select! {
                () = stopped.cancelled() => return,
                turn = context.packing.acquire() => turn,
            };
            let host = Arc::clone(&context);
            let packing = blocking(move || {
                let bytes = images.size_bytes(&image)?;
                // For a moment both are there.
                if host.check_free_space(bytes).is_err() {
                    return Ok(Packing::NotWorthIt);
                }
                images.pack(&image, &|| !stopped.is_cancelled())
            });
            match packing.await {
                Ok(Packing::Packed { before, after }) => {
                    tracing::info!(sandbox.id = %sandbox, before, after, "the image of a paused sandbox is packed");
                }
                Ok(Packing::NotWorthIt | Packing::Stopped) => {}
                Err(error) => {
                    tracing::warn!(sandbox.id = %sandbox, %error, "an image could not be packed");
                }
            }
        });
        self.cooling = Some(Cooling { stop, task });
    }

    /// Stops packing, and waits until it has stopped.
    pub(super) async fn stop_cooling(&mut self) {
        if let Some(Cooling { stop, task }) = self.cooling.take() {
            stop.cancel();
            // It was not aborted, and a panic in it is reported by the runtime.
            let _ = task.await;
        }
    }
}
