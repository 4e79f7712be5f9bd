//! The bridge's named states: a name, and the version of a host it stands for.
//!
//! The first state a host sends is `base_state`; later ones are `state_YYYYMMDD_HHMMSS`. They
//! are labels in the history; no machine is behind them yet. Past the limit the oldest name
//! goes, never `base_state` nor the current one. The version itself stays in the history.

use model::{HostId, Time, Version};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use store::{Error, History, Records};
use tokio::sync::MutexGuard;

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
    /// The last name that was given out with a time in it. It may be off the list again.
    #[serde(default)]
    last: Option<String>,
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
    turn: tokio::sync::Mutex<()>,
}

impl Snapshots {
    pub(crate) fn open(history: &History, limit: usize) -> Result<Self, Error> {
        let records = history.records();
        let list = records.get(COLLECTION, KEY)?.unwrap_or_default();
        Ok(Self { records, limit, list: Mutex::new(list), turn: tokio::sync::Mutex::default() })
    }

    /// Held from asking for a name until it is on the list: no two states get one name.
    pub(crate) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub(crate) fn list(&self) -> List {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The name the next state will have.
    pub(crate) fn next_name(&self, now: Time) -> String {
        let list = self.list();
        let taken = |name: &str| list.snapshots.iter().any(|snapshot| snapshot.name == name);
        if !taken(BASE) {
            return BASE.to_owned();
        }
        let name = stamp(now);
        // Several states within a second are told apart by a number, which goes on from the last
        // one: that may be off the list, and is a label in the history all the same.
        let last = list.last.as_deref().and_then(|last| last.strip_prefix(&name));
        let first = match last {
            None => 1,
            Some(number) => number.strip_prefix('_').and_then(|n| n.parse().ok()).unwrap_or(1) + 1,
        };
        let numbered = |n: u32| if n == 1 { name.clone() } else { format!("{name}_{n}") };
        (first..).map(numbered).find(|name| !taken(name)).unwrap_or_else(|| name.clone())
    }

    pub(crate) fn add(&self, snapshot: Snapshot) -> Result<(), Error> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = list.clone();
        next.current = Some(snapshot.name.clone());
        if snapshot.name != BASE {
            next.last = Some(snapshot.name.clone());
        }
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
    fn names_are_given_out_once_and_the_base_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path(), store::Options::default()).unwrap();
        let snapshots = Snapshots::open(&history, 3).unwrap();
        let now = Time(1_795_165_200_000_000);
        let add = |snapshots: &Snapshots, host: &str| {
            let name = snapshots.next_name(now);
            let host = HostId::new(host).unwrap();
            let snapshot = Snapshot { name: name.clone(), host, version: Version(1), at: now };
            snapshots.add(snapshot).unwrap();
            name
        };
        let names: Vec<String> = (0..5).map(|_| add(&snapshots, "web01")).collect();
        let expected = ["base_state", "state_20261120_090000", "state_20261120_090000_2"];
        assert_eq!(names[..3], expected);
        assert_eq!(names[4], "state_20261120_090000_4");
        assert_eq!(snapshots.list().snapshots.len(), 3);
        drop(snapshots);
        let snapshots = Snapshots::open(&history, 3).unwrap();
        assert_eq!(add(&snapshots, "web02"), "state_20261120_090000_5");
        snapshots.forget(&HostId::new("web01").unwrap()).unwrap();
        assert_eq!(add(&snapshots, "web02"), "base_state");
    }

    #[test]
    fn names_carry_the_time() {
        assert_eq!(stamp(Time(1_795_165_200_999_999)), "state_20261120_090000");
    }
}
