//! Makes MongoDB's documents follow the records. What could not be written stays to be written,
//! as the record is then: nothing is queued but which VMs these are.
//!
//! What few changed goes before what many did, and that before what only is in step still; but
//! not twice in a row, so that changes that never end hold up nothing for ever. So one change
//! waits for two batches at most, and batches that others may wait for are to take no longer than
//! [`PATIENCE`], where MongoDB can do that.

use super::{Sync, tell};
use crate::app::App;
use model::vm::VmId;
use model::with_causes;
use sinks::{MongoSink, VmDocument, Written};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// VMs that changed at once, and go before all others.
const FEW: usize = 50;
/// Documents that are written at once. Some servers look at all they have for each batch, so that
/// small ones gain nothing.
const BATCHES: std::ops::RangeInclusive<usize> = 100..=1000;
/// As long as a batch is to take.
const PATIENCE: Duration = Duration::from_millis(200);
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
    /// A batch was written, or could not be.
    turned: Arc<Notify>,
}

/// VMs whose documents may not say yet what is so.
#[derive(Debug)]
pub(super) struct Undone {
    pub(super) ids: BTreeSet<VmId>,
    pub(super) why: String,
}

#[derive(Debug, Default)]
struct Waiting {
    /// They changed, one or a few at once.
    few: BTreeSet<VmId>,
    /// They changed, many at once.
    many: BTreeSet<VmId>,
    /// They were listed, and are to say when.
    in_step: BTreeSet<VmId>,
    /// Being written: neither told nor forgotten.
    under_way: BTreeSet<VmId>,
    /// MongoDB did not take these, while it took others; and when they are tried again.
    refused: BTreeMap<VmId, Instant>,
    fault: Option<String>,
    /// The last batch could not be written at all.
    is_away: bool,
    /// The last batch was of the few.
    was_few: bool,
}

impl Waiting {
    /// Takes up what was refused long enough ago; when the next is to be.
    fn take_up(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<VmId> =
            self.refused.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.refused.remove(&id);
            self.many.insert(id);
        }
        self.refused.values().min().copied()
    }

    /// What goes next: so many at most.
    fn take(&mut self, batch: usize) {
        let others_wait = !(self.many.is_empty() && self.in_step.is_empty());
        let is_others_turn = self.was_few && others_wait;
        self.was_few = !(self.few.is_empty() || is_others_turn);
        let lines = match self.was_few {
            true => [&mut self.few, &mut self.many, &mut self.in_step],
            false => [&mut self.many, &mut self.in_step, &mut self.few],
        };
        let next = lines.into_iter().find(|ids| !ids.is_empty());
        self.under_way = next.map(|ids| first(ids, batch)).unwrap_or_default();
        for id in &self.under_way {
            self.few.remove(id);
            self.many.remove(id);
            self.in_step.remove(id);
        }
    }

    /// Whether its document does not say yet what is so.
    fn is_behind(&self, id: &VmId) -> bool {
        [&self.few, &self.many, &self.under_way].iter().any(|ids| ids.contains(id))
    }

    fn waits(&self, id: &VmId) -> bool {
        [&self.few, &self.many, &self.in_step, &self.under_way].iter().any(|ids| ids.contains(id))
    }
}

impl Mirror {
    pub(super) fn new(is_there: bool) -> Self {
        Self { is_there, waiting: Arc::default(), wake: Arc::default(), turned: Arc::default() }
    }

    pub(super) fn mark(&self, ids: impl IntoIterator<Item = VmId>) {
        if self.is_there {
            let ids: BTreeSet<VmId> = ids.into_iter().collect();
            let mut waiting = self.locked();
            if ids.len() <= FEW {
                waiting.few.extend(ids);
            } else {
                waiting.many.extend(ids);
            }
            drop(waiting);
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

    /// Whether a VM's document says what is so, as far as MongoDB takes it: who takes over knows no
    /// more than that.
    pub(super) fn says(&self, id: &VmId) -> bool {
        !self.locked().is_behind(id)
    }

    /// Of how many of these MongoDB does not take the documents.
    pub(super) fn count_refused(&self, ids: &[VmId]) -> usize {
        let waiting = self.locked();
        ids.iter().filter(|id| waiting.refused.contains_key(*id)).count()
    }

    /// How many wait, and why.
    pub(super) fn standing(&self) -> (usize, Option<String>) {
        let waiting = self.locked();
        let lines = [&waiting.few, &waiting.many, &waiting.in_step, &waiting.under_way];
        let all = lines.into_iter().flatten().chain(waiting.refused.keys());
        (all.collect::<BTreeSet<&VmId>>().len(), waiting.fault.clone())
    }

    /// Waits until these are written, or can't be now; of which that is not so, and why.
    pub(super) async fn written(&self, ids: &BTreeSet<VmId>, at_most: Duration) -> Undone {
        let until = Instant::now() + at_most;
        loop {
            let turned = self.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            let (undone, is_over) = self.undone(ids);
            if is_over || Instant::now() >= until {
                return undone;
            }
            tokio::select! {
                () = turned => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// What of these is not written, and whether there is nothing to wait for.
    fn undone(&self, ids: &BTreeSet<VmId>) -> (Undone, bool) {
        let waiting = self.locked();
        let mut is_on = false;
        let is_undone = |id: &&VmId| {
            let waits = waiting.waits(id);
            is_on |= waits;
            waits || waiting.refused.contains_key(*id)
        };
        let undone: BTreeSet<VmId> = ids.iter().filter(is_undone).cloned().collect();
        let why = waiting.fault.clone();
        let why = why.unwrap_or_else(|| "MongoDB is being told still".to_owned());
        (Undone { ids: undone, why }, waiting.is_away || !is_on)
    }

    /// What could not be written, and why, if that is known.
    fn put_back(&self, fault: Option<String>) {
        let mut waiting = self.locked();
        let ids = std::mem::take(&mut waiting.under_way);
        waiting.many.extend(ids);
        waiting.is_away |= fault.is_some();
        waiting.fault = fault.or(waiting.fault.take());
        drop(waiting);
        self.turned.notify_waiters();
    }

    /// What was written, and what of it MongoDB did not take: that waits, and holds up no other.
    pub(super) fn settle(&self, failed: &[(String, String)]) {
        let mut waiting = self.locked();
        waiting.is_away = false;
        for id in std::mem::take(&mut waiting.under_way) {
            waiting.refused.remove(&id);
        }
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
        drop(waiting);
        self.turned.notify_waiters();
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written now, so many at most, or when there may be something.
    pub(super) fn next(&self, batch: usize) -> (BTreeSet<VmId>, Option<Instant>) {
        let mut waiting = self.locked();
        let later = waiting.take_up(Instant::now());
        waiting.take(batch);
        (waiting.under_way.clone(), later)
    }
}

/// How many are to be written at once, after so many took so long.
fn batch_after(batch: usize, count: usize, took: Duration) -> usize {
    let next = if took > PATIENCE {
        // Down at once, to what would have been in time.
        usize::try_from(count as u128 * PATIENCE.as_millis() / took.as_millis().max(1))
            .unwrap_or(batch)
    } else if count == batch {
        batch * 2
    } else {
        batch
    };
    next.clamp(*BATCHES.start(), *BATCHES.end())
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
    let (mut failures, mut batch) = (0_u32, *BATCHES.start());
    loop {
        if !sync.held.is_so() {
            // Found out by who keeps the lease, too, which ends this.
            return stop.cancelled().await;
        }
        let (ids, later) = sync.mirror.next(batch);
        if ids.is_empty() {
            let later = later.unwrap_or_else(|| Instant::now() + REFUSED);
            tokio::select! {
                () = sync.mirror.wake.notified() => continue,
                () = tokio::time::sleep_until(later) => continue,
                () = stop.cancelled() => return,
            }
        }
        let begun = Instant::now();
        let written = tokio::select! {
            written = write(&app, &sync, &mongo, &ids) => written,
            () = stop.cancelled() => {
                sync.mirror.put_back(None);
                return;
            }
        };
        let pause = match written {
            Ok(written) => {
                failures = 0;
                batch = batch_after(batch, ids.len(), begun.elapsed());
                sync.mirror.settle(&written.failed);
                sync.outbox.wake();
                continue;
            }
            Err(error) => {
                let fault = with_causes(&error);
                if failures == 0 {
                    tracing::warn!(fault, "MongoDB could not be told of VMs");
                }
                sync.mirror.put_back(Some(fault));
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

/// Notes first what those know whom something of these VMs waits for: an instance that takes over
/// tells them the rest.
async fn write(
    app: &App,
    sync: &Sync,
    mongo: &MongoSink,
    ids: &BTreeSet<VmId>,
) -> Result<Written, sinks::Error> {
    let known = sync.outbox.known_before(&ids.iter().map(ToString::to_string).collect());
    if !known.is_empty() {
        mongo.note_first(&known).await?;
    }
    mongo.write(&documents(app, sync, ids)).await
}

fn documents(app: &App, sync: &Sync, ids: &BTreeSet<VmId>) -> Vec<VmDocument> {
    let table = app.vms.table();
    let sources = &sync.settings.sources;
    let document = |id: &VmId| {
        let vm = table.vms.get(id)?;
        let source = sources.iter().find(|source| source.node == vm.record.node);
        let address = source.map(|source| source.address.as_str());
        Some(tell::document(vm, address, sync.kept.listed_at(&vm.record.node)))
    };
    ids.iter().filter_map(document).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> VmId {
        format!("423c1d0e-0000-0000-0000-{n:012}").parse().unwrap()
    }

    #[test]
    fn what_few_changed_waits_for_no_others() {
        let mirror = Mirror::new(true);
        let check = |expected: std::ops::Range<usize>| {
            let expected: BTreeSet<VmId> = expected.map(id).collect();
            assert_eq!(mirror.next(100).0, expected);
            mirror.settle(&[]);
        };
        mirror.mark_in_step((0..1000).map(id));
        check(0..100);
        mirror.mark((200..400).map(id));
        check(200..300);
        mirror.mark([id(999)]);
        check(999..1000);
        check(300..400);
        check(100..200);
        check(400..500);
        assert_eq!(mirror.standing().0, 499);
    }

    #[test]
    fn a_document_says_what_is_so_once_that_is_written() {
        let mirror = Mirror::new(true);
        let says = |n| mirror.says(&id(n));
        mirror.mark([id(1)]);
        mirror.mark_in_step([id(1), id(2)]);
        assert!(!says(1) && says(2), "that it was listed again is no news");
        mirror.next(1);
        assert!(!says(1));
        mirror.mark([id(1)]);
        mirror.settle(&[]);
        assert!(!says(1), "it changed while it was written");
        mirror.next(1);
        mirror.settle(&[]);
        assert!(says(2) && !says(1), "it was the other's turn");
        mirror.next(1);
        mirror.settle(&[(id(1).to_string(), "a rule".to_owned())]);
        assert!(says(1), "MongoDB does not take it");
        let none = Mirror::new(false);
        none.mark([id(1)]);
        assert!(none.says(&id(1)));
    }

    #[test]
    fn changes_without_end_hold_up_nothing_for_ever() {
        let mirror = Mirror::new(true);
        mirror.mark((100..200).map(id));
        let mut written = BTreeSet::new();
        for round in 0..6 {
            mirror.mark([id(round)]);
            written.extend(mirror.next(50).0);
            mirror.settle(&[]);
        }
        assert!((100..200).all(|n| written.contains(&id(n))), "{written:?}");
        assert!(mirror.standing().0 <= 3);
    }

    #[test]
    fn a_batch_takes_no_longer_than_others_can_wait() {
        let check = |batch, count, millis, expected| {
            assert_eq!(batch_after(batch, count, Duration::from_millis(millis)), expected);
        };
        check(100, 100, 5, 200);
        check(800, 800, 150, 1000);
        check(800, 3, 1, 800);
        check(1000, 1000, 1000, 200);
        check(100, 100, 5000, 100);
    }

    #[test]
    fn what_is_refused_holds_up_no_other() {
        let mirror = Mirror::new(true);
        mirror.mark([id(1), id(2)]);
        assert_eq!(mirror.next(9).0.len(), 2);
        assert_eq!(mirror.standing().0, 2, "they are not written yet");
        mirror.settle(&[(id(1).to_string(), "a rule of the collection".to_owned())]);
        assert_eq!(mirror.standing().0, 1);
        assert_eq!(mirror.count_refused(&[id(1), id(2)]), 1);
        mirror.mark([id(3)]);
        let (ids, later) = mirror.next(9);
        assert_eq!(ids, [id(3)].into());
        mirror.settle(&[]);
        assert!(mirror.standing().1.is_some(), "one is refused still");
        assert!(mirror.locked().take_up(later.unwrap()).is_none());
        assert_eq!(mirror.next(9).0, [id(1)].into());
        mirror.settle(&[]);
        assert_eq!(mirror.standing(), (0, None));
    }

    #[tokio::test]
    async fn who_waits_hears_what_is_so() {
        let undone = async |mirror: &Mirror, ids: &[usize], millis| {
            let ids = ids.iter().copied().map(id).collect();
            let undone = mirror.written(&ids, Duration::from_millis(millis)).await;
            (undone.ids.len(), undone.why)
        };
        let long = 60_000;
        let mirror = Mirror::new(true);
        mirror.mark([id(1), id(2)]);
        let write = async {
            mirror.next(1);
            mirror.settle(&[]);
            tokio::task::yield_now().await;
            mirror.next(1);
            mirror.settle(&[(id(2).to_string(), "a rule".to_owned())]);
        };
        let (found, ()) = tokio::join!(undone(&mirror, &[1, 2, 3], long), write);
        assert_eq!(found.0, 1, "one was not taken");

        let mirror = Mirror::new(true);
        mirror.mark([id(1)]);
        let is_told = (1, "MongoDB is being told still".to_owned());
        assert_eq!(undone(&mirror, &[1], 10).await, is_told);
        mirror.next(1);
        mirror.put_back(Some("it is away".to_owned()));
        assert_eq!(undone(&mirror, &[1], long).await, (1, "it is away".to_owned()));
        assert_eq!(undone(&mirror, &[2], long).await.0, 0);
    }
}
