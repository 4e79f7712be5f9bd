//! What all documents said a moment ago. Where many are written, one look at the collection tells
//! which of them are there: to look for those that are not costs most servers as much for each
//! batch.
//!
//! # Invariants
//! - What was written since is not told from here: a second write would not know what the first
//!   one did.

use super::{Stored, found, object_id, uuid};
use mongodb::bson::{Bson, RawDocument, RawDocumentBuf};
use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

/// It is believed for this long from when it began, or for twice as long as it took.
const FRESH: Duration = Duration::from_secs(3);
/// Documents of a collection that is looked at as a whole.
pub(super) const AT_MOST: u64 = 50_000;

#[derive(Default)]
pub(super) struct Glance {
    /// By their uuids; without what they say once they may have been written.
    documents: HashMap<String, Option<RawDocumentBuf>>,
    until: Option<Instant>,
}

/// What a glance knows of some VMs' documents.
#[derive(Default)]
pub(super) struct Known {
    pub(super) stored: Stored,
    /// They are to be read.
    pub(super) unclear: Vec<String>,
}

impl fmt::Debug for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { documents, until } = self;
        f.debug_struct("Glance").field("documents", &documents.len()).field("until", until).finish()
    }
}

impl Glance {
    pub(super) fn is_fresh(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes up one document; those with lesser ids come first. False: it can't be read.
    pub(super) fn add(&mut self, document: &RawDocument) -> bool {
        let Some((id, fields)) = found(document) else { return false };
        let Some(uuid) = uuid(&fields) else { return true };
        // The one that we made counts, else the first.
        let is_ours = id == Bson::ObjectId(object_id(uuid));
        if is_ours || !self.documents.contains_key(uuid) {
            self.documents.insert(uuid.to_owned(), Some(document.to_owned()));
        }
        true
    }

    /// All there are were added, which began then.
    pub(super) fn is_complete(&mut self, since: Instant) {
        let now = Instant::now();
        self.until = Some(since + FRESH.max(2 * now.duration_since(since)));
    }

    pub(super) fn tell<'a>(&self, uuids: impl Iterator<Item = &'a str>) -> Known {
        let mut known = Known::default();
        for uuid in uuids {
            match self.documents.get(uuid) {
                None => {}
                Some(document) => match document.as_deref().and_then(found) {
                    Some(found) => _ = known.stored.insert(uuid.to_owned(), found),
                    None => known.unclear.push(uuid.to_owned()),
                },
            }
        }
        known
    }

    /// These are being written, or made.
    pub(super) fn forget<'a>(&mut self, uuids: impl Iterator<Item = &'a str>) {
        if self.is_fresh() {
            self.documents.extend(uuids.map(|uuid| (uuid.to_owned(), None)));
        } else {
            *self = Self::default();
        }
    }
}
