//! Files that say how the machine is set up: units, configuration, and what was chosen.
//!
//! [`TrackedSet`] says which; [`Tracker`] reads those that changed. To be told of changes,
//! give [`TrackedSet::watched`] to a [`crate::watch::Watch`].
//!
//! # Invariants
//! - Content leaves this module redacted, and only of files that everybody on the machine may
//!   read. Of others only a keyed fingerprint does.
//! - No symbolic link is followed in a file's own name; no FIFO, device or socket is opened.
//! - A file is read again only when its identity (device, inode, size, times, mode, owner)
//!   changed, or could have without a trace, or when it is tracked for another reason.

mod content;
mod set;

pub use content::CONTENT_MAX;
pub use set::{FILES_MAX, Pattern, PatternError, Role, TrackedSet};

use crate::Root;
use crate::text::printable;
use crate::users::Accounts;
use content::{Content, Outcome};
use model::entity::File;
use model::redact::Redactor;
use model::{ContentId, Time};
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// Whether a regular file has just the bytes that are known by this name. Blocks as a scan does.
#[must_use]
pub fn holds(root: &Root, path: &str, id: ContentId) -> bool {
    let path = root.path(path);
    let metadata = std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file);
    let bytes = metadata.and_then(|found| content::bytes(&path, Identity::of(&found)).ok());
    bytes.is_some_and(|bytes| ContentId::of(&bytes) == id)
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// All tracked files that exist, in order of path.
    pub files: Vec<File>,
    /// The redacted contents among them that no scan has handed out before.
    pub contents: Vec<(ContentId, Vec<u8>)>,
    /// Tracked paths where there is nothing.
    pub missing: Vec<String>,
}

/// Remembers what was read, so that the next scan reads only what changed.
#[derive(Debug)]
pub struct Tracker {
    root: Root,
    redactor: Redactor,
    known: BTreeMap<String, Known>,
    /// Contents that were handed out.
    handed_out: BTreeSet<ContentId>,
}

/// What tells a file from another, and from itself after a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
    owner: (u32, u32),
}

#[derive(Debug)]
struct Known {
    /// By which its content was redacted.
    role: Role,
    identity: Identity,
    seen: Seen,
    /// Whether a later change would show in the identity.
    settled: bool,
}

/// What a file's bytes, or a link's target, came to.
#[derive(Debug, Clone, Default)]
struct Seen {
    link: Option<String>,
    fingerprint: Option<String>,
    content: Option<ContentId>,
    redacted: bool,
    withheld: Option<&'static str>,
}

impl Tracker {
    /// Knows nothing before the first scan.
    #[must_use]
    pub fn new(root: Root, redactor: Redactor) -> Self {
        Self { root, redactor, known: BTreeMap::new(), handed_out: BTreeSet::new() }
    }

    /// Looks at every file of the set, and reads those that changed. Blocks for as long as
    /// the disk takes. Never fails as a whole: a file that can't be read says so itself.
    pub fn scan(&mut self, set: &TrackedSet, accounts: &Accounts) -> Scan {
        let mut scan = Scan::default();
        let mut known = BTreeMap::new();
        for (path, tracked) in set.iter() {
            let mut file = File {
                path: path.to_owned(),
                package: tracked.package.clone(),
                role: tracked.role.as_str().to_owned(),
                ..File::default()
            };
            match std::fs::symlink_metadata(self.root.path(path)) {
                Ok(metadata) if metadata.is_dir() => continue,
                Ok(metadata) => {
                    let now = self.look((path, tracked.role), &metadata, &mut scan.contents);
                    describe(&mut file, &metadata, &now.seen, accounts);
                    known.insert(path.to_owned(), now);
                }
                Err(error) if is_missing(&error) => {
                    scan.missing.push(file.path);
                    continue;
                }
                Err(_denied) => file.withheld = Some(content::UNREADABLE.to_owned()),
            }
            scan.files.push(file);
        }
        self.known = known;
        let present: BTreeSet<ContentId> =
            self.known.values().filter_map(|known| known.seen.content).collect();
        self.handed_out.retain(|id| present.contains(id));
        scan
    }

    /// A content that was handed out, once more. `None` when no tracked file has it any more.
    #[must_use]
    pub fn content(&self, id: ContentId) -> Option<Vec<u8>> {
        let mut paths = self.known.iter().filter(|(_, known)| known.seen.content == Some(id));
        paths.find_map(|(path, known)| match self.read((path, known.role), known.identity) {
            Outcome::Content(Content { id: found, bytes, .. }) if found == id => Some(bytes),
            _ => None,
        })
    }

    fn look(
        &mut self,
        (path, role): (&str, Role),
        metadata: &std::fs::Metadata,
        contents: &mut Vec<(ContentId, Vec<u8>)>,
    ) -> Known {
        let identity = Identity::of(metadata);
        if let Some(known) = self.known.remove(path)
            && known.settled
            && (known.role, known.identity) == (role, identity)
        {
            return known;
        }
        let settled = identity.is_settled();
        let mut seen = Seen::default();
        if metadata.is_symlink() {
            let target = std::fs::read_link(self.root.path(path)).ok();
            seen.link = target.map(|target| printable(target.as_os_str().as_bytes()));
        } else {
            match self.read((path, role), identity) {
                Outcome::Content(content) => {
                    seen.fingerprint = Some(content.fingerprint);
                    seen.content = Some(content.id);
                    seen.redacted = content.redacted;
                    if self.handed_out.insert(content.id) {
                        contents.push((content.id, content.bytes));
                    }
                }
                Outcome::Withheld { why, fingerprint } => {
                    seen.withheld = Some(why);
                    seen.fingerprint = fingerprint;
                }
            }
        }
        Known { role, identity, seen, settled }
    }

    fn read(&self, (path, role): (&str, Role), identity: Identity) -> Outcome {
        content::read(&self.root.path(path), (path, role), identity, &self.redactor)
    }
}

fn describe(file: &mut File, metadata: &std::fs::Metadata, seen: &Seen, accounts: &Accounts) {
    file.owner = Some(accounts.user_name(metadata.uid()));
    file.group = Some(accounts.group_name(metadata.gid()));
    // A link's own size and mode say nothing.
    if !metadata.is_symlink() {
        file.size = i64::try_from(metadata.size()).ok();
        file.mode = Some(format!("{:04o}", metadata.mode() & 0o7777));
    }
    file.link.clone_from(&seen.link);
    file.fingerprint.clone_from(&seen.fingerprint);
    file.content = seen.content.map(|id| id.to_string());
    file.redacted = seen.redacted;
    file.withheld = seen.withheld.map(str::to_owned);
    file.modified_at = (metadata.ctime().checked_mul(1_000_000))
        .and_then(|at| at.checked_add(metadata.ctime_nsec() / 1000))
        .map(Time);
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    )
}

impl Identity {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
        }
    }

    /// Whether the clock by which the kernel stamps files has gone on since the last change:
    /// another change in the same tick would leave the same identity.
    fn is_settled(&self) -> bool {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        let age = (now.tv_sec.saturating_sub(self.changed.0))
            .saturating_mul(1_000_000_000)
            .saturating_add(now.tv_nsec)
            .saturating_sub(self.changed.1);
        age > 50_000_000
    }
}

#[cfg(test)]
mod tests;
