//! Work that nodes are to do for their VMs: it waits here until `twin-node` of a node asks.
//!
//! ```text
//!   give ─► queue ─► attended? ─► given ─► done: what came of it
//!                                    └───► late: nothing came
//! ```
//!
//! # Invariants
//! - Each task is given out once. What was asked for and not heard of again is told as late.
//! - What waited too long for somebody is not given out any more.

use super::Reply;
use api::node::{Task, Work};
use inventory::health::Check;
use model::vm::{CheckName, VmId, VmName};
use model::{HostId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Tasks of one node that wait, or are under way.
const TASKS: usize = 1000;
/// A node that asked for work within this time has somebody to do it.
const ATTENDED: Duration = Duration::from_secs(60);
/// A task waits for its turn on its node, and its outcome takes a way.
const SPARE: Duration = Duration::from_secs(30);

/// What a task is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct For {
    pub(super) vm: VmId,
    /// As it was then; a restart otherwise.
    pub(super) check: Option<(CheckName, Check)>,
}

/// A task before it has a number.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) what_for: For,
    pub(super) name: VmName,
    pub(super) unit: String,
    pub(super) timeout: Duration,
    pub(super) work: Work,
}

#[derive(Debug)]
pub(super) struct Desk {
    last: u64,
    nodes: BTreeMap<HostId, Node>,
}

#[derive(Debug, Default)]
struct Node {
    asked: Option<Time>,
    /// The kinds of work that who asked last knows, of those there are.
    can: Vec<String>,
    waiting: Option<Reply<Vec<Task>>>,
    queue: Vec<Task>,
    /// Queued and given.
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    what_for: For,
    since: Time,
    timeout: Duration,
}

impl Desk {
    /// Numbers begin with the time, so that none is one of a server before.
    pub(super) fn new(now: Time) -> Self {
        Self { last: u64::try_from(now.0).unwrap_or(0), nodes: BTreeMap::new() }
    }

    /// Somebody of the node asks for work, and waits for it.
    pub(super) fn attend(
        &mut self,
        name: &HostId,
        mut can: Vec<String>,
        reply: Reply<Vec<Task>>,
        now: Time,
    ) {
        let node = self.nodes.entry(name.clone()).or_default();
        node.asked = Some(now);
        can.retain(|kind| Work::KINDS.contains(&kind.as_str()));
        can.sort();
        can.dedup();
        node.can = can;
        node.waiting = Some(reply);
        node.hand_out();
    }

    pub(super) fn is_attended(&self, name: &HostId, now: Time) -> bool {
        let asked = self.nodes.get(name).and_then(|node| node.asked);
        asked.is_some_and(|asked| now.since(asked) < ATTENDED)
    }

    /// Whether who asked last for the node knows such work.
    pub(super) fn is_able(&self, name: &HostId, work: &Work) -> bool {
        self.nodes.get(name).is_some_and(|node| work.is_known_to(&node.can))
    }

    /// Whether work for the node would be taken, and somebody is there to do it.
    pub(super) fn takes(&self, name: &HostId, now: Time) -> bool {
        let has_room = self.nodes.get(name).is_some_and(|node| node.open.len() < TASKS);
        has_room && self.is_attended(name, now)
    }

    /// Takes work for a node; whether there is room for it.
    pub(super) fn give(&mut self, name: &HostId, draft: Draft, now: Time) -> bool {
        let node = self.nodes.entry(name.clone()).or_default();
        if node.open.len() >= TASKS {
            return false;
        }
        self.last += 1;
        let Draft { what_for, name, unit, timeout, work } = draft;
        let timeout_seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        node.queue.push(Task { id: self.last, name, unit, timeout_seconds, work });
        node.open.insert(self.last, Open { what_for, since: now, timeout });
        node.hand_out();
        true
    }

    /// What the task was for, if it is open.
    pub(super) fn done(&mut self, name: &HostId, id: u64) -> Option<For> {
        let open = &mut self.nodes.get_mut(name)?.open;
        open.remove(&id).map(|open| open.what_for)
    }

    /// Takes away what nothing was heard of in time, and what nobody took until there would be no
    /// time for it.
    pub(super) fn late(&mut self, now: Time) -> Vec<(HostId, For)> {
        let mut late = Vec::new();
        for (name, node) in &mut self.nodes {
            // A clock may have been put back.
            node.asked = node.asked.map(|asked| asked.min(now));
            let waits = |id| node.queue.iter().any(|task| task.id == id);
            let is_late = |(id, open): &(&u64, &Open)| {
                now.has_passed(open.timeout + SPARE, open.since)
                    || (now.has_passed(SPARE, open.since) && waits(**id))
            };
            let ids: Vec<u64> = node.open.iter().filter(is_late).map(|(id, _)| *id).collect();
            for id in ids {
                node.queue.retain(|task| task.id != id);
                late.extend(node.open.remove(&id).map(|open| (name.clone(), open.what_for)));
            }
        }
        late
    }
}

impl Node {
    /// What who asks does not know stays here, and will be late.
    fn hand_out(&mut self) {
        if !self.queue.iter().any(|task| task.work.is_known_to(&self.can)) {
            return;
        }
        let Some(waiting) = self.waiting.take() else { return };
        let queue = std::mem::take(&mut self.queue);
        let (tasks, rest) = queue.into_iter().partition(|task| task.work.is_known_to(&self.can));
        self.queue = rest;
        // Who waited has gone: the next gets it.
        if let Err(Ok(tasks)) = waiting.send(Ok(tasks)) {
            self.queue.splice(0..0, tasks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    fn draft() -> Draft {
        Draft {
            what_for: For { vm: "web@n1".parse().unwrap(), check: None },
            name: "web".parse().unwrap(),
            unit: "microvm@web.service".into(),
            timeout: Duration::from_secs(5),
            work: Work::Restart,
        }
    }

    #[test]
    fn work_waits_for_who_does_it() {
        let at = Time::from_seconds;
        let node = HostId::new("n1").unwrap();
        let mut desk = Desk::new(at(1));
        assert!(!desk.is_attended(&node, at(1)));
        assert!(desk.give(&node, draft(), at(1)));
        // The first who asks has gone when there is something to tell.
        let (reply, gone) = oneshot::channel();
        drop(gone);
        desk.attend(&node, Vec::new(), reply, at(2));
        let (reply, mut answer) = oneshot::channel();
        desk.attend(&node, Vec::new(), reply, at(40));
        let tasks = answer.try_recv().unwrap().unwrap();
        assert_eq!(tasks.len(), 1);
        assert!(desk.is_attended(&node, at(99)) && !desk.is_attended(&node, at(100)));
        let id = tasks[0].id;
        assert_eq!(desk.done(&HostId::new("n2").unwrap(), id), None);
        assert_eq!(desk.done(&node, id).unwrap().vm.as_str(), "web@n1");
        assert_eq!(desk.done(&node, id), None, "told twice");
        assert!(desk.late(at(10_000)).is_empty());
    }

    #[test]
    fn who_does_not_know_such_work_is_not_given_it() {
        let at = Time::from_seconds;
        let node = HostId::new("n1").unwrap();
        let mut desk = Desk::new(at(1));
        let tcp = || Work::Tcp { address: "10.0.0.5:80".parse().unwrap() };
        assert!(!desk.is_able(&node, &tcp()), "nobody is there");
        assert!(desk.give(&node, Draft { work: tcp(), ..draft() }, at(1)));
        let asks = |desk: &mut Desk, can: &[&str]| {
            let (reply, mut answer) = oneshot::channel();
            desk.attend(&node, can.iter().map(|kind| (*kind).to_owned()).collect(), reply, at(2));
            let works = |tasks: Vec<Task>| tasks.into_iter().map(|task| task.work.kind()).collect();
            let given: Vec<&str> =
                answer.try_recv().map_or_else(|_| Vec::new(), |it| works(it.unwrap()));
            (desk.is_able(&node, &tcp()), given)
        };
        assert_eq!(asks(&mut desk, &[]), (false, vec![]));
        assert!(desk.give(&node, draft(), at(2)));
        assert_eq!(asks(&mut desk, &[]), (false, vec!["restart"]), "it goes past the other");
        assert_eq!(asks(&mut desk, &["tcp", "later"]), (true, vec!["tcp"]));
    }

    #[test]
    fn a_node_that_nobody_attends_fills_no_memory() {
        let node = HostId::new("n1").unwrap();
        let mut desk = Desk::new(Time(0));
        let taken = (0..2 * TASKS).filter(|_| desk.give(&node, draft(), Time(0))).count();
        assert_eq!(taken, TASKS);
        assert!(desk.late(Time::from_seconds(29)).is_empty());
        assert_eq!(desk.late(Time::from_seconds(30)).len(), TASKS, "too late to begin");
        assert!(desk.give(&node, draft(), Time::from_seconds(60)));
    }

    #[test]
    fn what_is_late_whatever_the_clock_does() {
        let at = Time::from_seconds;
        let node = HostId::new("n1").unwrap();
        let mut desk = Desk::new(at(1000));
        assert!(!desk.takes(&node, at(1000)), "nobody is there");
        let (reply, mut answer) = oneshot::channel();
        desk.attend(&node, Vec::new(), reply, at(1000));
        assert!(desk.takes(&node, at(1000)) && desk.give(&node, draft(), at(1000)));
        assert_eq!(answer.try_recv().unwrap().unwrap().len(), 1);
        assert!(desk.late(at(1034)).is_empty());
        assert_eq!(desk.late(at(1035)).len(), 1, "its timeout of 5 s, and 30 s");
        assert!(desk.give(&node, draft(), at(1040)));
        assert_eq!(desk.late(at(10)).len(), 1, "the clock was put back");
        assert!(desk.is_attended(&node, at(69)) && !desk.is_attended(&node, at(70)));
    }
}
