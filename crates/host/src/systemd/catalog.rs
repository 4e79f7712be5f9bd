//! The files that units are made of, without what is in them. Two catalogues tell which units may
//! have become others when systemd read its files again, so that only those are asked for.

use crate::Root;
use crate::text::printable;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Entries looked at; a machine has some thousands.
const MOST: usize = 100_000;
/// Bytes of a generated file that count.
const MADE_MAX: u64 = 64 << 10;
/// Directories of a unit, beside its file.
const OF_A_UNIT: [&str; 4] = [".d", ".wants", ".requires", ".upholds"];

/// What lies where systemd looks for units.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog(BTreeMap<PathBuf, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Link(PathBuf),
    File {
        device: u64,
        inode: u64,
        size: u64,
        changed: (i64, i64),
    },
    /// Generators write theirs anew each time: what is in them counts.
    Made(u64),
}

/// Parts of units beside their files, of units that systemd has not loaded: it tells those of
/// loaded ones itself. Those of packages are known by their packages.
#[derive(Debug, Default)]
pub(super) struct DropIns(BTreeMap<String, BTreeMap<String, String>>);

/// Names of which files came, went or changed.
#[derive(Debug, Default)]
pub(super) struct Touched(BTreeSet<String>);

impl Catalog {
    /// Reads these directories; those that are not there hold nothing.
    pub(super) fn read(dirs: &[PathBuf]) -> Self {
        let mut catalog = Self::default();
        // Two paths may lead to one directory.
        let mut seen = BTreeSet::new();
        for dir in dirs {
            let Ok(found) = fs::metadata(dir) else { continue };
            if !seen.insert((found.dev(), found.ino())) {
                continue;
            }
            let is_made = dir.components().any(|part| {
                part.as_os_str().to_str().is_some_and(|part| part.starts_with("generator"))
            });
            for path in entries(dir) {
                if is_of_a_unit(&path) {
                    for path in entries(&path) {
                        catalog.add(path, is_made);
                    }
                } else {
                    catalog.add(path, is_made);
                }
            }
        }
        catalog
    }

    fn add(&mut self, path: PathBuf, is_made: bool) {
        let Ok(found) = fs::symlink_metadata(&path) else { return };
        let entry = if found.is_symlink() {
            Entry::Link(fs::read_link(&path).unwrap_or_default())
        } else if !found.is_file() {
            return;
        } else if is_made {
            Entry::Made(content(&path))
        } else {
            Entry::File {
                device: found.dev(),
                inode: found.ino(),
                size: found.size(),
                changed: (found.ctime(), found.ctime_nsec()),
            }
        };
        if self.0.len() < MOST {
            self.0.insert(path, entry);
        }
    }

    /// What differs in a later one.
    pub(super) fn touched(&self, later: &Self) -> Touched {
        let mut touched = Touched::default();
        for (path, entry) in &self.0 {
            let now = later.0.get(path);
            if now != Some(entry) {
                touched.note(path, [Some(entry), now]);
            }
        }
        for (path, entry) in &later.0 {
            if !self.0.contains_key(path) {
                touched.note(path, [Some(entry), None]);
            }
        }
        touched
    }
}

impl DropIns {
    /// Reads these directories, of which an earlier one's files count before a later one's.
    pub(super) fn read(root: &Root, dirs: &[String]) -> Self {
        let mut found = Self::default();
        let is_packages = |dir: &&String| dir.starts_with("/lib/") || dir.starts_with("/usr/lib/");
        for dir in dirs.iter().filter(|dir| !is_packages(dir)) {
            for place in entries(&root.path(dir)) {
                let Some(unit) = name(&place).and_then(|name| name.strip_suffix(".d")) else {
                    continue;
                };
                let parts = entries(&place);
                let parts = parts.filter_map(|part| name(&part).map(str::to_owned));
                for part in parts.filter(|part| part.ends_with(".conf")) {
                    let path = format!("{dir}/{unit}.d/{part}");
                    let of_unit = found.0.entry(unit.to_owned()).or_default();
                    of_unit.entry(part).or_insert(path);
                }
            }
        }
        found
    }

    /// Those of one unit alone, in the order in which systemd reads them.
    pub(super) fn of(&self, unit: &str) -> Vec<String> {
        let parts = self.0.get(unit).into_iter().flat_map(BTreeMap::values);
        parts.map(|path| printable(path.as_bytes())).collect()
    }
}

impl Touched {
    fn note(&mut self, path: &Path, entries: [Option<&Entry>; 2]) {
        let dir = path.parent().filter(|dir| is_of_a_unit(dir));
        // In `x.d` lie parts of x itself; in `x.wants` the names of others.
        if let Some((unit, kind)) = dir.and_then(name).and_then(|name| name.rsplit_once('.')) {
            self.0.insert(unit.to_owned());
            if kind == "d" {
                return;
            }
        }
        self.0.extend(name(path).map(str::to_owned));
        for entry in entries.into_iter().flatten() {
            if let Entry::Link(target) = entry {
                self.0.extend(name(target).map(str::to_owned));
            }
        }
    }

    /// Whether something of this unit was touched: its own files, those of its template, of all
    /// units whose names begin like its own, or of all of its type.
    pub(super) fn holds(&self, unit: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let has = |name: &str| self.0.contains(name);
        let Some((stem, kind)) = unit.rsplit_once('.') else { return has(unit) };
        let of_template = || {
            let (template, _instance) = stem.split_once('@')?;
            Some(has(&format!("{template}@.{kind}")))
        };
        let mut begins = stem.match_indices('-').filter_map(|(at, _)| stem.get(..=at));
        has(unit)
            || has(kind)
            || of_template() == Some(true)
            || begins.any(|begin| has(&format!("{begin}.{kind}")))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.flatten().take(MOST).map(|entry| entry.path())
}

fn is_of_a_unit(path: &Path) -> bool {
    name(path).is_some_and(|name| OF_A_UNIT.iter().any(|end| name.ends_with(end)))
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn content(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MADE_MAX).read_to_end(&mut bytes));
    (read.is_ok(), bytes).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const UNITS: [&str; 6] = [
        "a.service",
        "b@1.service",
        "c-d-e.service",
        "multi-user.target",
        "x.timer",
        "my-mount.mount",
    ];

    fn check(change: impl FnOnce(&Path, &Path), expected: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        let (etc, made) = (root.path().join("etc"), root.path().join("generator"));
        let dirs = [etc.clone(), made.clone(), root.path().join("none")];
        fs::create_dir_all(etc.join("multi-user.target.wants")).unwrap();
        fs::create_dir_all(etc.join("a.service.d")).unwrap();
        fs::create_dir(&made).unwrap();
        for name in ["a.service", "b@.service", "x.timer", "a.service.d/old.conf"] {
            fs::write(etc.join(name), "[Unit]").unwrap();
        }
        fs::write(made.join("my-mount.mount"), "[Mount]").unwrap();
        let before = Catalog::read(&dirs);
        change(&etc, &made);
        let touched = before.touched(&Catalog::read(&dirs));
        let held: Vec<&str> = UNITS.into_iter().filter(|unit| touched.holds(unit)).collect();
        assert_eq!(held, expected, "{touched:?}");
    }

    #[test]
    fn parts_of_units_that_are_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path());
        for path in [
            "/etc/systemd/system/a.service.d/20-b.conf",
            "/etc/systemd/system/a.service.d/10-a.conf",
            "/etc/systemd/system/a.service.d/notes.txt",
            "/etc/systemd/system/a.service.wants/b.service",
            "/run/systemd/system/a.service.d/20-b.conf",
            "/run/systemd/system/a.service.d/30-c.conf",
            "/usr/lib/systemd/system/a.service.d/40-d.conf",
        ] {
            fs::create_dir_all(root.path(path).parent().unwrap()).unwrap();
            fs::write(root.path(path), "").unwrap();
        }
        let dirs = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"];
        let found = DropIns::read(&root, &dirs.map(str::to_owned));
        let expected = [
            "/etc/systemd/system/a.service.d/10-a.conf",
            "/etc/systemd/system/a.service.d/20-b.conf",
            "/run/systemd/system/a.service.d/30-c.conf",
        ];
        assert_eq!(found.of("a.service"), expected);
        assert!(found.of("b.service").is_empty());
    }

    #[test]
    fn what_changed_says_which_units() {
        check(|_, _| {}, &[]);
        check(|etc, _| fs::write(etc.join("a.service"), "[Service]").unwrap(), &["a.service"]);
        check(|etc, _| fs::remove_file(etc.join("x.timer")).unwrap(), &["x.timer"]);
        check(|etc, _| fs::write(etc.join("b@.service"), "x").unwrap(), &["b@1.service"]);
        check(|etc, _| fs::remove_file(etc.join("a.service.d/old.conf")).unwrap(), &["a.service"]);
        let with = |dir: &'static str| {
            move |etc: &Path, _: &Path| {
                fs::create_dir(etc.join(dir)).unwrap();
                fs::write(etc.join(dir).join("new.conf"), "").unwrap();
            }
        };
        check(with("service.d"), &["a.service", "b@1.service", "c-d-e.service"]);
        check(with("c-.service.d"), &["c-d-e.service"]);
        check(with("c-d-.service.d"), &["c-d-e.service"]);
        check(with("c-d.service.d"), &[]);
        let wanted =
            |etc: &Path, _: &Path| symlink("../a.service", etc.join("multi-user.target.wants/z"));
        check(|etc, made| wanted(etc, made).unwrap(), &["a.service", "multi-user.target"]);
        check(|etc, _| symlink("x.timer", etc.join("alias.timer")).unwrap(), &["x.timer"]);
        check(|_, made| fs::write(made.join("my-mount.mount"), "[Mount]").unwrap(), &[]);
        check(
            |_, made| fs::write(made.join("my-mount.mount"), "[m]").unwrap(),
            &["my-mount.mount"],
        );
    }
}
