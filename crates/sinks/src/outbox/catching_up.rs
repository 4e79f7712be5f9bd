//! What waits in the outbox of one that stood by while another told of the same VMs. Pure.
//!
//! # Invariants
//! - What waits for a VM leads from the name that those who are told know to what the VM is now.
//! - What is put together anew for an endpoint has no name in common with what is not: the names
//!   that VMs pass on have one order among all of them.

use super::{Draft, Entry, Target};
use crate::session::SessionChange;
use model::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a VM is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub name: String,
    pub orphan_since: Option<Time>,
}

/// What is to wait in place of what waits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Anew {
    /// Ids of entries that go.
    pub(super) wrong: Vec<String>,
    pub(super) drafts: Vec<Draft>,
}

/// What waits, by whom it is for and the VM that it is about.
type Lines = BTreeMap<(Target, String), Vec<Entry>>;

/// Entries are in the order of their ids.
pub(super) fn anew(entries: Vec<Entry>, is_now: impl Fn(&str) -> Option<Standing>) -> Anew {
    let mut lines = Lines::new();
    for entry in entries {
        lines.entry((entry.target, entry.vm.clone())).or_default().push(entry);
    }
    let wrong = lines
        .iter()
        .filter(|((_, vm), entries)| is_now(vm).is_some_and(|now| !leads_to(entries, &now)));
    let wrong: Vec<(Target, String)> = wrong.map(|(line, _)| line.clone()).collect();
    let touched = touched(&lines, wrong, &is_now);
    let mut anew = Anew::default();
    for ((target, vm), entries) in lines {
        if !touched.contains(&(target, vm.clone())) {
            continue;
        }
        let changes = match is_now(&vm) {
            Some(now) => changes(&entries, &now),
            // It waits as it was, at its place among the others.
            None => entries.iter().map(|entry| entry.change.clone()).collect(),
        };
        let draft = |change| Draft { vm: vm.clone(), target, change };
        anew.drafts.extend(changes.into_iter().map(draft));
        anew.wrong.extend(entries.into_iter().map(|entry| entry.id));
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
    let names = |target: Target, vm: &str, entries: &[Entry]| -> Vec<(Target, String)> {
        if target == Target::Sessions {
            return Vec::new();
        }
        let renames = entries.iter().filter_map(|entry| match &entry.change {
            SessionChange::Rename { old, new } => Some([old.clone(), new.clone()]),
            _ => None,
        });
        let now = is_now(vm).map(|now| now.name);
        renames.flatten().chain(now).map(|name| (target, name)).collect()
    };
    let mut of_name: HashMap<(Target, String), Vec<&(Target, String)>> = HashMap::new();
    for (line, entries) in lines {
        for name in names(line.0, &line.1, entries) {
            of_name.entry(name).or_default().push(line);
        }
    }
    let mut touched: BTreeSet<(Target, String)> = wrong.iter().cloned().collect();
    let mut to_do = wrong;
    while let Some(line) = to_do.pop() {
        let Some(entries) = lines.get(&line) else { continue };
        for name in names(line.0, &line.1, entries) {
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

fn leads_to(entries: &[Entry], now: &Standing) -> bool {
    let changes = || entries.iter().rev().map(|entry| &entry.change);
    let name = changes().find_map(|change| match change {
        SessionChange::Rename { new, .. } => Some(new),
        _ => None,
    });
    let name = name.or_else(|| changes().next().map(name_before));
    let is_orphan = changes().find_map(is_orphan);
    name.is_none_or(|name| *name == now.name)
        && is_orphan.is_none_or(|is_orphan| is_orphan == now.orphan_since.is_some())
}

/// What leads from what was before the entries to what is now.
fn changes(entries: &[Entry], now: &Standing) -> Vec<SessionChange> {
    let mut changes = Vec::new();
    let known = entries.first().map(|entry| name_before(&entry.change));
    if let Some(old) = known.filter(|old| **old != now.name) {
        changes.push(SessionChange::Rename { old: old.clone(), new: now.name.clone() });
    }
    if entries.iter().any(|entry| is_orphan(&entry.change).is_some()) {
        let name = now.name.clone();
        changes.push(match now.orphan_since {
            Some(since) => SessionChange::Orphan { name, since },
            None => SessionChange::Reactivate { name },
        });
    }
    changes
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
            let now = Standing { name: now.0.into(), orphan_since: now.1 };
            let found = anew(entries(Target::Sessions, changes), |_| Some(now.clone()));
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
    fn what_is_not_known_waits_as_it_is() {
        let waiting = entries(Target::Group, &[rename("a", "b")]);
        assert_eq!(anew(waiting, |_| None), Anew::default());
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
                Some(Standing { name: (*name).into(), orphan_since: None })
            };
            let waiting = waiting(target, renames);
            let found = anew(waiting.clone(), is_now);
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
