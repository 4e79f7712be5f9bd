//! Rows of versions of one host in one bucket, each closed by a keyframe and postings.
//!
//! ```text
//! era:     full state ◄──────────────┬───────────────────┐
//! bucket:  v keyframe │ v v v … v keyframe, postings │ v v v …   (open)
//! ```
//!
//! A keyframe is the items that differ from a full state, its base, compressed with that as the
//! dictionary. Bases lie in the era of the bucket, some weeks of which share them.
//! A state is the nearest keyframe before it and the patches since, so blocks bound what a
//! read costs. Postings say which versions of the block touch a subject or kind, so that the
//! log of a rarely changed thing is found without reading the rest.
//!
//! # Invariants
//! - The first version of a host in a bucket has a keyframe. So a bucket needs its era, and no
//!   other bucket; an era goes after the last of its buckets.
//! - All blocks are closed but the last one in the bucket that has the host's head.

use crate::codec::{Malformed, Reader, put_varint};
use crate::keys::{self, Term};
use crate::record::{Base, Difference, HostNumber, Keyframe, Plain, Record};
use model::{ContentId, Facts, Fields, Op, Patch, Significance, Subject, Value, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Versions between keyframes. Measured on 65 KB states: fewer cost more disk than they save
/// time, more cost the reader a millisecond.
const VERSIONS: u64 = 128;
/// Patches between keyframes, in stored bytes.
const BYTES: usize = 64 << 10;

/// What was touched since the full state that the next keyframe refers to. So that keyframe is
/// made without reading that state item by item.
#[derive(Debug, Clone)]
pub(crate) struct Since {
    /// The version that the full state is the state after.
    pub(crate) base: Version,
    /// Every subject touched, and whether the base has it.
    touched: BTreeMap<Subject, bool>,
    /// Memory, in bytes, kept up as it grows.
    weight: usize,
}

impl Since {
    /// Nothing was touched yet.
    pub(crate) fn new(base: Version) -> Self {
        Self { base, touched: BTreeMap::new(), weight: 0 }
    }

    /// What leads from a base to these facts.
    pub(crate) fn between(base: &Base, facts: &Facts) -> Self {
        let Difference { base: version, changed, gone } = Difference::between(base, facts);
        let in_base = |subject: &Subject| base.facts.get(subject).is_some();
        let subjects = changed.into_iter().map(|(subject, _)| subject).chain(gone);
        let mut since = Self::new(version);
        for subject in subjects {
            since.insert(subject, in_base(subject));
        }
        since
    }

    fn insert(&mut self, subject: &Subject, in_base: bool) {
        self.weight += subject.id().len() + 48;
        self.touched.insert(subject.clone(), in_base);
    }

    /// Takes in a patch that leads on from the base or from what was touched since.
    pub(crate) fn touch(&mut self, patch: &Patch) {
        for (subject, op) in patch.iter() {
            if !self.touched.contains_key(subject) {
                // What is first touched by being added was not in the base.
                self.insert(subject, !matches!(op, Op::Added(_)));
            }
        }
    }

    fn difference<'a>(&'a self, facts: &'a Facts) -> Difference<'a> {
        let there = |subject: &&Subject| facts.get(subject).is_some();
        let touched = self.touched.keys();
        let gone = self.touched.iter().filter(|(_, in_base)| **in_base).map(|(subject, _)| subject);
        Difference {
            base: self.base,
            changed: touched.filter_map(|subject| Some((subject, facts.get(subject)?))).collect(),
            gone: gone.filter(|subject| !there(subject)).collect(),
        }
    }
}

/// The open block at a host's head.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) host: HostNumber,
    pub(crate) day: i64,
    pub(crate) since: Since,
    /// The first version that no postings cover.
    first: Version,
    count: u64,
    bytes: usize,
    terms: BTreeMap<Term, Vec<Version>>,
    /// Memory of the terms, in bytes, kept up as they grow.
    terms_weight: usize,
}

impl Block {
    /// A block after a keyframe, with `first` to be its first version.
    pub(crate) fn after(host: HostNumber, day: i64, since: Since, first: Version) -> Self {
        Self {
            host,
            day,
            since,
            first,
            count: 0,
            bytes: 0,
            terms: BTreeMap::new(),
            terms_weight: 0,
        }
    }

    /// Counts a version in.
    pub(crate) fn note(&mut self, record: &Record, stored: usize) {
        self.count += 1;
        self.bytes += stored;
        for term in terms_of(&record.entry.patch, record.entry.significance) {
            let versions = self.terms.entry(term).or_default();
            self.terms_weight += if versions.is_empty() { 56 + 8 } else { 8 };
            versions.push(record.entry.version);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count >= VERSIONS || self.bytes >= BYTES
    }

    /// Memory, in bytes.
    pub(crate) fn weight(&self) -> usize {
        self.terms_weight + self.since.weight
    }

    /// Gives out the postings, and covers their versions.
    pub(crate) fn close(&mut self, mut put: impl FnMut(Vec<u8>, Vec<u8>)) {
        for (term, versions) in std::mem::take(&mut self.terms) {
            let mut bytes = Vec::with_capacity(versions.len() + 2);
            let mut previous = self.first.0;
            for version in &versions {
                put_varint(&mut bytes, version.0 - previous);
                previous = version.0;
            }
            put(keys::posting(self.host, term, self.first), bytes);
        }
        self.terms_weight = 0;
        self.count = 0;
        self.bytes = 0;
    }

    /// Closes the block after `version`, which gets a keyframe.
    pub(crate) fn close_after(&mut self, version: Version, put: impl FnMut(Vec<u8>, Vec<u8>)) {
        self.close(put);
        self.first = Version(version.0 + 1);
    }
}

/// A keyframe, and the new base it refers to, if it needs one.
pub(crate) struct MadeKeyframe {
    pub(crate) keyframe: Vec<u8>,
    /// As it is stored, and as it is.
    pub(crate) base: Option<(Vec<u8>, Base)>,
}

/// Makes the keyframe of `facts`, the state after `version`.
pub(crate) fn keyframe(
    host: HostNumber,
    version: Version,
    facts: &Facts,
    base: Option<(&Since, &Plain)>,
) -> MadeKeyframe {
    let digest = facts.digest();
    if let Some((since, plain)) = base {
        let difference = (since.difference(facts), plain);
        let keyframe = Keyframe::encode_partial(host, version, digest, difference);
        // A state far from its base makes a better base for those to come.
        if keyframe.len() * 3 < plain.stored {
            return MadeKeyframe { keyframe, base: None };
        }
    }
    let (bytes, base) = Keyframe::encode_full(host, version, facts);
    let none = Difference { base: version, changed: Vec::new(), gone: Vec::new() };
    let keyframe = Keyframe::encode_partial(host, version, digest, (none, &base.plain));
    MadeKeyframe { keyframe, base: Some((bytes, base)) }
}

fn terms_of(patch: &Patch, significance: Significance) -> BTreeSet<Term> {
    let mut terms = BTreeSet::new();
    for (subject, _) in patch.iter() {
        terms.insert(keys::subject_term(subject));
        terms.insert(keys::kind_term(subject.kind()));
    }
    if significance == Significance::Major {
        terms.insert(keys::MAJOR);
    }
    terms
}

/// The versions of a posting, by its key and value.
pub(crate) fn postings(key: &[u8], value: &[u8]) -> Result<Vec<Version>, Malformed> {
    let mut reader = Reader::new(value);
    let mut version = keys::version_of(key).0;
    let mut versions = Vec::new();
    while !reader.rest().is_empty() {
        version = version.checked_add(reader.varint()?).ok_or(Malformed)?;
        versions.push(Version(version));
    }
    Ok(versions)
}

/// The contents a patch names, before or after.
pub(crate) fn contents_of(patch: &Patch) -> impl Iterator<Item = ContentId> {
    patch.iter().flat_map(|(_, op)| {
        let (was, now) = match op {
            Op::Added(fields) | Op::Removed(fields) => (Some(fields), None),
            Op::Edited { was, now } => (Some(was), Some(now)),
        };
        [was, now].into_iter().flatten().filter_map(content_in)
    })
}

/// The content an item's fields name.
pub(crate) fn content_in(fields: &Fields) -> Option<ContentId> {
    fields.get("content").and_then(Value::as_text)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use model::diff;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_touched_makes_the_keyframe(
            states in prop::collection::vec(testing::facts(), 1..5), cut in 0..5_usize,
        ) {
            let (_, base) = Keyframe::encode_full(1, Version(1), &states[0]);
            let mut since = Since::new(base.version);
            for (index, pair) in states.windows(2).enumerate() {
                if index == cut {
                    // As after a restart.
                    since = Since::between(&base, &pair[0]);
                }
                since.touch(&diff(&pair[0], &pair[1]));
            }
            let last = &states[states.len() - 1];
            let made = (since.difference(last), &*base.plain);
            let bytes = Keyframe::encode_partial(1, Version(9), last.digest(), made);
            let keyframe = Keyframe::decode(1, Version(9), &bytes).unwrap();
            prop_assert_eq!(&keyframe.over(&base).unwrap(), last);
        }
    }
}
