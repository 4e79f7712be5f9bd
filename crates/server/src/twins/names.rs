//! Names of machines that are being made: each is somebody's until the machine is there.
//!
//! ```text
//! reserve ─► is it another machine's, a host's? ─► make it, as a run ─► it is in the list ─► let go
//! ```
//!
//! # Invariants
//! - A name is reserved before it is looked whether it is free, and let go only when the machine
//!   is in the hypervisor's list, or will not be.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use vm::image::MachineName;

/// Clones share the names.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    reserved: Arc<Mutex<BTreeSet<MachineName>>>,
}

/// The right to make a machine of this name; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    names: Names,
    name: MachineName,
}

impl Names {
    /// Nothing, where somebody else makes a machine of this name.
    pub(super) fn reserve(&self, name: &MachineName) -> Option<Reserved> {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = reserved.insert(name.clone());
        is_free.then(|| Reserved { names: self.clone(), name: name.clone() })
    }
}

impl Reserved {
    pub(super) fn name(&self) -> &MachineName {
        &self.name
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let reserved = &self.names.reserved;
        reserved.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
