//! The VM inventory: VMs of all nodes, how they are, and what becomes of them as it happens.

use model::vm::{CheckName, DecisionKind, Layer, VmHealth, VmId, VmSource, VmState, VmTitle};
use model::{HostId, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Checks that may be asked for of one VM.
pub const MAX_CHECKS: usize = 16;

words!(
    /// Whether a VM is where its record says.
    Presence, "a presence":
    Present = "present",
    /// Nobody could tell since: its node is silent, or its units can't be seen.
    Stale = "stale",
    /// A complete listing of its node did not have it.
    Orphan = "orphan",
);

words!(
    /// What an event tells.
    VmEventKind, "an event":
    /// A decision about its record was carried out.
    Record = "record",
    /// It is in another state.
    State = "state",
    /// It is doing better or worse.
    Health = "health",
    /// It became stale or an orphan, or is back.
    Presence = "presence",
    /// It did badly, and was started anew, or that did not help.
    Recovery = "recovery",
    /// Somebody removed its record.
    Removed = "removed",
);

/// One VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vm {
    /// `NAME@NODE`; of a user's manager `USER:NAME@NODE`; of a vSphere its UUID.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: VmId,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: VmTitle,
    /// `microvm` or `vsphere`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub source: VmSource,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: HostId,
    /// What its source calls it: the unit, or the object.
    pub reference: String,
    /// `unknown`, `creating`, `starting`, `running`, `stopping`, `stopped` or `failed`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub state: VmState,
    /// The state as its source has it: `active/running`, `poweredOn`.
    pub detail: String,
    /// It fails, is started anew, and fails: so often so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loops: Option<i64>,
    /// Since it was last started on purpose.
    pub restarts: i64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// When it entered its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub since: Option<Time>,
    pub presence: Presence,
    /// Since it is stale or an orphan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub presence_since: Option<Time>,
    /// Why it is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_reason: Option<String>,
    /// `unknown`, `healthy`, `degraded`, `unhealthy`, `unresponsive` or `critical`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub health: VmHealth,
    /// The weight of the checks that pass, of that of all, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<VmCause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<VmUsage>,
    /// `vmm`, `owner`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub first_seen: Time,
    /// When its source listed it last.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub last_seen: Time,
}

/// What a VM used when last measured, and what it may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmUsage {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    /// From the start of its VMM until its unit was active: until the guest said that it is up,
    /// where the unit waits for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// Of one processor: 200 is two of them busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_percent: Option<u64>,
    /// Without files in memory that nobody used for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most that it had since it was started, what it had of files included. Absent where the
    /// node's kernel does not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Percent of 10 s in which some of it waited for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pressure_percent: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_second: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes_per_second: Option<f64>,
    /// By block device of the node: what it read and wrote.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<String, VmTraffic>,
    /// By tap interface of the node: what it received and sent. Absent where these are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interfaces: Option<BTreeMap<String, VmTraffic>>,
    /// Processes of it that the kernel killed because memory ran out, since it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// What it said in the node's journal within the last hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<VmJournal>,
    /// What its VMM said at its API socket. Absent where it has none that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmMonitor>,
}

/// What a VMM says of its VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmMonitor {
    /// When it answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub at: Option<Time>,
    /// Why it does not answer now. The rest is what it said when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Whether the guest's processors run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<bool>,
    /// In the VMM's own word: `running`, `paused`, `io-error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// That the guest was started with, or got later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The same, less what its balloon took back. Absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon_memory_bytes: Option<u64>,
    /// Whether the guest's agent has its channel open. Absent where there is none, or the VMM
    /// does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_agent: Option<bool>,
}

/// Into the VM, and out of it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmTraffic {
    /// Read, or received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_bytes_per_second: Option<f64>,
    /// Written, or sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_bytes_per_second: Option<f64>,
}

/// Errors in the journal within the last hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmJournal {
    /// Entries of priority 0 to 2.
    pub critical: u64,
    /// Entries of priority 3.
    pub errors: u64,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub last: Option<Time>,
}

/// What is wrong, furthest out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmCause {
    /// `node`, `unit`, `vmm`, `guest` or `service`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub layer: Layer,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub check: Option<CheckName>,
    pub message: String,
}

/// A page of VMs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vms {
    /// By id.
    pub vms: Vec<Vm>,
    /// What `after` is for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Nodes of which not everything is known, or whose orphans wait for a word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<VmNode>,
}

/// A node of which not everything is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmNode {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: HostId,
    /// Why there may be more than is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
    /// VMs that would be orphans, if somebody confirmed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub held: Vec<VmId>,
    /// What was listed there and is no VM of the inventory's, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
}

/// How well one VM does, in full.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmHealthReport {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: VmId,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub health: VmHealth,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub since: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<VmCause>,
    /// By layer, and then by name.
    pub checks: Vec<VmCheck>,
    /// What became of state, health and presence, the newest first.
    pub transitions: Vec<VmTransition>,
}

/// One check, and what its verdicts come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmCheck {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: CheckName,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub layer: Layer,
    /// Absent before its first verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passing: Option<bool>,
    /// In a row, of so many after which it fails.
    pub failures: u32,
    pub failure_threshold: u32,
    /// In a row, of so many after which it passes again.
    pub passes: u32,
    pub success_threshold: u32,
    pub weight: u32,
    pub critical: bool,
    /// Of the last verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub at: Option<Time>,
    /// What the last failure said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// It became something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmTransition {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    /// `state`, `health` or `presence`.
    pub of: String,
    pub from: String,
    pub to: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Something became of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmEvent {
    /// Counts up while the server runs.
    pub sequence: u64,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: VmId,
    pub kind: VmEventKind,
    /// Of a record: which decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub decision: Option<DecisionKind>,
    /// What it was, of a state, health or presence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// That the VMs of a node that are held are orphans indeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ConfirmOrphans {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: HostId,
}

/// What was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConfirmedOrphans {
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub orphans: Vec<VmId>,
}

/// The checks of a VM beside those that are made by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmChecks {
    /// By name: `a-z 0-9 _ -`, at most 16.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, VmCheckSpec>))]
    pub checks: BTreeMap<CheckName, VmCheckSpec>,
}

/// A check. It has one of `address`, `process`, `script`, `console`, `guest_agent`, `icmp` and
/// `arp`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmCheckSpec {
    /// `IP:PORT`, as the server reaches it: the port takes connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// With `address`: it is what the VM's node reaches, and `twin-node` there looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_node: Option<bool>,
    /// With `address`: asks for this by HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// With `path`: the status that is right; 200 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// A process of this name, or program, runs in the VM's unit on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// A script of this name, which somebody put on the node for `twin-node`, ends with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The VM wrote this text to its console since it was started: a line of the journal of its
    /// unit has it. `twin-node` of the node looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// With `console`: it must not have written the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absent: Option<bool>,
    /// The guest's agent (QEMU's) says again what `twin-node` of the node tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_agent: Option<bool>,
    /// With `guest_agent`: it listens at this port of the guest's vsock device. Without, it is at
    /// QEMU's virtserialport `org.qemu.guest_agent.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_port: Option<u32>,
    /// `IP`, as the VM's node reaches it: it answers echo requests of `twin-node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<String>,
    /// `IP`, of version 4, on a network of the VM's node: somebody has it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arp: Option<String>,
    /// 1 to 3600; 30 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u32>,
    /// 1 to 30; 5 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// Nothing is judged for so long after the VM began to run; 60 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_delay_seconds: Option<u32>,
    /// 1 to 100 in a row; 3 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<u32>,
    /// 1 to 100 in a row; 2 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<u32>,
    /// 1 to 100; 1 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    #[serde(default)]
    pub critical: bool,
}

/// What becomes of a VM that does badly.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VmRecovery {
    /// It is started anew: when its unit failed, and when it is `unresponsive` or `critical`.
    /// `twin-node` of its node does that, if it may.
    #[serde(default)]
    pub restart: bool,
    /// After so many that did not help nobody tries any more: 1 to 100; 3 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    /// To the first restart. Doubles with each: 1 to 3600; 5 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<u32>,
    /// The delay grows no further: 1 to 86400; 300 unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap_seconds: Option<u32>,
    /// Only told: how often it was started anew since it did well for five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<u32>,
    /// Only told: those restarts did not help, and nobody tries any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<bool>,
}
