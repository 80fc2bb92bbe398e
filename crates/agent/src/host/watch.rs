//! While the host watches the memory, the agent need not look, and an idle guest is not woken up.
//!
//! The host keeps a request open for as long as there is plenty of memory left, and ends it to say
//! that the agent should look for itself. So does everything that ends the request otherwise: the
//! end of the server, a restore. A host that hangs is believed for [`LONGEST`] at most.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::Frame;
use tokio::sync::watch;

use crate::server::BoxError;

/// How long one request counts. The host makes a new one before that.
const LONGEST: Duration = agent_api::MEMORY_WATCH_LIMIT;

/// The requests that are open now.
#[derive(Debug, Default)]
pub(crate) struct HostWatch(watch::Sender<Open>);

#[derive(Debug, Default)]
struct Open {
    count: usize,
    /// Of which execution; requests of one before it count no more.
    execution: u64,
}

/// One request; it counts until this is dropped.
struct Watching {
    watch: Arc<HostWatch>,
    execution: u64,
}

impl HostWatch {
    /// Returns when the host does not watch, at once if it does not.
    pub(crate) async fn over(&self) {
        // The sender lives as long as `self`.
        let mut open = self.0.subscribe();
        let _never_closed = open.wait_for(|open| open.count == 0).await;
    }

    /// The answer to a request: its head tells the host that it counts, and its end that it does not.
    pub(super) fn answer(
        self: &Arc<Self>,
    ) -> impl Stream<Item = Result<Frame<Bytes>, BoxError>> + Send + use<> {
        let watching = self.begin();
        futures_util::stream::once(async move {
            tokio::time::sleep(LONGEST).await;
            drop(watching);
            Ok(Frame::data(Bytes::new()))
        })
    }

    /// Forgets the requests of an earlier execution, whose host may never have closed them.
    pub(super) fn forget(&self) {
        self.0.send_modify(|open| {
            open.count = 0;
            open.execution += 1;
        });
    }

    fn begin(self: &Arc<Self>) -> Watching {
        let mut execution = 0;
        self.0.send_modify(|open| {
            open.count += 1;
            execution = open.execution;
        });
        Watching {
            watch: Arc::clone(self),
            execution,
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.watch.0.send_modify(|open| {
            if open.execution == self.execution {
                open.count -= 1;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_host_watches_until_its_last_request_ends_or_is_too_old() {
        let watch = Arc::<HostWatch>::default();
        let is_over = || watch.over().now_or_never().is_some();
        assert!(is_over());
        let (first, second) = (watch.answer(), watch.answer());
        drop(first);
        assert!(!is_over());
        drop(second);
        assert!(is_over());

        let mut silent = Box::pin(watch.answer());
        assert!(!is_over());
        futures_util::StreamExt::next(&mut silent).await;
        assert!(is_over());
    }

    #[tokio::test]
    async fn requests_of_an_earlier_execution_do_not_count() {
        let watch = Arc::<HostWatch>::default();
        let old = watch.answer();
        watch.forget();
        assert!(watch.over().now_or_never().is_some());
        let new = watch.answer();
        drop(old);
        assert!(watch.over().now_or_never().is_none());
        drop(new);
        assert!(watch.over().now_or_never().is_some());
    }
}
