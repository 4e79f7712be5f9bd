//! What is known of one node beside its VMs: when it was heard of, and what of it is in doubt.

use model::Time;
use model::vm::VmId;
use std::time::Duration;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// Why the last look at it was not complete.
    pub(crate) incomplete: Option<String>,
    /// VMs that would be orphans.
    pub(crate) held: Vec<VmId>,
    /// What was listed and not kept, and why.
    pub(crate) ignored: Vec<String>,
    /// When it was last heard of.
    pub(crate) heard: Time,
    /// The longest between two of the last times that it was heard of.
    pub(super) gap: Duration,
    /// It is silent, and was said to be.
    pub(super) silent: bool,
}

impl Node {
    /// Takes when it was last heard of. A rhythm that became faster is believed little by little.
    /// After a clock was put back it counts as heard of at that moment.
    pub(super) fn hear(&mut self, at: Time, now: Time) {
        self.heard = self.heard.min(now);
        if at > self.heard {
            if self.heard > Time(0) {
                let gap = at.since(self.heard);
                let known = if self.silent { Duration::ZERO } else { self.gap };
                self.gap = gap.max(known.saturating_sub(known / 4));
            }
            self.heard = at;
        }
    }

    /// Whether it should have been heard of, after such a time: an agent may have a slow rhythm.
    pub(super) fn is_silent(&self, after: Duration, now: Time) -> bool {
        now.since(self.heard) > after.max(self.gap * 3)
    }

    /// Without the time that goes on, which would be another reason every moment.
    pub(super) fn silence(&self) -> String {
        format!("nothing was heard of the node since {}", self.heard)
    }

    pub(crate) fn is_in_doubt(&self) -> bool {
        self.incomplete.is_some() || !self.held.is_empty() || !self.ignored.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_judged_by_a_nodes_own_rhythm() {
        let after = Duration::from_secs(120);
        let at = Time::from_seconds;
        let mut node = Node { heard: at(1000), ..Node::default() };
        for second in [1010, 1020, 1030] {
            node.hear(at(second), at(second));
        }
        assert!(!node.is_silent(after, at(1140)));
        assert!(node.is_silent(after, at(1151)));
        let mut slow = Node { heard: at(1000), ..Node::default() };
        slow.hear(at(1600), at(1600));
        assert!(!slow.is_silent(after, at(3300)));
        assert!(slow.is_silent(after, at(3401)));
        // A clock that went back is no silence.
        slow.hear(at(10), at(10));
        assert!(!slow.is_silent(after, at(10)));
        // Nor does it hide one.
        slow.hear(at(5), at(1811));
        assert!(slow.is_silent(after, at(1811)));
    }
}
