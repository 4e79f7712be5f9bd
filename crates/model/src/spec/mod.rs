//! What a twin is to be: the reproducible part of its host's facts, and what was declared on top.
//!
//! What can't be reproduced, whatever the twin is, becomes a [`Gap`] here. What depends on how
//! the twin is now is decided by [`crate::plan`].
//!
//! # Invariants
//! - Every name in a spec is a checked type. A host's name that is none is a gap, not a value.
//! - A fact that a faulty collector could not see is not in the spec as something to remove:
//!   the kinds it owns are listed in [`Spec::unseen`].

mod accounts;
mod containers;
mod engine;
mod extras;
mod files;
mod gap;
mod names;
mod packages;
mod process;
mod system;
mod units;

pub(crate) use accounts::FIRST_PERSON;
pub(crate) use accounts::user;
pub use accounts::{Group, User};
pub use containers::{Container, ContainerName, Image, Mount, Port, Standing, Variable, Word};
pub use extras::{Extra, ExtraError, ExtraKind, Extras};
pub use files::{Body, File, Source, Withheld};
pub(crate) use files::{is_unit_file, masks};
pub use gap::{Cause, Gap};
pub use names::{
    AccountName, Field, FilePath, LinkTarget, Mode, PackageName, PackageVersion, TimeZone, UnitName,
};
pub use packages::Package;
pub use process::{PREFIX, Process, leave_out_passing};
pub(crate) use system::distribution;
pub use system::{ENVIRONMENT, System};
pub use units::{Enablement, Unit};
pub(crate) use units::{RUN, is_orphan};

use crate::entity::Collector;
use crate::{ContentId, Facts, Kind, Subject, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What a twin is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// The moment of the host that this is.
    pub at: Option<Time>,
    pub system: System,
    pub packages: BTreeMap<PackageName, Package>,
    pub groups: BTreeMap<AccountName, Group>,
    pub users: BTreeMap<AccountName, User>,
    pub files: BTreeMap<FilePath, File>,
    /// Directories of which all that is below is in `files`.
    pub directories: BTreeSet<FilePath>,
    /// Paths of files where there is nothing.
    pub missing: BTreeSet<FilePath>,
    pub units: BTreeMap<UnitName, Unit>,
    pub containers: BTreeMap<ContainerName, Container>,
    /// Processes that no unit and no container owns, by the units made for them.
    pub processes: BTreeMap<UnitName, Process>,
    /// What is there because somebody declared it.
    pub declared: BTreeSet<Subject>,
    /// Kinds that could not be looked at: nothing of them is removed.
    pub unseen: BTreeSet<Kind>,
    pub gaps: Vec<Gap>,
    /// What a virtual machine has its own of, to be compared and told.
    pub machine: Facts,
}

/// Kinds of [`Spec::machine`].
const MACHINE: [Kind; 7] = [
    Kind::CPU,
    Kind::MEMORY,
    Kind::DISK,
    Kind::FILESYSTEM,
    Kind::GPU,
    Kind::INTERFACE,
    Kind::ROUTE,
];

/// The kinds of which a look saw nothing, or only what is old. Users' managers come and go with
/// whoever logs in, and nothing of theirs is reproduced: one that just ends hides no other unit.
#[must_use]
pub fn unseen(facts: &Facts) -> BTreeSet<Kind> {
    let faulty = facts.entities::<Collector>().filter(|collector| collector.fault.is_some());
    let of_the_system = faulty.filter(|collector| collector.name != Collector::USER_UNITS);
    of_the_system.flat_map(|collector| Collector::kinds(&collector.name)).copied().collect()
}

impl Spec {
    /// The spec of a host that is so at a moment, with what was declared.
    #[must_use]
    pub fn of(facts: &Facts, extras: &Extras, at: Option<Time>) -> Self {
        let merged = extras.over(facts);
        let mut spec = Self {
            at,
            declared: extras.subjects(facts),
            unseen: unseen(&merged),
            machine: MACHINE
                .iter()
                .flat_map(|kind| merged.of_kind(*kind))
                .map(|(subject, item)| (subject.clone(), item.clone()))
                .collect(),
            ..Self::default()
        };
        // A kind of which there is nothing at all was not looked at, either.
        for kind in [Kind::PACKAGE, Kind::UNIT, Kind::USER, Kind::GROUP, Kind::FILE] {
            if facts.of_kind(kind).next().is_none() {
                spec.unseen.insert(kind);
            }
        }
        spec.take_system(&merged);
        spec.take_packages(&merged);
        spec.take_accounts(&merged);
        spec.take_files(&merged);
        spec.take_units(&merged);
        spec.take_containers(&merged);
        spec.take_processes(&merged);
        spec.take_declared(extras, facts);
        spec
    }

    /// The paths that a twin has to be looked at for, to be compared with this.
    pub fn paths(&self) -> impl Iterator<Item = &FilePath> {
        self.files.keys().chain(&self.directories).chain(&self.missing)
    }

    /// The files whose bytes are known, each with the name of what it holds.
    pub fn plain(&self) -> impl Iterator<Item = (&FilePath, ContentId)> {
        self.files.iter().filter_map(|(path, file)| match &file.body {
            Body::Plain { source, .. } => Some((path, source.id())),
            Body::Link(_) | Body::Withheld { .. } => None,
        })
    }

    /// Whether the host was looked at for a file that it does not have.
    #[must_use]
    pub fn lacks(&self, path: &FilePath) -> bool {
        let mut above = path.as_str().match_indices('/').filter_map(|(at, _)| {
            let directory = path.as_str().get(..at)?;
            directory.parse::<FilePath>().ok()
        });
        !self.files.contains_key(path)
            && (self.missing.contains(path) || above.any(|one| self.directories.contains(&one)))
    }

    /// How many things of each kind a twin is to have.
    #[must_use]
    pub fn things(&self) -> BTreeMap<Kind, usize> {
        let mut things = BTreeMap::from([
            (Kind::PACKAGE, self.packages.len()),
            (Kind::GROUP, self.groups.len()),
            (Kind::USER, self.users.len()),
            (Kind::FILE, self.files.len()),
            (Kind::UNIT, self.units.len()),
            (Kind::CONTAINER, self.containers.len()),
            (Kind::PROCESS, self.processes.len()),
        ]);
        for (subject, _) in self.machine.iter() {
            *things.entry(subject.kind()).or_default() += 1;
        }
        things.retain(|_, number| *number > 0);
        things
    }

    /// Whether a twin is to have it.
    #[must_use]
    pub fn has(&self, subject: &Subject) -> bool {
        let id = subject.id();
        let is_key = |found: Option<bool>| found.unwrap_or(false);
        match subject.kind() {
            Kind::PACKAGE => is_key(id.parse().ok().map(|name| self.packages.contains_key(&name))),
            Kind::GROUP => is_key(id.parse().ok().map(|name| self.groups.contains_key(&name))),
            Kind::USER => is_key(id.parse().ok().map(|name| self.users.contains_key(&name))),
            Kind::FILE => is_key(id.parse().ok().map(|path| self.files.contains_key(&path))),
            Kind::UNIT => is_key(id.parse().ok().map(|name| self.units.contains_key(&name))),
            Kind::CONTAINER => {
                is_key(id.parse().ok().map(|name| self.containers.contains_key(&name)))
            }
            Kind::PROCESS => self.processes.values().any(|process| process.subject == *subject),
            _ => self.machine.get(subject).is_some(),
        }
    }

    fn gap(&mut self, subject: &Subject, cause: Cause, what: &str, remedy: &str) {
        self.gaps.push(Gap::new(subject, cause, what, remedy));
    }

    /// For a name or value that is none, though the host has it.
    fn unsafe_gap(&mut self, subject: &Subject, error: &crate::TextError) {
        let what = format!("{error}, so it is used nowhere");
        self.gap(subject, Cause::Name, &what, "give it another name on the host");
    }
}
