//! As what those who are told know VMs. Kept where all instances read it: who takes over tells
//! what is not known yet, and nothing twice.

use super::{Entry, Target};
use crate::session::SessionChange;

/// As what one of those who are told knows a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub target: Target,
    /// Its uuid.
    pub vm: String,
    pub name: String,
    /// Endpoints are not told of that.
    pub is_orphan: bool,
}

impl Known {
    /// As it was known before a change.
    pub(super) fn before(entry: &Entry) -> Self {
        let (name, is_orphan) = match &entry.change {
            SessionChange::Orphan { name, .. } => (name, false),
            SessionChange::Reactivate { name } => (name, true),
            SessionChange::Rename { old, .. } => (old, false),
        };
        Self::of(entry, name, is_orphan)
    }

    /// As it is known once the change arrived.
    pub(super) fn after(entry: &Entry) -> Self {
        let (name, is_orphan) = match &entry.change {
            SessionChange::Orphan { name, .. } => (name, true),
            SessionChange::Reactivate { name } => (name, false),
            SessionChange::Rename { new, .. } => (new, false),
        };
        Self::of(entry, name, is_orphan)
    }

    fn of(entry: &Entry, name: &str, is_orphan: bool) -> Self {
        let (target, vm) = (entry.target, entry.vm.clone());
        Self { target, vm, name: name.to_owned(), is_orphan }
    }

    /// Whom and what it is about.
    pub(super) fn line(&self) -> (Target, String) {
        (self.target, self.vm.clone())
    }
}
