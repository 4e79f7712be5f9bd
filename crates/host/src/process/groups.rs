//! Processes that are the same thing, gathered: the items of a machine's processes.
//!
//! # Invariants
//! - A group has at least one member; its members are sorted.
//! - A group's id does not change while it lives, and depends only on its identity (but for
//!   two identities of one name with the same 32-bit hash, where the later takes the next).

use model::Time;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// What the members of a group have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) executable: Option<String>,
    /// Redacted.
    pub(super) arguments: Vec<String>,
    pub(super) uid: Option<u32>,
    pub(super) unit: Option<String>,
    /// Name of the container, or its id while the name is not known.
    pub(super) container: Option<String>,
}

impl Identity {
    fn key(&self) -> u32 {
        let mut hash = Xxh3::new();
        let mut add = |part: Option<&str>| {
            // The length keeps `ab`,`c` apart from `a`,`bc`, and nothing apart from empty.
            hash.update(&part.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(part.unwrap_or_default().as_bytes());
        };
        add(Some(&self.name));
        add(self.executable.as_deref());
        add(self.unit.as_deref());
        add(self.container.as_deref());
        self.arguments.iter().for_each(|argument| add(Some(argument)));
        hash.update(&self.uid.map_or(u64::MAX, u64::from).to_le_bytes());
        let [a, b, c, d, ..] = hash.digest().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// Handle of a group.
pub(super) type Key = u32;

#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: Arc<str>,
    pub(super) identity: Identity,
    pub(super) working_directory: Option<String>,
    pub(super) members: Vec<u32>,
    pub(super) first_seen: Time,
}

#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: HashMap<Key, Group>,
    by_id: HashMap<Arc<str>, Key>,
    changed: BTreeSet<Arc<str>>,
}

impl Groups {
    /// Adds a process to the group of its identity, which begins now if there was none.
    pub(super) fn join(
        &mut self,
        pid: u32,
        identity: Identity,
        working_directory: impl FnOnce() -> Option<String>,
        at: Time,
    ) -> Key {
        let mut key = identity.key();
        while self.groups.get(&key).is_some_and(|group| group.identity != identity) {
            key = key.wrapping_add(1);
        }
        let group = self.groups.entry(key).or_insert_with(|| {
            let id: Arc<str> = format!("{}#{key:08x}", identity.name).into();
            let working_directory = working_directory();
            Group { id, identity, working_directory, members: Vec::new(), first_seen: at }
        });
        if let Err(place) = group.members.binary_search(&pid) {
            group.members.insert(place, pid);
            self.changed.insert(Arc::clone(&group.id));
            self.by_id.entry(Arc::clone(&group.id)).or_insert(key);
        }
        key
    }

    pub(super) fn leave(&mut self, pid: u32, key: Key) {
        let Some(group) = self.groups.get_mut(&key) else { return };
        if let Ok(place) = group.members.binary_search(&pid) {
            group.members.remove(place);
            self.changed.insert(Arc::clone(&group.id));
        }
        if group.members.is_empty() {
            self.by_id.remove(&group.id);
            self.groups.remove(&key);
        }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Group> {
        self.groups.get(&key)
    }

    pub(super) fn by_id(&self, id: &str) -> Option<&Group> {
        self.groups.get(self.by_id.get(id)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    pub(super) fn mark_changed(&mut self, key: Key) {
        if let Some(group) = self.groups.get(&key) {
            self.changed.insert(Arc::clone(&group.id));
        }
    }

    /// The ids of the groups that began, changed or ended since this was last asked.
    pub(super) fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.changed)
    }

    /// Gives back memory that a burst of processes left behind.
    pub(super) fn shrink(&mut self) {
        if self.groups.capacity() > 4 * self.groups.len() + 64 {
            self.groups.shrink_to_fit();
            self.by_id.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str, arguments: &[&str]) -> Identity {
        Identity {
            name: name.into(),
            executable: None,
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            uid: Some(0),
            unit: None,
            container: None,
        }
    }

    #[test]
    fn members_come_and_go() {
        let mut groups = Groups::default();
        let key = groups.join(30, identity("nginx", &["w"]), || None, Time(1));
        assert_eq!(groups.join(20, identity("nginx", &["w"]), || None, Time(2)), key);
        assert_ne!(groups.join(10, identity("nginx", &["m"]), || None, Time(3)), key);
        let group = groups.get(key).unwrap();
        assert_eq!((group.members.as_slice(), group.first_seen), ([20, 30].as_slice(), Time(1)));
        let id = Arc::clone(&group.id);
        assert_eq!(groups.take_changed().len(), 2);
        groups.leave(20, key);
        groups.leave(99, key);
        assert_eq!(groups.take_changed().into_iter().collect::<Vec<_>>(), [Arc::clone(&id)]);
        groups.leave(30, key);
        assert!(groups.get(key).is_none() && groups.by_id(&id).is_none());
        assert!(groups.take_changed().contains(&id));
        assert_eq!(groups.iter().count(), 1);
    }

    #[test]
    fn words_are_not_run_together() {
        assert_ne!(identity("a", &["bc", "d"]).key(), identity("a", &["b", "cd"]).key());
        assert_ne!(identity("a", &[]).key(), identity("a", &[""]).key());
        assert_eq!(identity("a", &["x"]).key(), identity("a", &["x"]).key());
    }

    #[test]
    fn equal_hashes_stay_apart() {
        let mut groups = Groups::default();
        let first = identity("a", &[]);
        let squatter = Group {
            id: "b#0".into(),
            identity: identity("b", &[]),
            working_directory: None,
            members: vec![1],
            first_seen: Time(0),
        };
        groups.groups.insert(first.key(), squatter);
        let key = groups.join(2, first.clone(), || None, Time(0));
        assert_eq!(key, first.key().wrapping_add(1));
    }
}
