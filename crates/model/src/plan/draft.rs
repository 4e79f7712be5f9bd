//! A plan in the making: steps in any order, which then get one.

use super::packages::Lacking;
use super::step::{Action, Step};
use super::{Own, Plan, STEPS_MAX};
use crate::spec::{self, AccountName, Cause, FilePath, Gap, PackageName, Spec, UnitName};
use crate::{Facts, Kind, Subject};
use std::collections::{BTreeMap, BTreeSet};

/// Where a step is in the draft.
pub(super) type At = usize;

#[derive(Debug)]
struct Node {
    subject: Subject,
    action: Action,
    why: String,
    needs: BTreeSet<At>,
    after: BTreeSet<At>,
}

pub(super) struct Draft<'a> {
    pub(super) spec: &'a Spec,
    pub(super) twin: &'a Facts,
    pub(super) own: &'a Own,
    /// Kinds of which the twin could not be looked at.
    unseen: BTreeSet<Kind>,
    /// What the host has and the spec only tells about: it is not to be removed.
    told: BTreeSet<Subject>,
    nodes: Vec<Node>,
    gaps: Vec<Gap>,
    /// Steps that others wait for.
    pub(super) groups: BTreeMap<AccountName, At>,
    pub(super) users: BTreeMap<AccountName, At>,
    /// Those that come.
    pub(super) packages: BTreeMap<PackageName, At>,
    /// Those that can't come.
    pub(super) lacking: BTreeMap<PackageName, Lacking>,
    pub(super) files: BTreeMap<FilePath, At>,
    pub(super) starts: BTreeMap<UnitName, At>,
    pub(super) stops: BTreeMap<UnitName, At>,
    /// Users who go: while something of theirs runs, they can't.
    pub(super) leaving: Vec<At>,
    pub(super) masked: BTreeMap<UnitName, At>,
    /// What lets a unit be started that was masked or not enabled.
    pub(super) unmasked: BTreeMap<UnitName, At>,
    pub(super) reload: Option<At>,
    /// Steps that need systemd to have read its files again, if it does.
    pub(super) awaiting_reload: Vec<At>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(spec: &'a Spec, twin: &'a Facts, own: &'a Own) -> Self {
        Self {
            spec,
            twin,
            own,
            unseen: spec::unseen(twin),
            told: spec.gaps.iter().map(|gap| gap.subject.clone()).collect(),
            nodes: Vec::new(),
            gaps: spec.gaps.clone(),
            groups: BTreeMap::new(),
            users: BTreeMap::new(),
            packages: BTreeMap::new(),
            lacking: BTreeMap::new(),
            files: BTreeMap::new(),
            starts: BTreeMap::new(),
            stops: BTreeMap::new(),
            leaving: Vec::new(),
            masked: BTreeMap::new(),
            unmasked: BTreeMap::new(),
            reload: None,
            awaiting_reload: Vec::new(),
        }
    }

    /// Whether the twin could be looked at for this kind; says so once if not.
    pub(super) fn sees(&mut self, kind: Kind) -> bool {
        if self.unseen.contains(&kind) {
            let subject = Subject::escaped(Kind::COLLECTOR, &format!("twin's {kind}"));
            let what = "the twin could not be looked at for it";
            self.gap(&subject, Cause::Unseen, what, "look with: twin ssh");
            return false;
        }
        true
    }

    /// Whether things of a kind may be removed: the host was looked at for them.
    pub(super) fn may_remove(&self, kind: Kind) -> bool {
        !self.spec.unseen.contains(&kind)
    }

    /// Whether this stays though the spec does not have it.
    pub(super) fn stays(&self, subject: &Subject) -> bool {
        self.own.has(subject) || self.told.contains(subject)
    }

    pub(super) fn add(&mut self, subject: &Subject, action: Action, why: &str) -> At {
        let why = match self.spec.declared.contains(subject) {
            true => "it was declared so for this twin".to_owned(),
            false => why.to_owned(),
        };
        let (needs, after) = (BTreeSet::new(), BTreeSet::new());
        self.nodes.push(Node { subject: subject.clone(), action, why, needs, after });
        self.nodes.len() - 1
    }

    /// The first waits for the second to have succeeded.
    pub(super) fn need(&mut self, step: At, before: Option<At>) {
        if let (Some(node), Some(before)) = (self.nodes.get_mut(step), before)
            && before != step
        {
            node.needs.insert(before);
        }
    }

    /// The first waits for the second to have ended.
    pub(super) fn follow(&mut self, step: At, before: Option<At>) {
        if let (Some(node), Some(before)) = (self.nodes.get_mut(step), before)
            && before != step
        {
            node.after.insert(before);
        }
    }

    pub(super) fn gap(&mut self, subject: &Subject, cause: Cause, what: &str, remedy: &str) {
        self.gaps.push(Gap::new(subject, cause, what, remedy));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn finish(mut self) -> Plan {
        self.gaps.sort();
        self.gaps.dedup();
        let order = order(&self.nodes);
        let mut place = vec![None; self.nodes.len()];
        let mut steps: Vec<Step> = Vec::with_capacity(order.len().min(STEPS_MAX));
        let mut nodes: Vec<Option<Node>> = self.nodes.into_iter().map(Some).collect();
        for at in order.into_iter().take(STEPS_MAX) {
            let Some(node) = nodes.get_mut(at).and_then(Option::take) else { continue };
            // What is not placed yet was part of a cycle, which is cut there.
            let placed = |all: &BTreeSet<At>| -> Vec<usize> {
                let mut placed: Vec<usize> = all.iter().filter_map(|at| *place.get(*at)?).collect();
                placed.sort_unstable();
                placed
            };
            let (needs, mut after) = (placed(&node.needs), placed(&node.after));
            after.retain(|at| !needs.contains(at));
            if let Some(place) = place.get_mut(at) {
                *place = Some(steps.len());
            }
            let Node { subject, action, why, .. } = node;
            steps.push(Step { subject, action, why, needs, after });
        }
        Plan { steps, gaps: self.gaps }
    }
}

/// The nodes, each after those it waits for; of those that could come next the first drafted. A
/// cycle is cut at an order that is only wished for, where there is one.
fn order(nodes: &[Node]) -> Vec<At> {
    let mut waits: Vec<BTreeSet<At>> =
        nodes.iter().map(|node| node.needs.union(&node.after).copied().collect()).collect();
    let mut followers: Vec<Vec<At>> = vec![Vec::new(); nodes.len()];
    for (at, befores) in waits.iter().enumerate() {
        for before in befores {
            if let Some(followers) = followers.get_mut(*before) {
                followers.push(at);
            }
        }
    }
    let free = |waits: &[BTreeSet<At>]| {
        let all = waits.iter().enumerate();
        all.filter(|(_, waits)| waits.is_empty()).map(|(at, _)| at).collect::<BTreeSet<At>>()
    };
    let mut ready = free(&waits);
    let mut left: BTreeSet<At> = (0..nodes.len()).filter(|at| !ready.contains(at)).collect();
    let mut ordered = Vec::with_capacity(nodes.len());
    loop {
        while let Some(at) = ready.pop_first() {
            ordered.push(at);
            for follower in followers.get(at).into_iter().flatten() {
                let Some(waits) = waits.get_mut(*follower) else { continue };
                if waits.remove(&at) && waits.is_empty() && left.remove(follower) {
                    ready.insert(*follower);
                }
            }
        }
        let needless = |at: &&At| {
            let node = nodes.get(**at);
            let waits = waits.get(**at);
            node.zip(waits).is_some_and(|(node, waits)| waits.is_disjoint(&node.needs))
        };
        let Some(cut) = left.iter().find(needless).or_else(|| left.first()).copied() else {
            return ordered;
        };
        left.remove(&cut);
        if let Some(waits) = waits.get_mut(cut) {
            waits.clear();
        }
        ready.insert(cut);
    }
}
