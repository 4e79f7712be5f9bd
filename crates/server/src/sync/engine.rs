//! The one task that knows what all sources see, and has the inventory decide about it.
//!
//! ```text
//!   changes of a source ──► those VMs alone
//!   a whole listing ──────► all of the source's VMs: what is missing is an orphan, after GRACE,
//!                           in which another may come to list it, or more may go
//!   time, commands ───────► full passes, each source asked for a whole listing
//! ```
//!
//! # Invariants
//! - Only a whole listing makes orphans.
//! - What is not durable is decided anew.

mod passes;
mod selected;
pub(super) mod touched;

pub(super) use selected::Selected;

use super::file::Source;
use super::pass::{Pass, Saying};
use super::sight::{self, Sight};
use super::source::{Ask, Report, Said};
use super::{Command, Error, Sync, plan, tell};
use crate::app::App;
use crate::clock;
use api::sync::{SourceResult, SyncSource};
use inventory::{Act, Breaker, Completeness, Outcome, Presence, Vm};
use model::vm::{DecisionKind, VmId, VmSource};
use model::{HostId, Time, with_causes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use touched::{Touched, touch};

const TICK: Duration = Duration::from_millis(500);
/// For so long a VM that left one source may come to another. What goes within it goes at once,
/// which is for the breaker to judge.
const GRACE: Duration = Duration::from_secs(3);
/// As long as that lasts where one leaves after the other.
const GRACE_AT_MOST: Duration = Duration::from_secs(12);
/// What could not be recorded is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);
/// Reports that are taken before what they tell is decided.
const AT_ONCE: usize = 64;

/// What comes to the engine.
enum Next {
    Report(Box<Report>),
    Command(Command),
    Tick,
}

pub(super) struct Engine {
    app: Arc<App>,
    sync: Sync,
    sights: BTreeMap<HostId, Sight>,
    /// To have a source list all it has.
    asks: BTreeMap<HostId, watch::Sender<Ask>>,
    /// How often all were asked.
    asked: Ask,
    pass: Option<Pass>,
    next_pass: Time,
    /// When a source's whole listing is decided about, though something is missing in it.
    later: BTreeMap<HostId, Later>,
    /// Sources whose VMs are stale already.
    silent: BTreeSet<HostId>,
    touched: BTreeMap<HostId, Touched>,
    decisions: BTreeMap<DecisionKind, u64>,
    /// VMs on sources that the configuration does not name any more.
    unconfigured: BTreeMap<HostId, usize>,
}

/// When something is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Later {
    at: Time,
    /// It is not put off beyond that.
    at_most: Time,
}

impl Later {
    fn after(pause: Duration, now: Time) -> Self {
        Self { at: now.plus(pause), at_most: now.plus(GRACE_AT_MOST) }
    }

    /// Something else left: that may arrive somewhere, too.
    fn put_off(&mut self, now: Time) {
        self.at = now.plus(GRACE).min(self.at_most).max(self.at);
    }
}

impl Engine {
    pub(super) fn new(app: Arc<App>, sync: Sync, now: Time) -> Self {
        Self {
            app,
            sync,
            sights: BTreeMap::new(),
            asks: BTreeMap::new(),
            asked: 0,
            pass: None,
            next_pass: now,
            later: BTreeMap::new(),
            silent: BTreeSet::new(),
            touched: BTreeMap::new(),
            decisions: BTreeMap::new(),
            unconfigured: BTreeMap::new(),
        }
    }

    /// Has what was not written before the last end be written.
    pub(super) fn mark_all(&self) {
        self.sync.mirror.mark(self.ours(|_| true));
    }

    pub(super) fn add(&mut self, source: &Source, ask: watch::Sender<Ask>) {
        self.sights.insert(source.node.clone(), Sight::of(source));
        self.asks.insert(source.node.clone(), ask);
    }

    pub(super) async fn run(
        mut self,
        mut reports: mpsc::Receiver<Report>,
        commands: &mut mpsc::Receiver<Command>,
        stop: &CancellationToken,
    ) {
        self.find_unconfigured();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.sync.kept.write().await;
            self.show();
            let next = tokio::select! {
                Some(report) = reports.recv() => Next::Report(Box::new(report)),
                Some(command) = commands.recv() => Next::Command(command),
                _ = tick.tick() => Next::Tick,
                () = stop.cancelled() => return,
            };
            if !self.sync.held.is_so() {
                // Another may have decided meanwhile. That is found out in a moment.
                if let Next::Command(command) = next {
                    command.refuse("its lease has run out");
                }
                return stop.cancelled().await;
            }
            match next {
                Next::Report(report) => {
                    self.absorb(*report);
                    for _ in 1..AT_ONCE {
                        let Ok(report) = reports.try_recv() else { break };
                        self.absorb(report);
                    }
                    self.decide_touched().await;
                }
                Next::Command(command) => self.take(command).await,
                Next::Tick => {
                    self.pass_time().await;
                    // What waited for something is looked at again.
                    self.decide_touched().await;
                }
            }
        }
    }

    /// Those of the inventory that come from vSpheres.
    fn ours(&self, is_wanted: impl Fn(&Vm) -> bool) -> Vec<VmId> {
        let table = self.app.vms.table();
        let ours = table.vms.values().filter(|vm| vm.record.source == VmSource::Vsphere);
        ours.filter(|vm| is_wanted(vm)).map(|vm| vm.record.id.clone()).collect()
    }

    /// What a source calls the VMs that are known of it.
    pub(super) fn references(&self, node: &HostId) -> BTreeSet<String> {
        let table = self.app.vms.table();
        let records = table.vms.values().map(|vm| &vm.record).filter(|record| {
            record.source == VmSource::Vsphere
                && record.node == *node
                && !matches!(record.presence, Presence::Orphan { .. })
                && record.reference != tell::UNKNOWN
        });
        records.map(|record| record.reference.clone()).collect()
    }

    /// Counts what is on sources that the configuration does not name.
    fn find_unconfigured(&mut self) {
        let mut found: BTreeMap<HostId, usize> = BTreeMap::new();
        let table = self.app.vms.table();
        let records = table.vms.values().map(|vm| &vm.record).filter(|record| {
            record.source == VmSource::Vsphere
                && !self.sights.contains_key(&record.node)
                && !matches!(record.presence, Presence::Orphan { .. })
        });
        for record in records {
            *found.entry(record.node.clone()).or_default() += 1;
        }
        drop(table);
        self.unconfigured = found;
    }

    /// Takes what a source says, without deciding anything yet.
    fn absorb(&mut self, report: Report) {
        let now = clock::now();
        let Report { node, said } = report;
        let Some(sight) = self.sights.get_mut(&node) else { return };
        match said {
            Said::Connected(about) => {
                tracing::info!(source = %node, about = about.name, "connected");
                sight.about = Some(about);
                sight.heard = Some(now);
            }
            Said::Alive => sight.heard = Some(now),
            Said::Whole(objects, ask) => {
                let is_news = sight.whole_at.is_none() || sight.fault.is_some();
                let left = sight.take_whole(objects, now);
                sight.answered = ask;
                self.silent.remove(&node);
                self.touched.entry(node.clone()).or_default().whole = true;
                self.come_elsewhere(&node, &left);
                if is_news {
                    self.touch_others(&node);
                }
            }
            Said::Changed(updates) => {
                sight.heard = Some(now);
                sight.midway = updates.more;
                let touched = self.touched.entry(node.clone()).or_default();
                let mut left = BTreeSet::new();
                for change in updates.changes {
                    left.extend(touch(touched, sight, change, now));
                }
                self.come_elsewhere(&node, &left);
            }
            Said::Failed(error) => {
                let fault = with_causes(&error);
                let since = match &sight.fault {
                    Some((since, _)) => *since,
                    None => {
                        tracing::warn!(source = %node, fault, "is not in step");
                        now
                    }
                };
                sight.midway = false;
                sight.fault = Some((since, fault.clone()));
                sight.needs_somebody = error.needs_somebody();
                self.touch_others(&node);
                self.fail(&node, fault);
            }
        }
    }

    /// Whether a VM moved may be another matter now.
    fn touch_others(&mut self, node: &HostId) {
        let whole =
            self.sights.iter().filter(|(other, sight)| *other != node && sight.doubt().is_none());
        for (other, _) in whole {
            self.touched.entry(other.clone()).or_default().all = true;
        }
    }

    /// What left one source may be at another already, taken for a copy until now.
    fn come_elsewhere(&mut self, node: &HostId, left: &BTreeSet<VmId>) {
        for (other, sight) in self.sights.iter().filter(|(other, _)| *other != node) {
            for id in left {
                if let Some(reference) = sight.reference(id) {
                    let touched = self.touched.entry(other.clone()).or_default();
                    touched.ids.insert(reference.to_owned());
                }
            }
        }
    }

    async fn decide_touched(&mut self) {
        let (ready, midway): (BTreeMap<HostId, Touched>, _) = std::mem::take(&mut self.touched)
            .into_iter()
            .filter(|(node, _)| self.sights.get(node).is_some_and(|one| one.doubt().is_none()))
            // The rest is on its way.
            .partition(|(node, _)| self.sights.get(node).is_some_and(|sight| !sight.midway));
        self.touched = midway;
        let whole = self.wait_for_what_left(&ready);
        for (node, touched) in ready {
            if whole.contains(&node) {
                self.decide_whole(&node, true).await;
                continue;
            }
            let Some(sight) = self.sights.get(&node) else { continue };
            let read = if touched.whole || touched.all {
                let ids = sight.objects().machines.keys().map(String::as_str);
                vsphere::partly(&node, sight.objects(), ids)
            } else {
                vsphere::partly(&node, sight.objects(), touched.ids.iter().map(String::as_str))
            };
            if let Err(error) = self.decide(&node, read, true).await {
                tracing::warn!(source = %node, error = with_causes(&error), "its VMs could not be recorded");
                self.later.insert(node, Later::after(AGAIN, clock::now()));
            }
        }
    }

    /// What left a source is decided about later; the sources that nothing is missing in.
    fn wait_for_what_left(&mut self, touched: &BTreeMap<HostId, Touched>) -> BTreeSet<HostId> {
        let now = clock::now();
        let mut whole = BTreeSet::new();
        for (node, touched) in touched.iter().filter(|(_, one)| one.whole || one.left) {
            if self.missing(node).is_empty() {
                whole.insert(node.clone());
                continue;
            }
            let later = self.later.entry(node.clone());
            let later = later.or_insert_with(|| Later::after(GRACE, now));
            if touched.left {
                later.put_off(now);
            }
        }
        whole
    }

    /// What VMs are called that left, while it is not decided what became of them. Others know VMs
    /// by their names: one that takes such a name keeps its own until that is told.
    fn names_in_doubt(&self) -> BTreeSet<String> {
        let ids: Vec<VmId> = self.later.keys().flat_map(|node| self.missing(node)).collect();
        let table = self.app.vms.table();
        let names = ids.iter().filter_map(|id| Some(table.vms.get(id)?.record.name.to_string()));
        names.collect()
    }

    /// What a source does not list, and did.
    fn missing(&self, node: &HostId) -> Vec<VmId> {
        let Some(sight) = self.sights.get(node) else { return Vec::new() };
        let is_missing = |vm: &Vm| {
            vm.record.node == *node
                && !matches!(vm.record.presence, Presence::Orphan { .. })
                && !sight.has(&vm.record.id)
        };
        self.ours(is_missing)
    }

    /// Decides about all that a source lists, and all that it does not.
    async fn decide_whole(&mut self, node: &HostId, with_breaker: bool) -> Vec<VmId> {
        self.later.remove(node);
        let Some(sight) = self.sights.get(node) else { return Vec::new() };
        let read = vsphere::listing(node, sight.objects());
        let answered = sight.answered;
        match self.decide(node, read, with_breaker).await {
            Ok((result, orphans)) => {
                // What was listed before the pass began is no answer to it.
                if let Some(pass) = self.pass.as_mut().filter(|pass| answered >= pass.ask) {
                    pass.finish(node, result);
                }
                self.end_pass();
                orphans
            }
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(source = %node, error, "its VMs could not be recorded");
                self.fail(node, error);
                self.later.insert(node.clone(), Later::after(AGAIN, clock::now()));
                Vec::new()
            }
        }
    }

    /// Has the inventory decide, with what others are to be told, and counts.
    async fn decide(
        &mut self,
        node: &HostId,
        read: vsphere::Read,
        with_breaker: bool,
    ) -> Result<(SourceResult, Vec<VmId>), Error> {
        let taken = self.names_in_doubt();
        let (listing, put_off) = {
            let table = self.app.vms.table();
            let mut listing = sight::listing(node, read, &self.sights, &table.vms);
            let put_off = sight::keep_names(&mut listing, &taken, &table.vms);
            (listing, put_off)
        };
        if !put_off.is_empty() {
            self.touched.entry(node.clone()).or_default().ids.extend(put_off);
        }
        let completeness = listing.nodes.get(node).cloned();
        let breaker = with_breaker.then(|| self.breaker());
        let entries = Arc::new(Mutex::new(Vec::new()));
        let (sync, slot) = (self.sync.clone(), Arc::clone(&entries));
        let vms = self.app.vms.clone();
        let also = move |outcome: &Outcome, before: &BTreeMap<VmId, Vm>, at: Time| {
            let mut changes = store::Changes::default();
            let mut drafts = tell::drafts(&sync.settings, outcome, before, at);
            tell::leave_namesakes(&mut drafts, outcome, &vms.table().vms);
            if !drafts.is_empty() {
                let added = sync.outbox.enqueue(&mut changes, &drafts, at)?;
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = added;
            }
            Ok(changes)
        };
        let outcome = self.app.vms.listed(listing, breaker, Some(Box::new(also))).await?;
        // Before others may be told: they are told what its document says.
        let decided = outcome.decisions.iter().filter(|one| one.act != Act::Ignore);
        self.sync.mirror.mark(decided.filter_map(|one| one.id.clone()));
        let added = std::mem::take(&mut *entries.lock().unwrap_or_else(PoisonError::into_inner));
        if !added.is_empty() {
            self.sync.outbox.added(added);
        }
        let result = self.count(node, &outcome, completeness.as_ref());
        if completeness == Some(Completeness::Complete)
            && let Some(sight) = self.sights.get_mut(node)
            && std::mem::take(&mut sight.is_listed_anew)
        {
            if let Some(at) = sight.whole_at {
                self.sync.kept.set_listed_at(node, at);
            }
            // With the time at which they were in step last. What only left is told alone.
            self.sync.mirror.mark_in_step(outcome.listed.iter().cloned());
        }
        Ok((result, outcome.orphans()))
    }

    fn breaker(&self) -> Breaker {
        let breaker = self.sync.settings.breaker.unwrap_or_else(|| self.app.vms.breaker());
        breaker.of_pieces(clock::now())
    }

    fn count(
        &mut self,
        node: &HostId,
        outcome: &Outcome,
        completeness: Option<&Completeness>,
    ) -> SourceResult {
        let mut result = SourceResult { ok: true, host: self.address(node), ..Default::default() };
        for decision in &outcome.decisions {
            let kind = decision.act.kind();
            *self.decisions.entry(kind).or_default() += 1;
            match kind {
                DecisionKind::Register => result.added += 1,
                DecisionKind::Refresh => result.refreshed += 1,
                DecisionKind::Rename => result.renamed += 1,
                DecisionKind::Move => result.moved += 1,
                DecisionKind::Orphan => result.orphaned += 1,
                DecisionKind::Reactivate => result.reactivated += 1,
                DecisionKind::Stale | DecisionKind::Ignore | DecisionKind::Hold => {}
            }
            if kind != DecisionKind::Refresh
                && let Some(pass) = self.pass.as_mut().filter(|pass| pass.waits_for.contains(node))
            {
                let id = decision.id.as_ref().map_or("-", VmId::as_str);
                pass.say(Saying::Line(format!("{kind} {id}: {}", decision.reason)));
            }
        }
        result.updated = outcome.listed.len().saturating_sub(result.added);
        result.updated_failures = self.sync.mirror.count_refused(&outcome.listed);
        result.orphaned_failures = self.sync.mirror.count_refused(&outcome.orphans());
        result.held = outcome.held.as_ref().map_or(0, |held| held.vms.len());
        if let Some(Completeness::Incomplete(why)) = completeness {
            result.ok = false;
            result.message = Some(why.clone());
        }
        result
    }

    fn address(&self, node: &HostId) -> String {
        let sources = &self.sync.settings.sources;
        let source = sources.iter().find(|source| source.node == *node);
        source.map(|source| source.address.clone()).unwrap_or_default()
    }

    /// Says of the VMs of a source that is away for long that nobody can tell how they are.
    async fn tell_silence(&mut self, now: Time) {
        let timeout = self.sync.settings.timeout;
        let away = self.sights.iter().filter_map(|(node, sight)| {
            let (since, fault) = sight.fault.as_ref()?;
            (now.since(*since) > timeout).then(|| (node.clone(), fault.clone()))
        });
        let left = self.unconfigured.keys().map(|node| (node.clone(), sight::unconfigured(node)));
        let new = away.chain(left).filter(|(node, _)| !self.silent.contains(node));
        for (node, fault) in new.collect::<Vec<_>>() {
            let read = vsphere::Read {
                seen: Vec::new(),
                refused: Vec::new(),
                completeness: Completeness::Incomplete(fault),
            };
            match self.decide(&node, read, true).await {
                Ok(_) => drop(self.silent.insert(node)),
                Err(error) => {
                    tracing::warn!(source = %node, error = with_causes(&error), "its VMs could not be recorded");
                }
            }
        }
    }

    async fn take(&mut self, command: Command) {
        // Who asked and has gone does not need the answer.
        match command {
            Command::Now(cause, reply) => self.now(cause, reply),
            Command::Selected(vms, reply) => drop(reply.send(Ok(self.select(&vms).await))),
            Command::Plan(reply) => {
                let records = self.app.vms.table().vms.clone();
                let planned = plan::planned(&self.sights, records, self.breaker(), clock::now());
                drop(reply.send(Ok(planned)));
            }
            Command::Confirm(node, reply) => drop(reply.send(self.confirm(node).await)),
        }
    }

    async fn confirm(&mut self, node: HostId) -> Result<Vec<VmId>, Error> {
        if self.unconfigured.contains_key(&node) {
            return self.let_go(&node).await;
        }
        let held = self.app.vms.table().nodes.get(&node).map(|node| node.held.clone());
        let held = held.unwrap_or_default();
        let in_step = self.sights.get(&node).is_some_and(|sight| sight.doubt().is_none());
        if held.is_empty() || !in_step {
            return Err(Error::NothingHeld(node));
        }
        // Nobody said so of what went since it was looked at.
        if self.missing(&node).iter().any(|id| !held.contains(id)) {
            self.decide_whole(&node, true).await;
            return Err(Error::MoreIsHeld(node));
        }
        Ok(self.decide_whole(&node, false).await)
    }

    /// Makes orphans of what is on a source that the configuration does not name any more. What
    /// came from there to one that is not seen would be taken for gone.
    async fn let_go(&mut self, node: &HostId) -> Result<Vec<VmId>, Error> {
        let unseen = self.sights.iter().find_map(|(other, sight)| Some((other, sight.doubt()?)));
        if let Some((other, why)) = unseen {
            return Err(Error::Unseen { node: node.clone(), other: other.clone(), why });
        }
        let read = vsphere::Read {
            seen: Vec::new(),
            refused: Vec::new(),
            completeness: Completeness::Complete,
        };
        let (_, orphans) = self.decide(node, read, false).await?;
        self.find_unconfigured();
        Ok(orphans)
    }

    /// Shows how it stands.
    fn show(&self) {
        let table = self.app.vms.table();
        let source = |source: &Source| {
            let sight = self.sights.get(&source.node)?;
            let about = sight.about.as_ref().map(|about| about.name.clone());
            Some(SyncSource {
                node: source.node.clone(),
                address: source.address.clone(),
                about,
                fault: sight.doubt(),
                vms: sight.objects().machines.len(),
                listed_at: sight.whole_at.or_else(|| self.sync.kept.listed_at(&source.node)),
                heard_at: sight.heard,
                held: table
                    .nodes
                    .get(&source.node)
                    .map(|node| node.held.clone())
                    .unwrap_or_default(),
                requests: source.vsphere.requests.count(),
            })
        };
        let sources = self.sync.settings.sources.iter().filter_map(source).collect();
        drop(table);
        let mut standing = self.sync.locked();
        standing.in_process = self.pass.is_some();
        standing.sources = sources;
        standing.unconfigured.clone_from(&self.unconfigured);
        standing.last = self.sync.kept.last();
        standing.decisions.clone_from(&self.decisions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_one_after_the_other_is_waited_for_but_not_for_ever() {
        let second = |n: i64| Time::from_seconds(100 + n);
        let mut later = Later::after(GRACE, second(0));
        for (left, expected) in [(0, 3), (2, 5), (5, 8), (8, 11), (10, 12), (11, 12), (30, 12)] {
            later.put_off(second(left));
            assert_eq!(later.at, second(expected), "after {left} s");
        }
    }
}
