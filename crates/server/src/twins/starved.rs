//! Twins that stand still since their disk was full: they go on by themselves when there is room.
//!
//! ```text
//! a write fails ─► QEMU has the guest stand still, which loses nothing ─► room ─► it goes on
//! ```

use super::{Error, Twins};
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use vm::image::{Job, MachineName};
use vm::machine::State;

/// Between two looks at all machines.
const EVERY: Duration = Duration::from_secs(5);
/// As much has to be free before one goes on: it would stand still again at once.
const ROOM_BYTES: u64 = 256 << 20;
const GO_ON: Duration = Duration::from_secs(60);

pub(crate) async fn watch(twins: Twins, stopping: CancellationToken) {
    let mut look = tokio::time::interval(EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stopping.cancelled() => return,
        }
        let fed = stopping.run_until_cancelled(twins.let_starved_go_on(ROOM_BYTES)).await;
        if let Some(Err(error)) = fed {
            let error: &dyn std::error::Error = &error;
            tracing::debug!(error, "whether twins stand still for want of room is not known");
        }
    }
}

impl Twins {
    /// Twins that stand still for want of room, as it was at the last look.
    pub(crate) fn starved(&self) -> BTreeSet<MachineName> {
        self.inner.starved.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn let_starved_go_on(&self, room_bytes: u64) -> Result<(), Error> {
        // Where nobody asked for twins yet there are none, or they are being found again.
        let Some(hypervisor) = self.inner.hypervisor.get() else { return Ok(()) };
        let mut starved = BTreeSet::new();
        for name in hypervisor.list().await? {
            // What can't be looked at says so where it is asked for.
            if hypervisor.show(&name).await.is_ok_and(|seen| seen.state == State::Starved) {
                starved.insert(name);
            }
        }
        let before = std::mem::replace(
            &mut *self.inner.starved.lock().unwrap_or_else(PoisonError::into_inner),
            starved.clone(),
        );
        for name in starved.difference(&before) {
            tracing::warn!(twin = %name, "a twin stands still: its disk could not be written");
        }
        if starved.is_empty() || !self.has_room(room_bytes) {
            return Ok(());
        }
        for name in starved {
            let deadline = Instant::now() + GO_ON;
            let quiet = Job::new(Arc::new(|_progress| {}), CancellationToken::new(), deadline);
            match hypervisor.start(&name, &quiet).await {
                Ok(()) => tracing::info!(twin = %name, "there is room: a twin goes on"),
                // Somebody works with it; later, then.
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(twin = %name, error, "a twin does not go on yet");
                }
            }
        }
        Ok(())
    }

    /// Whether so much is free where disks of machines are.
    fn has_room(&self, bytes: u64) -> bool {
        let found = rustix::fs::statvfs(&self.inner.places.own);
        found.is_ok_and(|found| found.f_bavail.saturating_mul(found.f_frsize) >= bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{self, Fake};
    use api::twin::TwinState;

    #[tokio::test]
    async fn they_go_on_where_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new();
        let twins = fake::twins(dir.path(), &fake);
        std::fs::create_dir_all(&twins.inner.places.own).unwrap();
        let (one, other) = (fake::known(&twins, &fake, "a"), fake::known(&twins, &fake, "b"));
        fake.starves(&one);
        let state = async |name| twins.state(name).await.unwrap();
        twins.let_starved_go_on(u64::MAX).await.unwrap();
        assert_eq!(twins.starved(), [one.clone()].into());
        assert_eq!(state(&one).await, TwinState::Stuck, "there is no room");
        twins.let_starved_go_on(0).await.unwrap();
        assert_eq!(
            (state(&one).await, state(&other).await),
            (TwinState::Running, TwinState::Stopped)
        );
        twins.let_starved_go_on(0).await.unwrap();
        assert!(twins.starved().is_empty());
    }
}
