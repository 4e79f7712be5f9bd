//! How VMs are kept in step with vSpheres: the sources, what is decided, what others are told.

use crate::run::RunId;
use model::vm::{DecisionKind, VmId};
use model::{HostId, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncStanding {
    /// A full pass is on.
    pub in_process: bool,
    /// Another instance syncs, or nobody can tell: why this one does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_by: Option<String>,
    pub sources: Vec<SyncSource>,
    /// Of sources that the configuration names no more: how many VMs were on each. They stay until
    /// somebody confirms that they are gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, usize>))]
    pub unconfigured: BTreeMap<HostId, usize>,
    /// The last full pass, also if it was before the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<SyncPass>,
    /// Decisions since the start, by kind.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, u64>))]
    pub decisions: BTreeMap<DecisionKind, u64>,
    /// Documents that MongoDB has not been told of yet.
    pub documents_waiting: usize,
    /// Why MongoDB could not be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents_fault: Option<String>,
    /// Messages to sessions and endpoints that wait.
    pub outbox_waiting: usize,
    /// Those that nobody tries any more until somebody asks.
    pub outbox_dead: usize,
}

/// One ESXi host or vCenter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncSource {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: HostId,
    /// As the configuration has it.
    pub address: String,
    /// What it says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Why it is not in step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// VMs that it lists.
    pub vms: usize,
    /// When it was listed as a whole last, also if that was before the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub listed_at: Option<Time>,
    /// When it answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub heard_at: Option<Time>,
    /// VMs that would be orphans, if somebody said that it is so.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub held: Vec<VmId>,
    /// Requests since the start.
    pub requests: u64,
}

/// A full pass over all sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncPass {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    pub took_ms: u64,
    /// Of passes that somebody asked for, or that changed something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub run: Option<RunId>,
    pub results: Vec<SourceResult>,
}

/// What became of one source in a full pass, as the older service tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SourceResult {
    pub ok: bool,
    pub host: String,
    pub added: usize,
    /// Were known, and are there.
    pub updated: usize,
    pub orphaned: usize,
    pub reactivated: usize,
    pub renamed: usize,
    /// From another source to this one.
    #[serde(default)]
    pub moved: usize,
    /// Something else of them is another than before.
    #[serde(default)]
    pub refreshed: usize,
    /// Would be orphans, if somebody said that it is so.
    #[serde(default)]
    pub held: usize,
    /// New documents are written after this is told: one that MongoDB does not take is one of
    /// `updated_failures` of the next pass.
    #[serde(default)]
    pub added_failures: usize,
    /// Those of `updated` whose documents MongoDB does not take.
    #[serde(default)]
    pub updated_failures: usize,
    #[serde(default)]
    pub orphaned_failures: usize,
    /// Why it is not `ok`, or what else is to be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl SourceResult {
    /// How many decisions there were.
    #[must_use]
    pub fn changes(&self) -> usize {
        let moves = self.renamed + self.moved + self.refreshed;
        self.added + self.orphaned + self.reactivated + moves
    }
}

/// What would be decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncPlan {
    pub decisions: Vec<PlannedDecision>,
    /// Sources that could not be asked, and why.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub faults: BTreeMap<HostId, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedDecision {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub node: HostId,
    /// Absent for what has no id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub id: Option<VmId>,
    /// What the VM is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub kind: DecisionKind,
    pub reason: String,
}

/// A pass was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncBegun {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub run: RunId,
}

/// What waits for sessions and endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Outbox {
    /// By age.
    pub entries: Vec<OutboxEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutboxEntry {
    /// Also the key by which an endpoint knows that it was told already.
    pub id: String,
    pub vm: String,
    /// `sessions`, `group` or `auth`.
    pub target: String,
    /// `rename web to web2`.
    pub what: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub created_at: Time,
    pub attempts: u32,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub next_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Nobody tries it any more until somebody asks.
    pub dead: bool,
}

/// Entries that are tried again now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OutboxRetried {
    pub count: usize,
}

/// What the older service answers with: always 200, and `ok` tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Envelope<T> {
    pub ok: bool,
    pub message: String,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub data: Option<T>,
}

/// Whether a full pass is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InProcess {
    pub sync_in_process: bool,
}

/// Which VMs to bring in step: by UUID, else by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SelectedVms {
    pub vms: Vec<String>,
}

/// What became of them on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SelectedResult {
    pub ok: bool,
    pub host: String,
    pub matched: usize,
    pub added: usize,
    pub updated: usize,
    pub failed: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
