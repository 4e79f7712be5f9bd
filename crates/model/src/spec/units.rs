//! Units of the system's manager: whether they run, how they are enabled, what they need.

use super::{AccountName, Cause, FilePath, PackageName, Spec, UnitName};
use crate::entity::{self, Entity};
use crate::{Facts, Subject, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How a unit comes up by itself, where somebody decides that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enablement {
    Enabled,
    Disabled,
    Masked,
}

impl Enablement {
    /// Of a unit's `UnitFileState`; what holds until the next boot alone is not kept.
    pub(crate) fn of(unit: &entity::Unit) -> Option<Self> {
        match unit.enablement.as_deref()? {
            "enabled" => Some(Self::Enabled),
            "disabled" => Some(Self::Disabled),
            "masked" => Some(Self::Masked),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    pub subject: Subject,
    /// `None` where it is on its way, or has no state of its own.
    pub active: Option<bool>,
    pub enablement: Option<Enablement>,
    pub since: Option<Time>,
    pub changed_at: Option<Time>,
    pub can_reload: bool,
    pub user: Option<AccountName>,
    pub fragment: Option<FilePath>,
    /// Its file, drop-ins and files of environment.
    pub files: BTreeSet<FilePath>,
    /// What it runs that is tracked by itself.
    pub programs: BTreeSet<FilePath>,
    /// Its files changed since systemd read them.
    pub needs_reload: bool,
    /// It runs, and its file is gone.
    pub is_orphan: bool,
    /// The package its file is of.
    pub package: Option<PackageName>,
    /// Without which it does not run.
    pub requires: BTreeSet<UnitName>,
    /// What starts with it, and may be stopped while it runs.
    pub wants: BTreeSet<UnitName>,
    pub after: BTreeSet<UnitName>,
}

/// Kinds of units that are started and stopped. Others follow from these, or from the machine.
pub(crate) const RUN: [&str; 4] = ["service", "socket", "timer", "path"];

impl Spec {
    pub(super) fn take_units(&mut self, facts: &Facts) {
        // Of the facts: what masks a unit is not among the spec's files.
        let packages: BTreeMap<FilePath, PackageName> = facts
            .entities::<entity::File>()
            .filter_map(|file| Some((file.path.parse().ok()?, file.package?.parse().ok()?)))
            .collect();
        for unit in facts.entities::<entity::Unit>() {
            let (subject, _) = unit.to_item();
            if unit.id.contains('/') {
                self.of_user(&subject, &unit);
                continue;
            }
            // Slices, scopes, devices: what is in them brings them.
            let kind = unit.id.rsplit('.').next().unwrap_or_default();
            let is_placed = unit.fragment_path.as_deref().is_some_and(|p| p.starts_with("/etc/"));
            let is_taken = RUN.contains(&kind)
                || (["mount", "automount"].contains(&kind) && is_placed)
                || kind == "target";
            if !is_taken || unit.id.starts_with(super::PREFIX) {
                continue;
            }
            if unit.enablement.as_deref() == Some("transient") {
                self.transient(&subject, &unit);
                continue;
            }
            match unit.id.parse::<UnitName>() {
                Ok(name) => {
                    let unit = taken(subject, &unit, &name, &packages);
                    self.units.insert(name, unit);
                }
                Err(error) => self.unsafe_gap(&subject, &error),
            }
        }
    }

    /// A user's manager has its own; only what somebody placed there is worth telling.
    fn of_user(&mut self, subject: &Subject, unit: &entity::Unit) {
        let fragment = unit.fragment_path.as_deref().unwrap_or_default();
        let is_placed = !fragment.is_empty()
            && !["/usr/lib/", "/lib/", "/run/"].iter().any(|place| fragment.starts_with(place));
        if is_placed {
            let what = "units of users' own managers are not followed";
            self.gap(subject, Cause::UserManager, what, "make it a unit of the system with User=");
        }
    }

    fn transient(&mut self, subject: &Subject, unit: &entity::Unit) {
        let is_service = unit.id.ends_with(".service") && unit.active_state == "active";
        if is_service {
            let what = "it was made at run time and has no file";
            self.gap(subject, Cause::Transient, what, "write a unit file for it");
        }
    }
}

fn taken(
    subject: Subject,
    unit: &entity::Unit,
    name: &UnitName,
    packages: &BTreeMap<FilePath, PackageName>,
) -> Unit {
    let names = |lists: &[&Vec<String>]| {
        lists.iter().flat_map(|list| list.iter()).filter_map(|n| n.parse().ok()).collect()
    };
    let active = match unit.active_state.as_str() {
        "active" | "reloading" | "refreshing" => Some(true),
        "inactive" | "failed" => Some(false),
        "" if unit.load_state == "not-loaded" => Some(false),
        _ => None,
    };
    let fragment: Option<FilePath> = unit.fragment_path.as_deref().and_then(|p| p.parse().ok());
    let environment = unit.environment_files.iter().map(|p| p.strip_prefix('-').unwrap_or(p));
    let files = unit.drop_ins.iter().map(String::as_str).chain(environment);
    let mut files: BTreeSet<FilePath> = files.filter_map(|path| path.parse().ok()).collect();
    files.extend(fragment.clone());
    Unit {
        active: active.filter(|_| name.kind() != "target"),
        enablement: Enablement::of(unit),
        since: unit.since,
        changed_at: unit.changed_at,
        can_reload: !unit.exec_reload.is_empty(),
        user: unit.user.as_deref().and_then(|user| user.parse().ok()),
        package: fragment.as_ref().and_then(|path| packages.get(path).cloned()),
        programs: unit.exec_start.iter().flatten().filter_map(|word| word.parse().ok()).collect(),
        needs_reload: unit.needs_reload,
        is_orphan: is_orphan(unit),
        files,
        fragment,
        requires: names(&[&unit.requires, &unit.requisite, &unit.binds_to]),
        wants: names(&[&unit.wants]),
        after: names(&[&unit.after]),
        subject,
    }
}

/// Whether it runs on without its file.
pub(crate) fn is_orphan(unit: &entity::Unit) -> bool {
    unit.load_state == "not-found" && !matches!(unit.active_state.as_str(), "inactive" | "failed")
}
