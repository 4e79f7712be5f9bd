//! What a listing means for the records there are. Pure.
//!
//! ```text
//!             listed                          not listed, on a node that was listed
//!   none      register                        -
//!   present   (refresh, rename, move)         complete: orphan, or held by the breaker,
//!                                             which minds no VM whose unit was let go,
//!                                             and lets nothing go by itself
//!                                             incomplete: stale
//!                                             partial: -
//!                                             may be one that nobody can tell: stale
//!   stale     reactivate (…)                  the same
//!   orphan    reactivate (…)                  -
//! ```

use crate::health::Health;
use crate::microvm;
use crate::record::{
    Act, Completeness, Decision, Listing, Presence, Record, Refused, Seen, Unidentified, Vm,
};
use crate::recovery::Tried;
use model::vm::{VmHealth, VmId, VmSource, VmState};
use model::{HostId, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// For so long a VM may be on two nodes at once.
const MOVING: Duration = Duration::from_secs(60);
/// How far back orphans count as those of now.
const AT_ONCE: Duration = Duration::from_secs(300);

/// How many may become orphans at once before somebody has to say that it is so. Both have to
/// be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Of those on the nodes that were listed completely, in percent.
    pub share: usize,
    pub count: usize,
    /// What became an orphan since then counts, too: of a source that tells piece by piece what
    /// left it, each piece is small.
    pub since: Option<Time>,
}

impl Breaker {
    /// As it is for what is told piece by piece.
    #[must_use]
    pub fn of_pieces(self, now: Time) -> Self {
        Self { since: Some(now.minus(AT_ONCE)), ..self }
    }
}

impl Default for Breaker {
    /// Half of them, and five at least.
    fn default() -> Self {
        Self { share: 50, count: 5, since: None }
    }
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// By the id of the VM; those of one VM in the order in which they are applied.
    pub decisions: Vec<Decision>,
    /// What was listed and is kept.
    pub listed: Vec<VmId>,
    /// The breaker tripped.
    pub held: Option<Held>,
}

impl Outcome {
    /// What became an orphan.
    #[must_use]
    pub fn orphans(&self) -> Vec<VmId> {
        let all = self.decisions.iter().filter(|one| matches!(one.act, Act::Orphan(_)));
        all.filter_map(|one| one.id.clone()).collect()
    }
}

/// VMs that would be orphans, if somebody said that it is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub vms: Vec<VmId>,
    /// Of so many.
    pub of: usize,
}

/// Decides. Without a breaker nothing is held.
#[must_use]
pub fn reconcile(
    records: &BTreeMap<VmId, Vm>,
    listing: &Listing,
    breaker: Option<Breaker>,
) -> Outcome {
    let (chosen, ignored) = choose(records, listing);
    let mut outcome =
        Outcome { listed: chosen.keys().map(|id| (*id).clone()).collect(), ..Outcome::default() };
    for seen in chosen.values() {
        outcome.decisions.extend(decide_seen(records.get(&seen.id), seen, listing.source));
    }
    // What tells a part costs no more than that part, however many records there are.
    if listing.nodes.values().any(|completeness| *completeness != Completeness::Partial) {
        decide_unseen(records, listing, breaker, &chosen, &mut outcome);
    }
    outcome.decisions.sort_by(|a, b| a.id.cmp(&b.id));
    outcome.decisions.extend(ignored);
    outcome
}

type Chosen<'l> = BTreeMap<&'l VmId, &'l Seen>;

/// One entry for each VM; the others, and what is no VM, are ignored.
fn choose<'l>(records: &BTreeMap<VmId, Vm>, listing: &'l Listing) -> (Chosen<'l>, Vec<Decision>) {
    let mut by_id: BTreeMap<&VmId, Vec<&Seen>> = BTreeMap::new();
    for seen in &listing.seen {
        by_id.entry(&seen.id).or_default().push(seen);
    }
    let mut chosen = BTreeMap::new();
    let mut ignored = Vec::new();
    let ignore = |seen: &Seen, reason: String| Decision {
        id: Some(seen.id.clone()),
        act: Act::Ignore,
        reason: format!("{} on {}: {reason}", seen.reference, seen.node),
    };
    for (id, mut entries) in by_id {
        let record = records.get(id).map(|vm| &vm.record);
        // The one that was there before stays the VM; which is otherwise as good as any.
        let is_known = |seen: &Seen| {
            record.is_some_and(|r| r.node == seen.node && r.reference == seen.reference)
        };
        entries.sort_by(|a, b| {
            let key = |seen: &Seen| (!is_known(seen), seen.node.clone(), seen.reference.clone());
            key(a).cmp(&key(b))
        });
        let mut entries = entries.into_iter();
        let Some(first) = entries.next() else { continue };
        if let Some(other) = record.filter(|record| record.source != listing.source) {
            ignored.push(ignore(first, format!("the id is that of a VM of {}", other.source)));
        } else if !listing.nodes.contains_key(&first.node) {
            ignored.push(ignore(first, "the listing does not speak for this node".to_owned()));
        } else {
            chosen.insert(id, first);
        }
        for further in entries {
            let reason = format!("{id} is {} on {} already", first.reference, first.node);
            ignored.push(ignore(further, reason));
        }
    }
    let mut refused: Vec<&Refused> = listing.refused.iter().collect();
    refused.sort_by_key(|refused| &refused.reference);
    ignored.extend(refused.into_iter().map(|refused| Decision {
        id: None,
        act: Act::Ignore,
        reason: format!("{}: {}", refused.reference, refused.reason),
    }));
    (chosen, ignored)
}

fn decide_seen(known: Option<&Vm>, seen: &Seen, source: VmSource) -> Vec<Decision> {
    let decision = |act, reason| Decision { id: Some(seen.id.clone()), act, reason };
    let Some(Vm { record, condition, .. }) = known else {
        let reason = format!("{} on {} was not known", seen.reference, seen.node);
        return vec![decision(Act::Register(source, Box::new(seen.clone())), reason)];
    };
    let mut decisions = Vec::new();
    match &record.presence {
        Presence::Present => {}
        Presence::Stale { since, .. } => {
            let reason = format!("seen again; nobody could tell since {since}");
            decisions.push(decision(Act::Reactivate, reason));
        }
        Presence::Orphan { since } => {
            let reason = format!("seen again; it was an orphan since {since}");
            decisions.push(decision(Act::Reactivate, reason));
        }
    }
    if record.node != seen.node {
        let reason = format!("it was on {} and is on {}", record.node, seen.node);
        let act = Act::Move(seen.node.clone(), seen.reference.clone());
        decisions.push(decision(act, reason));
    }
    if record.name != seen.name {
        let reason = format!("it was called {} and is called {}", record.name, seen.name);
        decisions.push(decision(Act::Rename(seen.name.clone()), reason));
    }
    let moved = record.node != seen.node;
    let differs: Vec<&str> = [
        ("reference", !moved && record.reference != seen.reference),
        ("labels", record.labels != seen.labels),
        ("limits", record.limits != seen.limits),
        ("state", condition != &seen.condition),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect();
    if !differs.is_empty() {
        let reason = if condition.detail == seen.condition.detail {
            format!("differs in {}", differs.join(", "))
        } else {
            format!("it was {} and is {}", condition.detail, seen.condition.detail)
        };
        decisions.push(decision(Act::Refresh(Box::new(seen.clone())), reason));
    }
    decisions
}

/// Of the VMs on the listed nodes that were not listed.
fn decide_unseen(
    records: &BTreeMap<VmId, Vm>,
    listing: &Listing,
    breaker: Option<Breaker>,
    chosen: &Chosen<'_>,
    outcome: &mut Outcome,
) {
    let speaks_for = |node: &HostId| {
        listing.nodes.get(node).is_some_and(|completeness| *completeness != Completeness::Partial)
    };
    let is_ours = |record: &Record| {
        record.source == listing.source
            && speaks_for(&record.node)
            && !matches!(record.presence, Presence::Orphan { .. })
    };
    // That it was stopped was told of each by itself: a listing that lacks it says nothing new.
    let was_let_go =
        |vm: &Vm| vm.record.source == VmSource::Microvm && microvm::was_let_go(&vm.condition);
    // What was listed in some odd way is there, too.
    let seen: BTreeSet<&VmId> = listing.seen.iter().map(|seen| &seen.id).collect();
    let strangers = strangers(records, listing, &seen);
    let (mut ours, mut missing) = (Vec::new(), Vec::new());
    for vm in records.values().filter(|vm| is_ours(&vm.record)) {
        let record = &vm.record;
        ours.push(vm);
        if seen.contains(&record.id) {
            continue;
        }
        match doubt(listing, &record.node).or_else(|| may_be(vm, listing, &strangers)) {
            Some(reason) => outcome.decisions.extend(stale(record, Act::Stale, reason)),
            None if was_let_go(vm) => outcome.decisions.push(orphan(record, listing.gone)),
            None => missing.push(record),
        }
    }
    // With those that were listed just now, where they are now: so it is the same once they are
    // records.
    let is_complete = |node: &HostId| listing.nodes.get(node) == Some(&Completeness::Complete);
    let unlisted = ours.iter().filter(|vm| !was_let_go(vm)).map(|vm| &vm.record);
    let unlisted = unlisted.filter(|record| !chosen.contains_key(&record.id));
    let of = chosen.values().filter(|seen| is_complete(&seen.node)).count()
        + unlisted.filter(|record| is_complete(&record.node)).count();
    let is_recent = |record: &Record, breaker: &Breaker| {
        let Presence::Orphan { since } = record.presence else { return false };
        record.source == listing.source
            && is_complete(&record.node)
            && !chosen.contains_key(&record.id)
            && breaker.since.is_some_and(|recent| since >= recent)
    };
    let all = || records.values().map(|vm| &vm.record);
    let trips = breaker.filter(|_| !missing.is_empty()).and_then(|breaker| {
        let recent = all().filter(|record| is_recent(record, &breaker)).count();
        let (gone, of) = (missing.len() + recent, of + recent);
        (gone >= breaker.count.max(1) && gone * 100 >= breaker.share * of).then_some((gone, of))
    });
    // What is held stays so, however much came since, and however long ago it was.
    let is_held =
        |record: &&Record| trips.is_some() || (breaker.is_some() && record.presence.is_held());
    let (held, gone): (Vec<&Record>, Vec<&Record>) = missing.into_iter().partition(is_held);
    if let Some((gone, of)) = trips {
        let reason =
            format!("held: {gone} of {of} would be orphans at once, which somebody has to confirm");
        let holds = held.iter().filter_map(|record| stale(record, Act::Hold, reason.clone()));
        outcome.decisions.extend(holds);
    }
    outcome.decisions.extend(gone.into_iter().map(|record| orphan(record, listing.gone)));
    if !held.is_empty() {
        let vms = held.into_iter().map(|record| record.id.clone()).collect();
        outcome.held = Some(Held { vms, of: trips.map_or(of, |(_, of)| of) });
    }
}

fn orphan(record: &Record, state: VmState) -> Decision {
    Decision {
        id: Some(record.id.clone()),
        act: Act::Orphan(state),
        reason: format!("a complete listing of {} lacks {}", record.node, record.reference),
    }
}

/// Why a VM that was not listed may be there all the same.
fn doubt(listing: &Listing, node: &HostId) -> Option<String> {
    if let Some(Completeness::Incomplete(reason)) = listing.nodes.get(node) {
        return Some(reason.clone());
    }
    let elsewhere = listing.nodes.iter().find_map(|(node, completeness)| match completeness {
        Completeness::Incomplete(_) | Completeness::Partial => Some(node),
        Completeness::Complete => None,
    });
    if let Some(node) = elsewhere {
        return Some(format!("it may have moved to {node}, which was not listed whole"));
    }
    let unseen = listing.elsewhere.iter().next();
    unseen.map(|(node, why)| format!("it may have moved to {node}: {why}"))
}

/// Of the VMs that nobody can identify those that have the reference of no record that is missing:
/// each of them may have come since.
fn strangers<'l>(
    records: &BTreeMap<VmId, Vm>,
    listing: &'l Listing,
    seen: &BTreeSet<&VmId>,
) -> Vec<&'l Unidentified> {
    if listing.unidentified.is_empty() {
        return Vec::new();
    }
    let unseen = records.values().map(|vm| &vm.record);
    let unseen = unseen.filter(|one| one.source == listing.source && !seen.contains(&one.id));
    let taken: BTreeSet<(&HostId, &str)> =
        unseen.map(|record| (&record.node, record.reference.as_str())).collect();
    let is_stranger = |one: &&Unidentified| !taken.contains(&(&one.node, one.reference.as_str()));
    listing.unidentified.iter().filter(is_stranger).collect()
}

/// Which VM that nobody can identify a missing one may be. One that was there long before the
/// missing one was seen last is another.
fn may_be(vm: &Vm, listing: &Listing, strangers: &[&Unidentified]) -> Option<String> {
    let record = &vm.record;
    let its_own =
        |one: &&Unidentified| one.node == record.node && one.reference == record.reference;
    // A VM that moves may be seen where it goes before it is missed where it was.
    let came = |one: &&&Unidentified| match one.node == record.node {
        true => one.since > vm.last_seen,
        false => one.since.plus(MOVING) > vm.last_seen,
    };
    let reference = match listing.unidentified.iter().find(its_own) {
        Some(one) => &one.reference,
        None => &strangers.iter().find(came)?.reference,
    };
    Some(format!("it may be {reference}, which can't be identified"))
}

/// Nothing where that is known already.
fn stale(record: &Record, act: Act, reason: String) -> Option<Decision> {
    let is_known =
        matches!(&record.presence, Presence::Stale { reason: known, .. } if *known == reason);
    (!is_known).then(|| Decision { id: Some(record.id.clone()), act, reason })
}

/// Carries a decision out on the records.
pub fn apply(records: &mut BTreeMap<VmId, Vm>, decision: &Decision, at: Time) {
    let Some(id) = &decision.id else { return };
    if let Act::Register(source, seen) = &decision.act {
        records.insert(id.clone(), registered(*source, seen, at));
        return;
    }
    let Some(vm) = records.get_mut(id) else { return };
    match &decision.act {
        Act::Register(..) | Act::Ignore => {}
        Act::Refresh(seen) => {
            vm.record.reference.clone_from(&seen.reference);
            vm.record.labels.clone_from(&seen.labels);
            if vm.record.limits != seen.limits {
                // What was found of the others says nothing of these.
                vm.health.begin_anew();
                vm.record.limits = seen.limits;
            }
            vm.condition.clone_from(&seen.condition);
        }
        Act::Rename(name) => vm.record.name.clone_from(name),
        Act::Move(node, reference) => {
            vm.record.node.clone_from(node);
            vm.record.reference.clone_from(reference);
        }
        Act::Stale | Act::Hold => {
            let since = match vm.record.presence {
                Presence::Stale { since, .. } => since,
                _ => at,
            };
            let is_held = decision.act == Act::Hold || vm.record.presence.is_held();
            let reason = decision.reason.clone();
            vm.record.presence = Presence::Stale { since, reason, is_held };
        }
        Act::Orphan(state) => {
            vm.record.presence = Presence::Orphan { since: at };
            vm.condition.state = *state;
            vm.condition.detail = "gone".to_owned();
            vm.condition.looping = None;
        }
        Act::Reactivate => vm.record.presence = Presence::Present,
    }
}

fn registered(source: VmSource, seen: &Seen, at: Time) -> Vm {
    Vm {
        record: Record {
            id: seen.id.clone(),
            source,
            node: seen.node.clone(),
            name: seen.name.clone(),
            reference: seen.reference.clone(),
            labels: seen.labels.clone(),
            limits: seen.limits,
            first_seen: at,
            presence: Presence::Present,
            checks: BTreeMap::new(),
            recovery: None,
        },
        condition: seen.condition.clone(),
        last_seen: at,
        health: Health { state: VmHealth::Unknown, since: at, ..Health::default() },
        usage: None,
        tried: Tried::default(),
        transitions: VecDeque::new(),
    }
}

#[cfg(test)]
mod tests;
