//! When a twin is changed next. Decides; waits for nothing.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// So many changes within [`WINDOW`] come as soon as they can …
const BURST: usize = 6;
const WINDOW: Duration = Duration::from_secs(60);
/// … and those beyond it so far apart.
const APART: Duration = Duration::from_secs(10);
/// Between any two, so that what comes together is brought together.
const GATHER: Duration = Duration::from_millis(200);
/// After the first failure, doubled with each, at most [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// A guest that begins anew answers in a while: so often it is tried without waiting longer.
const PATIENT: u32 = 10;

/// How long to wait after so many failures in a row. Of a twin that could not be asked a while
/// says nothing.
pub(super) fn retry_after(tries: u32, was_asked: bool) -> Duration {
    let doublings = match was_asked {
        true => tries.saturating_sub(1),
        false => tries.saturating_sub(PATIENT).max(tries.min(2)).saturating_sub(1),
    };
    let doublings = doublings.min(16);
    RETRY.saturating_mul(1 << doublings).min(RETRY_MAX)
}

/// When a twin was changed last: one whose host flaps is not changed each time.
#[derive(Debug, Default)]
pub(super) struct Pace {
    ended: VecDeque<Instant>,
}

impl Pace {
    pub(super) fn ended(&mut self, now: Instant) {
        self.ended.push_back(now);
        while self.ended.len() > BURST {
            self.ended.pop_front();
        }
    }

    /// From now until the next change may begin.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let Some(last) = self.ended.back() else { return Duration::ZERO };
        let is_full = self.ended.len() >= BURST;
        let is_burst = is_full && self.ended.front().is_some_and(|first| now - *first < WINDOW);
        let apart = if is_burst { APART } else { GATHER };
        apart.saturating_sub(now.saturating_duration_since(*last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_ever_later() {
        let waits = |tries: &[u32], was_asked| -> Vec<u64> {
            tries.iter().map(|tries| retry_after(*tries, was_asked).as_secs()).collect()
        };
        let tries = [1, 2, 3, 8, 9, 100, u32::MAX];
        assert_eq!(waits(&tries, true), [5, 10, 20, 600, 600, 600, 600]);
        let tries = [0, 1, 2, 3, 12, 13, 14, 30, u32::MAX];
        assert_eq!(waits(&tries, false), [5, 5, 10, 10, 10, 20, 40, 600, 600]);
    }

    #[test]
    fn what_flaps_is_followed_ever_so_often() {
        let begin = Instant::now();
        let (mut now, mut pace, mut changes) = (begin, Pace::default(), 0);
        // Ten versions a second for ten minutes, each change taking no time at all.
        while now - begin < Duration::from_secs(600) {
            if pace.wait(now).is_zero() {
                pace.ended(now);
                changes += 1;
            }
            now += Duration::from_millis(100);
        }
        assert!((60..90).contains(&changes), "{changes}");
        // A host that came to rest is followed at once.
        assert_eq!(pace.wait(now + WINDOW), Duration::ZERO);
    }

    #[test]
    fn single_changes_do_not_wait() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.wait(now), Duration::ZERO);
        pace.ended(now);
        assert_eq!(pace.wait(now), GATHER);
        assert_eq!(pace.wait(now + GATHER), Duration::ZERO);
    }
}
