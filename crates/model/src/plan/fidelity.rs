//! How much of a host is in its twin: what a plan neither changes nor has to leave out.

use super::{Action, Plan};
use crate::spec::{PackageName, Spec};
use crate::{Kind, Subject};
use std::collections::{BTreeMap, BTreeSet};

/// How many things of a kind the host has, and how many of them its twin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reproduced {
    pub of: usize,
    pub reproduced: usize,
}

/// By kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fidelity(pub BTreeMap<Kind, Reproduced>);

impl Fidelity {
    /// As the twin is before a step is done.
    #[must_use]
    pub fn now(spec: &Spec, plan: &Plan) -> Self {
        // What only the twin has, and what is written for the twin itself, is none of the host's.
        let steps = plan.steps().iter().map(|step| &step.subject);
        let steps = steps.filter(|subject| spec.has(subject));
        // What comes with a package has no step of its own.
        let packages = plan.steps().iter().filter_map(|step| match &step.action {
            Action::PutPackage { name, .. } => Some(name),
            _ => None,
        });
        let packages: BTreeSet<&PackageName> = packages.collect();
        let brought = spec.files.values().filter(|file| {
            let package = file.package.as_ref();
            package.is_some_and(|package| packages.contains(package))
        });
        Self::without(spec, plan, steps.chain(brought.map(|file| &file.subject)))
    }

    /// As it is once all steps are done.
    #[must_use]
    pub fn after(spec: &Spec, plan: &Plan) -> Self {
        Self::without(spec, plan, std::iter::empty())
    }

    fn without<'p>(
        spec: &'p Spec,
        plan: &'p Plan,
        steps: impl Iterator<Item = &'p Subject>,
    ) -> Self {
        let things = spec.things().into_iter();
        let mut kinds: BTreeMap<Kind, Reproduced> =
            things.map(|(kind, of)| (kind, Reproduced { of, reproduced: of })).collect();
        let missing: BTreeSet<&Subject> =
            plan.gaps().iter().map(|gap| &gap.subject).chain(steps).collect();
        for subject in missing {
            let kind = kinds.entry(subject.kind()).or_default();
            match spec.has(subject) {
                true => kind.reproduced = kind.reproduced.saturating_sub(1),
                // What is told of alone is in no spec.
                false => kind.of += 1,
            }
        }
        Self(kinds)
    }

    /// Thousandths of all things.
    #[must_use]
    pub fn per_mille(&self) -> u32 {
        let sum = |of: fn(&Reproduced) -> usize| self.0.values().map(of).sum::<usize>();
        match sum(|kind| kind.of) {
            0 => 1000,
            of => u32::try_from(sum(|kind| kind.reproduced) * 1000 / of).unwrap_or_default(),
        }
    }
}
