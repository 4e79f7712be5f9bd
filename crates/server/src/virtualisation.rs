//! What a machine gives twins to run with, looked at without a server: for `twin doctor`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vm::image::{Job, Store};
pub use vm::machine::{About, Acceleration};

/// A program that hangs is told as a fault.
const LIMIT: Duration = Duration::from_secs(30);

/// What was found.
#[derive(Debug)]
pub struct Found {
    pub hypervisor: Result<About, crate::twins::Error>,
    /// How long ago a server here found out whether KVM boots a guest, if it was not now.
    pub tried: Option<Duration>,
    /// The names of the images that could be read, the newest first.
    pub images: Vec<String>,
}

/// Looks at this machine, and at the images below a server's data directory. Where its server has
/// not found out yet, a guest's kernel is booted to see whether KVM works; nothing is changed.
pub async fn look(data_dir: &Path) -> Found {
    let deadline = Instant::now() + LIMIT;
    let job = Job::new(Arc::new(|_progress| {}), CancellationToken::new(), deadline);
    let (store, job_) = (Store::at(&data_dir.join("images")), job.clone());
    let read = tokio::task::spawn_blocking(move || {
        let mut images = Vec::new();
        for listed in store.list().unwrap_or_default() {
            let Ok(manifest) = listed.manifest else { continue };
            let digits = || listed.id.as_str().chars().take(12).collect();
            images.push(manifest.names.first().map_or_else(digits, ToString::to_string));
        }
        (images, store.with_kernel(&job_).ok().flatten())
    });
    let (images, bootable) = read.await.unwrap_or_default();
    let looked = vm::qemu::look(&data_dir.join("twins"), bootable.as_ref(), &job).await;
    let tried = looked.as_ref().ok().and_then(|(_, tried)| *tried);
    let hypervisor = looked.map(|(about, _)| about).map_err(Into::into);
    Found { hypervisor, tried, images }
}
