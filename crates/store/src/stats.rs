//! Counts what the writer does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Commits whose latency is remembered.
const RECENT: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) queue: AtomicUsize,
    pub(crate) queue_bytes: AtomicUsize,
    pub(crate) appends: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) failing: AtomicBool,
    pub(crate) reopened: AtomicU64,
    latencies: Mutex<VecDeque<Duration>>,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        Self::count(&self.failures, 1);
        self.failing.store(true, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self, latency: Duration) {
        Self::count(&self.commits, 1);
        self.failing.store(false, Ordering::Relaxed);
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        if latencies.len() >= RECENT {
            latencies.pop_front();
        }
        latencies.push_back(latency);
    }

    /// The median and the 99th percentile of recent commits.
    pub(crate) fn latency(&self) -> (Duration, Duration) {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sorted: Vec<Duration> = latencies.iter().copied().collect();
        drop(latencies);
        sorted.sort_unstable();
        let at = |percent: usize| {
            let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted.get(index).copied().unwrap_or_default()
        };
        (at(50), at(99))
    }
}
