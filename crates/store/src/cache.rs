//! A map that forgets what was used longest ago when it grows beyond its weight.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

pub(crate) struct Cache<K, V> {
    entries: HashMap<K, Slot<V>>,
    by_use: BTreeMap<u64, K>,
    clock: u64,
    weight: usize,
    limit: usize,
}

struct Slot<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Hash + Eq + Copy, V> Cache<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), clock: 0, weight: 0, limit }
    }

    pub(crate) fn get(&mut self, key: K) -> Option<&V> {
        let slot = self.entries.get_mut(&key)?;
        self.clock += 1;
        self.by_use.remove(&slot.used);
        self.by_use.insert(self.clock, key);
        slot.used = self.clock;
        Some(&slot.value)
    }

    pub(crate) fn put(&mut self, key: K, value: V, weight: usize) {
        self.take(key);
        self.clock += 1;
        self.entries.insert(key, Slot { value, weight, used: self.clock });
        self.by_use.insert(self.clock, key);
        self.weight += weight;
        while self.weight > self.limit {
            let Some((_, oldest)) = self.by_use.first_key_value() else { return };
            let oldest = *oldest;
            self.take(oldest);
        }
    }

    pub(crate) fn take(&mut self, key: K) -> Option<V> {
        let slot = self.entries.remove(&key)?;
        self.by_use.remove(&slot.used);
        self.weight -= slot.weight;
        Some(slot.value)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.by_use.clear();
        self.weight = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = Cache::new(10);
        cache.put(1, 'a', 4);
        cache.put(2, 'b', 4);
        assert_eq!(cache.get(1), Some(&'a'));
        cache.put(3, 'c', 4);
        let kept = [1, 2, 3].map(|key| cache.get(key).copied());
        assert_eq!(kept, [Some('a'), None, Some('c')]);
        cache.put(1, 'd', 11);
        assert_eq!((cache.len(), cache.weight()), (0, 0), "what is too heavy is not kept");
    }
}
