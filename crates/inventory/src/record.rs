//! What is known of one VM, what a source says of many, and what is decided of it.

use crate::health::{Check, Health};
use crate::recovery::{Policy, Tried};
use model::load::{JournalErrors, VmmLoad};
use model::vm::{CheckName, DecisionKind, Layer, VmId, VmSource, VmState, VmTitle};
use model::{HostId, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Transitions that are remembered of one VM.
const TRANSITIONS: usize = 50;
/// What the journal has is counted for so long.
const JOURNAL: Duration = Duration::from_secs(3600);

/// One VM of the inventory.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    pub record: Record,
    pub condition: Condition,
    /// When its source listed it last.
    pub last_seen: Time,
    pub health: Health,
    pub usage: Option<Usage>,
    pub tried: Tried,
    /// Changes of state and health, the oldest first.
    pub transitions: VecDeque<Transition>,
}

/// Who a VM is, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub id: VmId,
    pub source: VmSource,
    /// The machine that runs it, or the vSphere that it was found through.
    pub node: HostId,
    pub name: VmTitle,
    /// What its source calls it: a unit, or an object.
    pub reference: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub limits: Limits,
    pub first_seen: Time,
    pub presence: Presence,
    /// What somebody asked to have looked at.
    #[serde(default)]
    pub checks: BTreeMap<CheckName, Check>,
    /// Whether it is started anew when it does badly.
    #[serde(default)]
    pub recovery: Option<Policy>,
}

/// Whether it is where the record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    Present,
    /// Nobody could tell since.
    Stale {
        since: Time,
        reason: String,
        /// A breaker holds it until it is seen again, or somebody says that it is gone.
        #[serde(default)]
        is_held: bool,
    },
    /// A complete listing did not have it.
    Orphan {
        since: Time,
    },
}

/// What it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    /// Of one processor: 200 is two processors.
    pub cpu_percent: Option<u64>,
}

/// How it is as a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub state: VmState,
    /// The state as its source has it: `active/running`.
    pub detail: String,
    /// When it entered the state, by its node's clock.
    pub since: Option<Time>,
    /// Why it failed, and what of it did.
    pub fault: Option<(Layer, String)>,
    /// Since it was last started on purpose.
    pub restarts: i64,
    /// It fails, is started anew, and fails.
    pub looping: Option<Loop>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loop {
    pub since: Time,
    /// Restarts there were before.
    pub before: i64,
}

/// What it used when last measured.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub at: Time,
    /// Of one processor.
    pub cpu_percent: Option<f64>,
    /// Without files in memory that nobody used for a while.
    pub memory_bytes: Option<u64>,
    /// From the start of its VMM until its unit was active.
    pub boot_ms: Option<u64>,
    /// The most memory that it had since it was started, what it had of files included.
    pub memory_peak_bytes: Option<u64>,
    pub tasks: Option<u64>,
    pub read_bytes_per_second: Option<f64>,
    pub written_bytes_per_second: Option<f64>,
    /// Percent of the last 10 s in which some of it waited for memory.
    pub memory_pressure_percent: Option<f64>,
    /// By block device of the node.
    pub disks: BTreeMap<String, Traffic>,
    /// By tap interface of the node; absent where these are not known.
    pub interfaces: Option<BTreeMap<String, Traffic>>,
    /// Processes of it that the kernel killed because memory ran out, since it was started.
    pub oom_kills: Option<u64>,
    /// What it said in the node's journal within the last hour.
    pub journal: Option<JournalErrors>,
    /// What of that is of runs before the present one.
    pub earlier: Earlier,
    /// What its VMM said; absent where that has no socket that is known.
    pub vmm: Option<VmmLoad>,
}

/// Entries of the journal of the last hour that a VM wrote before it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Earlier {
    /// When it was started.
    pub since: Option<Time>,
    pub critical: u64,
    pub errors: u64,
}

/// Bytes per second into the VM, and out of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Read, or received.
    pub in_bytes_per_second: Option<f64>,
    /// Written, or sent.
    pub out_bytes_per_second: Option<f64>,
}

/// It became something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    pub at: Time,
    /// `state`, `health`, `presence` or `recovery`.
    pub of: String,
    pub from: String,
    pub to: String,
    #[serde(default)]
    pub reason: Option<String>,
}

/// What one source sees of some nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    pub source: VmSource,
    /// The nodes it speaks for.
    pub nodes: BTreeMap<HostId, Completeness>,
    /// Nodes it does not speak for and a VM may be on unseen, and why nobody sees it there.
    pub elsewhere: BTreeMap<HostId, String>,
    pub seen: Vec<Seen>,
    /// What looked like a VM and is none that can be kept.
    pub refused: Vec<Refused>,
    /// What is a VM, and nobody can tell which.
    pub unidentified: Vec<Unidentified>,
    /// What a VM is that the source does not know any more.
    pub gone: VmState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completeness {
    Complete,
    /// It speaks of what it lists alone.
    Partial,
    /// Why there may be more than was seen.
    Incomplete(String),
}

/// One VM as its source sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Stays the same while it is the same VM, also under another name or on another node.
    pub id: VmId,
    pub node: HostId,
    pub name: VmTitle,
    pub reference: String,
    pub labels: BTreeMap<String, String>,
    pub limits: Limits,
    pub condition: Condition,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub reference: String,
    pub reason: String,
}

/// A VM that does not say which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unidentified {
    pub node: HostId,
    pub reference: String,
    /// When it was seen first. A VM that was seen after that is another.
    pub since: Time,
}

/// What is to become of one record, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Absent for what has no id.
    pub id: Option<VmId>,
    pub act: Act,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    Register(VmSource, Box<Seen>),
    Refresh(Box<Seen>),
    Rename(VmTitle),
    /// To another node, where it has another reference.
    Move(HostId, String),
    Stale,
    /// With what it is now.
    Orphan(VmState),
    Reactivate,
    Ignore,
    Hold,
}

impl Act {
    #[must_use]
    pub fn kind(&self) -> DecisionKind {
        match self {
            Self::Register(..) => DecisionKind::Register,
            Self::Refresh(_) => DecisionKind::Refresh,
            Self::Rename(_) => DecisionKind::Rename,
            Self::Move(..) => DecisionKind::Move,
            Self::Stale => DecisionKind::Stale,
            Self::Orphan(_) => DecisionKind::Orphan,
            Self::Reactivate => DecisionKind::Reactivate,
            Self::Ignore => DecisionKind::Ignore,
            Self::Hold => DecisionKind::Hold,
        }
    }
}

impl Limits {
    /// With another's where it has none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.or(other.memory_bytes),
            cpu_percent: self.cpu_percent.or(other.cpu_percent),
        }
    }
}

impl Condition {
    /// `failed (looping)`, `running`.
    #[must_use]
    pub fn in_words(&self) -> String {
        let loops = self.looping.is_some() && self.state == VmState::Failed;
        format!("{}{}", self.state, if loops { " (looping)" } else { "" })
    }

    /// Why it has failed; nothing of one that runs again.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        let fault = self.fault.as_ref().filter(|_| self.state == VmState::Failed);
        fault.map(|(_, text)| text.as_str())
    }

    /// How often it was started anew since it began to loop.
    #[must_use]
    pub fn loops(&self) -> Option<i64> {
        self.looping.map(|looping| self.restarts.saturating_sub(looping.before).max(1))
    }
}

impl Presence {
    #[must_use]
    pub fn in_words(&self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Stale { .. } => "stale",
            Self::Orphan { .. } => "orphan",
        }
    }

    /// Whether a breaker holds it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Stale { is_held: true, .. })
    }
}

impl Usage {
    /// Tells what of the journal is of this run: `known` is what was measured before, `since` when
    /// the VM was started. What is an hour old goes first, and is of the runs before.
    pub fn follow(&mut self, known: Option<&Self>, since: Option<Time>) {
        self.earlier = Earlier { since, ..Earlier::default() };
        let Some(journal) = self.journal else { return };
        let is_past = since.is_none_or(|since| self.at.since(since) >= JOURNAL);
        if is_past {
            return;
        }
        if journal.last <= since {
            (self.earlier.critical, self.earlier.errors) = (journal.critical, journal.errors);
            return;
        }
        let Some((known, before)) = known.and_then(|one| Some((one, one.journal?))) else { return };
        let of_before = if known.earlier.since == since {
            (known.earlier.critical, known.earlier.errors)
        } else {
            (before.critical, before.errors)
        };
        let left = |of_before: u64, before: u64, now: u64| {
            of_before.saturating_sub(before.saturating_sub(now))
        };
        self.earlier.critical = left(of_before.0, before.critical, journal.critical);
        self.earlier.errors = left(of_before.1, before.errors, journal.errors);
    }
}

impl Vm {
    /// What it may use: as its source says, or else its VMM.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let vmm = self.usage.as_ref().and_then(|usage| usage.vmm.as_ref());
        self.record.limits.or(vmm.map(Limits::of_guest).unwrap_or_default())
    }

    /// Remembers how it differs from what it was, and tells it.
    pub fn note(&mut self, before: &Self, at: Time) -> Vec<Transition> {
        let fault = self.condition.failure().map(str::to_owned);
        let presence = match &self.record.presence {
            Presence::Stale { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        let words = [
            ("state", before.condition.in_words(), self.condition.in_words(), fault),
            (
                "presence",
                before.record.presence.in_words().to_owned(),
                self.record.presence.in_words().to_owned(),
                presence,
            ),
            (
                "health",
                before.health.state.to_string(),
                self.health.state.to_string(),
                self.health.cause.as_ref().map(ToString::to_string),
            ),
            (
                "recovery",
                before.tried.in_words(before.record.recovery),
                self.tried.in_words(self.record.recovery),
                self.health.cause.as_ref().map(ToString::to_string),
            ),
        ];
        let mut noted = Vec::new();
        for (of, from, to, reason) in words {
            if from != to {
                noted.push(Transition { at, of: of.to_owned(), from, to, reason });
            }
        }
        self.transitions.extend(noted.iter().cloned());
        let surplus = self.transitions.len().saturating_sub(TRANSITIONS);
        self.transitions.drain(..surplus);
        noted
    }
}
