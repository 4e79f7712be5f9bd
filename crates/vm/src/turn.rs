//! Who works with a machine: one at a time.

use crate::image::MachineName;
use crate::machine::Error;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The machines that are worked with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns {
    busy: Arc<Mutex<BTreeSet<MachineName>>>,
}

/// The right to work with a machine; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    name: MachineName,
}

impl Turns {
    /// # Errors
    /// When somebody works with the machine.
    pub(crate) fn take(&self, name: &MachineName) -> Result<Turn, Error> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !busy.insert(name.clone()) {
            return Err(Error::Busy { name: name.clone() });
        }
        Ok(Turn { turns: self.clone(), name: name.clone() })
    }

    /// Whether somebody works with the machine.
    pub(crate) fn is_taken(&self, name: &MachineName) -> bool {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}
