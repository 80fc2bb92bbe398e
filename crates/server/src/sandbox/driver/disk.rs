//! Getting the disk of a paused sandbox, which its last execution may still be using.

use std::sync::Arc;

use super::Driver;
use super::calls::{Message, Request};
use crate::sandbox::SandboxError;
use crate::sandbox::state::{StartPoint, State, Transition};
use crate::sandbox::warm::Taken;

/// How a wait for a disk ends.
pub(super) enum Disk {
    /// Nobody else uses it, and this is there to go on with.
    Ours(Option<Taken>),
    /// Its last execution does not end in time.
    InUse(SandboxError),
    /// Nobody needs it any more: this is a kill.
    Doomed(Message),
}

impl Driver {
    /// What a transition goes on with. Any other but a resume from memory needs the disk of a paused
    /// sandbox for itself. What is asked meanwhile comes next, but a kill comes first: an execution
    /// that cannot be destroyed must not keep it out of the journal.
    pub(super) async fn disk_for(&mut self, transition: &Transition, from: StartPoint) -> Disk {
        let State::Paused { saved } = &self.record.state else {
            return Disk::Ours(None);
        };
        let (context, id) = (Arc::clone(&self.context), self.record.id.clone());
        let image = saved.image().cloned();
        let taken = async {
            match (transition, from, &image) {
                // It waits when it is journaled.
                (Transition::Kill, ..) => None,
                (Transition::Resume, StartPoint::Memory, Some(image)) => {
                    context.warm.take(&id, image).await
                }
                (
                    Transition::Pause(_)
                    | Transition::Resume
                    | Transition::Snapshot
                    | Transition::Rollback(_)
                    | Transition::Lose(_),
                    ..,
                ) => {
                    context.warm.drop_of(&id).await;
                    None
                }
            }
        };
        let limit = context.settings.disk_wait;
        let mut taken = std::pin::pin!(tokio::time::timeout(limit, taken));
        loop {
            let is_kill = |message: &Message| matches!(message.request, Request::Kill);
            let kill = self.next.iter().position(is_kill);
            tokio::select! {
                biased;
                taken = &mut taken => return match taken {
                    Ok(taken) => Disk::Ours(taken),
                    Err(_) => Disk::InUse(context.disk_in_use(&id)),
                },
                () = std::future::ready(()), if kill.is_some() => {}
                Some(message) = self.inbox.recv() => self.next.push_back(message),
            }
            if let Some(kill) = kill.and_then(|at| self.next.remove(at)) {
                return Disk::Doomed(kill);
            }
        }
    }
}
