//! What waits in the outbox of one that stood by while another told of the same VMs. Pure.
//!
//! # Invariants
//! - What waits for a VM leads from the name that those who are told know to what the VM is now.

use super::{Draft, Entry, Target};
use crate::session::SessionChange;
use model::Time;
use std::collections::BTreeMap;

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

/// Entries are in the order of their ids.
pub(super) fn anew(entries: Vec<Entry>, is_now: impl Fn(&str) -> Option<Standing>) -> Anew {
    let mut lines: BTreeMap<(Target, String), Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        lines.entry((entry.target, entry.vm.clone())).or_default().push(entry);
    }
    let mut anew = Anew::default();
    for ((target, vm), entries) in lines {
        let Some(now) = is_now(&vm) else { continue };
        if leads_to(&entries, &now) {
            continue;
        }
        let drafts = changes(&entries, &now).into_iter();
        anew.drafts.extend(drafts.map(|change| Draft { vm: vm.clone(), target, change }));
        anew.wrong.extend(entries.into_iter().map(|entry| entry.id));
    }
    anew
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
}
