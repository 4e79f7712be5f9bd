//! Installed packages, as dpkg, apk or rpm know them, and which package owns a file.
//!
//! Reads the databases of dpkg and apk itself; asks `rpm` for its own. Files of packages are
//! looked up only for paths somebody asks about.
//!
//! # Invariants
//! - [`Packages::refresh`] on an unchanged database costs a few `stat`s.
//! - A malformed entry is skipped; the rest of the database still counts.
//! - A database that can't be read leaves what was known, and is an error.

mod apk;
mod dpkg;
pub(crate) mod rpm;

use crate::Root;
use crate::bounded;
use crate::watch::Wanted;
use model::entity::Package;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes read of a database; a large desktop has 10 MB.
const DATABASE_MAX: u64 = 128 * 1024 * 1024;

/// Paths whose owners are remembered.
const OWNERS_MAX: usize = 20_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not run {program}")]
    Run {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed: {message}")]
    Failed { program: &'static str, message: String },
    #[error("{program} did not answer within {seconds} s")]
    Deadline { program: &'static str, seconds: u64 },
}

/// What a database says: its packages, and which files of each are configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Database {
    pub(crate) packages: BTreeMap<String, Package>,
    configuration: BTreeMap<String, Vec<String>>,
}

/// Which program keeps the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Dpkg,
    Apk,
    Rpm,
}

/// Which state of the database files was read: device, inode, size, times.
type Stamp = Vec<Option<(u64, u64, u64, i64, i64)>>;

/// The packages of one machine, and what was read of them last.
#[derive(Debug)]
pub struct Packages {
    root: Root,
    stamp: Option<Stamp>,
    database: Database,
    /// Paths that were asked about, and what owns them.
    owners: HashMap<String, Option<String>>,
}

impl Packages {
    /// Knows nothing before the first [`Packages::refresh`].
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self { root, stamp: None, database: Database::default(), owners: HashMap::new() }
    }

    /// Reads the database if it changed since; says whether it did. Blocks: for milliseconds,
    /// or as long as `rpm` takes, up to its deadline.
    ///
    /// # Errors
    /// When there is a database and it can't be read. The next call tries again.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        let stamp = self.stamp_now();
        if self.stamp.as_ref() == Some(&stamp) {
            return Ok(false);
        }
        let database = match self.format() {
            Some(Format::Dpkg) => dpkg::read(&self.root)?,
            Some(Format::Apk) => apk::read(&self.root)?,
            Some(Format::Rpm) => rpm::read(&self.root)?,
            None => Database::default(),
        };
        let changed = self.stamp.is_none() || database != self.database;
        self.database = database;
        self.stamp = Some(stamp);
        self.owners.clear();
        Ok(changed)
    }

    /// What was read last, in order of name.
    pub fn list(&self) -> impl Iterator<Item = &Package> {
        self.database.packages.values()
    }

    /// An installed package, by name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Package> {
        self.database.packages.get(name)
    }

    /// The configuration files of a package, as absolute paths.
    #[must_use]
    pub fn configuration(&self, package: &str) -> &[String] {
        self.database.configuration.get(package).map_or(&[], Vec::as_slice)
    }

    /// Looks up which packages own these paths. What owns nothing is left out. Answers are
    /// remembered until the database changes.
    pub fn owners<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p str>,
    ) -> BTreeMap<String, String> {
        let asked: BTreeSet<&str> = paths.into_iter().collect();
        let unknown: HashMap<&str, &str> = asked
            .iter()
            .filter(|path| !self.owners.contains_key(**path))
            .map(|path| (merged(path), *path))
            .collect();
        if !unknown.is_empty() {
            let found = self.look_up(&unknown);
            if self.owners.len() + unknown.len() > OWNERS_MAX {
                self.owners.clear();
            }
            for path in unknown.values() {
                self.owners.insert((*path).to_owned(), found.get(*path).cloned());
            }
        }
        let owner = |path: &str| Some((path.to_owned(), self.owners.get(path)?.clone()?));
        asked.into_iter().filter_map(owner).collect()
    }

    /// The package that owns a path.
    pub fn owner(&mut self, path: &str) -> Option<String> {
        self.owners([path]).remove(path)
    }

    /// The directory whose changes mean that packages may have changed.
    #[must_use]
    pub fn watched(&self) -> Wanted {
        let Some(format) = self.format() else { return Wanted::new() };
        let mut wanted = Wanted::new();
        for file in self.database_files(format) {
            if let (Some(directory), Some(name)) = (file.parent(), file.file_name()) {
                wanted.entry(directory.to_owned()).or_default().insert(name.to_owned());
            }
        }
        wanted
    }

    fn look_up(&self, asked: &HashMap<&str, &str>) -> HashMap<String, String> {
        match self.format() {
            Some(Format::Dpkg) => dpkg::owners(&self.root, asked),
            Some(Format::Apk) => apk::owners(&self.root, asked),
            Some(Format::Rpm) => rpm::owners(&self.root, asked),
            None => HashMap::new(),
        }
    }

    fn format(&self) -> Option<Format> {
        [Format::Dpkg, Format::Apk, Format::Rpm]
            .into_iter()
            .find(|&format| self.database_files(format).iter().any(|path| path.is_file()))
    }

    fn database_files(&self, format: Format) -> Vec<PathBuf> {
        let paths: &[&str] = match format {
            Format::Dpkg => &["/var/lib/dpkg/status"],
            Format::Apk => &["/lib/apk/db/installed"],
            Format::Rpm => &rpm::DATABASES,
        };
        paths.iter().map(|path| self.root.path(path)).collect()
    }

    fn stamp_now(&self) -> Stamp {
        let formats = [Format::Dpkg, Format::Apk, Format::Rpm];
        let paths = formats.into_iter().flat_map(|format| self.database_files(format));
        paths
            .map(|path| std::fs::metadata(path).ok())
            .map(|m| m.map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec())))
            .collect()
    }
}

fn read_database(path: &Path) -> Result<Vec<u8>, Error> {
    bounded::read(path, DATABASE_MAX)
        .map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// A path without the `/usr` that merging moved in front of it: databases have either form.
fn merged(path: &str) -> &str {
    match path.strip_prefix("/usr") {
        Some(rest) if ["/lib", "/bin/", "/sbin/"].iter().any(|start| rest.starts_with(start)) => {
            rest
        }
        _ => path,
    }
}

/// A text of the database, if it has one that can be printed and sorted.
fn word(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.trim_ascii();
    (!bytes.is_empty() && bytes.len() <= 512).then(|| crate::text::printable(bytes))
}

#[cfg(test)]
mod tests;
