//! The processes of one machine: a [`Scanner`] that remembers them between scans.
//!
//! ```text
//!             stat: same start, name, state          told, renamed, zombie, new, or due
//!  known ────────────────────────────────► known   ───────────────────────────────► read details
//!    │ gone from /proc                                same fingerprint: known │ other: joins another group
//!    ▼
//!  forgotten; its group ends with its last member
//! ```
//!
//! Owns the reading of `/proc/PID` and the grouping into [`entity::Process`]. Leaves to the
//! caller: how often to scan, and for how long a group must live before it is worth telling
//! ([`Group::first_seen`]). Environments are never read.
//!
//! # Invariants
//! - A known process costs one read of its `stat` a scan; all else is seldom. Where nothing ran in
//!   its control group it costs nothing, but for every sixth scan.
//! - A process that vanishes while we look is normal, and no error.
//! - Kernel threads and zombies are counted, and in no group.

mod census;
mod details;
mod entry;
mod files;
mod groups;
mod interest;
mod owner;
mod quiet;
mod stat;
mod view;

pub use census::{Census, EVERY as CENSUS_EVERY};
pub(crate) use files::ProcDirectory;
pub(crate) use interest::is_model;
pub use quiet::Quiet;
pub use view::{Group, Scan, View};

use crate::text::printable;
use crate::{Now, Root};
use details::Raw;
use entry::Entry;
use groups::Groups;
use interest::{Interest, interest};
use model::redact::Redactor;
use model::{Time, entity};
use owner::Names;
use stat::{Stat, boot_seconds};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Open files looked at per process.
const OPEN_FILES_MAX: usize = 512;
/// Open files kept per process, and per group.
const FILES_KEPT: usize = 16;
/// Scans after which the boot time is read again, lest the clock was set.
const BOOT_TIME_ROUNDS: u32 = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not list the processes in {path}")]
    List {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reads processes, and remembers them.
#[derive(Debug)]
pub struct Scanner {
    root: Root,
    files: ProcDirectory,
    entries: HashMap<u32, Entry>,
    groups: Groups,
    names: Names,
    boot: Option<Time>,
    round: u32,
    /// The last scan saw all processes.
    is_whole: bool,
    ticks_per_second: u64,
    page_bytes: u64,
    pids: Vec<u32>,
    stat: Vec<u8>,
    raw: Raw,
}

impl Scanner {
    /// # Errors
    /// When there is no `/proc` to open.
    pub fn new(root: &Root) -> Result<Self, Error> {
        let path = root.proc("");
        let files = ProcDirectory::open(&path).map_err(|source| Error::Open { path, source })?;
        Ok(Self {
            root: root.clone(),
            files,
            entries: HashMap::new(),
            groups: Groups::default(),
            names: Names::default(),
            boot: None,
            round: 0,
            is_whole: false,
            ticks_per_second: rustix::param::clock_ticks_per_second().max(1),
            page_bytes: rustix::param::page_size() as u64,
            pids: Vec::new(),
            stat: vec![0; 1024],
            raw: Raw::default(),
        })
    }

    /// Looks at every process.
    ///
    /// # Errors
    /// When `/proc` can't be listed; what is known then stays as it was.
    pub fn scan(&mut self, now: Now, redactor: &Redactor) -> Result<Scan, Error> {
        self.scan_but(now, redactor, &Quiet::default())
    }

    /// The same, but for processes of groups that were quiet since before the last scan. What
    /// others do to such a process (its memory, its parent) shows a minute later at most.
    ///
    /// # Errors
    /// When `/proc` can't be listed; what is known then stays as it was.
    pub fn scan_but(
        &mut self,
        now: Now,
        redactor: &Redactor,
        quiet: &Quiet,
    ) -> Result<Scan, Error> {
        let mut pids = std::mem::take(&mut self.pids);
        // What was quiet since a scan that saw nothing may have moved before.
        let was_whole = std::mem::take(&mut self.is_whole);
        self.files
            .list(&mut pids)
            .map_err(|source| Error::List { path: self.root.proc(""), source })?;
        if self.names.refresh(&self.root) {
            self.entries.values_mut().for_each(|entry| entry.stale = true);
        }
        if self.boot.is_none() || self.round.is_multiple_of(BOOT_TIME_ROUNDS) {
            self.read_boot_time();
        }
        self.round = self.round.wrapping_add(1);
        for &pid in &pids {
            let known = self.entries.get_mut(&pid).filter(|_| was_whole);
            let mut resting = known.filter(|entry| quiet.holds(entry.control_group));
            if !resting.as_mut().is_some_and(|entry| entry.rest(pid, self.round, now.clock)) {
                let quiet_since = resting.map(|entry| entry.cpu_ticks());
                self.look(pid, now, redactor);
                if let Some(entry) = self.entries.get_mut(&pid) {
                    entry.quiet = quiet_since.is_some();
                    entry.active |= quiet_since.is_none();
                    if quiet_since.is_some_and(|ticks| ticks != entry.cpu_ticks()) {
                        entry.is_elsewhere();
                    }
                }
            }
        }
        self.is_whole = true;
        let hidden = !pids.is_empty() && !self.entries.contains_key(&1);
        self.pids = pids;
        self.forget_unseen();
        Ok(Scan { hidden, ..self.summary() })
    }

    /// Looks at these processes only, at all that can be read of them: after events that
    /// told of their start, exec or end. Gives the ids of the groups that changed.
    pub fn refresh(&mut self, pids: &[u32], now: Now, redactor: &Redactor) -> BTreeSet<Arc<str>> {
        for &pid in pids {
            self.executed(pid);
            if !self.look(pid, now, redactor) {
                self.forget(pid);
            }
        }
        self.groups.take_changed()
    }

    /// Notes that a process runs another program now; the next look reads all of it.
    pub fn executed(&mut self, pid: u32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.stale = true;
        }
    }

    /// Says what containers are called. Processes of containers whose names changed move to
    /// other groups in the next scan.
    pub fn name_containers(&mut self, names: BTreeMap<String, String>) {
        if self.names.containers == names {
            return;
        }
        self.names.containers = names;
        for entry in self.entries.values_mut() {
            let group = entry.group.and_then(|key| self.groups.get(key));
            entry.stale |= group.is_some_and(|group| group.identity.container.is_some());
        }
    }

    /// All groups, in no order.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        self.groups.iter().map(|group| self.item(group))
    }

    /// One group by its id; `None` when it has ended.
    #[must_use]
    pub fn group(&self, id: &str) -> Option<Group> {
        self.groups.by_id(id).map(|group| self.item(group))
    }

    /// All processes, kernel threads and zombies included, in no order.
    pub fn processes(&self) -> impl Iterator<Item = View<'_>> {
        self.entries.iter().map(|(&pid, entry)| self.view(pid, entry))
    }

    #[must_use]
    pub fn process(&self, pid: u32) -> Option<View<'_>> {
        self.entries.get(&pid).map(|entry| self.view(pid, entry))
    }

    fn view<'a>(&'a self, pid: u32, entry: &'a Entry) -> View<'a> {
        View {
            pid,
            start_ticks: entry.start_ticks,
            kernel_thread: entry.kernel_thread,
            parent: entry.parent,
            short_name: &entry.name,
            group: entry.group.and_then(|key| self.groups.get(key)),
            cpu_percent: entry.cpu_percent(),
            cpu_ticks: entry.cpu_ticks(),
            memory_bytes: entry.resident_pages.saturating_mul(self.page_bytes),
            threads: entry.threads,
            is_quiet: entry.quiet,
            open_files: &entry.files,
            graphics_devices: &entry.graphics,
        }
    }

    /// Reads one process; `false` when there is none.
    fn look(&mut self, pid: u32, now: Now, redactor: &Redactor) -> bool {
        let Some(bytes) = self.files.read(pid, "stat", &mut self.stat) else { return false };
        let Some(stat) = Stat::parse(bytes) else { return false };
        let entry = self.entries.entry(pid).or_insert_with(|| Entry::new(&stat, now.clock));
        entry.round = self.round;
        let same = entry.is_same(&stat);
        if same && !entry.stale {
            entry.measure(&stat, now.clock, self.ticks_per_second as f32);
            entry.age = entry.age.saturating_add(1);
            if entry.parent != stat.parent {
                entry.parent = stat.parent;
                entry.group.iter().for_each(|&key| self.groups.mark_changed(key));
            }
            if entry.group.is_none() || !(entry.details_due(pid) || entry.files_due(pid)) {
                return true;
            }
        } else if entry.start_ticks == stat.start_ticks {
            entry.measure(&stat, now.clock, self.ticks_per_second as f32);
            entry.name = stat.name.into();
            entry.zombie = stat.is_zombie();
            entry.parent = stat.parent;
            entry.stale = true;
        } else {
            let group = entry.group.take();
            *entry = Entry::new(&stat, now.clock);
            entry.round = self.round;
            group.iter().for_each(|&key| self.groups.leave(pid, key));
        }
        self.look_closely(pid, now.at, redactor);
        true
    }

    /// Reads the details of a known entry and moves it to the group they call for.
    fn look_closely(&mut self, pid: u32, at: Time, redactor: &Redactor) {
        let Some(entry) = self.entries.get_mut(&pid) else { return };
        let was_stale = std::mem::take(&mut entry.stale);
        if was_stale {
            let settled = entry.group.is_none()
                && ticks_since(self.boot, at, self.ticks_per_second)
                    .is_some_and(|now| entry.is_settled(now, self.ticks_per_second));
            entry.age = if settled { Entry::SETTLED } else { 0 };
        }
        if was_stale || entry.details_due(pid) {
            let runs = !entry.kernel_thread && !entry.zombie;
            if !runs || !self.raw.read(&mut self.files, pid) {
                // It may be about to end, or not yet begun: ask again next time.
                entry.stale = runs;
                entry.group.take().iter().for_each(|&key| self.groups.leave(pid, key));
                return;
            }
            let fingerprint = self.raw.fingerprint();
            if was_stale || entry.fingerprint != fingerprint {
                entry.fingerprint = fingerprint;
                entry.control_group = self.raw.control_group();
                entry.denied = self.raw.denied;
                let identity = self.raw.identity(&entry.name, &self.names, redactor);
                let files = &mut self.files;
                let directory = || files.link(pid, "cwd").ok().flatten().map(printable);
                let key = self.groups.join(pid, identity, directory, at);
                if let Some(before) = entry.group.replace(key).filter(|&before| before != key) {
                    self.groups.leave(pid, before);
                }
            }
        }
        let has_details = was_stale || entry.details_due(pid);
        entry.active &= !(has_details && entry.files_due(pid));
        self.look_at_open_files(pid);
    }

    fn look_at_open_files(&mut self, pid: u32) {
        let Some(entry) = self.entries.get_mut(&pid) else { return };
        if !entry.files_due(pid) {
            return;
        }
        let mut data = BTreeSet::new();
        let mut graphics = BTreeSet::new();
        let seen = self.files.open_files(pid, OPEN_FILES_MAX, |target| {
            match interest(target) {
                Some(Interest::Data) => data.insert(printable(target).into_boxed_str()),
                Some(Interest::GraphicsDevice) => {
                    graphics.insert(printable(target).into_boxed_str())
                }
                None => false,
            };
            data.len() < FILES_KEPT
        });
        entry.denied |= seen.is_err();
        if data.iter().ne(entry.files.iter()) {
            entry.files = data.into_iter().collect();
            entry.group.iter().for_each(|&key| self.groups.mark_changed(key));
        }
        entry.graphics = graphics.into_iter().collect();
    }

    fn forget(&mut self, pid: u32) {
        if let Some(key) = self.entries.remove(&pid).and_then(|entry| entry.group) {
            self.groups.leave(pid, key);
        }
    }

    fn forget_unseen(&mut self) {
        let Self { entries, groups, round, .. } = self;
        entries.retain(|&pid, entry| {
            let seen = entry.round == *round;
            if let (false, Some(key)) = (seen, entry.group) {
                groups.leave(pid, key);
            }
            seen
        });
        if entries.capacity() > 4 * entries.len() + 64 {
            entries.shrink_to_fit();
        }
        groups.shrink();
    }

    fn read_boot_time(&mut self) {
        let seconds = fs::read(self.root.proc("stat")).ok().and_then(|stat| boot_seconds(&stat));
        let Some(boot) = seconds.map(Time::from_seconds) else { return };
        // The kernel computes it anew each time, and may be off by one second either way.
        let moved = |was: Time| boot.since(was).max(was.since(boot)) > Duration::from_secs(2);
        if self.boot.is_none_or(moved) {
            self.boot = Some(boot);
        }
    }

    fn summary(&mut self) -> Scan {
        let mut scan = Scan { changed: self.groups.take_changed(), ..Scan::default() };
        for entry in self.entries.values() {
            match entry {
                Entry { kernel_thread: true, .. } => scan.kernel_threads += 1,
                Entry { zombie: true, .. } => scan.zombies += 1,
                _ => scan.processes += 1,
            }
            scan.denied += usize::from(entry.denied);
        }
        scan
    }

    fn item(&self, group: &groups::Group) -> Group {
        let members = || group.members.iter().filter_map(|pid| self.entries.get(pid));
        let oldest = members().min_by_key(|entry| entry.start_ticks);
        let parent = oldest.and_then(|entry| self.process(entry.parent));
        let files: BTreeSet<&str> =
            members().flat_map(|entry| &entry.files).map(|f| &**f).collect();
        let is_forked = |pid: &&u32| {
            let parent = self.entries.get(*pid).map(|entry| entry.parent);
            parent.is_some_and(|parent| group.members.binary_search(&parent).is_ok())
        };
        let identity = &group.identity;
        let process = entity::Process {
            id: group.id.to_string(),
            name: identity.name.clone(),
            executable: identity.executable.clone(),
            arguments: identity.arguments.clone(),
            user: identity.uid.and_then(|uid| self.names.get(uid)).map(str::to_owned),
            uid: identity.uid.map(i64::from),
            working_directory: group.working_directory.clone(),
            unit: identity.unit.clone(),
            container: identity.container.clone(),
            parent: parent.map(|parent| parent.name()),
            pids: group.members.iter().map(|&pid| i64::from(pid)).collect(),
            forked: group.members.iter().filter(is_forked).map(|&pid| i64::from(pid)).collect(),
            started_at: oldest.and_then(|entry| self.started_at(entry.start_ticks)),
            open_files: files.into_iter().take(FILES_KEPT).map(str::to_owned).collect(),
        };
        Group { process, first_seen: group.first_seen }
    }

    fn started_at(&self, start_ticks: u64) -> Option<Time> {
        let micros = u128::from(start_ticks) * 1_000_000 / u128::from(self.ticks_per_second);
        let micros = u64::try_from(micros).ok()?;
        self.boot.map(|boot| boot.plus(Duration::from_micros(micros)))
    }
}

/// The time in the kernel's ticks since the boot, as starts of processes are given.
fn ticks_since(boot: Option<Time>, at: Time, ticks_per_second: u64) -> Option<u64> {
    let up = u64::try_from(at.since(boot?).as_micros()).ok()?;
    Some(up.saturating_mul(ticks_per_second) / 1_000_000)
}

#[cfg(test)]
mod tests;
