//! Rows of versions of one host in one bucket, each closed by a keyframe and postings.
//!
//! ```text
//! bucket:  full keyframe │ v v v v v … v │ partial keyframe + postings │ v v v …   (open)
//!          after the first version        after the last one of the block
//! ```
//!
//! A state is the nearest keyframe before it and the patches since, so blocks bound what a
//! read costs. Postings say which versions of the block touch a subject or kind, so that the
//! log of a rarely changed thing is found without reading the rest.
//!
//! # Invariants
//! - The first version of a host in a bucket has a full keyframe; partial ones refer to a full
//!   one of the same bucket. So a bucket needs no other.
//! - All blocks are closed but the last one in the bucket that has the host's head.

use crate::codec::{Malformed, Reader, put_varint};
use crate::keys::{self, Term};
use crate::record::{Base, HostNumber, Keyframe, Record};
use model::{ContentId, Facts, Fields, Op, Patch, Significance, Value, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Versions between keyframes. Measured on 65 KB states: fewer cost more disk than they save
/// time, more cost the reader a millisecond.
const VERSIONS: u64 = 128;
/// Patches between keyframes, in stored bytes.
const BYTES: usize = 64 << 10;

/// The open block at a host's head.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) host: HostNumber,
    pub(crate) day: i64,
    /// The full keyframe that the next partial one refers to.
    pub(crate) base: Version,
    /// The first version that no postings cover.
    first: Version,
    count: u64,
    bytes: usize,
    terms: BTreeMap<Term, Vec<Version>>,
}

impl Block {
    /// A block after the keyframe `base`, with `first` to be its first version.
    pub(crate) fn after(host: HostNumber, day: i64, base: Version, first: Version) -> Self {
        Self { host, day, base, first, count: 0, bytes: 0, terms: BTreeMap::new() }
    }

    /// Counts a version in.
    pub(crate) fn note(&mut self, record: &Record, stored: usize) {
        self.count += 1;
        self.bytes += stored;
        for term in terms_of(&record.entry.patch, record.entry.significance) {
            self.terms.entry(term).or_default().push(record.entry.version);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count >= VERSIONS || self.bytes >= BYTES
    }

    /// Memory, in bytes.
    pub(crate) fn weight(&self) -> usize {
        self.terms.len() * 56
            + self.terms.values().map(|versions| versions.len() * 8).sum::<usize>()
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
        self.count = 0;
        self.bytes = 0;
    }

    /// Closes the block with a keyframe of `facts`, the state after `version`. Gives the new
    /// base when the keyframe is a full one.
    pub(crate) fn close_with_keyframe(
        &mut self,
        version: Version,
        facts: &Facts,
        base: Option<Arc<Base>>,
        mut put: impl FnMut(Vec<u8>, Vec<u8>),
    ) -> Option<Base> {
        self.close(&mut put);
        self.first = Version(version.0 + 1);
        let key = keys::keyframe(self.host, version);
        let partial = base.filter(|base| base.version == self.base).and_then(|base| {
            let bytes = Keyframe::encode_partial(self.host, version, facts, &base);
            // A state far from its base makes a better base for those to come.
            (bytes.len() * 3 < base.stored).then_some(bytes)
        });
        if let Some(bytes) = partial {
            put(key, bytes);
            return None;
        }
        let (bytes, base) = Keyframe::encode_full(self.host, version, facts);
        put(key, bytes);
        self.base = version;
        Some(base)
    }
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
