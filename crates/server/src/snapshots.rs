//! The bridge's named states: a name, and the version of a host it stands for.
//!
//! The first state a host sends is `base_state`; later ones are `state_YYYYMMDD_HHMMSS`. They
//! are labels in the history; no machine is behind them yet. Past the limit the oldest name
//! goes, never `base_state` nor the current one. The version itself stays in the history.

use model::{HostId, Time, Version};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use store::{Error, History, Records};

pub(crate) const BASE: &str = "base_state";
const COLLECTION: &str = "bridge";
const KEY: &str = "snapshots";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) host: HostId,
    pub(crate) version: Version,
    pub(crate) at: Time,
}

/// Oldest first; the current one is the last taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) current: Option<String>,
    pub(crate) snapshots: Vec<Snapshot>,
}

/// What became of a request to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deleted {
    Done,
    Unknown,
    /// It is the base or the current one.
    Kept,
}

#[derive(Debug)]
pub(crate) struct Snapshots {
    records: Records,
    limit: usize,
    list: Mutex<List>,
}

impl Snapshots {
    pub(crate) fn open(history: &History, limit: usize) -> Result<Self, Error> {
        let records = history.records();
        let list = records.get(COLLECTION, KEY)?.unwrap_or_default();
        Ok(Self { records, limit, list: Mutex::new(list) })
    }

    pub(crate) fn list(&self) -> List {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name the next state will have.
    pub(crate) fn next_name(&self, now: Time) -> String {
        let list = self.list();
        if list.snapshots.is_empty() {
            return BASE.to_owned();
        }
        let taken = |name: &str| list.snapshots.iter().any(|snapshot| snapshot.name == name);
        let name = stamp(now);
        // Several states within a second are told apart by a number.
        let mut names =
            std::iter::once(name.clone()).chain((2..).map(|n: u32| format!("{name}_{n}")));
        names.find(|name| !taken(name)).unwrap_or(name)
    }

    pub(crate) fn add(&self, snapshot: Snapshot) -> Result<(), Error> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = list.clone();
        next.current = Some(snapshot.name.clone());
        next.snapshots.push(snapshot);
        while next.snapshots.len() > self.limit {
            let oldest = next
                .snapshots
                .iter()
                .position(|s| s.name != BASE && Some(&s.name) != next.current.as_ref());
            let Some(oldest) = oldest else { break };
            next.snapshots.remove(oldest);
        }
        self.records.put(COLLECTION, KEY, &next)?;
        *list = next;
        Ok(())
    }

    /// Takes off the list what stands for versions of a host that is forgotten.
    pub(crate) fn forget(&self, host: &HostId) -> Result<(), Error> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if list.snapshots.iter().all(|snapshot| snapshot.host != *host) {
            return Ok(());
        }
        let mut next = list.clone();
        next.snapshots.retain(|snapshot| snapshot.host != *host);
        next.current = next.snapshots.last().map(|snapshot| snapshot.name.clone());
        self.records.put(COLLECTION, KEY, &next)?;
        *list = next;
        Ok(())
    }

    pub(crate) fn delete(&self, name: &str) -> Result<Deleted, Error> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = list.snapshots.iter().position(|snapshot| snapshot.name == name) else {
            return Ok(Deleted::Unknown);
        };
        if name == BASE || list.current.as_deref() == Some(name) {
            return Ok(Deleted::Kept);
        }
        let mut next = list.clone();
        next.snapshots.remove(at);
        self.records.put(COLLECTION, KEY, &next)?;
        *list = next;
        Ok(Deleted::Done)
    }
}

/// `state_YYYYMMDD_HHMMSS`, in UTC.
pub(crate) fn stamp(time: Time) -> String {
    let text: String = time.to_string().chars().take(19).filter(|c| !"-:".contains(*c)).collect();
    format!("state_{}", text.replace('T', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_time() {
        assert_eq!(stamp(Time(1_795_165_200_999_999)), "state_20261120_090000");
    }
}
