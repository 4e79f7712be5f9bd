//! Units: what changes how they are enabled, whether they run, and what they read.
//!
//! A unit is restarted only when both hold: what it reads changed in the twin after it was
//! started there, and the host's was started after the host's changed. Both are told by one
//! machine's clock each, so clocks need not agree. One that can reload does that instead where
//! only configuration changed.
//!
//! One that fails and is started by systemd again and again does not run, whatever it is called
//! meanwhile.

use super::draft::{At, Draft};
use super::own::Own;
use super::step::Action;
use crate::entity::{self, Entity};
use crate::spec::{
    Body, Cause, Enablement, FilePath, RUN, Spec, Unit, UnitName, is_orphan, is_unit_file,
};
use crate::{Facts, Kind, Subject, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Where units lie that no package brought.
const PLACED: [&str; 2] = ["/etc/systemd/system/", "/usr/local/lib/systemd/system/"];

impl Draft<'_> {
    pub(super) fn units(&mut self) {
        if !self.sees(Kind::UNIT) {
            return;
        }
        let there: BTreeMap<String, entity::Unit> =
            self.twin.entities::<entity::Unit>().map(|u| (u.id.clone(), u)).collect();
        self.leave_removed(&there);
        self.end_others(&there);
        self.reload_manager(&there);
        let spec = self.spec;
        for (name, unit) in &spec.units {
            let twin = there.get(name.as_str());
            if Own::keeps_unit(name.as_str()) {
                self.tell_kept(unit, twin);
                continue;
            }
            self.enable(name, unit, twin);
            self.run(name, unit, twin);
        }
        self.order_units();
    }

    /// systemd reads its files again when one was changed, or was changed before and not read.
    fn reload_manager(&mut self, there: &BTreeMap<String, entity::Unit>) {
        let files: Vec<At> = self
            .files
            .iter()
            .filter(|(path, _)| is_unit_file(path.as_str()))
            .map(|(_, at)| *at)
            .collect();
        let spec = self.spec;
        let is_stale = there.values().any(|unit| {
            unit.needs_reload
                && unit.id.parse().is_ok_and(|name: UnitName| {
                    let path = unit
                        .fragment_path
                        .as_deref()
                        .and_then(|path| path.parse::<FilePath>().ok());
                    let is_kept = Own::keeps_unit(name.as_str()) || path.is_none();
                    !is_kept && spec.units.get(&name).is_some_and(|unit| !unit.needs_reload)
                })
        });
        if files.is_empty() && !is_stale {
            return;
        }
        let subject = Subject::escaped(Kind::PLATFORM, "host");
        let at = self.add(&subject, Action::ReloadManager, "files of units changed");
        // One that could not be written keeps none of the others from being read.
        for file in files {
            self.follow(at, Some(file));
        }
        self.reload = Some(at);
        for waiting in std::mem::take(&mut self.awaiting_reload) {
            self.need(waiting, Some(at));
        }
    }

    /// Units whose file goes are stopped and disabled before.
    fn leave_removed(&mut self, there: &BTreeMap<String, entity::Unit>) {
        let removed: Vec<(FilePath, At)> = self
            .files
            .iter()
            .filter(|(path, _)| !self.spec.files.contains_key(*path) && is_unit_file(path.as_str()))
            .map(|(path, at)| (path.clone(), *at))
            .collect();
        for (path, at) in removed {
            let of_file = |unit: &&entity::Unit| {
                unit.fragment_path.as_deref() == Some(path.as_str())
                    && !unit.id.parse::<UnitName>().is_ok_and(|n| self.spec.units.contains_key(&n))
                    && !unit.id.starts_with(crate::spec::PREFIX)
            };
            let units: Vec<entity::Unit> = there.values().filter(of_file).cloned().collect();
            for unit in units {
                let Ok(name) = unit.id.parse::<UnitName>() else { continue };
                let (subject, _) = unit.to_item();
                let why = "the host does not have this unit";
                if ["active", "activating", "reloading"].contains(&unit.active_state.as_str()) {
                    let stop = self.add(&subject, Action::Stop(name.clone()), why);
                    self.need(at, Some(stop));
                    self.stops.insert(name.clone(), stop);
                }
                if unit.enablement.as_deref() == Some("enabled") {
                    let disable = self.add(&subject, Action::Disable(name), why);
                    self.need(at, Some(disable));
                }
            }
        }
    }

    /// What runs in the twin without a file, as after that was removed while it was started, and
    /// instances of templates that somebody placed on the host: it tells of those that it has
    /// loaded. Those of packages are also started by logins, sockets and devices of the twin's own.
    /// Instances that are enabled it tells of in any case.
    fn end_others(&mut self, there: &BTreeMap<String, entity::Unit>) {
        let spec = self.spec;
        if !self.may_remove(Kind::UNIT) {
            return;
        }
        let is_instance = |unit: &entity::Unit| {
            let path = unit.fragment_path.as_deref().unwrap_or_default();
            unit.id.contains('@')
                && active(Some(unit)) == Some(true)
                && PLACED.iter().any(|place| path.starts_with(place))
                && path.parse().is_ok_and(|path: FilePath| spec.files.contains_key(&path))
        };
        let why = "the host does not have this unit";
        for unit in there.values() {
            let Ok(name) = unit.id.parse::<UnitName>() else { continue };
            let (subject, _) = unit.to_item();
            let is_ours = RUN.contains(&name.kind())
                && !Own::keeps_unit(name.as_str())
                && !unit.id.starts_with(crate::spec::PREFIX)
                && !self.stays(&subject);
            if !is_ours || self.spec.units.contains_key(&name) {
                continue;
            }
            // Where its file goes, that is seen to already.
            if (is_orphan(unit) || is_instance(unit)) && !self.stops.contains_key(&name) {
                let stop = self.add(&subject, Action::Stop(name.clone()), why);
                self.stops.insert(name.clone(), stop);
            }
            let goes = unit.fragment_path.as_deref().and_then(|path| path.parse().ok());
            let goes = goes.is_some_and(|path: FilePath| self.files.contains_key(&path));
            if unit.id.contains('@') && unit.enablement.as_deref() == Some("enabled") && !goes {
                self.add(&subject, Action::Disable(name), why);
            }
        }
    }

    fn tell_kept(&mut self, unit: &Unit, twin: Option<&entity::Unit>) {
        let enablement = twin.and_then(Enablement::of);
        if differs(unit.active, active(twin)) || differs(unit.enablement, enablement) {
            let what = "a twin is reached by it or needs it, and has its own";
            self.gap(
                &unit.subject,
                Cause::Own,
                what,
                "change it in the twin by hand where it matters",
            );
        }
    }

    fn enable(&mut self, name: &UnitName, unit: &Unit, twin: Option<&entity::Unit>) {
        let there = twin.and_then(Enablement::of);
        let mut unmasked = None;
        if there == Some(Enablement::Masked) && unit.enablement != there {
            let why = "the host's is not masked";
            let at = self.add(&unit.subject, Action::Unmask(name.clone()), why);
            self.await_files(at, unit);
            self.unmasked.insert(name.clone(), at);
            unmasked = Some(at);
        }
        let Some(wanted) = unit.enablement.filter(|wanted| there != Some(*wanted)) else { return };
        if unmasked.is_some() && wanted == Enablement::Disabled || !self.will_be_there(unit, twin) {
            return;
        }
        // What is not listed there, as an instance that nothing has loaded, is not enabled.
        if wanted == Enablement::Disabled && twin.is_none() && !self.comes(unit) {
            return;
        }
        let subject = &unit.subject;
        let is_lost = twin.is_some_and(|twin| twin.load_state == "not-found");
        if is_lost && wanted != Enablement::Masked && !self.comes(unit) {
            let what = "its file was removed, and nothing can enable or disable it like that";
            self.gap(subject, Cause::Transient, what, "put its file back on the host");
            return;
        }
        let (action, why) = match wanted {
            Enablement::Enabled => (Action::Enable(name.clone()), "the host's is enabled"),
            Enablement::Disabled => (Action::Disable(name.clone()), "the host's is disabled"),
            Enablement::Masked => (Action::Mask(name.clone()), "the host's is masked"),
        };
        let at = self.add(subject, action, why);
        self.need(at, unmasked);
        if wanted == Enablement::Masked {
            // Where the mask is to be, nothing else may lie.
            let in_the_way = format!("/etc/systemd/system/{name}").parse().ok();
            let removed = in_the_way.and_then(|path: FilePath| self.files.get(&path).copied());
            self.need(at, removed);
            self.masked.insert(name.clone(), at);
        } else {
            self.await_files(at, unit);
            self.unmasked.entry(name.clone()).or_insert(at);
        }
    }

    /// Whether its file is brought to the twin, or what it is of.
    fn comes(&self, unit: &Unit) -> bool {
        let (files, wanted) = (&self.files, &self.spec.files);
        let path = unit.fragment.as_ref();
        path.is_some_and(|path| files.contains_key(path) && wanted.contains_key(path))
            || unit.package.as_ref().is_some_and(|package| self.packages.contains_key(package))
    }

    /// Whether there is something to enable or start in the twin, or will be.
    fn will_be_there(&mut self, unit: &Unit, twin: Option<&entity::Unit>) -> bool {
        let comes = self.comes(unit);
        let masks = unit.enablement == Some(Enablement::Masked);
        if twin.is_some() || comes || masks || unit.active != Some(true) && unit.fragment.is_none()
        {
            return true;
        }
        // Static ones of packages are listed only when something has loaded them.
        let is_installed = unit
            .fragment
            .as_ref()
            .is_some_and(|path| self.twin.get(&super::files::subject(path)).is_some())
            || unit.package.as_ref().is_some_and(|package| {
                self.twin.get(&Subject::escaped(Kind::PACKAGE, package.as_str())).is_some()
            });
        if !is_installed
            && (unit.active == Some(true) || unit.enablement == Some(Enablement::Enabled))
        {
            let lacking = unit.package.as_ref().and_then(|package| self.lacking.get(package));
            let (cause, what, remedy) = lacking.map_or(
                (
                    Cause::Unpackaged,
                    "its file is of no package and can't be brought into the twin",
                    "put it where it is tracked, or make a package of it",
                ),
                |lacking| lacking.of_part(),
            );
            self.gap(&unit.subject, cause, what, remedy);
        }
        is_installed
    }

    fn run(&mut self, name: &UnitName, unit: &Unit, twin: Option<&entity::Unit>) {
        let Some(wanted) = unit.active else { return };
        let there = active(twin);
        let comes =
            unit.package.as_ref().is_some_and(|package| self.packages.contains_key(package));
        if wanted && there != Some(true) && self.tell_unable(name, unit) {
            return;
        }
        match (wanted, there) {
            // Nothing masked can be started, not even once more.
            (true, _) if unit.enablement == Some(Enablement::Masked) => {
                if there != Some(true) {
                    let what = "it was masked while it ran, and nothing can start it like that";
                    self.gap(&unit.subject, Cause::Transient, what, "unmask it on the host");
                }
            }
            (true, Some(true)) => self.refresh(name, unit, twin),
            (true, _) if unit.is_orphan => {
                let what = "its file was removed while it ran, and nothing can start it like that";
                self.gap(&unit.subject, Cause::Transient, what, "put its file back on the host");
            }
            (true, None) if is_on_its_way(twin) => {
                let what = "it is still on its way there in the twin";
                self.gap(&unit.subject, Cause::Unseen, what, "look again: twin verify");
            }
            // systemd would let a start wait for when it tries again by itself.
            (true, None) if is_in_loop(twin) => {
                let why = "the host's runs, and the twin's fails again and again";
                self.bring_up(name, unit, (Action::Restart(name.clone()), why));
            }
            (true, _) => {
                if !self.will_be_there(unit, twin) {
                    return;
                }
                self.bring_up(name, unit, (Action::Start(name.clone()), "the host's runs"));
            }
            (false, None) if is_in_loop(twin) => {
                self.stop(name, unit, "the host's does not run");
            }
            (false, Some(true)) => self.stop(name, unit, "the host's does not run"),
            // Packages start what they bring.
            (false, _) if comes && twin.is_none() && unit.enablement.is_some() => {
                self.stop(name, unit, "its package starts it, and the host's does not run");
                let package = unit.package.as_ref().and_then(|p| self.packages.get(p)).copied();
                if let Some(stop) = self.stops.get(name).copied() {
                    self.need(stop, package);
                }
            }
            (false, _) => {}
        }
    }

    /// Tells of one that can't run in the twin, whatever is done.
    fn tell_unable(&mut self, name: &UnitName, unit: &Unit) -> bool {
        if unit.enablement == Some(Enablement::Masked) || unit.is_orphan {
            return false;
        }
        if let Some(program) = self.lacking_program(unit) {
            let what = format!("what it runs can't be brought into the twin: {program}");
            let remedy = "make a package of it, or put it into the twin by hand";
            self.gap(&unit.subject, Cause::Unpackaged, &what, remedy);
            return true;
        }
        // What is new there may be what it asks for.
        let is_as_before = self.files.is_empty() && self.packages.is_empty();
        if is_as_before && self.own.lacks_conditions_of(name) {
            let what = "the twin is no machine on which it starts: its conditions are not met";
            let remedy = "systemctl status in the twin tells which; it is tried again";
            self.gap(&unit.subject, Cause::Hardware, what, remedy);
            return true;
        }
        false
    }

    /// A program of a unit that does not come, and that nobody put into the twin.
    fn lacking_program(&self, unit: &Unit) -> Option<FilePath> {
        let is_lacking = |path: &&FilePath| {
            let file = self.spec.files.get(*path);
            let stays_away = file.is_some_and(|file| {
                file.role == "program" && matches!(file.body, Body::Withheld { .. })
            });
            stays_away && self.twin.get(&super::files::subject(path)).is_none()
        };
        unit.programs.iter().find(is_lacking).cloned()
    }

    fn bring_up(&mut self, name: &UnitName, unit: &Unit, (action, why): (Action, &str)) {
        let at = self.add(&unit.subject, action, why);
        self.await_files(at, unit);
        self.await_configuration(at, name, unit);
        let unmasked = self.unmasked.get(name).copied();
        self.need(at, unmasked);
        self.starts.insert(name.clone(), at);
    }

    fn stop(&mut self, name: &UnitName, unit: &Unit, why: &str) {
        let at = self.add(&unit.subject, Action::Stop(name.clone()), why);
        self.stops.insert(name.clone(), at);
        // A masked one could still be stopped, but what triggers it could start it before.
        let masked = self.masked.get(name).copied();
        self.follow(at, masked);
    }

    /// What runs on both sides: whether the twin's reads what the host's does.
    fn refresh(&mut self, name: &UnitName, unit: &Unit, twin: Option<&entity::Unit>) {
        let since = twin.and_then(|twin| twin.since);
        let changed_at = twin.and_then(|twin| twin.changed_at).max(since);
        let configuration = configuration(self.spec, name, unit);
        let own = unit
            .files
            .iter()
            .any(|path| self.is_stale(path, since) && is_fresh(self.spec, path, unit.since));
        if own {
            let why = "its unit changed, and the host's was started since";
            self.bring_up(name, unit, (Action::Restart(name.clone()), why));
            return;
        }
        let host = if unit.can_reload { unit.changed_at.max(unit.since) } else { unit.since };
        let reads = if unit.can_reload { changed_at } else { since };
        let stale = configuration.iter().any(|path| {
            let is_written = self.files.contains_key(path);
            self.is_stale(path, reads)
                && (is_fresh(self.spec, path, host) || is_written && unit.can_reload)
        });
        let is_rid = unit.can_reload && self.removed(name).next().is_some();
        if !stale && !is_rid {
            return;
        }
        let (action, why) = match unit.can_reload {
            true => (Action::Reload(name.clone()), "its configuration changed"),
            false => (
                Action::Restart(name.clone()),
                "its configuration changed, and the host's was started since",
            ),
        };
        self.bring_up(name, unit, (action, why));
    }

    /// Whether the twin's unit was started before this file became what it is, or will be.
    fn is_stale(&self, path: &FilePath, since: Option<Time>) -> bool {
        if self.files.contains_key(path) {
            return true;
        }
        let file = self.twin.entity::<entity::File>(path.as_str());
        let changed = file.and_then(|file| file.modified_at);
        changed.zip(since).is_some_and(|(changed, since)| changed > since)
    }

    fn await_files(&mut self, at: At, unit: &Unit) {
        for path in &unit.files {
            let file = self.files.get(path).copied();
            self.need(at, file);
        }
        let package = unit.package.as_ref().and_then(|package| self.packages.get(package)).copied();
        self.need(at, package);
        let user = unit.user.as_ref().and_then(|user| self.users.get(user)).copied();
        self.need(at, user);
        self.need(at, self.reload);
    }

    fn await_configuration(&mut self, at: At, name: &UnitName, unit: &Unit) {
        for path in configuration(self.spec, name, unit) {
            let file = self.files.get(&path).copied();
            self.need(at, file);
        }
        let removed: Vec<At> = self.removed(name).collect();
        for file in removed {
            self.need(at, Some(file));
        }
    }

    /// The files of a service's own directory that go.
    fn removed(&self, name: &UnitName) -> impl Iterator<Item = At> {
        let directory = own_directory(name);
        let of_it = move |path: &FilePath| {
            directory.as_ref().is_some_and(|directory| path.as_str().starts_with(directory))
        };
        let files = self.files.iter().filter(|(path, _)| !self.spec.files.contains_key(*path));
        files.filter(move |(path, _)| of_it(path)).map(|(_, at)| *at)
    }

    /// What needs another comes up after it and goes down before it. What another starts along
    /// goes down after that.
    fn order_units(&mut self) {
        let spec = self.spec;
        let stops: Vec<At> = self.stops.values().copied().collect();
        for user in self.leaving.clone() {
            for stop in &stops {
                self.follow(user, Some(*stop));
            }
        }
        for (name, unit) in &spec.units {
            if let Some(at) = self.starts.get(name).copied() {
                for other in &unit.requires {
                    let other = self.starts.get(other).copied();
                    self.need(at, other);
                }
                for other in &unit.after {
                    let other = self.starts.get(other).copied();
                    self.follow(at, other);
                }
                // Before, it would come up again.
                for other in &unit.wants {
                    // The files of what the host does not have go, and nothing brings it up.
                    if let Some(stop) = self.stops.get(other).copied()
                        && spec.units.contains_key(other)
                    {
                        self.follow(stop, Some(at));
                    }
                }
            }
            if let Some(at) = self.stops.get(name).copied() {
                for other in &unit.after {
                    let stop = self.stops.get(other).copied();
                    if let Some(stop) = stop {
                        self.follow(stop, Some(at));
                    }
                }
            }
        }
    }
}

/// Where the configuration of a service is by its name.
fn own_directory(name: &UnitName) -> Option<String> {
    (name.kind() == "service").then(|| format!("/etc/{}/", name.stem()))
}

/// The configuration of a unit: of its package, or in a directory of its name.
fn configuration(spec: &Spec, name: &UnitName, unit: &Unit) -> BTreeSet<FilePath> {
    let Some(directory) = own_directory(name) else { return BTreeSet::new() };
    let is_its = |path: &FilePath| path.as_str().starts_with(&directory);
    let files = spec.files.iter().filter(|(path, file)| {
        let is_packages = unit.package.is_some() && file.package == unit.package;
        let is_named = unit.programs.contains(*path);
        match file.role.as_str() {
            "config" | "environment" => is_named || is_packages || is_its(path),
            _ => is_named,
        }
    });
    files
        .map(|(path, _)| path.clone())
        .filter(|path| {
            !path.as_str().starts_with("/etc/logrotate.d/")
                && !path.as_str().starts_with("/etc/init.d/")
        })
        .collect()
}

/// Whether the host's unit was started after the file became what it is.
fn is_fresh(spec: &Spec, path: &FilePath, since: Option<Time>) -> bool {
    // What is not brought into the twin is nothing that the host's reads newly.
    let Some(file) = spec.files.get(path) else { return false };
    match (file.modified_at, since) {
        (Some(changed), Some(since)) => since >= changed,
        // An older agent does not tell; then what is written counts.
        _ => true,
    }
}

fn active(twin: Option<&entity::Unit>) -> Option<bool> {
    match twin?.active_state.as_str() {
        "active" | "reloading" | "refreshing" => Some(true),
        "activating" | "deactivating" => None,
        _ => Some(false),
    }
}

/// Whether systemd waits to start it again after it failed.
fn is_in_loop(twin: Option<&entity::Unit>) -> bool {
    twin.is_some_and(|unit| {
        unit.active_state == "activating" && unit.sub_state.starts_with("auto-restart")
    })
}

/// Whether only another look tells what it comes to.
fn is_on_its_way(twin: Option<&entity::Unit>) -> bool {
    twin.is_some() && active(twin).is_none() && !is_in_loop(twin)
}

/// The first unit that runs on the host, and whose way to that is not over in the twin.
#[must_use]
pub fn on_its_way<'s>(spec: &'s Spec, twin: &Facts) -> Option<&'s UnitName> {
    let mut wanted = spec.units.iter().filter(|(name, unit)| {
        unit.active == Some(true)
            && unit.enablement != Some(Enablement::Masked)
            && !Own::keeps_unit(name.as_str())
    });
    wanted
        .find(|(name, _)| is_on_its_way(twin.entity::<entity::Unit>(name.as_str()).as_ref()))
        .map(|(name, _)| name)
}

fn differs<T: PartialEq + Copy>(wanted: Option<T>, there: Option<T>) -> bool {
    wanted.is_some_and(|wanted| there != Some(wanted))
}
