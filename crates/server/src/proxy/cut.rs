//! Breaking off what is under way when the run of a sandbox ends.
//!
//! SDKs tell "the sandbox was killed" from "the command ended" by how a stream ends: it must break
//! off. A body that ends in good order would be reported as a command without a result.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Makes the connection to the client end by a reset instead of a close, for streams whose end
/// cannot be told from a cut otherwise (no length, no chunks).
#[derive(Clone, Debug, Default)]
pub(crate) struct HardClose(Arc<AtomicBool>);

impl HardClose {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A body that fails when the run it comes from ends. The server library closes a connection whose
/// response body fails, without the chunk that would end it.
pub(super) struct CutBody<B> {
    inner: B,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    hard_close: Option<HardClose>,
}

impl<B> CutBody<B> {
    pub(super) fn new(inner: B, ended: CancellationToken, hard_close: Option<HardClose>) -> Self {
        Self {
            inner,
            ended: Box::pin(ended.cancelled_owned()),
            hard_close,
        }
    }

    fn cut(&self) {
        if let Some(hard_close) = &self.hard_close {
            hard_close.set();
        }
    }
}

/// Why a body broke off.
#[derive(Debug)]
pub(super) struct RunEnded;

impl fmt::Display for RunEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sandbox stopped running")
    }
}

impl Error for RunEnded {}

impl<B> Body for CutBody<B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = self.get_mut();
        // First: what the guest's side of the connection does at its death is not to be trusted.
        if this.ended.as_mut().poll(context).is_ready() {
            this.cut();
            return Poll::Ready(Some(Err(Box::new(RunEnded))));
        }
        match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                this.cut();
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
