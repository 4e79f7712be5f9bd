//! The bridge's named states: a name, and the version of a host it stands for.
//!
//! The first state a host sends is `base_state`; later ones are `state_YYYYMMDD_HHMMSS`. They
//! are labels in the history; no machine is behind them yet. Past the limit the oldest name
//! goes, never `base_state` nor the current one. The version itself stays in the history.
//!
//! A version is recorded before its name is on the list. Its label says the name, so that it is
//! found again when the server was killed in between.

use model::{HostId, Time, Version};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use store::{Error, History, Records};
use tokio::sync::OwnedMutexGuard;

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
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Snapshots {
    pub(crate) fn open(history: &History, limit: usize) -> Result<Self, Error> {
        let records = history.records();
        let list = records.get(COLLECTION, KEY)?.unwrap_or_default();
        let list = Mutex::new(list);
        let snapshots = Self { records, limit, list, turn: Arc::default() };
        for lost in snapshots.left_behind(history)? {
            tracing::info!(name = lost.name, host = %lost.host, "a state gets its name after all");
            snapshots.add(lost)?;
        }
        Ok(snapshots)
    }

    /// The newest versions of hosts whose names never came onto the list. One that came onto it
    /// may be off it again.
    fn left_behind(&self, history: &History) -> Result<Vec<Snapshot>, Error> {
        let list = self.list();
        let listed = list.snapshots.iter().map(|snapshot| snapshot.name.as_str());
        let last = list.last.as_deref().or(listed.clone().next_back()).and_then(order);
        let has_base = listed.clone().any(|name| name == BASE);
        let mut found = Vec::new();
        for info in history.hosts() {
            let entry = match history.entry(&info.host, info.head) {
                Err(error) if error.is_damage() => continue,
                entry => entry?,
            };
            let Some((name, at)) = entry.and_then(|entry| Some((entry.label?, entry.at))) else {
                continue;
            };
            let is_lost = match order(&name) {
                None => name == BASE && !has_base,
                // Names are given out in order.
                Some(order) => last.is_none_or(|last| order > last),
            };
            if is_lost {
                found.push(Snapshot { name, host: info.host, version: info.head, at });
            }
        }
        // The base, which has no such order, goes first.
        found.sort_by(|one, other| order(&one.name).cmp(&order(&other.name)));
        Ok(found)
    }

    /// Held from asking for a name until it is on the list: no two states get one name.
    pub(crate) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
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

/// Where a name of this form is among all of them: its time, and its number within that second.
fn order(name: &str) -> Option<(&str, u32)> {
    const STAMP: usize = "state_20261120_090000".len();
    let (stamp, number) = name.split_at_checked(STAMP)?;
    let number = match number {
        "" => 1,
        number => number.strip_prefix('_')?.parse().ok()?,
    };
    stamp.starts_with("state_").then_some((stamp, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Facts, Fields, Item, Kind, Subject, Value};
    use store::{Append, Body, Delta};

    /// A state whose name does not come onto the list, as when the server is killed.
    fn record(history: &History, host: &str, at: Time, name: &str) {
        let fields: Fields = [("active_state".to_owned(), Value::from(name))].into();
        let facts: Facts =
            [(Subject::escaped(Kind::UNIT, "a.service"), Item::new(&fields))].into_iter().collect();
        let body = Body::State(facts);
        let delta = Delta { sequence: None, at, body, gap: None, label: Some(name.to_owned()) };
        let host = HostId::new(host).unwrap();
        let append = Append { host, stream: None, received: at, deltas: vec![delta] };
        history.append_and_wait(append).unwrap();
    }

    #[test]
    fn a_version_whose_name_was_lost_gets_it_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path(), store::Options::default()).unwrap();
        let open = || {
            let snapshots = Snapshots::open(&history, 2).unwrap();
            let list = snapshots.list();
            let names: Vec<String> = list.snapshots.into_iter().map(|s| s.name).collect();
            assert_eq!(list.current.as_ref(), names.last());
            (snapshots, names)
        };
        assert!(open().1.is_empty());
        let now = Time(1_795_165_200_000_000);
        record(&history, "web01", now, BASE);
        assert_eq!(open().1, [BASE]);
        let (second, third) = (stamp(now), format!("{}_2", stamp(now)));
        record(&history, "web02", now, &second);
        assert_eq!(open().1, [BASE, &second]);
        record(&history, "web03", now, &third);
        let (snapshots, names) = open();
        assert_eq!(names, [BASE, &third]);
        // What went off the list stays off it.
        assert_eq!(open().1, names);
        snapshots.forget(&HostId::new("web03").unwrap()).unwrap();
        assert_eq!(open().1, [BASE]);
        // Nor is it of interest what else is a label.
        record(&history, "web04", now, "named by hand");
        assert_eq!(open().1, [BASE]);
    }

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
