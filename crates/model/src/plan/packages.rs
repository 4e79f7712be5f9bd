//! Packages, each a step of its own, so that one that can't be had stops only what needs it.

use super::draft::Draft;
use super::own::Own;
use super::step::Action;
use crate::entity::{self, Entity, Platform};
use crate::spec::{Cause, FIRST_PERSON, PackageName, distribution};
use crate::{Kind, Subject};
use std::collections::BTreeMap;

/// A package that can't come to the twin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lacking {
    cause: Cause,
    /// The twin has another version of it.
    pub(super) is_other: bool,
}

impl Lacking {
    /// Why, and what can be done.
    pub(super) fn of_part(self) -> (Cause, &'static str, &'static str) {
        let (what, remedy) = match self.cause {
            Cause::Gone => (
                "it is of a package whose version no repository has that the twin reaches",
                "upgrade the package on the host",
            ),
            _ => (
                "it is of a package that can't come to the twin",
                "give the twin an image with the package",
            ),
        };
        (self.cause, what, remedy)
    }
}

impl Draft<'_> {
    pub(super) fn packages(&mut self) {
        if !self.sees(Kind::PACKAGE) {
            return;
        }
        let there: BTreeMap<String, entity::Package> = self
            .twin
            .entities::<entity::Package>()
            .filter(|package| package.state.is_none() && package.manager == "dpkg")
            .map(|package| (package.name.clone(), package))
            .collect();
        let spec = self.spec;
        let twins = self.twin.entity::<Platform>("host").as_ref().and_then(distribution);
        let is_other = spec.system.distribution.is_some() && spec.system.distribution != twins;
        let accounts = self.system_accounts();
        for (name, wanted) in &spec.packages {
            let subject = Subject::escaped(Kind::PACKAGE, name.as_str());
            let twin = there.get(name.as_str()).map(|package| package.version.as_str());
            if twin == Some(wanted.version.as_str()) {
                continue;
            }
            if Own::keeps_package(name.as_str()) {
                let what = "a twin has its own of what it boots from and is reached by";
                self.gap(&subject, Cause::Own, what, "bring the twin's image up to date");
                continue;
            }
            if is_other {
                let what = "the twin is of another distribution";
                let remedy = "give the twin an image of the host's distribution";
                self.gap(&subject, Cause::System, what, remedy);
                continue;
            }
            if self.own.lacks_packages() {
                let what = "the twin reaches nothing to have it from";
                let remedy = "give the twin an image with it: twin image build, --package";
                self.gap(&subject, Cause::Isolated, what, remedy);
                let lacking = Lacking { cause: Cause::Isolated, is_other: twin.is_some() };
                self.lacking.insert(name.clone(), lacking);
                continue;
            }
            if self.own.lacks_version(&(name.clone(), wanted.version.clone())) {
                let what = format!(
                    "no repository that the twin reaches has its version {}; it is asked for again",
                    wanted.version
                );
                let remedy = "upgrade it on the host, or set up a repository that has this version";
                self.gap(&subject, Cause::Gone, &what, remedy);
                let lacking = Lacking { cause: Cause::Gone, is_other: twin.is_some() };
                self.lacking.insert(name.clone(), lacking);
                continue;
            }
            let why = match twin {
                None => "the host has this package",
                Some(_) => "the host has another version of it",
            };
            let version = wanted.version.clone();
            let action = Action::PutPackage { name: name.clone(), version };
            let at = self.add(&subject, action, why);
            self.packages.insert(name.clone(), at);
            // A package makes its users itself, with whatever numbers are free.
            for account in &accounts {
                self.follow(at, Some(*account));
            }
        }
        self.remove_packages(&there, is_other);
    }

    fn system_accounts(&self) -> Vec<usize> {
        let spec = self.spec;
        let users = self
            .users
            .iter()
            .filter(|(name, _)| spec.users.get(*name).is_some_and(|user| user.uid < FIRST_PERSON));
        let groups = self.groups.iter().filter(|(name, _)| {
            spec.groups.get(*name).is_some_and(|group| group.gid < FIRST_PERSON)
        });
        users.chain(groups).map(|(_, at)| *at).collect()
    }

    fn remove_packages(&mut self, there: &BTreeMap<String, entity::Package>, is_other: bool) {
        if is_other || !self.may_remove(Kind::PACKAGE) {
            return;
        }
        let spec = self.spec;
        for package in there.values() {
            let (subject, _) = package.to_item();
            let Ok(name) = package.name.parse::<PackageName>() else { continue };
            let is_kept = spec.packages.contains_key(&name)
                || self.stays(&subject)
                || Own::keeps_package(name.as_str());
            if !is_kept {
                let why = "the host does not have this package";
                self.add(&subject, Action::RemovePackage(name), why);
            }
        }
    }
}
