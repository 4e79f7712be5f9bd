//! In which order endpoints are told of names that are passed on. Pure.
//!
//! # Invariants
//! - A name is given to a VM only after the one that had it was told to have another.
//! - The drafts of one VM stay in their order.

use super::{Draft, Target};
use crate::session::SessionChange;
use std::collections::HashMap;

/// Where it is with one draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waits,
    /// Those that go before it are looked for.
    Begun,
    /// Its name goes round in a circle: the VM has one that nobody else has until then.
    Aside,
    Done,
}

struct Sorting<'d> {
    drafts: Vec<&'d Draft>,
    stages: Vec<Stage>,
    /// Which give up a name.
    of_name: HashMap<&'d str, Vec<usize>>,
    /// Which comes before it, of the same VM.
    behind: Vec<Option<usize>>,
    sorted: Vec<Draft>,
}

/// What sessions are told stays as it is: they are told all at once.
pub(super) fn in_order(drafts: &[Draft]) -> Vec<Draft> {
    let mut ordered = Vec::with_capacity(drafts.len());
    for target in Target::ALL {
        let its_own: Vec<&Draft> = drafts.iter().filter(|one| one.target == target).collect();
        if target == Target::Sessions {
            ordered.extend(its_own.into_iter().cloned());
        } else {
            ordered.extend(Sorting::new(its_own).sorted());
        }
    }
    ordered
}

fn names(draft: &Draft) -> Option<(&str, &str)> {
    match &draft.change {
        SessionChange::Rename { old, new } => Some((old, new)),
        _ => None,
    }
}

impl<'d> Sorting<'d> {
    fn new(drafts: Vec<&'d Draft>) -> Self {
        let mut of_name: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut last: HashMap<&str, usize> = HashMap::new();
        let mut behind = Vec::with_capacity(drafts.len());
        for (at, draft) in drafts.iter().enumerate() {
            if let Some((old, _)) = names(draft) {
                of_name.entry(old).or_default().push(at);
            }
            behind.push(last.insert(&draft.vm, at));
        }
        let stages = vec![Stage::Waits; drafts.len()];
        Self { drafts, stages, of_name, behind, sorted: Vec::new() }
    }

    fn sorted(mut self) -> Vec<Draft> {
        for first in 0..self.drafts.len() {
            let mut path = vec![first];
            while let Some(at) = path.last().copied() {
                if self.stage(at) == Stage::Done {
                    path.pop();
                    continue;
                }
                self.set(at, Stage::Waits, Stage::Begun);
                let before = self.before(at);
                let waits = |one: &usize| self.stage(*one) == Stage::Waits;
                if let Some(next) = before.iter().copied().find(waits) {
                    path.push(next);
                    continue;
                }
                for one in before {
                    if self.stage(one) == Stage::Begun {
                        self.put_aside(one);
                    }
                }
                self.put(at);
                path.pop();
            }
        }
        self.sorted
    }

    /// Those that go before this one.
    fn before(&self, at: usize) -> Vec<usize> {
        let mut before: Vec<usize> = self.behind.get(at).copied().flatten().into_iter().collect();
        let Some(draft) = self.drafts.get(at) else { return before };
        let given = names(draft).and_then(|(_, new)| self.of_name.get(new));
        let is_other = |one: &&usize| self.drafts.get(**one).is_some_and(|one| one.vm != draft.vm);
        before.extend(given.into_iter().flatten().filter(is_other));
        before
    }

    fn stage(&self, at: usize) -> Stage {
        self.stages.get(at).copied().unwrap_or(Stage::Done)
    }

    fn set(&mut self, at: usize, from: Stage, to: Stage) {
        if let Some(stage) = self.stages.get_mut(at).filter(|stage| **stage == from) {
            *stage = to;
        }
    }

    fn put_aside(&mut self, at: usize) {
        self.set(at, Stage::Begun, Stage::Aside);
        let Some(draft) = self.drafts.get(at) else { return };
        let Some((old, _)) = names(draft) else { return };
        let change = SessionChange::Rename { old: old.to_owned(), new: aside(draft, old) };
        self.sorted.push(Draft { change, ..Draft::clone(draft) });
    }

    fn put(&mut self, at: usize) {
        let Some(draft) = self.drafts.get(at) else { return };
        let mut draft = Draft::clone(draft);
        if self.stage(at) == Stage::Aside
            && let Some((old, new)) = names(&draft)
        {
            draft.change = SessionChange::Rename { old: aside(&draft, old), new: new.to_owned() };
        }
        self.sorted.push(draft);
        if let Some(stage) = self.stages.get_mut(at) {
            *stage = Stage::Done;
        }
    }
}

/// A name that no other VM has.
fn aside(draft: &Draft, old: &str) -> String {
    format!("{old} ({})", draft.vm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// `VM: OLD NEW`.
    fn drafts(renames: &[&str]) -> Vec<Draft> {
        let draft = |text: &&str| {
            let (vm, names) = text.split_once(": ").unwrap();
            let (old, new) = names.split_once(' ').unwrap();
            let change = SessionChange::Rename { old: old.into(), new: new.into() };
            Draft { vm: vm.into(), target: Target::Group, change }
        };
        renames.iter().map(draft).collect()
    }

    fn shown(drafts: &[Draft]) -> Vec<String> {
        let one = |draft: &Draft| {
            let (old, new) = names(draft).unwrap();
            format!("{}: {old} -> {new}", draft.vm)
        };
        drafts.iter().map(one).collect()
    }

    #[test]
    fn a_name_is_free_before_it_is_given() {
        let check = |renames: &[&str], expected: &[&str]| {
            assert_eq!(shown(&in_order(&drafts(renames))), expected);
        };
        check(&["1: a b", "2: b c"], &["2: b -> c", "1: a -> b"]);
        check(&["2: b c", "1: a b"], &["2: b -> c", "1: a -> b"]);
        check(
            &["1: a b", "2: b c", "3: c d", "4: x y"],
            &["3: c -> d", "2: b -> c", "1: a -> b", "4: x -> y"],
        );
        check(&["1: a b", "2: b a"], &["1: a -> a (1)", "2: b -> a", "1: a (1) -> b"]);
        check(
            &["1: a b", "2: b c", "3: c a"],
            &["1: a -> a (1)", "3: c -> a", "2: b -> c", "1: a (1) -> b"],
        );
        check(&["1: a b", "1: b a"], &["1: a -> b", "1: b -> a"]);
        check(&["1: a a"], &["1: a -> a"]);
    }

    #[test]
    fn a_long_line_is_no_matter() {
        let renames: Vec<String> =
            (0..20_000).map(|n| format!("{n}: web-{n} web-{}", n + 1)).collect();
        let renames: Vec<&str> = renames.iter().map(String::as_str).collect();
        let ordered = in_order(&drafts(&renames));
        assert_eq!((ordered.len(), ordered[0].vm.as_str()), (20_000, "19999"));
    }

    proptest! {
        /// However names are passed on among VMs of different names: an endpoint that is told so
        /// has each VM under its name in the end, and never two under one.
        #[test]
        fn an_endpoint_that_knows_names_alone_comes_out_right(
            order in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(),
            told in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let renames: Vec<String> = told.iter().filter(|vm| order[**vm] != **vm)
                .map(|vm| format!("{vm}: n{vm} n{}", order[*vm])).collect();
            let renames: Vec<&str> = renames.iter().map(String::as_str).collect();
            let mut known: BTreeMap<String, usize> =
                (0..8).map(|vm| (format!("n{vm}"), vm)).collect();
            for draft in in_order(&drafts(&renames)) {
                let (old, new) = names(&draft).unwrap();
                let vm = known.remove(old).unwrap();
                prop_assert_eq!(vm.to_string(), draft.vm.clone());
                prop_assert!(known.insert(new.to_owned(), vm).is_none(), "two are called {}", new);
            }
            let expected: BTreeMap<String, usize> =
                (0..8).map(|vm| (format!("n{}", order[vm]), vm)).collect();
            prop_assert_eq!(known, expected);
        }
    }
}
