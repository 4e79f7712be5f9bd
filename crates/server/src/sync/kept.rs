//! What is known of passes over a restart: the last one, and when each source was last listed as
//! a whole and decided about.

use api::sync::SyncPass;
use model::{HostId, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Records;

const KEPT: (&str, &str) = ("sync", "passes");

/// Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    records: Records,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    passes: Passes,
    is_written: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Passes {
    last: Option<SyncPass>,
    listed: BTreeMap<HostId, Time>,
}

impl Kept {
    /// Blocks.
    pub(super) fn open(records: Records) -> Result<Self, store::Error> {
        let passes = records.get(KEPT.0, KEPT.1)?.unwrap_or_default();
        let known = Arc::new(Mutex::new(Known { passes, is_written: true }));
        Ok(Self { records, known })
    }

    pub(super) fn last(&self) -> Option<SyncPass> {
        self.locked().passes.last.clone()
    }

    pub(super) fn set_last(&self, last: SyncPass) {
        let mut known = self.locked();
        known.passes.last = Some(last);
        known.is_written = false;
    }

    /// When a source was listed as a whole. What is on it and no orphan was there then.
    pub(super) fn listed_at(&self, node: &HostId) -> Option<Time> {
        self.locked().passes.listed.get(node).copied()
    }

    pub(super) fn set_listed_at(&self, node: &HostId, at: Time) {
        let mut known = self.locked();
        known.passes.listed.insert(node.clone(), at);
        known.is_written = false;
    }

    /// Writes what is new. What could not be written is with the next time.
    pub(super) async fn write(&self) {
        let passes = {
            let mut known = self.locked();
            if std::mem::replace(&mut known.is_written, true) {
                return;
            }
            known.passes.clone()
        };
        let records = self.records.clone();
        let put = move || records.put(KEPT.0, KEPT.1, &passes);
        let error = match tokio::task::spawn_blocking(put).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => model::with_causes(&error),
            Err(error) => model::with_causes(&error),
        };
        self.locked().is_written = false;
        tracing::debug!(error, "when sources were listed could not be recorded");
    }

    fn locked(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{History, Options};

    #[tokio::test]
    async fn what_is_known_outlives_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let open = || History::open(directory.path(), Options::default()).unwrap();
        let history = open();
        let kept = Kept::open(history.records()).unwrap();
        let node = HostId::new("esx1").unwrap();
        assert!(kept.last().is_none() && kept.listed_at(&node).is_none());
        let last = SyncPass { at: Time(5), took_ms: 1, run: None, results: Vec::new() };
        kept.set_last(last.clone());
        kept.set_listed_at(&node, Time(4));
        kept.write().await;
        drop((kept, history));
        let history = open();
        let kept = Kept::open(history.records()).unwrap();
        assert_eq!((kept.last(), kept.listed_at(&node)), (Some(last), Some(Time(4))));
    }
}
