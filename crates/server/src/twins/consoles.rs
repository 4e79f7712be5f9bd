//! Keeps the logs of guests' consoles short, while guests write to them.

use super::Twins;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks. A serial line brings a few MiB in that time.
const LOOK: Duration = Duration::from_secs(10);

/// Cuts logs that have become too long, until told to stop.
pub(crate) async fn bound(twins: Twins, stop: CancellationToken) {
    loop {
        twins.bound_consoles().await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Twins {
    async fn bound_consoles(&self) {
        let Some(hypervisor) = self.inner.hypervisor.get() else { return };
        let names = hypervisor.list().await.unwrap_or_default();
        let logs: Vec<PathBuf> = names.iter().map(|name| hypervisor.console_log(name)).collect();
        let looked = tokio::task::spawn_blocking(move || {
            for log in logs {
                if let Err(error) = vm::bound_console(&log) {
                    tracing::warn!(log = %log.display(), %error, "a console's log can't be cut");
                }
            }
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "consoles' logs were not looked at");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::twins::fake::{Fake, known, twins};

    #[tokio::test]
    async fn a_guest_that_writes_on_and_on_does_not_fill_the_disk() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = twins(dir.path(), &fake);
        let name = known(&twins, &fake, "one");
        let log = dir.path().join("one.log");
        fake.write_console_to(&name, &log);
        std::fs::write(&log, vec![b'\n'; 17 << 20]).unwrap();
        let stop = CancellationToken::new();
        let bounding = bound(twins.clone(), stop.clone());
        tokio::pin!(bounding);
        let until = tokio::time::Instant::now() + Duration::from_secs(30);
        while std::fs::metadata(&log).unwrap().len() > 1 << 20 {
            assert!(tokio::time::Instant::now() < until, "in time");
            tokio::select! {
                () = &mut bounding => panic!("it was not told to stop"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        stop.cancel();
        bounding.await;
        twins.inner.runs.close().await;
    }
}
