//! Keeps processes that come and go by habit from filling the history.
//!
//! A group that has begun and ended [`OFTEN`] times within [`WINDOW`], each time living less
//! than [`SHORT`], is told again only once it has lived for [`SETTLE`]. The first times are
//! told: that something began to flap is a fact.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const OFTEN: u32 = 5;
const WINDOW: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(5);
/// Groups that are remembered.
const MOST: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Transients {
    groups: HashMap<Arc<str>, Habit>,
}

#[derive(Debug)]
struct Habit {
    began: Instant,
    alive: bool,
    /// Told to the engine in this life.
    told: bool,
    ends: u32,
    counted_since: Instant,
}

impl Transients {
    /// A group is there. Whether to tell it now.
    pub(crate) fn alive(&mut self, id: &Arc<str>, now: Instant) -> bool {
        if self.groups.len() >= MOST {
            self.groups.retain(|_, habit| habit.alive);
        }
        let habit = self.groups.entry(Arc::clone(id)).or_insert_with(|| Habit {
            began: now,
            alive: false,
            told: false,
            ends: 0,
            counted_since: now,
        });
        if now.duration_since(habit.counted_since) > WINDOW {
            habit.ends = 0;
            habit.counted_since = now;
        }
        if !habit.alive {
            habit.alive = true;
            habit.began = now;
            habit.told = false;
        }
        habit.told |= habit.ends < OFTEN || now.duration_since(habit.began) >= SETTLE;
        habit.told
    }

    /// A group has ended. Whether it had been told.
    pub(crate) fn ended(&mut self, id: &Arc<str>, now: Instant) -> bool {
        let Some(habit) = self.groups.get_mut(id) else { return true };
        if habit.alive && now.duration_since(habit.began) < SHORT {
            habit.ends += 1;
        }
        habit.alive = false;
        std::mem::take(&mut habit.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flapping_is_told_and_then_not_any_more() {
        let mut transients = Transients::default();
        let id: Arc<str> = "sleep#1".into();
        let start = Instant::now();
        let mut told = 0;
        for second in 0..20 {
            let now = start + Duration::from_secs(second);
            told += u32::from(transients.alive(&id, now));
            transients.ended(&id, now + Duration::from_millis(500));
        }
        assert_eq!(told, OFTEN);
        let now = start + Duration::from_secs(21);
        assert!(!transients.alive(&id, now));
        assert!(transients.alive(&id, now + SETTLE), "what stays is told");
        assert!(transients.alive(&id, now + WINDOW * 2));
    }
}
