//! Answers that were made before, ready to be sent: what was true at a version stays so.
//!
//! Bounded in bytes; what was asked for most is kept. Keys name versions, never moments, so an
//! entry is never stale; and the time of a host's first version, so that a host which was
//! forgotten and came back is another one.

use axum::body::Bytes;
use model::{HostId, Kind, Subject, Time, Version};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// Of all answers together.
const BYTES: u64 = 32 << 20;

/// Larger ones are asked for seldom and cost little beside their own transfer.
const LARGEST: usize = 2 << 20;

/// One life of a host, from its first version to when it is forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Life(pub(crate) HostId, pub(crate) Time);

/// What an answer was made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    State { host: Life, version: Version, kind: Option<Kind>, subject: Option<Subject> },
    Diff { from: (Life, Version), to: (Life, Version) },
}

#[derive(Debug, Clone)]
struct Size;

impl Weighter<Key, Bytes> for Size {
    fn weight(&self, _key: &Key, body: &Bytes) -> u64 {
        // The key and the entry's own place cost something, too.
        u64::try_from(body.len()).unwrap_or(u64::MAX).saturating_add(256)
    }
}

#[derive(Debug)]
pub(crate) struct Rendered(Cache<Key, Bytes, Size>);

impl Default for Rendered {
    fn default() -> Self {
        Self(Cache::with_weighter(1024, BYTES, Size))
    }
}

impl Rendered {
    pub(crate) fn get(&self, key: &Key) -> Option<Bytes> {
        self.0.get(key)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.weight()
    }

    pub(crate) fn forget(&self, host: &HostId) {
        self.0.retain(|key, _| match key {
            Key::State { host: Life(of, _), .. } => of != host,
            Key::Diff { from: (Life(of, _), _), to: (Life(other, _), _) } => {
                of != host && other != host
            }
        });
    }

    pub(crate) fn put(&self, key: Key, body: Bytes) {
        if body.len() <= LARGEST {
            self.0.insert(key, body);
        }
    }
}
