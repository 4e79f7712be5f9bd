//! What waits in the outbox of one that stood by while another told of the same VMs, or that takes
//! over from one that did not come to tell everything. Pure.
//!
//! # Invariants
//! - What waits for a VM leads from the name that those who are told know to what the VM is now.
//! - What is put together anew for an endpoint has no name in common with what is not: the names
//!   that VMs pass on have one order among all of them.

use super::{Draft, Entry, Known, Target};
use crate::session::SessionChange;
use model::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a VM is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub name: String,
    pub orphan_since: Option<Time>,
    /// Another VM has its name, and is there: that it is an orphan is not told.
    pub has_namesake: bool,
}

/// What is to wait in place of what waits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Anew {
    /// Ids of entries that go.
    pub(super) wrong: Vec<String>,
    pub(super) drafts: Vec<Draft>,
}

/// What waits for one of those who are told, of one VM.
#[derive(Default)]
struct Line {
    entries: Vec<Entry>,
    known: Option<Known>,
}

/// By whom it is for and the VM that it is about.
type Lines = BTreeMap<(Target, String), Line>;

/// Entries are in the order of their ids.
pub(super) fn anew(
    entries: Vec<Entry>,
    known: Vec<Known>,
    is_now: impl Fn(&str) -> Option<Standing>,
) -> Anew {
    let mut lines = Lines::new();
    for entry in entries {
        let line = lines.entry((entry.target, entry.vm.clone())).or_default();
        line.entries.push(entry);
    }
    for known in known {
        let line = lines.entry(known.line()).or_default();
        line.known = Some(known);
    }
    let wrong = lines
        .iter()
        .filter(|((target, vm), line)| is_now(vm).is_some_and(|now| !line.leads_to(*target, &now)));
    let wrong: Vec<(Target, String)> = wrong.map(|(line, _)| line.clone()).collect();
    let touched = touched(&lines, wrong, &is_now);
    let mut anew = Anew::default();
    for ((target, vm), line) in lines {
        if !touched.contains(&(target, vm.clone())) {
            continue;
        }
        let changes = match is_now(&vm) {
            Some(now) => line.changes(target, &now),
            // It waits as it was, at its place among the others.
            None => line.entries.iter().map(|entry| entry.change.clone()).collect(),
        };
        let draft = |change| Draft { vm: vm.clone(), target, change };
        anew.drafts.extend(changes.into_iter().map(draft));
        anew.wrong.extend(line.entries.into_iter().map(|entry| entry.id));
    }
    anew
}

/// Those that are wrong, and at endpoints those that have a name in common with one of these.
/// Entries that are put in later go behind those that wait: left where it is, such a one would be
/// told before the name is free.
fn touched(
    lines: &Lines,
    wrong: Vec<(Target, String)>,
    is_now: impl Fn(&str) -> Option<Standing>,
) -> BTreeSet<(Target, String)> {
    if wrong.is_empty() {
        return BTreeSet::new();
    }
    let names = |target: Target, vm: &str, line: &Line| -> Vec<(Target, String)> {
        if target == Target::Sessions {
            return Vec::new();
        }
        let renames = line.entries.iter().filter_map(|entry| match &entry.change {
            SessionChange::Rename { old, new } => Some([old.clone(), new.clone()]),
            _ => None,
        });
        let now = is_now(vm).map(|now| now.name);
        let known = line.known.as_ref().map(|known| known.name.clone());
        renames.flatten().chain(now).chain(known).map(|name| (target, name)).collect()
    };
    let mut of_name: HashMap<(Target, String), Vec<&(Target, String)>> = HashMap::new();
    for (key, line) in lines {
        for name in names(key.0, &key.1, line) {
            of_name.entry(name).or_default().push(key);
        }
    }
    let mut touched: BTreeSet<(Target, String)> = wrong.iter().cloned().collect();
    let mut to_do = wrong;
    while let Some(key) = to_do.pop() {
        let Some(line) = lines.get(&key) else { continue };
        for name in names(key.0, &key.1, line) {
            // Each name once, however many have it.
            for other in of_name.remove(&name).into_iter().flatten() {
                if touched.insert(other.clone()) {
                    to_do.push(other.clone());
                }
            }
        }
    }
    touched
}

impl Line {
    /// What is known before the entries.
    fn before(&self) -> Option<Known> {
        self.known.clone().or_else(|| self.entries.first().map(Known::before))
    }

    /// Whether that the VM is an orphan, or not, is for those who are told.
    fn tells_orphans(&self, target: Target, now: &Standing) -> bool {
        let is_told = |entry: &Entry| is_orphan(&entry.change).is_some();
        target == Target::Sessions
            && !now.has_namesake
            && (self.known.is_some() || self.entries.iter().any(is_told))
    }

    fn leads_to(&self, target: Target, now: &Standing) -> bool {
        let Some(before) = self.before() else { return true };
        let mut changes = self.entries.iter().map(|entry| &entry.change);
        // Another told meanwhile.
        if changes.clone().next().is_some_and(|first| *name_before(first) != before.name) {
            return false;
        }
        let name = changes.clone().rev().find_map(|change| match change {
            SessionChange::Rename { new, .. } => Some(new),
            _ => None,
        });
        if *name.unwrap_or(&before.name) != now.name {
            return false;
        }
        if !self.tells_orphans(target, now) {
            return true;
        }
        let last = changes.clone().rev().find_map(is_orphan).unwrap_or(before.is_orphan);
        let is_news = |first: bool| self.known.is_none() || first != before.is_orphan;
        last == now.orphan_since.is_some() && changes.find_map(is_orphan).is_none_or(is_news)
    }

    /// What leads from what is known to what is now.
    fn changes(&self, target: Target, now: &Standing) -> Vec<SessionChange> {
        let mut changes = Vec::new();
        let Some(before) = self.before() else { return changes };
        if before.name != now.name {
            changes.push(SessionChange::Rename { old: before.name, new: now.name.clone() });
        }
        let is_known =
            self.known.as_ref().is_some_and(|known| known.is_orphan == now.orphan_since.is_some());
        if self.tells_orphans(target, now) && !is_known {
            let name = now.name.clone();
            changes.push(match now.orphan_since {
                Some(since) => SessionChange::Orphan { name, since },
                None => SessionChange::Reactivate { name },
            });
        }
        changes
    }
}

fn name_before(change: &SessionChange) -> &String {
    match change {
        SessionChange::Orphan { name, .. } | SessionChange::Reactivate { name } => name,
        SessionChange::Rename { old, .. } => old,
    }
}

fn is_orphan(change: &SessionChange) -> Option<bool> {
    match change {
        SessionChange::Orphan { .. } => Some(true),
        SessionChange::Reactivate { .. } => Some(false),
        SessionChange::Rename { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(old: &str, new: &str) -> SessionChange {
        SessionChange::Rename { old: old.into(), new: new.into() }
    }

    fn orphan(name: &str) -> SessionChange {
        SessionChange::Orphan { name: name.into(), since: Time(5) }
    }

    fn standing(name: &str, orphan_since: Option<Time>) -> Standing {
        Standing { name: name.into(), orphan_since, has_namesake: false }
    }

    fn entries(target: Target, changes: &[SessionChange]) -> Vec<Entry> {
        let entry = |(number, change): (usize, &SessionChange)| Entry {
            id: format!("{number:016x}-0"),
            vm: "vm".into(),
            target,
            change: change.clone(),
            created_at: Time(1),
            attempts: 3,
            next_at: Time(2),
            last_error: None,
            dead: false,
        };
        changes.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn what_another_told_meanwhile() {
        let check = |changes: &[SessionChange],
                     now: (&str, Option<Time>),
                     expected: Option<&[SessionChange]>| {
            let now = standing(now.0, now.1);
            let waiting = entries(Target::Sessions, changes);
            let found = anew(waiting, Vec::new(), |_| Some(now.clone()));
            let expected = expected.map(<[_]>::to_vec);
            assert_eq!(found.wrong.len(), if expected.is_some() { changes.len() } else { 0 });
            let drafts: Vec<SessionChange> =
                found.drafts.into_iter().map(|one| one.change).collect();
            assert_eq!(drafts, expected.unwrap_or_default());
        };
        let since = Some(Time(9));
        // It is so still.
        check(&[rename("a", "b"), rename("b", "c")], ("c", None), None);
        check(&[orphan("a")], ("a", since), None);
        check(&[orphan("a"), SessionChange::Reactivate { name: "a".into() }], ("a", None), None);
        // The other renamed it again, or back: who is told knows the first name alone.
        check(&[rename("a", "b"), rename("b", "c")], ("d", None), Some(&[rename("a", "d")]));
        check(&[rename("a", "b")], ("a", None), Some(&[]));
        // It came back, or went.
        let back = SessionChange::Reactivate { name: "a".into() };
        check(&[orphan("a")], ("a", None), Some(&[back]));
        let gone = SessionChange::Orphan { name: "b".into(), since: Time(9) };
        let both = [rename("a", "b"), gone];
        check(&[SessionChange::Reactivate { name: "a".into() }], ("b", since), Some(&both));
    }

    #[test]
    fn what_is_known_is_not_told_again_and_what_is_not_is_told() {
        let since = Some(Time(9));
        let check = |target, changes: &[SessionChange], known: (&str, bool), now: &Standing| {
            let known = Known { target, vm: "vm".into(), name: known.0.into(), is_orphan: known.1 };
            let found = anew(entries(target, changes), vec![known], |_| Some(now.clone()));
            let drafts = found.drafts.into_iter().map(|one| one.change).collect::<Vec<_>>();
            (found.wrong.len(), drafts)
        };
        let (sessions, group) = (Target::Sessions, Target::Group);
        let renamed = [rename("a", "b")];
        let b = standing("b", None);
        // It is to be told still; another told it, or told something else on top of it.
        assert_eq!(check(group, &renamed, ("a", false), &b), (0, vec![]));
        assert_eq!(check(group, &renamed, ("b", false), &b), (1, vec![]));
        assert_eq!(check(group, &renamed, ("c", false), &b), (1, vec![rename("c", "b")]));
        // Another was to tell it, and did not.
        assert_eq!(check(group, &[], ("a", false), &b), (0, vec![rename("a", "b")]));
        assert_eq!(check(group, &[], ("b", false), &standing("b", since)), (0, vec![]));
        let gone = SessionChange::Orphan { name: "b".into(), since: Time(9) };
        let is_gone = standing("b", since);
        let told = (0, vec![rename("a", "b"), gone.clone()]);
        assert_eq!(check(sessions, &[], ("a", false), &is_gone), told);
        assert_eq!(check(sessions, &[], ("b", true), &is_gone), (0, vec![]));
        let back = SessionChange::Reactivate { name: "b".into() };
        assert_eq!(check(sessions, &[], ("b", true), &b), (0, vec![back.clone()]));
        // What waits was told by another meanwhile.
        assert_eq!(
            check(sessions, std::slice::from_ref(&gone), ("b", false), &is_gone),
            (0, vec![])
        );
        assert_eq!(
            check(sessions, std::slice::from_ref(&gone), ("b", true), &is_gone),
            (1, vec![])
        );
        assert_eq!(check(sessions, &[gone, back.clone()], ("b", true), &b), (2, vec![back]));
        // Sessions know VMs by their names alone.
        let shared = Standing { has_namesake: true, ..is_gone };
        assert_eq!(check(sessions, &[], ("b", false), &shared), (0, vec![]));
    }

    #[test]
    fn what_is_not_known_waits_as_it_is() {
        let waiting = entries(Target::Group, &[rename("a", "b")]);
        assert_eq!(anew(waiting, Vec::new(), |_| None), Anew::default());
    }

    /// `VM: OLD NEW`.
    fn waiting(target: Target, renames: &[&str]) -> Vec<Entry> {
        let one = |(number, text): (usize, &&str)| {
            let (vm, names) = text.split_once(": ").unwrap();
            let (old, new) = names.split_once(' ').unwrap();
            let entry = entries(target, &[rename(old, new)]).remove(0);
            Entry { id: format!("{number:016x}-0"), vm: vm.into(), ..entry }
        };
        renames.iter().enumerate().map(one).collect()
    }

    #[test]
    fn a_name_that_is_passed_on_is_free_before_it_is_given() {
        let check = |target, renames: &[&str], now: &[(&str, &str)], expected: &[&str]| {
            let is_now = |vm: &str| {
                let (_, name) = now.iter().find(|(of, _)| *of == vm)?;
                Some(standing(name, None))
            };
            let waiting = waiting(target, renames);
            let found = anew(waiting.clone(), Vec::new(), is_now);
            // As the endpoint is told: what stayed is older.
            let stays = waiting.into_iter().filter(|entry| !found.wrong.contains(&entry.id));
            let stays = stays.map(|Entry { vm, target, change, .. }| Draft { vm, target, change });
            let told = stays.chain(super::super::order::in_order(&found.drafts));
            let told = told.map(|draft| match draft.change {
                SessionChange::Rename { old, new } => format!("{}: {old} {new}", draft.vm),
                _ => String::new(),
            });
            assert_eq!(told.collect::<Vec<_>>(), expected);
        };
        let now = [("1", "a"), ("2", "c"), ("3", "x"), ("4", "q")];
        check(Target::Group, &["2: a b", "1: x a"], &now, &["2: a c", "1: x a"]);
        // By way of another, and one that nobody knows any more; the fourth has no part in it.
        check(
            Target::Auth,
            &["2: a b", "1: x a", "3: y x", "9: z y", "4: p q"],
            &now,
            &["4: p q", "2: a c", "1: x a", "3: y x", "9: z y"],
        );
        // The sessions are told by VM, and all at once.
        check(Target::Sessions, &["2: a b", "1: x a"], &now, &["1: x a", "2: a c"]);
    }
}
