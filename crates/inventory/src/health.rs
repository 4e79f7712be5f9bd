//! How well a VM does: verdicts of checks, thresholds in both directions, a score, a state, and
//! the cause. Pure.
//!
//! ```text
//!   verdict ─► Tally: so many failures in a row ─► failing, so many passes ─► passing
//!   tallies, by weight ─► score ─► healthy (0.9), degraded (0.5), unhealthy
//!        a critical check at twice its threshold ─► critical
//!        the guest does not answer ─► unresponsive
//! ```
//!
//! The cause is what is wrong furthest out: a VMM that was killed explains a service that does
//! not answer. What is used, and what the journal has, is the cause where nothing else is.
//!
//! # Invariants
//! - What the node could not find out makes no VM critical or unresponsive, and counts for nothing
//!   when it can again.

use crate::record::{Condition, Earlier, Limits, Presence, Usage};
use model::Time;
use model::load::{JournalErrors, VmmLoad};
use model::vm::{CheckName, Layer, VmHealth, VmState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

const HEALTHY: f64 = 0.9;
const DEGRADED: f64 = 0.5;

/// Of its limit, in percent: beyond it memory is about to run out, and a processor is busy with
/// nothing but waiting for its turn.
const NEAR_LIMIT_PERCENT: u64 = 90;

/// Errors in the journal within an hour that are no accident any more. One that is critical is
/// none, either.
const MANY_ERRORS: u64 = 10;

/// How often what is looked at by itself is judged anew.
pub const RHYTHM: Duration = Duration::from_secs(30);

/// When a check that fails counts, and for how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// So many failures in a row, and it fails.
    pub failure_threshold: u32,
    /// So many passes in a row, and it passes again.
    pub success_threshold: u32,
    pub weight: u32,
    pub critical: bool,
}

/// A check that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub probe: Probe,
    pub rule: Rule,
    pub interval: Duration,
    pub timeout: Duration,
    /// Nothing is judged for so long after the VM began to run.
    pub initial_delay: Duration,
}

/// What is done to find out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// A connection is accepted, of the server or of the VM's node.
    Tcp {
        address: SocketAddr,
        #[serde(default)]
        from_node: bool,
    },
    /// An answer has the status.
    Http {
        address: SocketAddr,
        path: String,
        status: u16,
        #[serde(default)]
        from_node: bool,
    },
    /// A process of this name, or program, runs in the VM's unit.
    Process { name: String },
    /// A script that is on the VM's node ends well.
    Script { name: CheckName },
    /// The VM's console had a text since it was started, or must not have had it.
    Console { text: String, absent: bool },
    /// The guest's agent answers, by QEMU's channel or a port of the guest's vsock device.
    Guest { port: Option<u32> },
    /// The VM answers echo requests of its node.
    Icmp { address: IpAddr },
    /// The VM has the address on its node's network.
    Arp { address: Ipv4Addr },
}

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Fail(String),
}

/// What the verdicts of one check come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub layer: Layer,
    pub rule: Rule,
    pub passing: bool,
    /// In a row.
    pub failures: u32,
    /// Of the failures in a row, those that were the node's.
    #[serde(default)]
    pub unable: u32,
    /// In a row.
    pub passes: u32,
    /// Of the last verdict.
    pub at: Time,
    /// What the last failure said.
    pub message: Option<String>,
}

/// How well a VM does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub state: VmHealth,
    pub since: Time,
    /// The weight that passes, of the weight of all; absent where nothing is judged.
    pub score: Option<f64>,
    pub cause: Option<Cause>,
    pub checks: BTreeMap<CheckName, Tally>,
}

/// What is wrong, furthest out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub layer: Layer,
    #[serde(default)]
    pub check: Option<CheckName>,
    pub message: String,
}

impl Default for Rule {
    fn default() -> Self {
        Self { failure_threshold: 3, success_threshold: 2, weight: 1, critical: false }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: VmHealth::Unknown,
            since: Time::default(),
            score: None,
            cause: None,
            checks: BTreeMap::new(),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.check {
            Some(check) => write!(f, "{}: {check}: {}", self.layer, self.message),
            None => write!(f, "{}: {}", self.layer, self.message),
        }
    }
}

impl Tally {
    fn new(rule: Rule, (layer, verdict): (Layer, &Verdict), at: Time) -> Self {
        // What was never judged has nothing to recover from.
        let failing = rule.failure_threshold <= 1 && matches!(verdict, Verdict::Fail(_));
        let new = Self {
            layer,
            rule,
            passing: !failing,
            failures: 0,
            unable: 0,
            passes: 0,
            at,
            message: None,
        };
        new.judged((layer, verdict), at)
    }

    fn judged(mut self, (layer, verdict): (Layer, &Verdict), at: Time) -> Self {
        self.at = at;
        match verdict {
            Verdict::Pass => {
                (self.failures, self.unable) = (0, 0);
                self.passes = self.passes.saturating_add(1);
                self.passing |= self.passes >= self.rule.success_threshold;
                if self.passing {
                    self.message = None;
                }
            }
            Verdict::Fail(message) => {
                self.passes = 0;
                self.failures = self.failures.saturating_add(1);
                self.passing &= self.failures < self.rule.failure_threshold;
                let is_node = layer == Layer::Node;
                self.unable = self.unable.saturating_add(is_node.into());
                // When the node can again, one failure is an accident as it is otherwise.
                let is_known = self.unable == 0 || self.own() >= self.rule.failure_threshold;
                if is_node || is_known {
                    (self.layer, self.message) = (layer, Some(message.clone()));
                }
            }
        }
        self
    }

    /// Failures of the VM.
    fn own(&self) -> u32 {
        self.failures.saturating_sub(self.unable)
    }

    fn is_critical(&self) -> bool {
        self.rule.critical
            && !self.passing
            && self.layer != Layer::Node
            && self.own() >= self.rule.failure_threshold.saturating_mul(2)
    }
}

impl Health {
    /// Takes the verdict of one check, and where it failed.
    pub fn judge(&mut self, name: &CheckName, rule: Rule, found: (Layer, &Verdict), at: Time) {
        let tally = match self.checks.remove(name).filter(|tally| tally.rule == rule) {
            Some(tally) => tally.judged(found, at),
            None => Tally::new(rule, found, at),
        };
        self.checks.insert(name.clone(), tally);
    }

    /// Forgets what was found of a VM that does not run any more.
    pub fn begin_anew(&mut self) {
        let (state, _) = state_check();
        self.checks.retain(|name, _| *name == state);
    }

    /// Draws the conclusion from all there is.
    pub fn assess(&mut self, presence: &Presence, condition: &Condition, at: Time) {
        let (state, score, cause) = self.conclusion(presence, condition);
        // Nor is it so since a time that is yet to come.
        if state != self.state || self.since > at {
            self.since = at;
        }
        (self.state, self.score, self.cause) = (state, score, cause);
    }

    fn conclusion(
        &self,
        presence: &Presence,
        condition: &Condition,
    ) -> (VmHealth, Option<f64>, Option<Cause>) {
        let unknown = |layer, message: String| {
            (VmHealth::Unknown, None, Some(Cause { layer, check: None, message }))
        };
        match presence {
            Presence::Stale { reason, .. } => return unknown(Layer::Node, reason.clone()),
            Presence::Orphan { .. } => {
                return unknown(Layer::Unit, "its source does not know it any more".to_owned());
            }
            Presence::Present => {}
        }
        if !matches!(condition.state, VmState::Running | VmState::Failed) {
            return (VmHealth::Unknown, None, None);
        }
        let weight = |tally: &&Tally| u64::from(tally.rule.weight);
        let total: u64 = self.checks.values().map(|tally| weight(&tally)).sum();
        let passed: u64 = self.checks.values().filter(|t| t.passing).map(|t| weight(&t)).sum();
        if total == 0 {
            return (VmHealth::Unknown, None, None);
        }
        #[expect(clippy::cast_precision_loss, reason = "weights are small")]
        let score = passed as f64 / total as f64;
        let fails = |layer| self.checks.values().any(|t| !t.passing && t.layer == layer);
        let state = if self.checks.values().any(Tally::is_critical) {
            VmHealth::Critical
        } else if condition.state == VmState::Running && fails(Layer::Guest) {
            VmHealth::Unresponsive
        } else if score >= HEALTHY {
            VmHealth::Healthy
        } else if score >= DEGRADED {
            VmHealth::Degraded
        } else {
            VmHealth::Unhealthy
        };
        (state, Some(score), self.cause(condition))
    }

    /// The failing check that is furthest out, of these the heaviest. Use and the journal come
    /// last: a guest that hangs may have said so.
    fn cause(&self, condition: &Condition) -> Option<Cause> {
        let failing = self.checks.iter().filter(|(_, tally)| !tally.passing);
        let key = |(name, tally): &(&CheckName, &Tally)| {
            let is_sign = SIGNS.contains(&name.as_str());
            (is_sign, tally.layer, std::cmp::Reverse(tally.rule.weight))
        };
        let (name, tally) = failing.min_by_key(key)?;
        let message = tally.message.clone().unwrap_or_default();
        // The unit failed; what in it did is known better.
        let layer = match (&condition.fault, tally.layer) {
            (Some((layer, _)), Layer::Unit) => *layer,
            (_, layer) => layer,
        };
        Some(Cause { layer, check: Some(name.clone()), message })
    }

    /// When a check was judged last.
    #[must_use]
    pub fn judged_at(&self, name: &CheckName) -> Option<Time> {
        self.checks.get(name).map(|tally| tally.at)
    }
}

/// What is looked at without being asked: the state of the unit.
#[must_use]
pub fn state_check() -> (CheckName, Rule) {
    let rule =
        Rule { failure_threshold: 1, success_threshold: 1, critical: true, ..Rule::default() };
    (named("state"), rule)
}

/// What the state says. Nothing while it is between two.
#[must_use]
pub fn state_verdict(condition: &Condition) -> Option<Verdict> {
    match condition.state {
        VmState::Running => Some(Verdict::Pass),
        VmState::Failed => {
            let mut text = condition.failure().unwrap_or("it failed").to_owned();
            if let Some(loops) = condition.loops() {
                text.push_str(&format!("; started anew {loops} times"));
            }
            Some(Verdict::Fail(text))
        }
        _ => None,
    }
}

/// What is looked at without being asked: whether use stays within limits, where there are any,
/// and what the kernel and the journal say. `since` is when the VM was started.
#[must_use]
pub fn usage_verdicts(
    usage: &Usage,
    limits: Limits,
    since: Option<Time>,
) -> Vec<(CheckName, Rule, Verdict)> {
    let mut verdicts = Vec::new();
    if let (Some(used), Some(limit)) = (usage.memory_bytes, limits.memory_bytes) {
        let verdict = within("memory", used, limit, |bytes| format!("{} MiB", bytes >> 20));
        verdicts.push((named("memory"), Rule::default(), verdict));
    }
    if let (Some(used), Some(limit)) = (usage.cpu_percent, limits.cpu_percent) {
        // Busy for a moment is what processors are for.
        let rule = Rule { failure_threshold: 6, ..Rule::default() };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and no percentage is that large"
        )]
        let used = used as u64;
        let verdict = within("processor time", used, limit, |percent| format!("{percent} %"));
        verdicts.push((named("cpu"), rule, verdict));
    }
    if let Some(vmm) = &usage.vmm {
        // It is asked less often than it is told of.
        let rule = Rule { failure_threshold: 6, ..Rule::default() };
        verdicts.push((named("vmm-socket"), rule, vmm_verdict(vmm)));
    }
    // These are about a time, and need no second look.
    let rule = Rule { failure_threshold: 1, success_threshold: 1, ..Rule::default() };
    if let Some(kills) = usage.oom_kills {
        let text = format!("memory ran out, and the kernel killed {kills} of its processes");
        let verdict = if kills == 0 { Verdict::Pass } else { Verdict::Fail(text) };
        verdicts.push((named("oom"), rule, verdict));
    }
    if let Some(journal) = &usage.journal {
        let verdict = journal_verdict(journal, &usage.earlier, since);
        verdicts.push((named("journal"), rule, verdict));
    }
    verdicts
}

/// Whether the VMM answers, and lets the guest run.
fn vmm_verdict(vmm: &VmmLoad) -> Verdict {
    match (&vmm.fault, vmm.runs) {
        (Some(fault), _) => Verdict::Fail(fault.clone()),
        (None, Some(false)) => {
            let status = vmm.status.as_deref().unwrap_or("it does not say why");
            Verdict::Fail(format!("its VMM has the guest stopped: {status}"))
        }
        (None, _) => Verdict::Pass,
    }
}

/// What was said before the VM was started is of another run.
fn journal_verdict(journal: &JournalErrors, earlier: &Earlier, since: Option<Time>) -> Verdict {
    let critical = journal.critical.saturating_sub(earlier.critical);
    let (errors, last) = (journal.errors.saturating_sub(earlier.errors), journal.last);
    let is_of_now = last.is_some_and(|last| since.is_none_or(|since| last > since));
    if !is_of_now || (critical == 0 && errors < MANY_ERRORS) {
        return Verdict::Pass;
    }
    let counts: Vec<String> = [(critical, "critical"), (errors, "errors")]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    Verdict::Fail(format!("in the journal of the last hour: {}", counts.join(", ")))
}

/// The checks that are made without being asked, by their names.
pub const OWN_CHECKS: [&str; 6] = ["state", "memory", "cpu", "vmm-socket", "oom", "journal"];

/// Of these, those that tell of no failure by themselves.
const SIGNS: [&str; 4] = ["memory", "cpu", "oom", "journal"];

fn within(what: &str, used: u64, limit: u64, shown: impl Fn(u64) -> String) -> Verdict {
    if u128::from(used) * 100 < u128::from(limit) * u128::from(NEAR_LIMIT_PERCENT) {
        return Verdict::Pass;
    }
    Verdict::Fail(format!("{what} is near its limit: {} of {}", shown(used), shown(limit)))
}

fn named(name: &str) -> CheckName {
    name.parse().expect("it has the form of a check's name")
}

#[cfg(test)]
mod tests;
