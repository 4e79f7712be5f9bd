//! Waiting for a descriptor of the kernel's to have something to read. The only unsafe code
//! of this crate is the registration of such a descriptor with the runtime.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime we are in.
///
/// # Errors
/// When there is no runtime that does I/O, or the kernel can't wait for such a descriptor.
pub fn register(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    #[expect(unsafe_code, reason = "tokio has no safe way to register a descriptor")]
    // SAFETY: an `Arc<OwnedFd>` gives the same descriptor as long as it lives, and keeps it
    // open; the `AsyncFd` owns the `Arc`, and deregisters before it drops it.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(io::Error::from)
}
