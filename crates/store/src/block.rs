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
use crate::record::{Base, HostNumber, Keyframe, Record};
use model::{ContentId, Facts, Fields, Op, Patch, Significance, Value, Version};
use std::collections::{BTreeMap, BTreeSet};

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
    /// The full state that the next keyframe refers to, by the version it is the state after.
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
    base: Option<&Base>,
) -> MadeKeyframe {
    if let Some(base) = base {
        let keyframe = Keyframe::encode_partial(host, version, facts, base);
        // A state far from its base makes a better base for those to come.
        if keyframe.len() * 3 < base.stored {
            return MadeKeyframe { keyframe, base: None };
        }
    }
    let (bytes, base) = Keyframe::encode_full(host, version, facts);
    let keyframe = Keyframe::encode_partial(host, version, facts, &base);
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
