//! Installed packages, as dpkg, apk or rpm know them, and which package owns a file.
//!
//! Reads the databases of dpkg and apk itself; asks `rpm` for its own. Files of packages are
//! looked up only for paths somebody asks about.
//!
//! # Invariants
//! - That a database is unchanged costs a few `stat`s.
//! - A malformed entry is skipped; the rest of the database still counts.
//! - A database that can't be read leaves what was known, and is an error.
//! - What takes long is apart from [`Packages`] ([`Reading`]), so that who shares them waits for no
//!   reading. Who asks for owners waits for `rpm` a few seconds at most. An `rpm` that is slower
//!   than that is asked by a [`Reading`]; the answers from before count until then.

mod apk;
mod dpkg;
pub(crate) mod rpm;

use crate::Root;
use crate::bounded;
use crate::watch::Wanted;
use model::entity::Package;
use rpm::Rpm;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes read of a database; a large desktop has 10 MB.
const DATABASE_MAX: u64 = 128 * 1024 * 1024;

/// Paths whose owners are remembered.
const OWNERS_MAX: usize = 20_000;

/// How long `rpm` is not asked for owners that it did not tell a [`Reading`]: at first, and at most.
const REST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15 * 60));

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
    /// The same from before the database changed.
    earlier_owners: HashMap<String, Option<String>>,
    /// Paths that were asked about when there was no answer; a [`Reading`] asks for them.
    unanswered: HashSet<String>,
    /// Why owners could not be told.
    owners_fault: Option<String>,
    /// Whether owners take longer than whoever asks for them waits.
    is_slow: bool,
    /// When a reading that told no owners began, and how long to rest from then on.
    rest: Option<(Instant, Duration)>,
    rpm: Rpm,
}

/// A database that is to be read, since it changed, or for owners that could not be told.
#[derive(Debug)]
pub struct Reading {
    root: Root,
    format: Option<Format>,
    /// Which state of it is new.
    stamp: Option<Stamp>,
    rpm: Rpm,
    /// Whose owners to tell on the way; only where it is slow to ask for them later.
    asked: HashSet<String>,
}

/// What a database says, and which state of it.
#[derive(Debug)]
pub struct Read {
    database: Option<(Database, Stamp)>,
    owners: Result<HashMap<String, Option<String>>, Error>,
    took: Duration,
}

impl Reading {
    /// Blocks: for milliseconds, or as long as `rpm` takes, up to its deadline.
    ///
    /// # Errors
    /// When there is a database that changed and it can't be read.
    pub fn read(self) -> Result<Read, Error> {
        let begin = Instant::now();
        let Some(stamp) = self.stamp else {
            let owners = self.rpm.owners(&self.root, &self.asked, self.rpm.deadline);
            return Ok(Read { database: None, owners, took: begin.elapsed() });
        };
        let (database, owners) = match self.format {
            Some(Format::Dpkg) => (dpkg::read(&self.root)?, HashMap::new()),
            Some(Format::Apk) => (apk::read(&self.root)?, HashMap::new()),
            Some(Format::Rpm) => self.rpm.read(&self.root, &self.asked)?,
            None => (Database::default(), HashMap::new()),
        };
        Ok(Read { database: Some((database, stamp)), owners: Ok(owners), took: begin.elapsed() })
    }
}

impl Packages {
    /// Knows nothing before something was read.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self {
            root,
            stamp: None,
            database: Database::default(),
            owners: HashMap::new(),
            earlier_owners: HashMap::new(),
            unanswered: HashSet::new(),
            owners_fault: None,
            is_slow: false,
            rest: None,
            rpm: Rpm::default(),
        }
    }

    /// Reads the database if it changed since, where nobody else waits for these packages; says
    /// whether it did.
    ///
    /// # Errors
    /// When there is a database and it can't be read. The next call tries again.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        let Some(reading) = self.due() else { return Ok(false) };
        let read = reading.read()?;
        Ok(self.take(read))
    }

    /// What is to be read, if the database changed since it was read last, or if owners could
    /// not be told and nobody rests from asking for them.
    #[must_use]
    pub fn due(&self) -> Option<Reading> {
        let stamp = self.stamp_now();
        let stamp = (self.stamp.as_ref() != Some(&stamp)).then_some(stamp);
        let format = self.format();
        let is_rpm = format == Some(Format::Rpm);
        let rests = self.rest.is_some_and(|(since, rest)| since.elapsed() < rest);
        if stamp.is_none() && (!is_rpm || self.unanswered.is_empty() || rests) {
            return None;
        }
        let mut asked = HashSet::new();
        if is_rpm {
            asked.clone_from(&self.unanswered);
            if stamp.is_some() {
                asked.extend(self.owners.keys().chain(self.earlier_owners.keys()).cloned());
            }
        }
        Some(Reading { root: self.root.clone(), format, stamp, rpm: self.rpm.clone(), asked })
    }

    /// Owners that were told by somebody before this, until the database is asked.
    pub fn remember(&mut self, owners: impl IntoIterator<Item = (String, Option<String>)>) {
        let room = OWNERS_MAX.saturating_sub(self.earlier_owners.len());
        self.earlier_owners.extend(owners.into_iter().take(room));
    }

    /// Takes what was read; says whether it is something else than before.
    pub fn take(&mut self, read: Read) -> bool {
        let mut changed = false;
        if let Some((database, stamp)) = read.database {
            changed = self.stamp.is_none() || database != self.database;
            self.database = database;
            self.stamp = Some(stamp);
            if self.earlier_owners.len() + self.owners.len() > OWNERS_MAX {
                self.earlier_owners.clear();
            }
            self.earlier_owners.extend(mem::take(&mut self.owners));
        }
        match read.owners {
            Ok(owners) => {
                changed |= !self.unanswered.is_empty();
                // What was asked meanwhile is asked anew by whoever looks since this changed.
                self.unanswered.clear();
                self.owners_fault = None;
                self.rest = None;
                self.is_slow &= read.took > self.rpm.owners_deadline;
                self.keep_owners(owners);
            }
            Err(error) => {
                let rest = self.rest.map_or(REST.0, |(_, rest)| (rest * 2).min(REST.1));
                self.rest = Some((Instant::now(), rest));
                self.owners_fault = Some(model::with_causes(&error));
            }
        }
        changed
    }

    fn keep_owners(&mut self, owners: HashMap<String, Option<String>>) {
        if self.owners.len() + owners.len() > OWNERS_MAX {
            self.owners.clear();
        }
        self.owners.extend(owners);
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

    /// Looks up which packages own these paths. What has no owner is left out, and what can't be
    /// told now. Answers are remembered until the database changes, and longer where it then can't
    /// be asked.
    pub fn owners<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p str>,
    ) -> BTreeMap<String, String> {
        let asked: BTreeSet<&str> = paths.into_iter().collect();
        let unknown: HashSet<String> = asked
            .iter()
            .filter(|path| !self.owners.contains_key(**path))
            .map(|path| (*path).to_owned())
            .collect();
        if !unknown.is_empty() {
            // One that did not answer in time would keep whoever asks waiting each time.
            let found = if self.is_slow || self.owners_fault.is_some() {
                None
            } else {
                Some(self.look_up(&unknown))
            };
            match found {
                Some(Ok(found)) => self.keep_owners(found),
                refused => {
                    if let Some(Err(error)) = refused {
                        self.is_slow |= matches!(error, Error::Deadline { .. });
                        self.owners_fault = Some(model::with_causes(&error));
                    }
                    let room = OWNERS_MAX.saturating_sub(self.unanswered.len());
                    self.unanswered.extend(unknown.into_iter().take(room));
                }
            }
        }
        let owner = |path: &str| Some((path.to_owned(), self.known_owner(path)?.clone()?));
        asked.into_iter().filter_map(owner).collect()
    }

    /// Of these paths those that no package owns, as far as that is known.
    pub fn without_owner<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p str> + Clone,
    ) -> Vec<&'p str> {
        self.owners(paths.clone());
        let is_known = |path: &&str| matches!(self.known_owner(path), Some(None));
        paths.into_iter().filter(is_known).collect()
    }

    /// Why owners could not be told, while some that were asked for are not.
    #[must_use]
    pub fn owners_fault(&self) -> Option<&str> {
        let waits = (!self.unanswered.is_empty()).then_some("rpm is slow, and is still asked");
        self.owners_fault.as_deref().or(waits)
    }

    fn known_owner(&self, path: &str) -> Option<&Option<String>> {
        self.owners.get(path).or_else(|| self.earlier_owners.get(path))
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

    fn look_up(&self, asked: &HashSet<String>) -> Result<HashMap<String, Option<String>>, Error> {
        if self.format() == Some(Format::Rpm) {
            return self.rpm.owners(&self.root, asked, self.rpm.owners_deadline);
        }
        let by_form = asked.iter().map(|path| (merged(path), path.as_str())).collect();
        let found = match self.format() {
            Some(Format::Dpkg) => dpkg::owners(&self.root, &by_form),
            Some(Format::Apk) => apk::owners(&self.root, &by_form),
            Some(Format::Rpm) | None => HashMap::new(),
        };
        // Of two forms of one path one was asked about; the other is next time.
        let answered = by_form.values().map(|path| ((*path).to_owned(), found.get(*path).cloned()));
        Ok(answered.collect())
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
