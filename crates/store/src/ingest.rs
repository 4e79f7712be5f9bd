//! What a delta does to a host's head: decides, and changes the head in memory.
//! Stores nothing.
//!
//! # Invariants
//! - A refused delta leaves the head as it was.
//! - The patch that is recorded is the difference between the two states, whatever patch was
//!   sent. So stored history can be undone even if a sender was wrong about what was.
//! - The cost is that of the change, not of the state; only full states cost what they weigh.

use crate::error::Error;
use crate::record::Meta;
use crate::types::{Body, Delta, MAX_ITEMS};
use model::{ApplyError, Digest, Facts, HostId, Item, Op, Patch, Subject, Time, diff};
use std::time::Duration;

/// A host's clock may be so far ahead of the server's.
const AHEAD: Duration = Duration::from_secs(60);

/// Times that are further ahead of the server's clock are no matter of clocks that differ: it
/// was set back.
const SET_BACK: Duration = Duration::from_secs(86_400);

/// What became of a delta.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Stored before; nothing to do.
    Repeated,
    /// Nothing changed.
    Unchanged,
    /// The head is changed in memory, by this.
    Changed(Patch),
}

fn mismatch(meta: &Meta, facts: &Facts, sequence: Option<u64>) -> Error {
    Error::BaseMismatch { digest: facts.digest(), version: meta.state.head, sequence }
}

/// Applies the delta to the head, unless it was stored before or does not follow.
pub(crate) fn step(
    meta: &Meta,
    facts: &mut Facts,
    stream: Option<&str>,
    delta: Delta,
) -> Result<Step, Error> {
    let last = stream.and_then(|stream| meta.sequence(stream));
    // Numbers may be skipped, by a sender that merged what it could not keep: whether a delta
    // follows is for its base to say.
    let repeated = last.is_some_and(|last| delta.sequence.is_some_and(|sequence| sequence <= last));
    if repeated {
        // The newest of a stream leads to what is here. One that does not is another delta under
        // a number that was given out before: its sender lost what it had sent.
        return match &delta.body {
            Body::Patch { next, .. } if delta.sequence == last && *next != facts.digest() => {
                Err(mismatch(meta, facts, last))
            }
            _ => Ok(Step::Repeated),
        };
    }
    let patch = match delta.body {
        Body::State(state) => {
            limited(facts.len(), state.len())?;
            let patch = diff(facts, &state);
            *facts = state;
            patch
        }
        Body::Patch { base, next, patch } => {
            if base != facts.digest() {
                return Err(mismatch(meta, facts, last));
            }
            apply(&meta.host, facts, patch, next)?
        }
    };
    Ok(if patch.is_empty() { Step::Unchanged } else { Step::Changed(patch) })
}

/// Applies a patch, and gives the difference it made.
fn apply(host: &HostId, facts: &mut Facts, patch: Patch, next: Digest) -> Result<Patch, Error> {
    let before = facts.len();
    let mut truth = Patch::default();
    let mut refused = None;
    for (subject, op) in patch.0 {
        match apply_op(facts, &subject, op) {
            Ok(Some(op)) => drop(truth.0.insert(subject, op)),
            Ok(None) => {}
            Err(source) => {
                refused = Some(Error::Inapplicable { host: host.clone(), source });
                break;
            }
        }
    }
    let found = facts.digest();
    if refused.is_none() && found != next {
        refused = Some(Error::DigestMismatch { host: host.clone(), expected: next, found });
    }
    let refused = refused.or_else(|| limited(before, facts.len()).err());
    let Some(error) = refused else { return Ok(truth) };
    truth.inverse().apply(facts).expect("what was applied just now leads back");
    Err(error)
}

/// Refuses states that no machine has. One that was recorded all the same may become smaller.
fn limited(before: usize, after: usize) -> Result<(), Error> {
    if after > before.max(MAX_ITEMS) {
        return Err(Error::TooManyItems { limit: MAX_ITEMS, found: after });
    }
    Ok(())
}

/// Does to one item what [`Patch::apply`] does, and gives the op as it was in truth; `None`
/// when it changed nothing.
fn apply_op(facts: &mut Facts, subject: &Subject, op: Op) -> Result<Option<Op>, ApplyError> {
    let not_there = || ApplyError::NotThere(subject.clone());
    match op {
        Op::Added(fields) => {
            if facts.get(subject).is_some() {
                return Err(ApplyError::AlreadyThere(subject.clone()));
            }
            facts.put(subject.clone(), Item::new(&fields));
            Ok(Some(Op::Added(fields)))
        }
        Op::Removed(_) => {
            let before = facts.remove(subject).ok_or_else(not_there)?;
            Ok(Some(Op::Removed(before.fields())))
        }
        Op::Edited { was, now } => {
            let (was, now) = facts.edit(subject, &was, now).ok_or_else(not_there)?;
            let changed = !was.is_empty() || !now.is_empty();
            Ok(changed.then_some(Op::Edited { was, now }))
        }
    }
}

/// History's time of something that happened `at` by the host's clock.
pub(crate) fn history_time(at: Time, previous: Time, received: Time) -> Time {
    at.min(received.plus(AHEAD)).max(previous)
}

/// Whether a host's times stand still until the clock, which was set back, has caught up.
pub(crate) fn stands_still(newest: Time, received: Time) -> bool {
    newest.since(received) > SET_BACK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use model::Version;
    use proptest::prelude::*;

    fn meta() -> Meta {
        let mut meta = Meta::new(1, HostId::new("web01").unwrap());
        meta.state.head = Version(7);
        meta.set_sequence("spool", 10);
        meta
    }

    fn delta(sequence: u64, body: Body) -> Delta {
        Delta { sequence: Some(sequence), at: Time(0), body, gap: None, label: None }
    }

    fn patch(before: &Facts, after: &Facts) -> Body {
        let patch = diff(before, after);
        Body::Patch { base: before.digest(), next: after.digest(), patch }
    }

    #[test]
    fn what_was_stored_is_not_stored_again_and_what_is_missing_is_noticed() {
        let (before, after) = (testing::small(1), testing::small(2));
        let mut facts = before.clone();
        let mut check = |sequence, body, expected: Result<Step, u64>| {
            facts = before.clone();
            let found = step(&meta(), &mut facts, Some("spool"), delta(sequence, body));
            let found = found.map_err(|error| match error {
                Error::BaseMismatch { sequence, version: Version(7), .. } => sequence.unwrap_or(0),
                other => panic!("{other}"),
            });
            assert_eq!(found, expected);
        };
        let change = || patch(&before, &after);
        check(9, change(), Ok(Step::Repeated));
        check(10, patch(&after, &before), Ok(Step::Repeated));
        // Another delta under the number of the newest.
        check(10, change(), Err(10));
        check(11, change(), Ok(Step::Changed(diff(&before, &after))));
        check(12, change(), Ok(Step::Changed(diff(&before, &after))));
        check(11, patch(&after, &before), Err(10));
        check(11, patch(&before, &before), Ok(Step::Unchanged));
        check(20, Body::State(after.clone()), Ok(Step::Changed(diff(&before, &after))));
        check(20, Body::State(before.clone()), Ok(Step::Unchanged));
    }

    #[test]
    fn no_state_grows_beyond_the_limit() {
        let items = |count: usize| -> Facts {
            let subject = |n| Subject::escaped(model::Kind::UNIT, &format!("{n}.service"));
            (0..count).map(|n| (subject(n), Item::new(&model::Fields::new()))).collect()
        };
        let (full, larger, largest) =
            (items(MAX_ITEMS), items(MAX_ITEMS + 1), items(MAX_ITEMS + 2));
        let check = |before: &Facts, body, expected: Option<&Facts>| {
            let mut facts = before.clone();
            match step(&meta(), &mut facts, None, delta(1, body)) {
                Ok(step) => assert!(matches!(step, Step::Changed(_)), "{step:?}"),
                Err(Error::TooManyItems { limit, found }) => {
                    assert_eq!((limit, found), (MAX_ITEMS, MAX_ITEMS + 1));
                }
                Err(error) => panic!("{error}"),
            }
            assert!(facts == *expected.unwrap_or(before));
        };
        check(&full, patch(&full, &larger), None);
        check(&full, Body::State(larger.clone()), None);
        check(&larger, patch(&larger, &full), Some(&full));
        // From before there was a limit.
        check(&largest, patch(&largest, &larger), Some(&larger));
        check(&largest, Body::State(larger.clone()), Some(&larger));
    }

    proptest! {
        #[test]
        fn a_refused_delta_changes_nothing(
            before in testing::facts(), other in testing::facts(), after in testing::facts(),
        ) {
            let body = Body::Patch {
                base: before.digest(),
                next: Digest::default(),
                patch: diff(&other, &after),
            };
            let mut facts = before.clone();
            if step(&meta(), &mut facts, None, delta(1, body)).is_err() {
                prop_assert_eq!(facts, before);
            }
        }

        /// A patch that was made for another state may apply all the same.
        #[test]
        fn a_wrong_patch_is_recorded_as_what_it_did(
            before in testing::facts(), other in testing::facts(), after in testing::facts(),
        ) {
            let patch = diff(&other, &after);
            let mut expected = before.clone();
            if patch.apply(&mut expected).is_ok() {
                let (base, next) = (before.digest(), expected.digest());
                let mut facts = before.clone();
                let body = Body::Patch { base, next, patch };
                let found = step(&meta(), &mut facts, None, delta(1, body)).unwrap();
                prop_assert_eq!(&facts, &expected);
                let truth = diff(&before, &expected);
                prop_assert_eq!(found, if truth.is_empty() { Step::Unchanged } else { Step::Changed(truth) });
            }
        }

        #[test]
        fn the_recorded_patch_leads_there_and_back(
            before in testing::facts(), after in testing::facts(),
        ) {
            let mut facts = before.clone();
            let found = step(&meta(), &mut facts, None, delta(1, patch(&before, &after))).unwrap();
            prop_assert_eq!(&facts, &after);
            let expected = diff(&before, &after);
            let expected =
                if expected.is_empty() { Step::Unchanged } else { Step::Changed(expected) };
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn time_moves_forward_and_not_far_ahead() {
        let second = |n: i64| Time::from_seconds(n);
        assert_eq!(history_time(second(50), second(10), second(51)), second(50));
        assert_eq!(history_time(second(5), second(10), second(51)), second(10));
        assert_eq!(history_time(second(500), second(10), second(51)), second(111));
        assert_eq!(history_time(second(500), second(300), second(51)), second(300));
        assert!(!stands_still(Time(i64::MIN), second(51)));
        assert!(!stands_still(second(86_451), second(51)));
        assert!(stands_still(second(86_452), second(51)));
    }
}
