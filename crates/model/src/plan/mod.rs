//! Decides what must change in a twin. Reads nothing, writes nothing.
//!
//! ```text
//! system   groups ─► users ─► members
//!             └────────┴─► packages ─► files ─► systemd reads them ─► units
//!                                                       images ─► containers
//! ```
//!
//! Whatever holds in the host and not in the twin is covered by a step, or is told as a gap with
//! its reason: nothing is left out silently.
//!
//! # Invariants
//! - Same inputs, same plan: no I/O, no clock, no randomness.
//! - A twin that has the host's facts needs no step. A plan that was carried out leaves none.
//! - Steps come after all that they need, so a plan has no cycle.
//! - What the twin needs for itself, and what could not be looked at, is not touched.

mod accounts;
pub mod apt;
pub mod conditions;
mod containers;
mod draft;
mod event;
mod fidelity;
mod files;
mod machine;
mod own;
mod packages;
mod processes;
mod step;
mod units;

pub use event::{Event, Outcome};
pub use fidelity::{Fidelity, Reproduced};
pub use own::{Lack, Own};
pub use step::{Action, PutFile, Step};
pub use units::on_its_way;

use crate::spec::{Gap, PackageName, Spec};
use crate::{ContentId, Facts};
use draft::Draft;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Steps of one plan; a host has some thousands of things.
pub const STEPS_MAX: usize = 20_000;

/// What leads a twin to its spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Plan {
    steps: Vec<Step>,
    gaps: Vec<Gap>,
}

#[derive(Deserialize)]
struct Parts {
    steps: Vec<Step>,
    #[serde(default)]
    gaps: Vec<Gap>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a plan has at most {STEPS_MAX} steps, this one {0}")]
    Long(usize),
    #[error("step {0} is to come after one that is not before it")]
    Order(usize),
}

impl TryFrom<Parts> for Plan {
    type Error = Error;

    fn try_from(parts: Parts) -> Result<Self, Error> {
        Self::new(parts.steps, parts.gaps)
    }
}

impl Plan {
    /// A plan of steps, each after all that it waits for.
    ///
    /// # Errors
    /// When there are too many, or one waits for a later one.
    pub fn new(steps: Vec<Step>, gaps: Vec<Gap>) -> Result<Self, Error> {
        if steps.len() > STEPS_MAX {
            return Err(Error::Long(steps.len()));
        }
        for (at, step) in steps.iter().enumerate() {
            if step.needs.iter().chain(&step.after).any(|before| *before >= at) {
                return Err(Error::Order(at));
            }
        }
        Ok(Self { steps, gaps })
    }

    /// In an order in which they can be done one after the other.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What is not reproduced, in order of subject.
    #[must_use]
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What of it puts images into the engine, which needs nothing else.
    #[must_use]
    pub fn images(&self) -> Self {
        let is_image = |step: &&Step| step.action.image().is_some();
        let steps = self.steps.iter().filter(is_image).cloned();
        let alone = |step: Step| Step { needs: Vec::new(), after: Vec::new(), ..step };
        Self { steps: steps.map(alone).collect(), gaps: Vec::new() }
    }

    /// Whether another image has a name in the twin that it has on the host.
    #[must_use]
    pub fn renews_images(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.action, Action::RenewImage(_)))
    }

    /// Those that it removes.
    pub fn leaving_packages(&self) -> impl Iterator<Item = &PackageName> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::RemovePackage(name) => Some(name),
            _ => None,
        })
    }

    /// The contents that the server has to send along.
    #[must_use]
    pub fn contents(&self) -> BTreeSet<ContentId> {
        let stored = |step: &Step| match &step.action {
            Action::PutFile(PutFile { source: crate::spec::Source::Stored(id), .. }) => Some(*id),
            _ => None,
        };
        self.steps.iter().filter_map(stored).collect()
    }
}

/// What leads a twin with these facts to the spec.
#[must_use]
pub fn plan(spec: &Spec, twin: &Facts, own: &Own) -> Plan {
    let mut draft = Draft::new(spec, twin, own);
    draft.machine();
    draft.system();
    draft.accounts();
    draft.packages();
    draft.files();
    draft.processes();
    draft.units();
    draft.containers();
    draft.environment();
    draft.finish()
}

#[cfg(test)]
mod tests;
