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
use crate::types::{Body, Delta};
use model::{Digest, Facts, HostId, Item, Patch, Subject, Time, diff};
use std::time::Duration;

/// A host's clock may be so far ahead of the server's.
const AHEAD: Duration = Duration::from_secs(60);

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
    if last.is_some_and(|last| delta.sequence.is_some_and(|sequence| sequence <= last)) {
        return Ok(Step::Repeated);
    }
    let patch = match delta.body {
        Body::State(state) => {
            let patch = diff(facts, &state);
            *facts = state;
            patch
        }
        Body::Patch { base, next, patch } => {
            if base != facts.digest() {
                return Err(Error::BaseMismatch {
                    digest: facts.digest(),
                    version: meta.state.head,
                    sequence: last,
                });
            }
            apply(&meta.host, facts, &patch, next)?
        }
    };
    Ok(if patch.is_empty() { Step::Unchanged } else { Step::Changed(patch) })
}

/// Applies a patch, and gives the difference it made.
fn apply(host: &HostId, facts: &mut Facts, patch: &Patch, next: Digest) -> Result<Patch, Error> {
    let before: Vec<(Subject, Option<Item>)> =
        patch.iter().map(|(subject, _)| (subject.clone(), facts.get(subject).cloned())).collect();
    let refused = match patch.apply(facts) {
        Err(source) => Some(Error::Inapplicable { host: host.clone(), source }),
        Ok(()) if facts.digest() != next => Some(Error::DigestMismatch {
            host: host.clone(),
            expected: next,
            found: facts.digest(),
        }),
        Ok(()) => None,
    };
    if let Some(error) = refused {
        for (subject, item) in before {
            match item {
                Some(item) => facts.put(subject, item),
                None => facts.remove(&subject),
            };
        }
        return Err(error);
    }
    let now = |subject: &Subject| facts.get(subject).cloned().map(|item| (subject.clone(), item));
    let after: Facts = before.iter().filter_map(|(subject, _)| now(subject)).collect();
    let before: Facts =
        before.into_iter().filter_map(|(subject, item)| Some((subject, item?))).collect();
    Ok(diff(&before, &after))
}

/// History's time of something that happened `at` by the host's clock.
pub(crate) fn history_time(at: Time, previous: Time, received: Time) -> Time {
    at.min(received.plus(AHEAD)).max(previous)
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
        check(10, change(), Ok(Step::Repeated));
        check(11, change(), Ok(Step::Changed(diff(&before, &after))));
        check(12, change(), Ok(Step::Changed(diff(&before, &after))));
        check(11, patch(&after, &before), Err(10));
        check(11, patch(&before, &before), Ok(Step::Unchanged));
        check(20, Body::State(after.clone()), Ok(Step::Changed(diff(&before, &after))));
        check(20, Body::State(before.clone()), Ok(Step::Unchanged));
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
    }
}
