//! The one task that changes the inventory.
//!
//! ```text
//!   a version was recorded ─► its node is looked at: listing, reconcile, apply
//!   every second ──────────► silent nodes, crash loops that may be over, checks that are due
//!   messages ──────────────► measurements, probes, what people ask for
//! ```
//!
//! # Invariants
//! - It takes nothing but the present state: killed anywhere, it does the rest after the start.
//! - What can't be made durable is tried again, and not shown before.

use super::desk::Desk;
use super::feed::Draft;
use super::{Also, Error, Message, Vms};
use crate::app::{App, Event};
use crate::clock;
use api::vm::VmEventKind;
use inventory::health;
use inventory::{
    Act, Breaker, Completeness, Decision, Listing, Outcome, Presence, Vm, apply, microvm, reconcile,
};
use model::entity::Collector;
use model::vm::{CheckName, DecisionKind, Layer, VmId, VmSource, VmState, may_be_microvm};
use model::{Fields, HostId, Kind, Op, Time, Value, with_causes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

const TICK: Duration = Duration::from_secs(1);
/// How often a VM in a crash loop is looked at whether that is over.
const LOOPS: Duration = Duration::from_secs(5);
/// Refused units of a node that are told.
const IGNORED: usize = 20;

pub(super) struct Controller {
    pub(super) app: Arc<App>,
    pub(super) vms: Vms,
    /// Nodes that have to be looked at.
    due: BTreeSet<HostId>,
    looked_at_loops: Time,
    pub(super) started: Time,
    pub(super) probes: JoinSet<Message>,
    /// Checks under way, here or on their node.
    pub(super) probing: BTreeSet<(VmId, CheckName)>,
    pub(super) desk: Desk,
}

/// Works until the server stops.
pub(crate) async fn run(app: Arc<App>, mut inbox: mpsc::Receiver<Message>) {
    let mut events = app.events.subscribe();
    let shutdown = app.shutdown.clone();
    let started = clock::now();
    let mut controller = Controller {
        vms: app.vms.clone(),
        due: BTreeSet::new(),
        looked_at_loops: started,
        started,
        probes: JoinSet::new(),
        probing: BTreeSet::new(),
        desk: Desk::new(started),
        app,
    };
    controller.all_are_due();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        controller.look_at_due().await;
        tokio::select! {
            event = events.recv() => if !controller.take_events(event, &mut events) { return },
            Some(message) = inbox.recv() => controller.take(message).await,
            Some(probed) = controller.probes.join_next() => match probed {
                Ok(message) => controller.take(message).await,
                Err(error) => tracing::error!(%error, "a probe of a VM ended early"),
            },
            _ = tick.tick() => controller.pass_time().await,
            () = shutdown.cancelled() => return,
        }
    }
}

/// Whether a process runs in the unit of a microVM.
fn is_of_microvm(process: &Fields) -> bool {
    process.get("unit").and_then(Value::as_text).is_some_and(may_be_microvm)
}

impl Controller {
    fn all_are_due(&mut self) {
        self.due.extend(self.app.history.hosts().into_iter().map(|info| info.host));
    }

    /// Takes an event and those that wait behind it; `false` when there will be none.
    fn take_events(
        &mut self,
        first: Result<Event, RecvError>,
        events: &mut broadcast::Receiver<Event>,
    ) -> bool {
        match first {
            Ok(event) => self.take_event(&event),
            Err(RecvError::Lagged(_)) => self.all_are_due(),
            Err(RecvError::Closed) => return false,
        }
        loop {
            match events.try_recv() {
                Ok(event) => self.take_event(&event),
                Err(TryRecvError::Lagged(_)) => self.all_are_due(),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return true,
            }
        }
    }

    fn take_event(&mut self, event: &Event) {
        // A large version is not carried in the event, and may hold anything.
        let concerns = event.entry.as_ref().is_none_or(|entry| {
            entry.patch.iter().any(|(subject, op)| match subject.kind() {
                Kind::UNIT => may_be_microvm(subject.id()),
                // It may be seen after the unit that it runs in, and says what its guest has.
                Kind::PROCESS => matches!(op, Op::Added(fields) if is_of_microvm(fields)),
                Kind::COLLECTOR => matches!(subject.id(), "units" | Collector::USER_UNITS),
                _ => false,
            })
        });
        if concerns {
            self.due.insert(event.host.clone());
        }
    }

    async fn look_at_due(&mut self) {
        for node in std::mem::take(&mut self.due) {
            self.look_at(node, true).await;
        }
    }

    /// Reads what a node is like now, and decides.
    async fn look_at(&mut self, node: HostId, with_breaker: bool) -> Vec<VmId> {
        let heard = self.heard(&node, clock::now());
        let known: BTreeMap<VmId, inventory::Condition> = {
            let table = self.vms.table();
            let here = table.vms.values().filter(|vm| vm.record.node == node);
            here.map(|vm| (vm.record.id.clone(), vm.condition.clone())).collect()
        };
        let (asked, now) = (node.clone(), clock::now());
        let listed = self.app.read(move |app| {
            let head = app.history.head(&asked)?;
            Ok(head.map(|head| microvm::listing(&asked, &head.facts, |id| known.get(id), now)))
        });
        let listing = match listed.await {
            Ok(Some(listing)) => listing,
            // Forgotten meanwhile.
            Ok(None) => return Vec::new(),
            Err(error) if error.is_damage() => {
                microvm::silence(&node, format!("its history is damaged: {}", with_causes(&error)))
            }
            Err(error) => {
                tracing::warn!(%node, error = with_causes(&error), "its VMs could not be listed");
                self.due.insert(node);
                return Vec::new();
            }
        };
        let listing = match self.silence(&node, heard, now) {
            Some(reason) => microvm::silence(&node, reason),
            None => listing,
        };
        let breaker = with_breaker.then_some(self.vms.settings.breaker);
        match self.reconciled(&listing, breaker, None, now).await {
            Ok(outcome) => outcome.orphans(),
            Err(error) => {
                tracing::warn!(%node, error = with_causes(&error), "its VMs could not be recorded");
                self.due.insert(node);
                Vec::new()
            }
        }
    }

    /// When a node was last heard of; nobody could be heard before the server was there.
    fn heard(&self, node: &HostId, now: Time) -> Time {
        let seen = self.app.seen_at(node);
        let seen = seen.or_else(|| self.app.history.host(node).map(|info| info.seen_at));
        // What is yet to come was heard before the clock was put back.
        seen.filter(|seen| *seen <= now).unwrap_or(self.started).max(self.started).min(now)
    }

    /// Why the node says nothing of its VMs any more, if so.
    fn silence(&self, name: &HostId, heard: Time, now: Time) -> Option<String> {
        let mut table = self.vms.table_mut();
        let node = table.nodes.entry(name.clone()).or_default();
        node.hear(heard, now);
        node.silent = node.is_silent(self.vms.settings.stale_after, now);
        node.silent.then(|| node.silence())
    }

    /// Decides about a listing, makes it durable with what belongs to it, and shows it.
    async fn reconciled(
        &self,
        listing: &Listing,
        breaker: Option<Breaker>,
        also: Option<Also>,
        now: Time,
    ) -> Result<Outcome, Error> {
        let (outcome, before) = {
            let table = self.vms.table();
            let outcome = reconcile(&table.vms, listing, breaker);
            let ids = outcome.decisions.iter().filter_map(|decision| decision.id.as_ref());
            let ids = ids.chain(&outcome.listed);
            let known = ids.filter_map(|id| Some((id.clone(), table.vms.get(id)?.clone())));
            let known: BTreeMap<VmId, Vm> = known.collect();
            (outcome, known)
        };
        let mut after = before.clone();
        for decision in &outcome.decisions {
            apply(&mut after, decision, now);
        }
        for id in &outcome.listed {
            if let Some(vm) = after.get_mut(id) {
                vm.last_seen = now;
                judge_state(vm, before.get(id), now);
            }
        }
        for vm in after.values_mut() {
            vm.health.assess(&vm.record.presence, &vm.condition, now);
        }
        let decisions: Vec<&Decision> =
            outcome.decisions.iter().filter(|one| one.act != Act::Ignore).collect();
        for decision in &decisions {
            let (id, kind) = (decision.id.as_ref().map(VmId::as_str), decision.act.kind());
            // A VM in a crash loop is refreshed several times a second.
            if kind == DecisionKind::Refresh {
                tracing::debug!(vm = id, decision = %kind, reason = decision.reason, "inventory");
            } else {
                tracing::info!(vm = id, decision = %kind, reason = decision.reason, "inventory");
            }
        }
        let extra = also.map(|also| also(&outcome, &before, now)).transpose()?;
        self.commit(&before, after, &decisions, (extra.unwrap_or_default(), now)).await?;
        self.stand(listing, &outcome);
        Ok(outcome)
    }

    /// Keeps what of the nodes is in doubt. What tells a part of one says nothing of that.
    fn stand(&self, listing: &Listing, outcome: &Outcome) {
        let mut table = self.vms.table_mut();
        for (name, completeness) in &listing.nodes {
            let node = table.nodes.entry(name.clone()).or_default();
            node.incomplete = match completeness {
                Completeness::Partial => continue,
                Completeness::Incomplete(reason) => Some(reason.clone()),
                Completeness::Complete => None,
            };
            node.held = outcome.held.as_ref().map(|held| held.vms.clone()).unwrap_or_default();
            let ignored = outcome.decisions.iter().filter(|one| one.act == Act::Ignore);
            node.ignored = ignored.take(IGNORED).map(|one| one.reason.clone()).collect();
        }
    }

    /// Makes what VMs are now durable, and shows it. What moves on by itself is only shown.
    async fn commit(
        &self,
        before: &BTreeMap<VmId, Vm>,
        mut after: BTreeMap<VmId, Vm>,
        decisions: &[&Decision],
        (extra, now): (store::Changes, Time),
    ) -> Result<(), store::Error> {
        let mut drafts: Vec<Draft> = decisions.iter().filter_map(|one| decided(one)).collect();
        let mut changed = BTreeMap::new();
        for (id, vm) in &mut after {
            match before.get(id) {
                Some(known) => {
                    let noted = vm.note(known, now);
                    drafts.extend(noted.into_iter().map(|one| became(id, one)));
                    if is_another(known, vm) {
                        changed.insert(id.clone(), Some(vm.clone()));
                    }
                }
                None => {
                    changed.insert(id.clone(), Some(vm.clone()));
                }
            }
        }
        self.write(changed, extra).await?;
        self.vms.table_mut().vms.extend(after);
        self.vms.feed.tell(drafts, now);
        Ok(())
    }

    async fn write(
        &self,
        changed: BTreeMap<VmId, Option<Vm>>,
        extra: store::Changes,
    ) -> Result<(), store::Error> {
        if changed.is_empty() && extra.is_empty() {
            return Ok(());
        }
        let book = self.vms.book.clone();
        let written = tokio::task::spawn_blocking(move || book.write(&changed, extra));
        written.await.unwrap_or(Err(store::Error::Closed))
    }

    /// Changes single VMs, as measurements, probes and time do; whether it could be recorded.
    pub(super) async fn change(&self, ids: Vec<VmId>, now: Time, change: impl Fn(&mut Vm)) -> bool {
        let before: BTreeMap<VmId, Vm> = {
            let table = self.vms.table();
            ids.into_iter()
                .filter_map(|id| Some((id.clone(), table.vms.get(&id)?.clone())))
                .collect()
        };
        let mut after = before.clone();
        for vm in after.values_mut() {
            change(vm);
            vm.health.assess(&vm.record.presence, &vm.condition, now);
        }
        let nothing = store::Changes::default();
        let committed = self.commit(&before, after, &[], (nothing, now)).await;
        if let Err(error) = &committed {
            let error = with_causes(error);
            tracing::warn!(error, "what was found of VMs could not be recorded");
        }
        committed.is_ok()
    }

    /// What is due by the clock alone.
    async fn pass_time(&mut self) {
        let now = clock::now();
        self.started = self.started.min(now);
        let nodes: BTreeSet<HostId> = {
            let table = self.vms.table();
            let ours = table.vms.values().filter(|vm| vm.record.source == VmSource::Microvm);
            ours.map(|vm| vm.record.node.clone()).collect()
        };
        for name in nodes {
            let heard = self.heard(&name, now);
            let was_silent = self.vms.table().nodes.get(&name).is_some_and(|node| node.silent);
            let silence = self.silence(&name, heard, now);
            if silence.is_some() != was_silent {
                self.due.insert(name);
            }
        }
        let look_at_loops = now.has_passed(LOOPS, self.looked_at_loops);
        if look_at_loops {
            self.looked_at_loops = now;
        }
        let (state, _) = health::state_check();
        let mut to_judge = Vec::new();
        for vm in self.vms.table().vms.values() {
            if vm.record.presence != Presence::Present {
                continue;
            }
            if look_at_loops && vm.condition.looping.is_some() {
                self.due.insert(vm.record.node.clone());
            }
            // Of what is listed anew all the time there is no need to.
            let is_ours = vm.record.source == VmSource::Microvm;
            let judged = vm.health.judged_at(&state).filter(|_| is_ours);
            if judged.is_some_and(|at| now.has_passed(health::RHYTHM, at)) {
                to_judge.push(vm.record.id.clone());
            }
        }
        if !to_judge.is_empty() {
            self.change(to_judge, now, |vm| judge_state(vm, None, now)).await;
        }
        self.miss_what_is_late(now).await;
        self.check_what_is_due(now).await;
        self.recover(now).await;
    }

    async fn take(&mut self, message: Message) {
        let now = clock::now();
        match message {
            Message::Measured(node, used) => self.measured(&node, used, now).await,
            Message::Probed(id, name, found, at) => {
                self.probing.remove(&(id.clone(), name.clone()));
                if let Some(found) = found {
                    self.judge(id, &name, found, at).await;
                }
            }
            Message::Work(node, asks, reply) => self.work(&node, asks, reply, now).await,
            Message::Recover(id, policy, reply) => {
                drop(reply.send(self.declare_recovery(id, policy, now).await));
            }
            // Who asked and has gone does not need the answer.
            Message::Forget(id, reply) => drop(reply.send(self.forget(id, now).await)),
            Message::Listed(listed) => {
                let super::Listed { listing, breaker, also, reply } = *listed;
                drop(reply.send(self.reconciled(&listing, breaker, also, now).await));
            }
            Message::Adopt(adopted, reply) => drop(reply.send(self.adopt(adopted, now).await)),
            Message::ForgetNode(node) => self.forget_node(&node, now).await,
            Message::Confirm(node, reply) => drop(reply.send(self.confirm(node).await)),
            Message::Declare(id, checks, reply) => {
                drop(reply.send(self.declare_checks(id, checks, now).await));
            }
        }
    }

    async fn measured(&self, node: &HostId, used: Vec<(String, inventory::Usage)>, now: Time) {
        let mut used: BTreeMap<String, inventory::Usage> = used.into_iter().collect();
        let mut of: BTreeMap<VmId, inventory::Usage> = BTreeMap::new();
        for vm in self.vms.table().vms.values().filter(|vm| vm.record.node == *node) {
            let usage = used.remove(&vm.record.reference);
            of.extend(usage.map(|usage| (vm.record.id.clone(), usage)));
        }
        let ids = of.keys().cloned().collect();
        self.change(ids, now, |vm| {
            let Some(usage) = of.get(&vm.record.id) else { return };
            let (mut usage, since) = (usage.clone(), vm.condition.since);
            usage.follow(vm.usage.as_ref(), since);
            if vm.condition.state == VmState::Running {
                let limits = vm.limits();
                for (name, rule, verdict) in health::usage_verdicts(&usage, limits, since) {
                    vm.health.judge(&name, rule, (Layer::Vmm, &verdict), now);
                }
            }
            vm.usage = Some(usage);
        })
        .await;
    }

    async fn forget(&self, id: VmId, now: Time) -> Result<(), Error> {
        match self.vms.table().vms.get(&id).map(|vm| &vm.record.presence) {
            None => return Err(Error::Unknown(id.to_string())),
            Some(Presence::Orphan { .. }) => {}
            Some(_) => return Err(Error::NotOrphan(id)),
        }
        self.remove(vec![id], now).await
    }

    async fn forget_node(&mut self, node: &HostId, now: Time) {
        let ids: Vec<VmId> = {
            let table = self.vms.table();
            let ours = |vm: &&Vm| vm.record.node == *node && vm.record.source == VmSource::Microvm;
            table.vms.values().filter(ours).map(|vm| vm.record.id.clone()).collect()
        };
        if let Err(error) = self.remove(ids, now).await {
            tracing::warn!(%node, error = with_causes(&error), "its VMs could not be forgotten");
            return;
        }
        self.vms.table_mut().nodes.remove(node);
        // It may be back already.
        self.due.insert(node.clone());
    }

    async fn remove(&self, ids: Vec<VmId>, now: Time) -> Result<(), Error> {
        let gone = ids.iter().map(|id| (id.clone(), None)).collect();
        self.write(gone, store::Changes::default()).await?;
        let mut table = self.vms.table_mut();
        for id in &ids {
            table.vms.remove(id);
        }
        drop(table);
        let removed = |id| Draft {
            id,
            kind: VmEventKind::Removed,
            decision: None,
            from: None,
            to: None,
            reason: None,
        };
        self.vms.feed.tell(ids.into_iter().map(removed).collect(), now);
        Ok(())
    }

    /// Takes VMs as somebody else knew them. Of those that are known their name, node and presence.
    async fn adopt(&self, adopted: Vec<Vm>, now: Time) -> Result<(), Error> {
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        for vm in adopted {
            let id = vm.record.id.clone();
            let known = self.vms.table().vms.get(&id).cloned();
            let Some(known) = known else {
                after.insert(id, vm);
                continue;
            };
            if known.record.source != vm.record.source {
                continue;
            }
            let mut changed = known.clone();
            changed.record.name = vm.record.name;
            changed.record.node = vm.record.node;
            changed.record.presence = vm.record.presence;
            before.insert(id.clone(), known);
            after.insert(id, changed);
        }
        self.commit(&before, after, &[], (store::Changes::default(), now)).await?;
        Ok(())
    }

    async fn confirm(&mut self, node: HostId) -> Result<Vec<VmId>, Error> {
        let is_held = self.vms.table().nodes.get(&node).is_some_and(|node| !node.held.is_empty());
        if !is_held {
            return Err(Error::NothingHeld(node));
        }
        Ok(self.look_at(node, false).await)
    }
}

/// Judges by the state alone, if that is another than before or it is time to.
fn judge_state(vm: &mut Vm, before: Option<&Vm>, now: Time) {
    let (name, rule) = health::state_check();
    let is_new = before.is_none_or(|before| before.condition.state != vm.condition.state);
    if is_new && vm.condition.state != VmState::Running {
        vm.health.begin_anew();
    }
    let judged = vm.health.judged_at(&name);
    let due = judged.is_none_or(|at| now.has_passed(health::RHYTHM, at));
    let restarted = before.is_some_and(|before| before.condition.restarts < vm.condition.restarts);
    if !is_new && !due && !restarted {
        return;
    }
    if let Some(verdict) = health::state_verdict(&vm.condition) {
        vm.health.judge(&name, rule, (Layer::Unit, &verdict), now);
    }
}

/// Whether it differs in what is kept.
fn is_another(before: &Vm, after: &Vm) -> bool {
    let health = |vm: &Vm| (vm.health.state, vm.health.score, vm.health.cause.clone());
    before.record != after.record
        || before.condition != after.condition
        || before.tried != after.tried
        || health(before) != health(after)
}

fn decided(decision: &Decision) -> Option<Draft> {
    Some(Draft {
        id: decision.id.clone()?,
        kind: VmEventKind::Record,
        decision: Some(decision.act.kind()),
        from: None,
        to: None,
        reason: Some(decision.reason.clone()),
    })
}

fn became(id: &VmId, transition: inventory::Transition) -> Draft {
    let kind = transition.of.parse().unwrap_or(VmEventKind::Record);
    Draft {
        id: id.clone(),
        kind,
        decision: None,
        from: Some(transition.from),
        to: Some(transition.to),
        reason: transition.reason,
    }
}
