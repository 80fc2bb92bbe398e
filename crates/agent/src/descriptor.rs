//! File descriptors the runtime waits for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the runtime.
pub(crate) fn register(file: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        unsafe_code,
        reason = "registration trusts the type to keep its descriptor"
    )]
    // SAFETY: an `OwnedFd` always gives the same descriptor and keeps it open until it is dropped,
    // which happens after `AsyncFd` has removed it from the runtime.
    let registered = unsafe { AsyncFd::register_with_interest(file, interest) };
    Ok(registered?)
}
