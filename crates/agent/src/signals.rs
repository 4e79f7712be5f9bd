//! What tells a daemon to stop.

use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Cancels on SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// When the signals can't be taken.
pub fn cancel_on_signal(stop: CancellationToken) -> io::Result<JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    #[expect(clippy::disallowed_methods, reason = "lives as long as the process, or until aborted")]
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
        // First of all: the log may have nobody who reads it any more.
        stop.cancel();
        tracing::info!("stopping");
    }))
}
