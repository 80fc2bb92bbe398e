//! The image of a sandbox that has been paused for long is packed.
//!
//! Nothing about the sandbox changes by it. It is the driver's own work, so that nobody reads the image
//! meanwhile, and it stops as soon as anything is asked of the sandbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use snapshot::Packing;
use time::OffsetDateTime;
use tokio::task::JoinHandle;

use super::Driver;
use crate::sandbox::state::State;
use crate::sandbox::transition::blocking;

/// Packing under way, or done with.
pub(super) struct Cooling {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Driver {
    /// When the image is to be packed; `None` when there is none, or this was tried already.
    pub(super) fn cold_at(&self) -> Option<OffsetDateTime> {
        let after = self.context.settings.pack_after?;
        match &self.record.state {
            State::Paused { saved } if self.cooling.is_none() && saved.image().is_some() => {
                Some(self.record.run.end_at + after)
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
        let stop = Arc::new(AtomicBool::new(false));
        let (context, stopped) = (Arc::clone(&self.context), Arc::clone(&stop));
        let sandbox = self.record.id.clone();
        let task = self.context.tasks.spawn(async move {
            // One at a time: nobody waits for it.
            let Ok(_turn) = context.packing.acquire().await else {
                return;
            };
            let go_on = {
                let stopped = Arc::clone(&stopped);
                move || !stopped.load(Ordering::Relaxed)
            };
            if !go_on() {
                return;
            }
            match blocking(move || images.pack(&image, &go_on)).await {
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
            stop.store(true, Ordering::Relaxed);
            // It was not aborted, and a panic in it is reported by the runtime.
            let _ = task.await;
        }
    }
}
