//! The difference between two moments, field by field, both ways.
//!
//! A patch carries what was and what is. So it can be applied, undone, shown and stored
//! without the states it lies between.

use crate::entity::Collector;
use crate::facts::{Facts, Item};
use crate::kind::{Kind, Subject};
use crate::value::Fields;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What happened to one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// It appeared, with these fields.
    Added(Fields),
    /// It went; these were its fields.
    Removed(Fields),
    /// Some fields changed. A field only in `was` went, one only in `now` appeared.
    Edited { was: Fields, now: Fields },
}

/// What happened to which item, each at most once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Patch(pub BTreeMap<Subject, Op>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("{0} was to be added but is already there")]
    AlreadyThere(Subject),
    #[error("{0} was to be changed but is not there")]
    NotThere(Subject),
}

impl Op {
    fn between(before: &Item, after: &Item) -> Self {
        let (mut was, mut now) = (before.fields(), after.fields());
        let same: Vec<String> = was
            .iter()
            .filter(|(name, value)| now.get(*name) == Some(value))
            .map(|(name, _)| name.clone())
            .collect();
        for name in same {
            was.remove(&name);
            now.remove(&name);
        }
        Self::Edited { was, now }
    }

    /// The op that undoes this one.
    #[must_use]
    pub fn inverse(self) -> Self {
        match self {
            Self::Added(fields) => Self::Removed(fields),
            Self::Removed(fields) => Self::Added(fields),
            Self::Edited { was, now } => Self::Edited { was: now, now: was },
        }
    }

    /// This op and then another on the same item, as one; `None` when they cancel out.
    fn then(self, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::Added(mut fields), Self::Edited { was, now }) => {
                edit(&mut fields, &was, now);
                Some(Self::Added(fields))
            }
            (Self::Added(_), Self::Removed(_)) => None,
            (Self::Edited { was, now }, Self::Removed(mut fields)) => {
                // What the item was before both: its last fields with the edit undone.
                edit(&mut fields, &now, was);
                Some(Self::Removed(fields))
            }
            (Self::Edited { mut was, mut now }, Self::Edited { was: was_next, now: now_next }) => {
                // A field touched only by the second edit was then what the second says it was.
                for (name, value) in &was_next {
                    if !was.contains_key(name) && !now.contains_key(name) {
                        was.insert(name.clone(), value.clone());
                    }
                }
                edit(&mut now, &was_next, now_next);
                let same: Vec<String> = was
                    .iter()
                    .filter(|(name, value)| now.get(*name) == Some(value))
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in same {
                    was.remove(&name);
                    now.remove(&name);
                }
                (!was.is_empty() || !now.is_empty()).then_some(Self::Edited { was, now })
            }
            (Self::Removed(before), Self::Added(after)) => {
                let (before, after) = (Item::new(&before), Item::new(&after));
                (before != after).then(|| Self::between(&before, &after))
            }
            // The remaining pairs can't follow each other on one item; the later one stands.
            (_, next) => Some(next),
        }
    }
}

fn edit(fields: &mut Fields, was: &Fields, now: Fields) {
    for name in was.keys() {
        if !now.contains_key(name) {
            fields.remove(name);
        }
    }
    fields.extend(now);
}

impl Patch {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Subject, &Op)> {
        self.0.iter()
    }

    /// The kinds whose collector looked for the first time, or could look again: what it added
    /// had been there before, for who knows how long.
    #[must_use]
    pub fn first_looks(&self) -> BTreeSet<Kind> {
        let collectors = self.0.iter().filter(|(subject, _)| subject.kind() == Kind::COLLECTOR);
        let looked = collectors.filter(|(_, op)| match op {
            Op::Added(fields) => !fields.contains_key("fault"),
            Op::Edited { was, now } => was.contains_key("fault") && !now.contains_key("fault"),
            Op::Removed(_) => false,
        });
        looked.flat_map(|(subject, _)| Collector::kinds(subject.id())).copied().collect()
    }

    /// The patch between two states, looking only at these subjects.
    #[must_use]
    pub fn of<'s>(
        before: &Facts,
        after: &Facts,
        subjects: impl IntoIterator<Item = &'s Subject>,
    ) -> Self {
        let op = |subject: &Subject| match (before.get(subject), after.get(subject)) {
            (None, Some(now)) => Some(Op::Added(now.fields())),
            (Some(was), None) => Some(Op::Removed(was.fields())),
            (Some(was), Some(now)) if was != now => Some(Op::between(was, now)),
            _ => None,
        };
        Self(subjects.into_iter().filter_map(|s| Some((s.clone(), op(s)?))).collect())
    }

    /// Changes `facts` to what they are after this patch.
    ///
    /// # Errors
    /// When the patch was not made for these facts; they may then be half changed, and the
    /// caller throws them away.
    pub fn apply(&self, facts: &mut Facts) -> Result<(), ApplyError> {
        for (subject, op) in self.iter() {
            match op {
                Op::Added(fields) => {
                    if facts.put(subject.clone(), Item::new(fields)).is_some() {
                        return Err(ApplyError::AlreadyThere(subject.clone()));
                    }
                }
                Op::Removed(_) => {
                    facts.remove(subject).ok_or_else(|| ApplyError::NotThere(subject.clone()))?;
                }
                Op::Edited { was, now } => {
                    let edited = facts.edit(subject, was, now.clone());
                    edited.ok_or_else(|| ApplyError::NotThere(subject.clone()))?;
                }
            }
        }
        Ok(())
    }

    /// The patch that leads back.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self(self.0.into_iter().map(|(subject, op)| (subject, op.inverse())).collect())
    }

    /// This patch and then another, as one.
    #[must_use]
    pub fn then(mut self, next: Self) -> Self {
        for (subject, op) in next.0 {
            let both = match self.0.remove(&subject) {
                Some(first) => first.then(op),
                None => Some(op),
            };
            if let Some(op) = both {
                self.0.insert(subject, op);
            }
        }
        self
    }
}

/// What leads from one state to another.
#[must_use]
pub fn diff(before: &Facts, after: &Facts) -> Patch {
    let mut ops = BTreeMap::new();
    let mut old = before.iter().peekable();
    let mut new = after.iter().peekable();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return Patch(ops),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let gone = order.is_le().then(|| old.next()).flatten();
        let come = order.is_ge().then(|| new.next()).flatten();
        match (gone, come) {
            (Some((subject, was)), None) => {
                ops.insert(subject.clone(), Op::Removed(was.fields()));
            }
            (None, Some((subject, now))) => {
                ops.insert(subject.clone(), Op::Added(now.fields()));
            }
            (Some((subject, was)), Some((_, now))) if was != now => {
                ops.insert(subject.clone(), Op::between(was, now));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use crate::value::Value;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            ".{0,6}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::btree_map("[a-c]{1,2}", inner, 0..4).prop_map(Value::Map),
            ]
        })
    }

    fn facts() -> impl Strategy<Value = Facts> {
        let kind = prop::sample::select(vec![Kind::UNIT, Kind::FILE, Kind::PROCESS]);
        let fields = prop::collection::btree_map("[a-d]", value(), 0..4);
        prop::collection::vec((kind, "[a-e]", fields), 0..12).prop_map(|items| {
            items
                .into_iter()
                .map(|(kind, id, fields)| (Subject::escaped(kind, &id), Item::new(&fields)))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_diff_leads_there_and_back(before in facts(), after in facts()) {
            let patch = diff(&before, &after);
            let mut state = before.clone();
            patch.apply(&mut state).unwrap();
            prop_assert_eq!(&state, &after);
            prop_assert_eq!(state.digest(), after.digest());
            patch.inverse().apply(&mut state).unwrap();
            prop_assert_eq!(&state, &before);
        }

        #[test]
        fn patches_compose(a in facts(), b in facts(), c in facts()) {
            let both = diff(&a, &b).then(diff(&b, &c));
            prop_assert_eq!(&both, &diff(&a, &c));
        }

        #[test]
        fn looking_at_all_subjects_is_a_diff(before in facts(), after in facts()) {
            let subjects: Vec<Subject> =
                before.iter().chain(after.iter()).map(|(subject, _)| subject.clone()).collect();
            prop_assert_eq!(Patch::of(&before, &after, &subjects), diff(&before, &after));
        }

        #[test]
        fn facts_and_patches_survive_the_wire(before in facts(), after in facts()) {
            let patch = diff(&before, &after);
            let packed = rmp_serde::to_vec_named(&patch).unwrap();
            prop_assert_eq!(&rmp_serde::from_slice::<Patch>(&packed).unwrap(), &patch);
            let json = serde_json::to_string(&patch).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Patch>(&json).unwrap(), &patch);
            let packed = rmp_serde::to_vec_named(&after).unwrap();
            let read: Facts = rmp_serde::from_slice(&packed).unwrap();
            prop_assert_eq!(read.digest(), after.digest());
            prop_assert_eq!(&read, &after);
        }
    }

    #[test]
    fn a_patch_for_another_state_is_refused() {
        let subject = Subject::escaped(Kind::UNIT, "a.service");
        let mut empty = Facts::default();
        let removed = Patch([(subject.clone(), Op::Removed(Fields::new()))].into());
        assert_eq!(removed.apply(&mut empty), Err(ApplyError::NotThere(subject.clone())));
        let added = Patch([(subject.clone(), Op::Added(Fields::new()))].into());
        added.apply(&mut empty).unwrap();
        assert_eq!(added.apply(&mut empty), Err(ApplyError::AlreadyThere(subject)));
    }
}
