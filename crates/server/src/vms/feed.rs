//! What became of VMs, as it became so: the last of it is kept, for readers at their own pace.
//!
//! # Invariants
//! - A reader gets events in order, each once, or is told that it lost some.
//! - Numbers go on over a restart of the server, so that an old one is never taken for a new.

use api::vm::{VmEvent, VmEventKind};
use model::Time;
use model::vm::{DecisionKind, VmId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Events that are kept.
const KEPT: usize = 4096;

#[derive(Debug)]
pub(crate) struct Feed {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<Arc<VmEvent>>,
    /// The last that is not kept any more.
    dropped: u64,
}

/// What a reader gets.
#[derive(Debug, PartialEq)]
pub(crate) enum Told {
    Event(Arc<VmEvent>),
    /// Some that it did not see are not kept; it goes on after this number.
    Lost(u64),
}

/// An event before it has a number.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) id: VmId,
    pub(super) kind: VmEventKind,
    pub(super) decision: Option<DecisionKind>,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) reason: Option<String>,
}

impl Feed {
    pub(crate) fn new(now: Time) -> Self {
        let begin = u64::try_from(now.0).unwrap_or(0);
        let ring = Ring { events: VecDeque::new(), dropped: begin };
        Self { ring: Mutex::new(ring), newest: watch::Sender::new(begin) }
    }

    pub(super) fn tell(&self, drafts: Vec<Draft>, at: Time) {
        if drafts.is_empty() {
            return;
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sequence = *self.newest.borrow();
        for draft in drafts {
            sequence += 1;
            let Draft { id, kind, decision, from, to, reason } = draft;
            let event = VmEvent { sequence, at, id, kind, decision, from, to, reason };
            ring.events.push_back(Arc::new(event));
        }
        while ring.events.len() > KEPT {
            ring.dropped = ring.events.pop_front().map_or(ring.dropped, |event| event.sequence);
        }
        self.newest.send_replace(sequence);
    }

    /// To wait for what comes; its value is the newest number.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// The next after a number.
    pub(crate) fn after(&self, sequence: u64) -> Option<Told> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = *self.newest.borrow();
        // A number that was never given is of a history that was put back.
        if sequence < ring.dropped || sequence > newest {
            return Some(Told::Lost(ring.dropped));
        }
        let place = usize::try_from(sequence - ring.dropped).ok()?;
        ring.events.get(place).map(|event| Told::Event(Arc::clone(event)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(reason: usize) -> Draft {
        Draft {
            id: "web@n1".parse().unwrap(),
            kind: VmEventKind::Record,
            decision: None,
            from: None,
            to: None,
            reason: Some(reason.to_string()),
        }
    }

    #[test]
    fn readers_get_all_or_are_told() {
        let feed = Feed::new(Time(100));
        assert_eq!(feed.after(100), None);
        assert_eq!(feed.after(7), Some(Told::Lost(100)), "of before the start");
        assert_eq!(feed.after(101), Some(Told::Lost(100)), "of a future that did not come");
        feed.tell((0..3).map(draft).collect(), Time(1));
        let mut seen = Vec::new();
        let mut at = 100;
        while let Some(Told::Event(event)) = feed.after(at) {
            at = event.sequence;
            seen.push(event.reason.clone().unwrap());
        }
        assert_eq!((seen.join(" ").as_str(), at), ("0 1 2", 103));
        feed.tell((3..KEPT + 4).map(draft).collect(), Time(1));
        assert_eq!(feed.after(103), Some(Told::Lost(104)));
        assert!(matches!(feed.after(104), Some(Told::Event(event)) if event.sequence == 105));
        assert_eq!(*feed.newest().borrow(), 104 + KEPT as u64);
    }
}
