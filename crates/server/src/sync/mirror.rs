//! Makes MongoDB's documents follow the records. What could not be written stays to be written,
//! as the record is then: nothing is queued but which VMs these are.

use super::{Sync, tell};
use crate::app::App;
use model::vm::VmId;
use model::with_causes;
use sinks::{MongoSink, VmDocument};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Documents that are written at once.
const BATCH: usize = 1000;
/// The same of those that only are in step still: what changes meanwhile waits for no more.
const IN_STEP_BATCH: usize = 200;
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
    /// Something of them changed: they go first.
    ids: BTreeSet<VmId>,
    /// They were listed, and are to say when.
    in_step: BTreeSet<VmId>,
    /// Being written: neither told nor forgotten.
    under_way: usize,
    /// MongoDB did not take these, while it took others; and when they are tried again.
    refused: BTreeMap<VmId, Instant>,
    fault: Option<String>,
}

impl Waiting {
    /// Takes up what was refused long enough ago; when the next is to be.
    fn take_up(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<VmId> =
            self.refused.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.refused.remove(&id);
            self.ids.insert(id);
        }
        self.refused.values().min().copied()
    }
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

    /// Those that were listed, also where nothing of them changed.
    pub(super) fn mark_in_step(&self, ids: impl IntoIterator<Item = VmId>) {
        if self.is_there {
            self.locked().in_step.extend(ids);
            self.wake.notify_one();
        }
    }

    /// How many wait, and why.
    pub(super) fn standing(&self) -> (usize, Option<String>) {
        let waiting = self.locked();
        let elsewhere = waiting.in_step.iter().chain(waiting.refused.keys());
        let others: BTreeSet<&VmId> = elsewhere.filter(|id| !waiting.ids.contains(*id)).collect();
        (waiting.ids.len() + waiting.under_way + others.len(), waiting.fault.clone())
    }

    /// What could not be written.
    fn put_back(&self, ids: BTreeSet<VmId>) {
        let mut waiting = self.locked();
        waiting.under_way = 0;
        waiting.ids.extend(ids);
    }

    /// What was written, and what of it MongoDB did not take: that waits, and holds up no other.
    fn settle(&self, written: &BTreeSet<VmId>, failed: &[(String, String)]) {
        let mut waiting = self.locked();
        waiting.under_way = 0;
        waiting.refused.retain(|id, _| !written.contains(id));
        let again = Instant::now() + REFUSED;
        let ids = failed.iter().filter_map(|(uuid, _)| Some((uuid.parse().ok()?, again)));
        waiting.refused.extend(ids);
        if let Some((uuid, why)) = failed.first() {
            tracing::warn!(uuid, why, count = failed.len(), "MongoDB did not take documents");
            let count = waiting.refused.len();
            waiting.fault = Some(format!("it did not take {count} documents: {why}"));
        } else if waiting.refused.is_empty() {
            waiting.fault = None;
        }
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written now, or when there may be something.
    fn next(&self) -> (BTreeSet<VmId>, Option<Instant>) {
        let mut waiting = self.locked();
        let later = waiting.take_up(Instant::now());
        let next = if waiting.ids.is_empty() {
            first(&mut waiting.in_step, IN_STEP_BATCH)
        } else {
            let next = first(&mut waiting.ids, BATCH);
            waiting.in_step.retain(|id| !next.contains(id));
            next
        };
        waiting.under_way = next.len();
        (next, later)
    }
}

/// Takes the first of a set, so many at most.
fn first(ids: &mut BTreeSet<VmId>, count: usize) -> BTreeSet<VmId> {
    let rest = match ids.iter().nth(count).cloned() {
        Some(first_of_rest) => ids.split_off(&first_of_rest),
        None => BTreeSet::new(),
    };
    std::mem::replace(ids, rest)
}

/// Writes until told to stop.
pub(super) async fn run(app: Arc<App>, sync: Sync, mongo: MongoSink, stop: CancellationToken) {
    let mut failures = 0_u32;
    loop {
        let (ids, later) = sync.mirror.next();
        if ids.is_empty() {
            let later = later.unwrap_or_else(|| Instant::now() + REFUSED);
            tokio::select! {
                () = sync.mirror.wake.notified() => continue,
                () = tokio::time::sleep_until(later) => continue,
                () = stop.cancelled() => return,
            }
        }
        let documents = documents(&app, &sync, &ids);
        let written = tokio::select! {
            written = mongo.write(&documents) => written,
            () = stop.cancelled() => {
                sync.mirror.put_back(ids);
                return;
            }
        };
        let pause = match written {
            Ok(written) => {
                failures = 0;
                sync.mirror.settle(&ids, &written.failed);
                continue;
            }
            Err(error) => {
                let fault = with_causes(&error);
                if failures == 0 {
                    tracing::warn!(fault, "MongoDB could not be told of VMs");
                }
                sync.mirror.locked().fault = Some(fault);
                sync.mirror.put_back(ids);
                failures = failures.saturating_add(1);
                let factor = 2_u32.saturating_pow(failures - 1);
                BACKOFF.saturating_mul(factor).min(MAX_BACKOFF)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_does_not_wait_for_what_did_not() {
        let mirror = Mirror::new(true);
        let id = |n: usize| format!("423c1d0e-0000-0000-0000-{n:012}").parse::<VmId>().unwrap();
        mirror.mark_in_step((0..1000).map(id));
        assert_eq!(mirror.next().0.len(), IN_STEP_BATCH);
        mirror.mark([id(999)]);
        assert_eq!(mirror.next().0, [id(999)].into());
        mirror.settle(&[id(999)].into(), &[]);
        assert_eq!(mirror.standing().0, 1000 - IN_STEP_BATCH - 1);
    }

    #[test]
    fn what_is_refused_holds_up_no_other() {
        let mirror = Mirror::new(true);
        let id = |n: u8| format!("423c1d0e-0000-0000-0000-00000000000{n}").parse::<VmId>().unwrap();
        mirror.mark([id(1), id(2)]);
        let (ids, _) = mirror.next();
        assert_eq!(mirror.standing().0, 2, "they are not written yet");
        mirror.settle(&ids, &[(id(1).to_string(), "a rule of the collection".to_owned())]);
        assert_eq!(mirror.standing().0, 1);
        mirror.mark([id(3)]);
        let (ids, later) = mirror.next();
        assert_eq!(ids, [id(3)].into());
        mirror.settle(&ids, &[]);
        assert!(mirror.standing().1.is_some(), "one is refused still");
        assert!(mirror.locked().take_up(later.unwrap()).is_none());
        let (ids, _) = mirror.next();
        assert_eq!(ids, [id(1)].into());
        mirror.settle(&ids, &[]);
        assert_eq!(mirror.standing(), (0, None));
    }
}
