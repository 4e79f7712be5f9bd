//! What is known of a twin beside what its hypervisor knows: who gets in, and by which keys it
//! is known.

use super::error::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use store::Records;
use vm::image::{HostName, MachineName, PublicKey, UserName};

const COLLECTION: &str = "twins";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Who SSH gets in as.
    pub(super) user: UserName,
    /// What cloud-init in the guest takes itself for. A clone keeps it, so that nothing sets
    /// it up anew.
    pub(super) instance: HostName,
    /// The SSH keys it may show.
    pub(super) host_keys: Vec<PublicKey>,
    /// It is a clone that is still, for everybody who asks, the machine it was cloned from.
    pub(super) half_made: bool,
}

/// The records of all twins. Calls block.
#[derive(Debug, Clone)]
pub(super) struct Book {
    records: Records,
}

impl Book {
    pub(super) fn new(records: Records) -> Self {
        Self { records }
    }

    pub(super) fn get(&self, name: &MachineName) -> Result<Option<Record>, Error> {
        Ok(self.records.get(COLLECTION, name.as_str())?)
    }

    pub(super) fn put(&self, name: &MachineName, record: &Record) -> Result<(), Error> {
        Ok(self.records.put(COLLECTION, name.as_str(), record)?)
    }

    pub(super) fn delete(&self, name: &MachineName) -> Result<(), Error> {
        Ok(self.records.delete(COLLECTION, name.as_str())?)
    }

    pub(super) fn all(&self) -> Result<BTreeMap<MachineName, Record>, Error> {
        let listed = self.records.list::<Record>(COLLECTION)?;
        let named = listed.into_iter().map(|(name, record)| Some((name.parse().ok()?, record)));
        Ok(named.flatten().collect())
    }
}
