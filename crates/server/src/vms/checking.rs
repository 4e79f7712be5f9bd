//! Declared checks, and restarts: which are due, who makes them, and what comes of it.
//!
//! ```text
//!   due ─► tcp, http: the server, unless the node is to ► verdict
//!       ─► process: the facts of the node ─────────────► verdict
//!       ─► script, console, guest, icmp, arp, tcp and http from there, restart:
//!          the node's desk ───────────────────────────► what twin-node tells, or that it is silent
//! ```

use super::controller::Controller;
use super::desk::{Draft, For};
use super::{Error, Message, Reply, probe};
use crate::clock;
use api::node::{Done, MAX_SAID, NodeAsks, Outcome, Task, Work};
use api::reach;
use inventory::health::{Check, Probe, Verdict};
use inventory::recovery::{self, Step};
use inventory::{Presence, Vm};
use model::vm::{CheckName, Layer, VmId, VmSource, VmState};
use model::{HostId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Probes of the server's own that are under way.
const PROBES: usize = 64;
/// Nodes have so long after the server's start to ask for work.
const GRACE: Duration = Duration::from_secs(60);
/// For systemd to take a restart.
const RESTART: Duration = Duration::from_secs(30);

/// A check that is due.
struct Due {
    since: Time,
    vm: VmId,
    name: CheckName,
    check: Check,
    node: HostId,
    draft: Option<Draft>,
    unit: String,
}

impl Controller {
    pub(super) async fn check_what_is_due(&mut self, now: Time) {
        for due in self.due_checks(now) {
            let Due { vm, name, check, node, draft, unit, .. } = due;
            let key = (vm.clone(), name.clone());
            if let Some(draft) = draft {
                if self.desk.is_attended(&node, now) {
                    if !self.desk.is_able(&node, &draft.work) {
                        let kind = draft.work.kind();
                        let said = format!(
                            "twin-node of {node} is too old to make this check ({kind}); upgrade it"
                        );
                        self.judge(vm, &name, (Layer::Node, Verdict::Fail(said)), now).await;
                    } else if self.desk.give(&node, draft, now) {
                        self.probing.insert(key);
                    }
                } else if now.since(self.started) > GRACE {
                    let said = format!("{node} has no twin-node that makes this check");
                    self.judge(vm, &name, (Layer::Node, Verdict::Fail(said)), now).await;
                }
            } else if self.probes.len() < PROBES && self.probing.insert(key) {
                let app = std::sync::Arc::clone(&self.app);
                self.probes.spawn(async move {
                    let limit = check.timeout;
                    let found = match check.probe {
                        Probe::Process { name } => probe::process(&app, node, unit, name).await,
                        Probe::Tcp { address, from_node: false } => {
                            Some(verdict(reach::look(address, None, limit).await))
                        }
                        Probe::Http { address, path, status, from_node: false } => {
                            let path = Some((path.as_str(), status));
                            Some(verdict(reach::look(address, path, limit).await))
                        }
                        // These are drafts.
                        Probe::Tcp { .. }
                        | Probe::Http { .. }
                        | Probe::Script { .. }
                        | Probe::Console { .. }
                        | Probe::Guest { .. }
                        | Probe::Icmp { .. }
                        | Probe::Arp { .. } => None,
                    };
                    Message::Probed(vm, name, found, clock::now())
                });
            }
        }
    }

    /// What waits longest comes first: there may be no room for all.
    fn due_checks(&self, now: Time) -> Vec<Due> {
        let table = self.vms.table();
        let runs = |vm: &&Vm| {
            vm.condition.state == VmState::Running && vm.record.presence == Presence::Present
        };
        let mut due = Vec::new();
        for vm in table.vms.values().filter(runs) {
            let since = runs_since(vm, now);
            for (name, check) in &vm.record.checks {
                let judged = vm.health.judged_at(name);
                let is_due = now.has_passed(check.initial_delay, since)
                    && judged.is_none_or(|at| now.has_passed(check.interval, at))
                    && !self.probing.contains(&(vm.record.id.clone(), name.clone()));
                if is_due {
                    let first = since.plus(check.initial_delay);
                    due.push(Due {
                        since: judged.map_or(first, |at| at.plus(check.interval)),
                        vm: vm.record.id.clone(),
                        name: name.clone(),
                        check: check.clone(),
                        node: vm.record.node.clone(),
                        draft: work(check).and_then(|work| draft(vm, Some((name, check)), work)),
                        unit: vm.record.reference.clone(),
                    });
                }
            }
        }
        due.sort_by_key(|due| due.since);
        due
    }

    /// Starts VMs anew that do badly, where somebody asked for it. Recorded first: a restart that
    /// nobody remembers would be given out again.
    pub(super) async fn recover(&mut self, now: Time) {
        let steps: Vec<(VmId, Step, recovery::Tried, HostId, Draft)> = {
            let table = self.vms.table();
            let wanted = |vm: &&Vm| vm.record.recovery.is_some() || vm.tried != Default::default();
            let step = |vm: &Vm| {
                let (step, tried) = recovery::step(vm, now);
                let draft = draft(vm, None, Work::Restart).filter(|_| tried != vm.tried)?;
                Some((vm.record.id.clone(), step, tried, vm.record.node.clone(), draft))
            };
            table.vms.values().filter(wanted).filter_map(step).collect()
        };
        for (vm, step, tried, node, draft) in steps {
            if matches!(step, Step::Restart(_)) && !self.desk.takes(&node, now) {
                // Not a restart that did not help: it waits for somebody to do it.
                continue;
            }
            if !self.change(vec![vm.clone()], now, |vm| vm.tried = tried).await {
                continue;
            }
            match step {
                Step::Restart(number) => {
                    tracing::warn!(%vm, number, "does badly and is to be started anew");
                    self.desk.give(&node, draft, now);
                }
                Step::GiveUp => tracing::warn!(%vm, "restarts did not help; nobody tries any more"),
                Step::Nothing => {}
            }
        }
    }

    /// Takes what a node did, and lets it wait for more.
    pub(super) async fn work(
        &mut self,
        node: &HostId,
        asks: NodeAsks,
        reply: Reply<Vec<Task>>,
        now: Time,
    ) {
        for Done { id, outcome, said, layer } in asks.done {
            let Some(For { vm, check }) = self.desk.done(node, id) else { continue };
            let said = said.map(|said| plain(&said));
            match check {
                Some((name, check)) => {
                    self.probing.remove(&(vm.clone(), name.clone()));
                    if self.is_asked_for(&vm, &name, &check) {
                        let found = judgement(&check, outcome, said, layer);
                        self.judge(vm, &name, found, now).await;
                    }
                }
                None if outcome == Outcome::Passed => tracing::info!(%vm, "was started anew"),
                None => tracing::warn!(%vm, said, "could not be started anew"),
            }
        }
        if asks.wait {
            self.desk.attend(node, asks.can, reply, now);
        } else {
            // Who told and has gone needs no answer.
            drop(reply.send(Ok(Vec::new())));
        }
    }

    /// What nothing was heard of.
    pub(super) async fn miss_what_is_late(&mut self, now: Time) {
        for (node, For { vm, check }) in self.desk.late(now) {
            let said = format!("twin-node of {node} did not tell what came of it");
            match check {
                Some((name, check)) => {
                    self.probing.remove(&(vm.clone(), name.clone()));
                    if self.is_asked_for(&vm, &name, &check) {
                        self.judge(vm, &name, (Layer::Node, Verdict::Fail(said)), now).await;
                    }
                }
                None => tracing::warn!(%vm, "was to be started anew, and {said}"),
            }
        }
    }

    /// Whether a check is still what it was when a node was asked to make it.
    fn is_asked_for(&self, vm: &VmId, name: &CheckName, check: &Check) -> bool {
        let table = self.vms.table();
        table.vms.get(vm).and_then(|vm| vm.record.checks.get(name)) == Some(check)
    }

    /// It may not be asked for any more, or not run.
    pub(super) async fn judge(
        &self,
        id: VmId,
        name: &CheckName,
        (layer, verdict): (Layer, Verdict),
        at: Time,
    ) {
        self.change(vec![id], at, |vm| {
            let Some(check) = vm.record.checks.get(name) else { return };
            if vm.condition.state == VmState::Running {
                vm.health.judge(name, check.rule, (layer, &verdict), at);
            }
        })
        .await;
    }

    /// Says which checks are made of a VM. What is known of those that stay is kept.
    pub(super) async fn declare_checks(
        &self,
        id: VmId,
        checks: BTreeMap<CheckName, Check>,
        now: Time,
    ) -> Result<(), Error> {
        let source = self.vms.table().vms.get(&id).map(|vm| vm.record.source);
        let needs_node =
            |check: &Check| matches!(check.probe, Probe::Process { .. }) || work(check).is_some();
        if source == Some(VmSource::Vsphere)
            && let Some((check, _)) = checks.iter().find(|(_, check)| needs_node(check))
        {
            return Err(Error::NoNode { id, check: check.clone() });
        }
        let changed = checks.clone();
        self.change(vec![id.clone()], now, move |vm| {
            let known = std::mem::replace(&mut vm.record.checks, changed.clone());
            let stays = |name: &CheckName| known.get(name) == changed.get(name);
            vm.health.checks.retain(|name, _| stays(name));
        })
        .await;
        match self.vms.table().vms.get(&id).map(|vm| vm.record.checks == checks) {
            Some(true) => Ok(()),
            Some(false) => Err(store::Error::Busy.into()),
            None => Err(Error::Unknown(id.to_string())),
        }
    }

    /// Says what becomes of a VM that does badly.
    pub(super) async fn declare_recovery(
        &self,
        id: VmId,
        policy: Option<recovery::Policy>,
        now: Time,
    ) -> Result<(), Error> {
        let source = self.vms.table().vms.get(&id).map(|vm| vm.record.source);
        if source == Some(VmSource::Vsphere) {
            return Err(Error::NotOurs(id));
        }
        self.change(vec![id.clone()], now, |vm| {
            vm.record.recovery = policy;
            vm.tried = recovery::Tried::default();
        })
        .await;
        match self.vms.table().vms.get(&id).map(|vm| vm.record.recovery == policy) {
            Some(true) => Ok(()),
            Some(false) => Err(store::Error::Busy.into()),
            None => Err(Error::Unknown(id.to_string())),
        }
    }
}

/// Since when a VM runs. Where its node's clock is ahead: since it was seen to, and where that is
/// to come, too, long ago.
fn runs_since(vm: &Vm, now: Time) -> Time {
    let seen = vm.transitions.iter().rev().find(|one| one.of == "state").map(|one| one.at);
    let since = vm.condition.since.filter(|since| *since <= now).or(seen);
    since.unwrap_or(vm.record.first_seen)
}

/// What a look of the server's own comes to.
fn verdict(found: Result<(), reach::Failed>) -> (Layer, Verdict) {
    match found {
        Ok(()) => (Layer::Service, Verdict::Pass),
        Err((layer, said)) => (layer, Verdict::Fail(said)),
    }
}

/// What a check comes to that a node made, and where it failed: where the node found that out, it
/// says so.
fn judgement(
    check: &Check,
    outcome: Outcome,
    said: Option<String>,
    found: Option<Layer>,
) -> (Layer, Verdict) {
    let layer = found.unwrap_or(match check.probe {
        Probe::Tcp { .. } | Probe::Http { .. } | Probe::Script { .. } => Layer::Service,
        Probe::Process { .. } => Layer::Vmm,
        Probe::Console { .. } | Probe::Guest { .. } | Probe::Icmp { .. } | Probe::Arp { .. } => {
            Layer::Guest
        }
    });
    let said = said.unwrap_or_else(|| "it failed".to_owned());
    match outcome {
        Outcome::Passed => (layer, Verdict::Pass),
        Outcome::Failed => (layer, Verdict::Fail(said)),
        Outcome::Unable => (Layer::Node, Verdict::Fail(said)),
    }
}

/// What a node is asked to do for a check, if it is one of those.
fn work(check: &Check) -> Option<Work> {
    match &check.probe {
        Probe::Script { name } => Some(Work::Script { name: name.clone() }),
        Probe::Console { text, absent } => {
            Some(Work::Console { text: text.clone(), absent: *absent })
        }
        Probe::Guest { port } => Some(Work::Guest { port: *port }),
        Probe::Icmp { address } => Some(Work::Icmp { address: *address }),
        Probe::Arp { address } => Some(Work::Arp { address: *address }),
        Probe::Tcp { address, from_node: true } => Some(Work::Tcp { address: *address }),
        Probe::Http { address, path, status, from_node: true } => {
            Some(Work::Http { address: *address, path: path.clone(), status: *status })
        }
        Probe::Tcp { .. } | Probe::Http { .. } | Probe::Process { .. } => None,
    }
}

/// Work for the node of a VM; nothing for one that no node of ours runs.
fn draft(vm: &Vm, check: Option<(&CheckName, &Check)>, work: Work) -> Option<Draft> {
    let is_ours = vm.record.source == VmSource::Microvm;
    let name = vm.record.name.as_str().parse().ok().filter(|_| is_ours)?;
    Some(Draft {
        timeout: check.map_or(RESTART, |(_, check)| check.timeout),
        what_for: For {
            vm: vm.record.id.clone(),
            check: check.map(|(name, check)| (name.clone(), check.clone())),
        },
        name,
        unit: vm.record.reference.clone(),
        work,
    })
}

/// What a node says, within limits.
fn plain(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect()
}
