//! Which files are tracked: those of units, the configuration of what runs, and chosen ones.
//!
//! # Invariants
//! - Bounded: [`FILES_MAX`] files, [`DEPTH_MAX`] directories deep; what is left out is counted.
//! - No path with `..` in it, and none below `/proc`, `/sys`, `/dev` or `/run`.
//! - Symbolic links to directories are not descended into.

use crate::Root;
use crate::packages::Packages;
use crate::watch::Wanted;
use model::entity::Unit;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::path::PathBuf;

/// Files tracked at most.
pub const FILES_MAX: usize = 4096;
/// Of one directory tree or pattern.
const TREE_MAX: usize = 1000;
const DEPTH_MAX: usize = 8;
/// Files that commands name, of which it is asked whether a package brings them.
const PROGRAMS_MAX: usize = 2000;

/// Why a file is tracked. The first reason there is counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Unit,
    DropIn,
    /// What a unit names as `EnvironmentFile=`.
    Environment,
    Config,
    /// What a unit runs, and no package brings.
    Program,
    Chosen,
}

impl Role {
    /// The reverse of [`Role::as_str`].
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let files = [Self::Unit, Self::DropIn, Self::Environment, Self::Config];
        let mut roles = files.into_iter().chain([Self::Program, Self::Chosen]);
        roles.find(|role| role.as_str() == name)
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::DropIn => "dropin",
            Self::Environment => "environment",
            Self::Config => "config",
            Self::Program => "program",
            Self::Chosen => "chosen",
        }
    }
}

/// Paths somebody chose: a file, a directory with all below it, or a pattern with `*` and `?`
/// in some of its components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("{0:?} is not an absolute path")]
    Relative(String),
    #[error("{0:?} must not contain `..`")]
    Parent(String),
    #[error("{0:?} must not contain `**`: name a directory to track all below it")]
    Recursive(String),
    #[error("a path has at most 1024 bytes and no control characters")]
    Form,
    #[error("{0:?} is the whole machine, or a file system of the kernel's")]
    TooWide(String),
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > 1024 || text.chars().any(char::is_control) {
            return Err(PatternError::Form);
        }
        let relative = text.strip_prefix('/');
        let relative = relative.ok_or_else(|| PatternError::Relative(text.to_owned()))?;
        let components = relative.split('/').filter(|part| !part.is_empty() && *part != ".");
        let components: Vec<String> = components.map(str::to_owned).collect();
        if components.iter().any(|part| part == "..") {
            return Err(PatternError::Parent(text.to_owned()));
        }
        if text.contains("**") {
            return Err(PatternError::Recursive(text.to_owned()));
        }
        match components.first() {
            None => Err(PatternError::TooWide(text.to_owned())),
            Some(first) if is_kernels(first) || first.contains(['*', '?']) => {
                Err(PatternError::TooWide(text.to_owned()))
            }
            Some(_) => Ok(Self(components)),
        }
    }
}

fn is_kernels(first: &str) -> bool {
    ["proc", "sys", "dev", "run"].contains(&first)
}

/// Why a file is tracked, and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tracked {
    pub(super) role: Role,
    pub(super) package: Option<String>,
}

/// The files that are tracked, by absolute path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrackedSet {
    files: BTreeMap<String, Tracked>,
    /// Directories in which a new file would be tracked, too.
    directories: BTreeSet<String>,
    /// Those of which all that is below is tracked, and why.
    whole: BTreeMap<String, Role>,
    left_out: usize,
}

impl TrackedSet {
    /// The files of these units, the configuration of the packages whose services run or are to,
    /// and what was chosen. Lists directories, and asks `packages` for owners.
    #[must_use]
    pub fn build<'u>(
        root: &Root,
        units: impl IntoIterator<Item = &'u Unit>,
        packages: &mut Packages,
        chosen: &[Pattern],
    ) -> Self {
        let mut set = Self::default();
        let mut running = Vec::new();
        for unit in units {
            set.add_unit(root, unit);
            // One that failed is wanted, and its configuration may be why. One that is stopped
            // and enabled will run again.
            let is_wanted = !matches!(unit.active_state.as_str(), "inactive" | "")
                || unit.enablement.as_deref() == Some("enabled");
            if is_wanted && unit.id.ends_with(".service") {
                running.push(unit);
            }
        }
        set.add_configuration(root, &running, packages);
        set.add_programs(root, &running, packages);
        for pattern in chosen {
            set.expand(root, pattern, Role::Chosen);
        }
        let owners = packages.owners(set.files.keys().map(String::as_str));
        for (path, tracked) in &mut set.files {
            tracked.package = owners.get(path).cloned();
        }
        set
    }

    /// Goes on tracking what was tracked before, for as long as it is there: that a service
    /// stopped does not mean that its configuration was deleted.
    pub fn keep<'p>(
        &mut self,
        root: &Root,
        known: impl IntoIterator<Item = (&'p str, Role)>,
        packages: &mut Packages,
    ) {
        let is_there = |path: &str| std::fs::symlink_metadata(root.path(path)).is_ok();
        let (environments, others): (Vec<_>, Vec<_>) =
            known.into_iter().partition(|(_, role)| *role == Role::Environment);
        // Of a unit that is not loaded any more: what is in it is no less secret for that.
        for (path, role) in &environments {
            if let Some(tracked) = self.files.get_mut(*path) {
                tracked.role = tracked.role.min(*role);
            }
        }
        let kept: Vec<(&str, Role)> = environments
            .into_iter()
            .chain(others)
            .filter(|(path, _)| !self.files.contains_key(*path) && is_there(path))
            .collect();
        let owners = packages.owners(kept.iter().map(|(path, _)| *path));
        for (path, role) in kept {
            self.add(path, role);
            if let Some(tracked) = self.files.get_mut(path) {
                tracked.package = owners.get(path).cloned();
            }
        }
    }

    /// The same of directories of which all was tracked, with what came to be there.
    pub fn keep_trees(&mut self, root: &Root, before: &Self, packages: &mut Packages) {
        let there: BTreeSet<String> = self.files.keys().cloned().collect();
        let trees = before.whole.iter().filter(|(path, _)| is_topmost(path, &before.whole));
        for (path, role) in trees {
            if !self.whole.contains_key(path) {
                self.add_tree(root, path, *role);
            }
        }
        let new: Vec<String> =
            self.files.keys().filter(|path| !there.contains(*path)).cloned().collect();
        let owners = packages.owners(new.iter().map(String::as_str));
        for path in &new {
            if let Some(tracked) = self.files.get_mut(path) {
                tracked.package = owners.get(path).cloned();
            }
        }
    }

    /// The paths that are tracked, and why.
    pub fn paths(&self) -> impl Iterator<Item = (&str, Role)> {
        self.files.iter().map(|(path, tracked)| (path.as_str(), tracked.role))
    }

    /// The directories of which all that is below is tracked; not those below another.
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        self.whole.keys().filter(|path| is_topmost(path, &self.whole)).map(String::as_str)
    }

    /// How many files are tracked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// How many files were found beyond the limits, at least.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The directories whose changes mean that a tracked file may have changed.
    #[must_use]
    pub fn watched(&self, root: &Root) -> Wanted {
        let mut wanted = Wanted::new();
        for path in self.files.keys() {
            let path = root.path(path);
            if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
                wanted.entry(directory.to_owned()).or_default().insert(name.to_owned());
            }
        }
        // No name means every name.
        wanted.extend(self.directories.iter().map(|path| (root.path(path), BTreeSet::new())));
        wanted
    }

    /// Where its files are.
    #[must_use]
    pub fn places(&self, root: &Root) -> BTreeSet<PathBuf> {
        self.files.keys().map(|path| root.path(path)).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Tracked)> {
        self.files.iter().map(|(path, tracked)| (path.as_str(), tracked))
    }

    /// Whether it is tracked now.
    fn add(&mut self, path: &str, role: Role) -> bool {
        let mut parts = path.split('/').skip(1);
        let legal = path.starts_with('/')
            && !path.chars().any(char::is_control)
            && !parts.clone().any(|part| part == "..")
            && parts.next().is_some_and(|first| !is_kernels(first));
        if !legal {
            return false;
        }
        if let Some(tracked) = self.files.get_mut(path) {
            tracked.role = tracked.role.min(role);
        } else if self.files.len() < FILES_MAX {
            self.files.insert(path.to_owned(), Tracked { role, package: None });
        } else {
            self.left_out += 1;
            return false;
        }
        true
    }

    fn add_unit(&mut self, root: &Root, unit: &Unit) {
        let loaded = unit.load_state != "not-loaded";
        if let Some(path) = &unit.fragment_path {
            // The files of packages that nothing has loaded are known by their packages.
            if loaded || !(path.starts_with("/lib/") || path.starts_with("/usr/lib/")) {
                self.add(path, Role::Unit);
            }
        }
        for path in &unit.drop_ins {
            self.add(path, Role::DropIn);
        }
        for path in &unit.environment_files {
            let path = path.strip_prefix('-').unwrap_or(path);
            if let Ok(pattern) = path.parse() {
                self.expand(root, &pattern, Role::Environment);
            }
        }
    }

    fn add_configuration(&mut self, root: &Root, running: &[&Unit], packages: &mut Packages) {
        let fragments = running.iter().filter_map(|unit| unit.fragment_path.as_deref());
        let owners = packages.owners(fragments);
        let mut directories = BTreeSet::new();
        for package in owners.values().collect::<BTreeSet<_>>() {
            for path in packages.configuration(package) {
                self.add(path, Role::Config);
            }
            directories.extend(config_names(package).map(str::to_owned));
        }
        let services = running.iter().filter_map(|unit| unit.id.strip_suffix(".service"));
        let services = services.map(|name| name.split('@').next().unwrap_or(name));
        directories.extend(services.filter(|name| !name.contains('/')).map(str::to_owned));
        // `/etc/default`, `/etc/ssl` and the like belong to no service.
        for shared in ["default", "systemd", "ssl", "init", "opt", "security"] {
            directories.remove(shared);
        }
        // `/etc/cron.d` is cron's.
        let (there, _left_out) = names(&root.path("/etc"));
        let is_its = |name: &String| {
            let stem = name.split_once('.').map(|(stem, _)| stem);
            stem.is_some_and(|stem| directories.contains(stem))
        };
        let parts: Vec<String> = there.into_iter().filter(is_its).collect();
        for name in directories.iter().chain(&parts) {
            self.add_tree(root, &format!("/etc/{name}"), Role::Config);
        }
    }

    /// Adds what these run and no package brings: programs, and scripts that are their arguments.
    fn add_programs(&mut self, root: &Root, running: &[&Unit], packages: &mut Packages) {
        let is_file = |path: &str| {
            std::fs::symlink_metadata(root.path(path)).is_ok_and(|metadata| metadata.is_file())
        };
        let commands = running.iter().flat_map(|unit| &unit.exec_start).flatten();
        let paths: BTreeSet<&str> = commands
            .map(String::as_str)
            .filter(|word| word.starts_with('/') && is_file(word))
            .take(PROGRAMS_MAX)
            .collect();
        for path in packages.without_owner(paths) {
            self.add(path, Role::Program);
        }
    }

    fn add_tree(&mut self, root: &Root, directory: &str, role: Role) {
        let mut count = 0;
        self.walk(root, directory, role, (0, &mut count));
    }

    /// Adds what is below a directory, and the directory itself to what is watched. Whether that
    /// is all there is.
    fn walk(
        &mut self,
        root: &Root,
        directory: &str,
        role: Role,
        (depth, count): (usize, &mut usize),
    ) -> bool {
        let is_directory =
            std::fs::symlink_metadata(root.path(directory)).is_ok_and(|metadata| metadata.is_dir());
        if !is_directory {
            return false;
        }
        if depth > DEPTH_MAX {
            self.left_out += 1;
            return false;
        }
        self.directories.insert(directory.to_owned());
        let (names, left_out) = names(&root.path(directory));
        self.left_out += left_out;
        let mut is_whole = left_out == 0;
        for name in names {
            let path = format!("{directory}/{name}");
            if *count >= TREE_MAX {
                self.left_out += 1;
                return false;
            }
            let kind = std::fs::symlink_metadata(root.path(&path));
            is_whole &= if kind.is_ok_and(|metadata| metadata.is_dir()) {
                self.walk(root, &path, role, (depth + 1, count))
            } else {
                *count += 1;
                self.add(&path, role)
            };
        }
        if is_whole {
            self.whole.insert(directory.to_owned(), role);
        }
        is_whole
    }

    /// Adds the files that a pattern stands for now.
    fn expand(&mut self, root: &Root, pattern: &Pattern, role: Role) {
        let mut paths = vec![String::new()];
        for component in &pattern.0 {
            if !component.contains(['*', '?']) {
                paths.iter_mut().for_each(|path| {
                    path.push('/');
                    path.push_str(component);
                });
                continue;
            }
            let mut next = Vec::new();
            for path in &paths {
                self.directories.insert(path.clone());
                let (found, left_out) = names(&root.path(path));
                self.left_out += left_out;
                let found = found.into_iter().filter(|name| matches(component, name));
                next.extend(found.map(|name| format!("{path}/{name}")));
            }
            self.left_out += next.len().saturating_sub(TREE_MAX);
            next.truncate(TREE_MAX);
            paths = next;
        }
        for path in paths {
            match std::fs::symlink_metadata(root.path(&path)) {
                Ok(metadata) if metadata.is_dir() => self.add_tree(root, &path, role),
                // What is missing is tracked, too: it may come.
                _ => drop(self.add(&path, role)),
            }
        }
    }
}

/// Whether none of these directories is above this one.
fn is_topmost<T>(path: &str, all: &BTreeMap<String, T>) -> bool {
    let above = path.match_indices('/').filter_map(|(at, _)| path.get(..at));
    !above.into_iter().any(|above| all.contains_key(above))
}

/// The names under which a package may keep its configuration.
fn config_names(package: &str) -> impl Iterator<Item = &str> {
    let package = package.split(':').next().unwrap_or(package);
    let endings = ["-common", "-server", "-daemon", "-core", "-base", "-data", "-bin"];
    let stem = endings.iter().find_map(|ending| package.strip_suffix(ending));
    std::iter::once(package).chain(stem)
}

/// The printable names in a directory, sorted, and how many more there are.
fn names(directory: &Path) -> (Vec<String>, usize) {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return (Vec::new(), 0),
        // What is in there is not known; that is at least one.
        Err(_unreadable) => return (Vec::new(), 1),
    };
    let (mut names, mut left_out) = (Vec::new(), 0);
    for entry in entries.flatten() {
        match entry.file_name().into_string() {
            Ok(name) if names.len() < 10 * TREE_MAX && !name.chars().any(char::is_control) => {
                names.push(name);
            }
            _ => left_out += 1,
        }
    }
    names.sort();
    (names, left_out)
}

/// Whether a name is what a pattern with `*` and `?` stands for. Hidden files must be meant.
fn matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || Some(c) == name.get(n) => {
                p += 1;
                n += 1;
            }
            // Let the last star take one character more.
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for good in ["/etc/app.conf", "/etc/app/", "/srv/*/conf.d/?.yaml", "//etc//x"] {
            assert!(good.parse::<Pattern>().is_ok(), "{good}");
        }
        for bad in ["etc", "", "/", "/etc/../shadow", "/a/**/b", "/proc/1/environ", "/*", "/a\nb"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".conf", false),
            (".*", ".conf", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xaybz", true),
            ("*a*b*", "xbya", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn anything_goes_in(pattern in "[a*?.]{0,12}", name in "[ab.]{0,12}", path: String) {
            matches(&pattern, &name);
            prop_assert!(name.starts_with('.') || matches("*", &name));
            let mut set = TrackedSet::default();
            set.add(&path, Role::Config);
            path.parse::<Pattern>().ok();
        }
    }
}
