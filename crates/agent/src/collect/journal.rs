//! Errors that microVMs have in the journal: followed while there are units of such, and counted.
//! The counts ride along with the load.
//!
//! ```text
//!   wait for a microVM ──► follow ──ended──► fault, backoff ──► wait …
//! ```

use super::{Context, Sink};
use crate::clock;
use host::journal::{Error, Errors, Follower};
use model::entity::Unit;
use model::vm::may_be_microvm;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Entries that are read without a pause: a journal that is flooded takes no more than a little
/// time from the host.
const BATCH: u32 = 200;
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn run(mut context: Context) {
    if context.once {
        return;
    }
    let sink = context.sink("journal");
    let mut units = context.units.subscribe();
    let mut backoff = BACKOFF.0;
    let shutdown = context.shutdown.clone();
    loop {
        let work = async {
            if units.wait_for(|units| has_microvm(units.as_ref())).await.is_err() {
                return Ok(());
            }
            let followed = follow(&context, &sink, &mut units, &mut backoff).await;
            *context.journal.lock().unwrap_or_else(PoisonError::into_inner) = None;
            followed
        };
        let ended = tokio::select! {
            ended = work => ended,
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = ended {
            sink.fault(&error).await;
            if !context.pause(backoff).await {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }
}

/// Until there is no microVM any more.
async fn follow(
    context: &Context,
    sink: &Sink,
    units: &mut watch::Receiver<Option<Arc<Vec<Unit>>>>,
    backoff: &mut Duration,
) -> Result<(), Error> {
    let mut follower = Follower::start()?;
    *context.journal.lock().unwrap_or_else(PoisonError::into_inner) = Some(Errors::default());
    sink.all(Vec::new(), Vec::new(), Vec::new()).await;
    let mut read = 0;
    let mut looked = tokio::time::interval(context.config.interval);
    looked.reset();
    loop {
        tokio::select! {
            entry = follower.next() => {
                count(context, &entry?);
                *backoff = BACKOFF.0;
                read += 1;
                if read >= BATCH {
                    read = 0;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            changed = units.changed() => {
                if changed.is_err() || !has_microvm(units.borrow().as_ref()) {
                    return Ok(());
                }
            }
            _ = looked.tick() => sink.unchanged().await,
        }
    }
}

fn count(context: &Context, entry: &host::journal::Entry) {
    if may_be_microvm(&entry.unit) {
        let mut journal = context.journal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(errors) = journal.as_mut() {
            errors.count(entry, clock::now());
        }
    }
}

fn has_microvm(units: Option<&Arc<Vec<Unit>>>) -> bool {
    units.is_some_and(|units| units.iter().any(|unit| may_be_microvm(&unit.id)))
}
