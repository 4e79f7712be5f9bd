//! Several deltas as fewer.

use super::patch_body;
use api::wire::{Body, Delta, Gap};
use model::{Facts, Fields, Item, Op, Patch, Subject};
use std::collections::BTreeSet;

pub(super) fn apply(facts: &mut Facts, body: Body) {
    match body {
        Body::Keyframe(state) => *facts = state,
        Body::Patch { patch, .. } => {
            if let Err(error) = patch.apply(facts) {
                tracing::error!(%error, "a spooled delta does not fit its base");
            }
        }
    }
}

/// Two deltas as one, marked as a gap.
pub(super) fn merged(first: Delta, second: Delta) -> Delta {
    let since = first.gap.map_or(first.at, |gap| gap.since);
    let count = |gap: Option<Gap>| gap.map_or(1, |gap| gap.merged);
    let gap = Some(Gap { since, merged: count(first.gap) + count(second.gap) });
    let body = match (first.body, second.body) {
        (_, keyframe @ Body::Keyframe(_)) => keyframe,
        (Body::Keyframe(mut facts), patch @ Body::Patch { .. }) => {
            apply(&mut facts, patch);
            Body::Keyframe(facts)
        }
        (Body::Patch { base, patch, .. }, Body::Patch { next, patch: later, .. }) => {
            Body::Patch { base, next, patch: patch.then(later) }
        }
    };
    Delta { sequence: second.sequence, at: second.at, body, gap }
}

/// Puts what is of the first look into the whole state at the beginning, and leads the others
/// from there to where they led: a step that is left with nothing to do goes.
pub(super) fn condensed(deltas: Vec<(Delta, bool)>) -> Vec<Delta> {
    let mut was = Facts::default();
    let mut now = Facts::default();
    for (delta, of_first) in &deltas {
        match &delta.body {
            Body::Keyframe(facts) => now = facts.clone(),
            Body::Patch { patch, .. } if *of_first => {
                for (subject, op) in patch.iter() {
                    take(&mut now, subject, op);
                }
            }
            Body::Patch { .. } => {}
        }
    }
    let mut kept = Vec::with_capacity(deltas.len());
    for (mut delta, _) in deltas {
        match delta.body {
            Body::Keyframe(facts) => {
                was = facts;
                delta.body = Body::Keyframe(now.clone());
            }
            Body::Patch { base, next, patch } => {
                let subjects: BTreeSet<Subject> =
                    patch.iter().map(|(subject, _)| subject.clone()).collect();
                apply(&mut was, Body::Patch { base, next, patch });
                let (mut before, base) = (Facts::default(), now.digest());
                for subject in &subjects {
                    let known = match was.get(subject) {
                        Some(item) => now.put(subject.clone(), item.clone()),
                        None => now.remove(subject),
                    };
                    if let Some(item) = known {
                        before.put(subject.clone(), item);
                    }
                }
                let patch = Patch::of(&before, &now, &subjects);
                if patch.is_empty() {
                    continue;
                }
                delta.body = patch_body(base, now.digest(), patch);
            }
        }
        kept.push(delta);
    }
    kept
}

/// Does what can be done of an op.
fn take(facts: &mut Facts, subject: &Subject, op: &Op) {
    match op {
        Op::Added(fields) => drop(facts.put(subject.clone(), Item::new(fields))),
        Op::Removed(_) => drop(facts.remove(subject)),
        Op::Edited { was, now } => {
            let mut fields: Fields = facts.get(subject).map(Item::fields).unwrap_or_default();
            fields.retain(|name, _| !was.contains_key(name));
            fields.extend(now.clone());
            facts.put(subject.clone(), Item::new(&fields));
        }
    }
}
