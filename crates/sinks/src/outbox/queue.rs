//! What waits, and what of it is next. Pure.
//!
//! # Invariants
//! - Of entries that have something in common only the first are under way, and a dead entry is
//!   never passed by those behind it.
//! - What is under way stands in line until it is settled, also when it was let go of meanwhile.
//! - What sessions are told of what was decided at once they are told at once.

use super::{Entry, Target};
use crate::session::SessionChange;
use model::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What entries may have in common. Those that do go one after the other: an endpoint knows VMs by
/// their names alone, and names are passed on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Line {
    Sessions,
    Vm(Target, String),
    Name(Target, String),
}

/// Entries that are under way together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) target: Target,
    ids: Vec<String>,
}

/// Entries are put in in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<String, Entry>,
    /// Ids of those that stand in line.
    lines: HashMap<Line, BTreeSet<String>>,
    under_way: HashMap<String, Vec<Line>>,
    /// Entries that can go, by when.
    due: HashMap<Target, BTreeSet<(Time, String)>>,
    /// As they stand in `due`.
    due_at: HashMap<String, Time>,
    dead: usize,
}

impl Line {
    fn of(entry: &Entry) -> Vec<Self> {
        if entry.target == Target::Sessions {
            return vec![Self::Sessions];
        }
        let mut lines = vec![Self::Vm(entry.target, entry.vm.clone())];
        if let SessionChange::Rename { old, new } = &entry.change {
            lines.extend([old, new].map(|name| Self::Name(entry.target, name.clone())));
        }
        lines
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.entries.contains_key(id)
    }

    pub(super) fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// By age.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn list(&self) -> Vec<Entry> {
        self.entries().cloned().collect()
    }

    /// Waiting, dead.
    pub(super) fn depth(&self) -> (usize, usize) {
        (self.len() - self.dead, self.dead)
    }

    /// Puts an entry in, or in place of what it was.
    pub(super) fn put(&mut self, entry: Entry) {
        let (id, target) = (entry.id.clone(), entry.target);
        for line in Line::of(&entry) {
            self.lines.entry(line).or_default().insert(id.clone());
        }
        self.dead += usize::from(entry.dead);
        let before = self.entries.insert(id.clone(), entry);
        self.dead -= usize::from(before.is_some_and(|before| before.dead));
        self.schedule(target, &id);
    }

    pub(super) fn remove(&mut self, id: &str) {
        let Some(entry) = self.entries.remove(id) else { return };
        self.dead -= usize::from(entry.dead);
        self.schedule(entry.target, id);
        if !self.under_way.contains_key(id) {
            self.leave(entry.target, id, &Line::of(&entry));
        }
    }

    /// What is next for this target, which is under way from now on until it is settled.
    pub(super) fn take(
        &mut self,
        target: Target,
        now: Time,
        may_tell: impl Fn(&str) -> bool,
    ) -> Option<(Turn, Vec<Entry>)> {
        let ids = self.next(target, may_tell).filter(|(at, _)| *at <= now)?.1;
        let entries: Vec<Entry> =
            ids.iter().filter_map(|id| self.entries.get(id)).cloned().collect();
        for entry in &entries {
            self.under_way.insert(entry.id.clone(), Line::of(entry));
            self.schedule(target, &entry.id);
        }
        Some((Turn { target, ids }, entries))
    }

    /// That nothing of this is under way.
    pub(super) fn settled(&mut self, turn: &Turn) {
        for id in &turn.ids {
            let Some(lines) = self.under_way.remove(id) else { continue };
            if self.contains(id) {
                self.schedule(turn.target, id);
            } else {
                self.leave(turn.target, id, &lines);
            }
        }
    }

    /// When there is something for this target.
    pub(super) fn next_at(&self, target: Target, may_tell: impl Fn(&str) -> bool) -> Option<Time> {
        self.next(target, may_tell).map(|(at, _)| at)
    }

    /// What goes next, of what may, and when.
    fn next(&self, target: Target, may_tell: impl Fn(&str) -> bool) -> Option<(Time, Vec<String>)> {
        let may_go = |entry: &Entry| may_tell(&entry.vm);
        let mut due = self.due.get(&target)?.iter();
        if target != Target::Sessions {
            let (at, id) = due.find(|(_, id)| self.entries.get(id).is_some_and(may_go))?;
            return Some((*at, vec![id.clone()]));
        }
        let (at, _) = due.next()?;
        let waiting = self.lines.get(&Line::Sessions)?;
        let waiting: Vec<&Entry> = waiting.iter().filter_map(|id| self.entries.get(id)).collect();
        let at_once = waiting.chunk_by(|one, next| one.created_at == next.created_at);
        let ready = at_once.take_while(|entries| entries.iter().all(|entry| may_go(entry)));
        let ids: Vec<String> = ready.flatten().map(|entry| entry.id.clone()).collect();
        (!ids.is_empty()).then_some((*at, ids))
    }

    /// Lets those behind it go on.
    fn leave(&mut self, target: Target, id: &str, lines: &[Line]) {
        for line in lines {
            let Some(waiting) = self.lines.get_mut(line) else { continue };
            waiting.remove(id);
            match waiting.first().cloned() {
                Some(next) => self.schedule(target, &next),
                None => drop(self.lines.remove(line)),
            }
        }
    }

    fn schedule(&mut self, target: Target, id: &str) {
        let is_first = |entry: &&Entry| {
            let first = |line: Line| self.lines.get(&line).and_then(BTreeSet::first);
            Line::of(entry).into_iter().all(|line| first(line).is_some_and(|first| first == id))
        };
        let waits = self.entries.get(id).filter(|entry| !entry.dead);
        let waits = waits.filter(|_| !self.under_way.contains_key(id));
        let next = waits.filter(is_first).map(|entry| entry.next_at);
        let before = self.due_at.get(id).copied();
        if before == next {
            return;
        }
        let due = self.due.entry(target).or_default();
        if let Some(before) = before {
            due.remove(&(before, id.to_owned()));
            self.due_at.remove(id);
        }
        if let Some(next) = next {
            due.insert((next, id.to_owned()));
            self.due_at.insert(id.to_owned(), next);
        }
    }
}
