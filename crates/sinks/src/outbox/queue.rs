//! What waits, and what of it is next. Pure.
//!
//! # Invariants
//! - Of a lane only the first entries are under way, and a dead entry is never passed.

use super::{Entry, Target};
use model::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Changes of sessions that are carried out in one pass.
const MAX_EDITS: usize = 1000;

/// Entries that go one after the other: to one endpoint of one VM; to the sessions all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Lane {
    pub(super) target: Target,
    vm: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    lanes: HashMap<Lane, Waiting>,
    lane_of: HashMap<String, Lane>,
    /// Lanes that can go on, by when.
    due: HashMap<Target, BTreeSet<(Time, Lane)>>,
    dead: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: BTreeMap<String, Entry>,
    /// As it stands in `due`.
    due: Option<Time>,
    is_under_way: bool,
}

impl Lane {
    fn of(entry: &Entry) -> Self {
        let vm = (entry.target != Target::Sessions).then(|| entry.vm.clone());
        Self { target: entry.target, vm }
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.lane_of.len()
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.lane_of.contains_key(id)
    }

    pub(super) fn list(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> =
            self.lanes.values().flat_map(|waiting| waiting.entries.values()).cloned().collect();
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        entries
    }

    /// Waiting, dead.
    pub(super) fn depth(&self) -> (usize, usize) {
        (self.len() - self.dead, self.dead)
    }

    /// Puts an entry in, or in place of what it was.
    pub(super) fn put(&mut self, entry: Entry) {
        let lane = Lane::of(&entry);
        self.dead += usize::from(entry.dead);
        self.lane_of.insert(entry.id.clone(), lane.clone());
        let waiting = self.lanes.entry(lane.clone()).or_default();
        if waiting.entries.insert(entry.id.clone(), entry).is_some_and(|before| before.dead) {
            self.dead -= 1;
        }
        self.schedule(&lane);
    }

    pub(super) fn remove(&mut self, id: &str) {
        let Some(lane) = self.lane_of.remove(id) else { return };
        if let Some(waiting) = self.lanes.get_mut(&lane)
            && waiting.entries.remove(id).is_some_and(|before| before.dead)
        {
            self.dead -= 1;
        }
        self.schedule(&lane);
    }

    /// What is next for this target, which is under way from now on until it is settled.
    pub(super) fn take(&mut self, target: Target, now: Time) -> Option<(Lane, Vec<Entry>)> {
        let (at, lane) = self.due.get(&target)?.first()?.clone();
        if at > now {
            return None;
        }
        let waiting = self.lanes.get_mut(&lane)?;
        waiting.is_under_way = true;
        let count = if target == Target::Sessions { MAX_EDITS } else { 1 };
        let entries = waiting.entries.values().take(count).cloned().collect();
        self.schedule(&lane);
        Some((lane, entries))
    }

    /// That nothing of a lane is under way.
    pub(super) fn settled(&mut self, lane: &Lane) {
        if let Some(waiting) = self.lanes.get_mut(lane) {
            waiting.is_under_way = false;
        }
        self.schedule(lane);
    }

    /// When there is something for this target.
    pub(super) fn next_at(&self, target: Target) -> Option<Time> {
        self.due.get(&target)?.first().map(|(at, _)| *at)
    }

    fn schedule(&mut self, lane: &Lane) {
        let Some(waiting) = self.lanes.get_mut(lane) else { return };
        let head = waiting.entries.values().next();
        let next = head.filter(|head| !head.dead && !waiting.is_under_way).map(|head| head.next_at);
        if waiting.due != next {
            let due = self.due.entry(lane.target).or_default();
            if let Some(before) = waiting.due {
                due.remove(&(before, lane.clone()));
            }
            due.extend(next.map(|at| (at, lane.clone())));
            waiting.due = next;
        }
        if waiting.entries.is_empty() && !waiting.is_under_way {
            self.lanes.remove(lane);
        }
    }
}
