//! Makes MongoDB's documents follow the records. What could not be written stays to be written,
//! as the record is then: nothing is queued but which VMs these are.

use super::{Sync, tell};
use crate::app::App;
use model::vm::VmId;
use model::with_causes;
use sinks::{MongoSink, VmDocument};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Documents that are written at once.
const BATCH: usize = 1000;
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Single documents that MongoDB does not take are tried again after this.
const REFUSED: Duration = Duration::from_secs(60);

/// Which VMs' documents are to be written.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    is_there: bool,
    waiting: Arc<Mutex<Waiting>>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Waiting {
    ids: BTreeSet<VmId>,
    fault: Option<String>,
}

impl Mirror {
    pub(super) fn new(is_there: bool) -> Self {
        Self { is_there, waiting: Arc::default(), wake: Arc::default() }
    }

    pub(super) fn mark(&self, ids: impl IntoIterator<Item = VmId>) {
        if self.is_there {
            self.locked().ids.extend(ids);
            self.wake.notify_one();
        }
    }

    /// How many wait, and why.
    pub(super) fn standing(&self) -> (usize, Option<String>) {
        let waiting = self.locked();
        (waiting.ids.len(), waiting.fault.clone())
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> BTreeSet<VmId> {
        let mut waiting = self.locked();
        let rest = match waiting.ids.iter().nth(BATCH).cloned() {
            Some(first_of_rest) => waiting.ids.split_off(&first_of_rest),
            None => BTreeSet::new(),
        };
        std::mem::replace(&mut waiting.ids, rest)
    }
}

/// Writes until told to stop.
pub(super) async fn run(app: Arc<App>, sync: Sync, mongo: MongoSink, stop: CancellationToken) {
    let mut failures = 0_u32;
    loop {
        let ids = sync.mirror.next();
        if ids.is_empty() {
            tokio::select! {
                () = sync.mirror.wake.notified() => continue,
                () = stop.cancelled() => return,
            }
        }
        let documents = documents(&app, &sync, &ids);
        let written = tokio::select! {
            written = mongo.write(&documents) => written,
            () = stop.cancelled() => {
                sync.mirror.mark(ids);
                return;
            }
        };
        let pause = match written {
            Ok(written) => {
                failures = 0;
                refused(&sync, &written.failed)
            }
            Err(error) => {
                let fault = with_causes(&error);
                if failures == 0 {
                    tracing::warn!(fault, "MongoDB could not be told of VMs");
                }
                sync.mirror.locked().fault = Some(fault);
                sync.mirror.mark(ids);
                failures = failures.saturating_add(1);
                let factor = 2_u32.saturating_pow(failures - 1);
                Some(BACKOFF.saturating_mul(factor).min(MAX_BACKOFF))
            }
        };
        let Some(pause) = pause else { continue };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Keeps what MongoDB did not take, and how long to wait with that.
fn refused(sync: &Sync, failed: &[(String, String)]) -> Option<Duration> {
    let Some((uuid, why)) = failed.first() else {
        sync.mirror.locked().fault = None;
        return None;
    };
    tracing::warn!(uuid, why, count = failed.len(), "MongoDB did not take documents");
    sync.mirror.locked().fault = Some(format!("it did not take {} documents: {why}", failed.len()));
    sync.mirror.mark(failed.iter().filter_map(|(uuid, _)| uuid.parse().ok()));
    Some(REFUSED)
}

fn documents(app: &App, sync: &Sync, ids: &BTreeSet<VmId>) -> Vec<VmDocument> {
    let table = app.vms.table();
    let sources = &sync.settings.sources;
    let document = |id: &VmId| {
        let vm = table.vms.get(id)?;
        let source = sources.iter().find(|source| source.node == vm.record.node)?;
        Some(tell::document(vm, &source.address))
    };
    ids.iter().filter_map(document).collect()
}
