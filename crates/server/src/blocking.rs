//! Work that blocks, off the async threads.

/// Runs `work` on the blocking pool and answers what it answers; a panic there is passed on.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is being shut down cancels work that has not begun; whoever waits
            // for it ends with the runtime.
            Err(_) => std::future::pending().await,
        },
    }
}
