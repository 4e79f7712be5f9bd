//! When a VM that does badly is started anew, and when nobody tries any more. Pure.
//!
//! ```text
//!   ill ──delay──► restart 1 ──2 × delay──► restart 2 ── … ──► restart N ──► given up
//!    └── well for a while ──► begins anew ◄──────────────────────────────────────┘
//! ```
//!
//! # Invariants
//! - Without a policy nothing is started anew; what somebody stopped is not, either.
//! - What systemd starts anew by itself, and what nobody can see, is left alone.
//! - Restarts are forgotten only when its checks had the time to fail again.

use crate::health::Check;
use crate::record::{Presence, Vm};
use model::Time;
use model::vm::{VmHealth, VmState};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// For so long a VM has to do well until its restarts are forgotten, beyond the time that its
/// checks take to fail.
const SETTLED: Duration = Duration::from_secs(300);

/// Whether and how a VM is started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// After so many restarts that did not help nobody tries any more.
    pub restarts: u32,
    /// From the moment that it does badly to the first restart. Doubles with each.
    pub delay: Duration,
    /// The delay grows no further.
    pub cap: Duration,
}

/// What was tried so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tried {
    pub restarts: u32,
    /// When it was last started anew.
    pub last: Option<Time>,
    /// Since when it does badly.
    pub ill_since: Option<Time>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// It is to be started anew, for the so-manieth time.
    Restart(u32),
    /// The restarts did not help.
    GiveUp,
}

impl Default for Policy {
    fn default() -> Self {
        Self { restarts: 3, delay: Duration::from_secs(5), cap: Duration::from_secs(300) }
    }
}

impl Policy {
    /// From illness, or the restart before, to a restart: `number` counts from 1.
    #[must_use]
    pub fn delay_before(&self, number: u32) -> Duration {
        let doubled = 2_u32.checked_pow(number.saturating_sub(1)).unwrap_or(u32::MAX);
        self.delay.saturating_mul(doubled).min(self.cap)
    }
}

impl Tried {
    /// `none`, `restart 2`, `given up`.
    #[must_use]
    pub fn in_words(&self, policy: Option<Policy>) -> String {
        match self.restarts {
            0 => "none".to_owned(),
            number if self.is_given_up(policy) => format!("given up after {}", number - 1),
            number => format!("restart {number}"),
        }
    }

    #[must_use]
    pub fn is_given_up(&self, policy: Option<Policy>) -> bool {
        policy.is_some_and(|policy| self.restarts > policy.restarts)
    }
}

/// Whether it does so badly that a restart may help. What only its node has no hand for does not
/// make it so: see [`crate::health`].
#[must_use]
pub fn is_ill(vm: &Vm) -> bool {
    let failed = vm.condition.state == VmState::Failed && vm.condition.looping.is_none();
    let hangs = vm.condition.state == VmState::Running
        && matches!(vm.health.state, VmHealth::Unresponsive | VmHealth::Critical);
    vm.record.presence == Presence::Present && (failed || hangs)
}

/// For how long it has to do well: a check that will fail counts as one that passes until then.
fn settled(vm: &Vm) -> Duration {
    let to_fail = |check: &Check| {
        let rule = check.rule;
        let failures = rule.failure_threshold.saturating_mul(if rule.critical { 2 } else { 1 });
        check.initial_delay + (check.interval + check.timeout).saturating_mul(failures)
    };
    SETTLED + vm.record.checks.values().map(to_fail).max().unwrap_or_default()
}

/// What is to be done for a VM, and what is to be remembered of it. Done when it was said: a
/// restart counts from the moment that it is given out.
#[must_use]
pub fn step(vm: &Vm, now: Time) -> (Step, Tried) {
    let mut tried = vm.tried;
    // A clock that was put back: from now on.
    let past = |at: Option<Time>| at.map(|at| at.min(now));
    (tried.last, tried.ill_since) = (past(tried.last), past(tried.ill_since));
    let Some(policy) = vm.record.recovery else { return (Step::Nothing, Tried::default()) };
    if !is_ill(vm) {
        tried.ill_since = None;
        let since = tried.last.map(|last| last.max(vm.health.since.min(now)));
        let is_well = vm.health.state == VmHealth::Healthy;
        if since.is_none_or(|since| is_well && now.since(since) >= settled(vm)) {
            tried = Tried::default();
        }
        return (Step::Nothing, tried);
    }
    let ill_since = *tried.ill_since.get_or_insert(now);
    // The restart before may be under way still.
    let from = tried.last.map_or(ill_since, |last| last.max(ill_since));
    if tried.restarts > policy.restarts {
        return (Step::Nothing, tried);
    }
    if now.since(from) < policy.delay_before(tried.restarts + 1) {
        return (Step::Nothing, tried);
    }
    tried.restarts += 1;
    if tried.restarts > policy.restarts {
        return (Step::GiveUp, tried);
    }
    tried.last = Some(now);
    (Step::Restart(tried.restarts), tried)
}

#[cfg(test)]
mod tests;
