//! The inventory as it is kept: `microvms` holds for each VM its record under its id, and how it
//! is under `ID/state`.

use inventory::health::Health;
use inventory::recovery::Tried;
use inventory::{Condition, Record, Transition, Usage, Vm};
use model::Time;
use model::vm::VmId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use store::{Changes, Records};

const COLLECTION: &str = "microvms";
/// No id has a slash.
const STATE: &str = "/state";

/// What moves on by itself.
#[derive(Debug, Serialize, Deserialize)]
struct Standing {
    condition: Condition,
    last_seen: Time,
    health: Health,
    usage: Option<Usage>,
    #[serde(default)]
    tried: Tried,
    transitions: VecDeque<Transition>,
}

/// The records of all VMs. Calls block.
#[derive(Debug, Clone)]
pub(super) struct Book {
    records: Records,
}

impl Book {
    pub(super) fn new(records: Records) -> Self {
        Self { records }
    }

    pub(super) fn all(&self) -> Result<BTreeMap<VmId, Vm>, store::Error> {
        let is_state = |key: &str| key.ends_with(STATE);
        let standings = self.records.list_where::<Standing>(COLLECTION, is_state)?;
        let mut standings: BTreeMap<String, Standing> = standings.into_iter().collect();
        let records = self.records.list_where::<Record>(COLLECTION, |key| !is_state(key))?;
        let mut vms = BTreeMap::new();
        for (key, record) in records {
            // Both are written at once.
            let Some(standing) = standings.remove(&format!("{key}{STATE}")) else { continue };
            let Standing { condition, last_seen, health, usage, tried, transitions } = standing;
            let id = record.id.clone();
            vms.insert(id, Vm { record, condition, last_seen, health, usage, tried, transitions });
        }
        Ok(vms)
    }

    /// Makes durable what VMs are now, and that others are none any more, with other changes.
    pub(super) fn write(
        &self,
        vms: &BTreeMap<VmId, Option<Vm>>,
        mut changes: Changes,
    ) -> Result<(), store::Error> {
        for (id, vm) in vms {
            let state = format!("{id}{STATE}");
            let Some(vm) = vm else {
                changes.delete(COLLECTION, id.as_str())?;
                changes.delete(COLLECTION, &state)?;
                continue;
            };
            let Vm { record, condition, last_seen, health, usage, tried, transitions } = vm.clone();
            let standing = Standing { condition, last_seen, health, usage, tried, transitions };
            changes.put(COLLECTION, id.as_str(), &record)?;
            changes.put(COLLECTION, &state, &standing)?;
        }
        self.records.write(changes)
    }
}
