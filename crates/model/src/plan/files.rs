//! Files: those that differ are written, and those the host removed are removed.

use super::draft::{At, Draft};
use super::own::Own;
use super::step::{Action, PutFile};
use crate::entity::{self, Entity};
use crate::spec::{Body, Cause, File, FilePath, PackageName, Withheld, is_unit_file, masks};
use crate::{Kind, Subject};
use std::collections::{BTreeMap, BTreeSet};

impl Draft<'_> {
    pub(super) fn files(&mut self) {
        if !self.sees(Kind::FILE) {
            return;
        }
        let there: BTreeMap<String, entity::File> =
            self.twin.entities::<entity::File>().map(|f| (f.path.clone(), f)).collect();
        let spec = self.spec;
        for (path, file) in &spec.files {
            if path.as_str().contains(&format!("/{}", crate::spec::PREFIX)) {
                continue;
            }
            let twin = there.get(path.as_str());
            if !is_as(file, twin) {
                self.put_file(path, file, twin);
            }
        }
        self.remove_files(&there);
    }

    fn put_file(&mut self, path: &FilePath, file: &File, twin: Option<&entity::File>) {
        let subject = &file.subject;
        let is_systems = ["/usr/", "/lib/", "/bin/", "/sbin/", "/lib64/"]
            .iter()
            .any(|place| path.as_str().starts_with(place));
        let package = file.package.as_ref();
        let is_kept = Own::keeps_file(path.as_str())
            || is_systems && package.is_some_and(|package| Own::keeps_package(package.as_str()));
        if is_kept {
            let what = "it says what a machine is and how it is reached, and a twin has its own";
            self.gap(subject, Cause::Own, what, "change it in the twin by hand where it matters");
            return;
        }
        if is_systems && file.package.as_ref().is_some_and(|p| self.packages.contains_key(p)) {
            // It comes with its package; what was changed of it shows at the next look.
            return;
        }
        let lacking = package.and_then(|package| self.lacking.get(package));
        if let Some(lacking) = lacking.filter(|lacking| is_systems || !lacking.is_other) {
            let (cause, what, remedy) = lacking.of_part();
            self.gap(subject, cause, what, remedy);
            return;
        }
        let action = match &file.body {
            Body::Withheld { why, .. } => return self.withheld(file, why),
            Body::Link(target) => Action::PutLink { path: path.clone(), target: target.clone() },
            Body::Plain { source, mode, owner, group } => Action::PutFile(PutFile {
                path: path.clone(),
                source: source.clone(),
                mode: *mode,
                owner: owner.clone(),
                group: group.clone(),
            }),
        };
        let at = self.add(subject, action, why(file, twin));
        self.after_owners(at, file);
        self.files.insert(path.clone(), at);
    }

    fn after_owners(&mut self, at: At, file: &File) {
        if let Body::Plain { owner, group, .. } = &file.body {
            let (owner, group) = (self.users.get(owner).copied(), self.groups.get(group).copied());
            self.need(at, owner);
            self.need(at, group);
        }
        // Before its package there is nothing for it to configure, and dpkg would ask about it.
        let package = file.package.as_ref().and_then(|p| self.packages.get(p)).copied();
        self.need(at, package);
    }

    fn withheld(&mut self, file: &File, why: &Withheld) {
        let is_program = file.role == "program";
        let (cause, what) = match why {
            Withheld::Secret => {
                (Cause::Secret, "what is secret in it does not leave the host".into())
            }
            Withheld::Data(why) if is_program => (
                Cause::Unpackaged,
                format!("a unit runs it, no package brings it, and it is {why}"),
            ),
            Withheld::Data(why) => (Cause::Data, format!("its content is not taken: {why}")),
        };
        let remedy =
            if is_program { "make a package of it" } else { "put it into the twin by hand" };
        self.gap(&file.subject, cause, &what, remedy);
    }

    fn remove_files(&mut self, there: &BTreeMap<String, entity::File>) {
        if !self.may_remove(Kind::FILE) || !self.may_remove(Kind::UNIT) {
            return;
        }
        let spec = self.spec;
        let looked_into: BTreeSet<&str> = spec.files.keys().map(FilePath::directory).collect();
        for file in there.values() {
            let (subject, _) = file.to_item();
            let Ok(path) = file.path.parse::<FilePath>() else { continue };
            let is_wanted = spec.files.contains_key(&path)
                || path.as_str() == crate::spec::ENVIRONMENT
                || path.name().starts_with(crate::spec::PREFIX);
            // What the host does not look at is not gone from it. Units it always looks at.
            let is_lacking = spec.lacks(&path);
            let is_gone =
                is_lacking || is_unit_file(path.as_str()) || looked_into.contains(path.directory());
            let is_kept = self.stays(&subject) || Own::keeps_file(path.as_str()) || masks(file);
            if is_wanted || !is_gone || is_kept {
                continue;
            }
            let is_removed = match file.package.as_deref() {
                None => true,
                // What else comes with a package is only not told, or goes with it.
                Some(_) if !is_lacking || !path.as_str().starts_with("/etc/") => false,
                Some(package) => self.removes_of_package(&subject, package),
            };
            if is_removed {
                let why = "the host does not have this file";
                let at = self.add(&subject, Action::RemoveFile(path.clone()), why);
                self.files.insert(path, at);
            }
        }
    }

    /// Whether a file that the host lacks, and that a package brings, goes now.
    fn removes_of_package(&mut self, subject: &Subject, package: &str) -> bool {
        let spec = self.spec;
        let name = package.parse::<PackageName>().ok();
        if name.as_ref().is_some_and(|name| self.packages.contains_key(name)) {
            // It changes before; the next look tells what it brought.
            return false;
        }
        let hosts = name.and_then(|name| spec.packages.get(&name));
        let twins = self.twin.entity::<entity::Package>(package);
        let twins = twins.filter(|package| package.state.is_none()).map(|package| package.version);
        if hosts.map(|package| package.version.as_str()) == twins.as_deref() {
            return true;
        }
        let what = "the host does not have it, and its package is another in the twin";
        self.gap(subject, Cause::Own, what, "remove it in the twin by hand where it matters");
        false
    }
}

/// Whether the twin's file is what the host's is, as far as can be known.
fn is_as(file: &File, twin: Option<&entity::File>) -> bool {
    let Some(twin) = twin else { return false };
    match &file.body {
        Body::Link(target) => twin.link.as_deref() == Some(target.as_str()),
        // Fingerprints are comparable only where the key is the same.
        Body::Withheld { fingerprint, .. } => {
            fingerprint.is_some() && twin.fingerprint == *fingerprint && twin.link.is_none()
        }
        Body::Plain { source, mode, owner, group } => {
            twin.link.is_none()
                && !twin.redacted
                && twin.content.as_deref() == Some(source.id().to_string().as_str())
                && twin.mode.as_deref() == Some(mode.to_string().as_str())
                && twin.owner.as_deref() == Some(owner.as_str())
                && twin.group.as_deref() == Some(group.as_str())
        }
    }
}

fn why(file: &File, twin: Option<&entity::File>) -> &'static str {
    let Some(twin) = twin else { return "the host has this file" };
    match &file.body {
        Body::Link(_) => "it leads elsewhere on the host",
        Body::Plain { source, .. } => {
            let is_same = twin.content.as_deref() == Some(source.id().to_string().as_str());
            if is_same {
                "its mode or owner is another on the host"
            } else {
                "its content is another on the host"
            }
        }
        Body::Withheld { .. } => "it is another on the host",
    }
}

/// Of a path.
pub(super) fn subject(path: &FilePath) -> Subject {
    Subject::escaped(Kind::FILE, path.as_str())
}
