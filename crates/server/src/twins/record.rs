//! What is known of a twin beside what its hypervisor knows: who gets in, and by which keys it
//! is known.

use super::error::Error;
use super::extras::Declared;
use super::follow::Standing;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::Records;
use vm::image::{HostName, MachineName, PublicKey, UserName};

const COLLECTION: &str = "twins";
/// How twins follow their hosts.
pub(super) const FOLLOWING: &str = "following";
/// What was in a twin before anything was brought to it.
const BASES: &str = "bases";
/// What was declared of twins.
const EXTRAS: &str = "extras";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Who SSH gets in as.
    pub(super) user: UserName,
    /// What cloud-init in the guest takes itself for. A clone keeps it, so that nothing sets
    /// it up anew.
    pub(super) instance: HostName,
    /// The SSH keys it may show.
    pub(super) host_keys: Vec<PublicKey>,
    /// It is being made: there is no machine yet, or one that is still, for everybody who asks,
    /// the machine it was cloned from.
    pub(super) half_made: bool,
    /// It is being removed: that its machine is gone is as it should be.
    #[serde(default)]
    pub(super) leaving: bool,
}

/// The records of all twins. Calls block.
#[derive(Debug, Clone)]
pub(super) struct Book {
    records: Records,
    changing: Arc<Mutex<()>>,
}

impl Book {
    pub(super) fn new(records: Records) -> Self {
        Self { records, changing: Arc::default() }
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

    pub(super) fn standing(&self, name: &MachineName) -> Result<Option<Standing>, Error> {
        Ok(self.records.get(FOLLOWING, name.as_str())?)
    }

    pub(super) fn put_standing(
        &self,
        name: &MachineName,
        standing: &Standing,
    ) -> Result<(), Error> {
        Ok(self.records.put(FOLLOWING, name.as_str(), standing)?)
    }

    /// All that is known of what a twin follows, had before, and was declared to have.
    pub(super) fn delete_standing(&self, name: &MachineName) -> Result<(), Error> {
        self.records.delete(BASES, name.as_str())?;
        self.records.delete(EXTRAS, name.as_str())?;
        Ok(self.records.delete(FOLLOWING, name.as_str())?)
    }

    /// Twins of which something is known of how they follow.
    pub(super) fn followers(&self) -> Result<Vec<MachineName>, Error> {
        let listed = self.records.list::<Standing>(FOLLOWING)?;
        Ok(listed.into_iter().filter_map(|(name, _)| name.parse().ok()).collect())
    }

    pub(super) fn base(&self, name: &MachineName) -> Result<Option<Vec<String>>, Error> {
        Ok(self.records.get(BASES, name.as_str())?)
    }

    pub(super) fn put_base(&self, name: &MachineName, base: &[String]) -> Result<(), Error> {
        Ok(self.records.put(BASES, name.as_str(), &base)?)
    }

    pub(super) fn extras(&self, name: &MachineName) -> Result<Declared, Error> {
        Ok(self.records.get(EXTRAS, name.as_str())?.unwrap_or_default())
    }

    /// One change after the other.
    pub(super) fn change_extras(
        &self,
        name: &MachineName,
        change: impl FnOnce(&mut Declared) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut declared = self.extras(name)?;
        change(&mut declared)?;
        match declared.is_empty() {
            true => Ok(self.records.delete(EXTRAS, name.as_str())?),
            false => Ok(self.records.put(EXTRAS, name.as_str(), &declared)?),
        }
    }

    pub(super) fn all(&self) -> Result<BTreeMap<MachineName, Record>, Error> {
        let listed = self.records.list::<Record>(COLLECTION)?;
        let named = listed.into_iter().map(|(name, record)| Some((name.parse().ok()?, record)));
        Ok(named.flatten().collect())
    }
}
