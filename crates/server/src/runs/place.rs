//! A run's place among those that are on at once. One that only waits (for another run, a guest,
//! its turn) steps aside: others go on in its place meanwhile.
//!
//! ```text
//! taken ── aside: waits ──► given back ── what it waited for is there ──► taken again, in its turn
//! ```
//!
//! # Invariants
//! - A run that was told to stop waits for no place: it has to end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

tokio::task_local! {
    /// Of the run whose work this is.
    static PLACE: Arc<Place>;
}

#[derive(Debug)]
pub(super) struct Place {
    slots: Arc<Semaphore>,
    cancel: CancellationToken,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    permit: Option<OwnedSemaphorePermit>,
    /// Parts of the work that wait, side by side.
    waiting: usize,
}

/// One part of the work waits. Dropped, it waits no more; the place is not taken again by that.
struct Away(Arc<Place>);

/// Waits without a place, if this is a run's work; else it just waits.
pub(crate) async fn aside<T>(wait: impl Future<Output = T>) -> T {
    let Ok(place) = PLACE.try_with(Arc::clone) else { return wait.await };
    let away = place.leave();
    let done = wait.await;
    away.come_back().await;
    done
}

impl Place {
    /// Waits for a place; nothing for a run that is to stop before it has one.
    pub(super) async fn take(
        slots: &Arc<Semaphore>,
        cancel: &CancellationToken,
    ) -> Option<Arc<Self>> {
        let permit = permit(slots, cancel).await?;
        let held = Mutex::new(Held { permit: Some(permit), waiting: 0 });
        Some(Arc::new(Self { slots: Arc::clone(slots), cancel: cancel.clone(), held }))
    }

    /// Does a run's work, which may step aside.
    pub(super) async fn during<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        PLACE.scope(self, work).await
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(self: Arc<Self>) -> Away {
        let mut held = self.held();
        held.waiting += 1;
        held.permit = None;
        drop(held);
        Away(self)
    }
}

impl Away {
    async fn come_back(self) {
        let place = Arc::clone(&self.0);
        drop(self);
        // As long as another part waits, this one goes on without.
        if place.held().waiting > 0 {
            return;
        }
        let permit = permit(&place.slots, &place.cancel).await;
        let mut held = place.held();
        if held.waiting == 0 {
            held.permit = permit;
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.0.held().waiting -= 1;
    }
}

async fn permit(
    slots: &Arc<Semaphore>,
    cancel: &CancellationToken,
) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => None,
        permit = Arc::clone(slots).acquire_owned() => permit.ok(),
    }
}
