//! What was not to be had, why, and when it is worth another try.
//!
//! # Invariants
//! - Nothing is asked for again before its time, which is twice as long after each try.
//! - It is a memory, and bounded: whoever forgets asks once more.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Things that are remembered.
const MAX: usize = 10_000;

/// How long nothing is asked for again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Again {
    fn after(self, tries: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(tries.saturating_sub(1));
        self.first.saturating_mul(doubled).min(self.longest)
    }
}

/// What was not to be had, and why.
#[derive(Debug)]
pub(crate) struct Lacks<K, W> {
    again: Again,
    all: Mutex<BTreeMap<K, Lacking<W>>>,
}

#[derive(Debug)]
struct Lacking<W> {
    why: W,
    since: Instant,
    tries: u32,
    /// It is worth another try.
    is_pardoned: bool,
}

impl<K: Ord + Clone, W: Clone> Lacks<K, W> {
    pub(crate) fn new(again: Again) -> Self {
        Self { again, all: Mutex::default() }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<K, Lacking<W>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It was asked for and is not to be had.
    pub(crate) fn note(&self, key: K, why: W, now: Instant) {
        let mut all = self.all();
        if all.len() >= MAX && !all.contains_key(&key) {
            let oldest = all.iter().min_by_key(|(_, one)| one.since).map(|(key, _)| key.clone());
            oldest.map(|oldest| all.remove(&oldest));
        }
        let tries = all.get(&key).map_or(0, |before| before.tries).saturating_add(1);
        all.insert(key, Lacking { why, since: now, tries, is_pardoned: false });
    }

    /// It was had, or nobody wants it any more.
    pub(crate) fn forget(&self, key: &K) {
        self.all().remove(key);
    }

    /// Forgets those; whether there were any.
    pub(crate) fn forget_those(&self, are: impl Fn(&K, &W) -> bool) -> bool {
        let mut all = self.all();
        let before = all.len();
        all.retain(|key, one| !are(key, &one.why));
        all.len() < before
    }

    /// Those among these that are not worth another try yet.
    pub(crate) fn known(&self, are: impl Fn(&K) -> bool) -> Vec<(K, W)> {
        let all = self.all();
        let known = all.iter().filter(|(key, one)| !one.is_pardoned && are(key));
        known.map(|(key, one)| (key.clone(), one.why.clone())).collect()
    }

    /// From now on those among these are worth another try whose time has come; whether there are
    /// any.
    pub(crate) fn pardon(&self, are: impl Fn(&K, &W) -> bool, now: Instant) -> bool {
        let mut is_any = false;
        for (key, one) in self.all().iter_mut() {
            let is_due = now.duration_since(one.since) >= self.again.after(one.tries);
            if is_due && !one.is_pardoned && are(key, &one.why) {
                one.is_pardoned = true;
                is_any = true;
            }
        }
        is_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_try_is_twice_as_long_after_the_one_before() {
        let again = Again { first: Duration::from_secs(60), longest: Duration::from_secs(200) };
        let lacks = Lacks::new(again);
        let known = || lacks.known(|_| true);
        let mut now = Instant::now();
        for wait in [60, 120, 200, 200] {
            lacks.note("a", "gone", now);
            assert_eq!(known(), [("a", "gone")]);
            now += Duration::from_secs(wait - 1);
            assert!(!lacks.pardon(|_, _| true, now), "{wait}");
            now += Duration::from_secs(1);
            assert!(!lacks.pardon(|key, _| *key != "a", now), "{wait}");
            assert!(lacks.pardon(|_, _| true, now), "{wait}");
            assert!(!lacks.pardon(|_, _| true, now), "once");
            assert!(known().is_empty());
        }
        lacks.note("b", "gone", now);
        assert!(lacks.forget_those(|key, why| *key == "b" && *why == "gone"));
        assert!(!lacks.forget_those(|key, _| *key == "b"));
        lacks.forget(&"a");
        lacks.note("a", "gone", now);
        now += Duration::from_secs(60);
        assert!(lacks.pardon(|_, _| true, now), "it begins anew");
    }
    #[test]
    fn the_oldest_is_forgotten_where_there_are_too_many() {
        let lacks = Lacks::new(Again { first: Duration::ZERO, longest: Duration::ZERO });
        let begun = Instant::now();
        for number in 0..MAX + 2 {
            lacks.note(number, (), begun + Duration::from_micros(number as u64));
        }
        let known = lacks.known(|_| true);
        assert_eq!(known.len(), MAX);
        assert_eq!(known.first(), Some(&(2, ())));
    }
}
