//! What is kept of one process between scans.

use super::groups::Key;
use super::quiet::GroupKey;
use super::stat::Stat;
use std::time::Duration;

/// Least time between two readings that a rate is computed over.
const RATE_SPAN: Duration = Duration::from_millis(100);

/// Scans of which one reads a process all the same.
const RESTS: u32 = 6;
/// Within this daemons drop privileges, take their titles and open their files.
const SETTLING_SECONDS: u64 = 180;

#[derive(Debug)]
pub(super) struct Entry {
    /// As the kernel has it, cut at 15 bytes.
    pub(super) name: Box<[u8]>,
    pub(super) start_ticks: u64,
    pub(super) parent: u32,
    pub(super) threads: u32,
    pub(super) resident_pages: u64,
    /// `None` for kernel threads and zombies.
    pub(super) group: Option<Key>,
    /// Of the details the group was chosen by.
    pub(super) fingerprint: u64,
    /// As it was when the details were read.
    pub(super) control_group: Option<GroupKey>,
    /// Ran since it was looked at in full.
    pub(super) active: bool,
    /// Nothing ran in its control group between the last two scans.
    pub(super) quiet: bool,
    /// Open files of interest.
    pub(super) files: Box<[Box<str>]>,
    /// Graphics devices it has open, by path.
    pub(super) graphics: Box<[Box<str>]>,
    /// Scan in which it was last seen.
    pub(super) round: u32,
    /// Scans since its details were first read.
    pub(super) age: u32,
    pub(super) kernel_thread: bool,
    pub(super) zombie: bool,
    /// We may not see its executable or open files.
    pub(super) denied: bool,
    /// Told to have become another: read everything again.
    pub(super) stale: bool,
    cpu_ticks: u64,
    read_at: Duration,
    cpu_percent: Option<f32>,
}

impl Entry {
    /// The age in scans of what had become what it is before it was first seen.
    pub(super) const SETTLED: u32 = 17;

    /// Whether it started long enough ago to have become what it is.
    pub(super) fn is_settled(&self, now_ticks: u64, ticks_per_second: u64) -> bool {
        now_ticks.saturating_sub(self.start_ticks) / ticks_per_second.max(1) > SETTLING_SECONDS
    }

    pub(super) fn new(stat: &Stat<'_>, clock: Duration) -> Self {
        Self {
            name: stat.name.into(),
            start_ticks: stat.start_ticks,
            parent: stat.parent,
            threads: stat.threads,
            resident_pages: stat.resident_pages,
            group: None,
            fingerprint: 0,
            control_group: None,
            active: true,
            quiet: false,
            files: Box::default(),
            graphics: Box::default(),
            round: 0,
            age: 0,
            kernel_thread: stat.kernel_thread,
            zombie: stat.is_zombie(),
            denied: false,
            stale: true,
            cpu_ticks: stat.cpu_ticks,
            read_at: clock,
            cpu_percent: None,
        }
    }

    /// Whether `stat` is of this process, still doing the same thing.
    pub(super) fn is_same(&self, stat: &Stat<'_>) -> bool {
        self.start_ticks == stat.start_ticks
            && *self.name == *stat.name
            && self.zombie == stat.is_zombie()
    }

    /// Takes over the figures that move all the time.
    pub(super) fn measure(&mut self, stat: &Stat<'_>, clock: Duration, ticks_per_second: f32) {
        self.threads = stat.threads;
        self.resident_pages = stat.resident_pages;
        let span = clock.saturating_sub(self.read_at);
        if span < RATE_SPAN {
            return;
        }
        let ticks = stat.cpu_ticks.saturating_sub(self.cpu_ticks) as f32;
        self.cpu_percent = Some(100.0 * ticks / ticks_per_second / span.as_secs_f32());
        self.cpu_ticks = stat.cpu_ticks;
        self.read_at = clock;
    }

    /// Passes a scan unread, since nothing ran in its control group. `false` when it is to be read
    /// all the same.
    pub(super) fn rest(&mut self, pid: u32, round: u32, clock: Duration) -> bool {
        let before = self.age;
        self.age = before.saturating_add(1);
        let is_settling = self.age <= Self::SETTLED;
        let is_due =
            (self.details_due(pid) || self.files_due(pid)) && (self.active || !is_settling);
        // A zombie waits for another, and its number may be a new process's.
        if self.stale || self.zombie || is_due || self.age.wrapping_add(pid).is_multiple_of(RESTS) {
            self.age = before;
            return false;
        }
        self.round = round;
        self.quiet = true;
        self.read_at = clock;
        self.cpu_percent = Some(0.0);
        true
    }

    /// It ran, though nothing did in the group that it was in: it was moved to another. How long
    /// it ran for is not known, and all of it is read again.
    pub(super) fn is_elsewhere(&mut self) {
        self.cpu_percent = None;
        self.stale = true;
    }

    pub(super) fn cpu_percent(&self) -> Option<f32> {
        self.cpu_percent
    }

    pub(super) fn cpu_ticks(&self) -> u64 {
        self.cpu_ticks
    }

    /// Whether to look again at what rarely changes: soon after the start, when a daemon
    /// drops privileges and takes its title, and then in every 32nd scan.
    pub(super) fn details_due(&self, pid: u32) -> bool {
        match self.age {
            0..=16 => self.age.is_power_of_two(),
            age => age.wrapping_add(pid).is_multiple_of(32),
        }
    }

    /// Likewise for open files, which cost more to list; at once of what is seen first.
    pub(super) fn files_due(&self, pid: u32) -> bool {
        match self.age {
            0 | 1 | 4 | 16 | Self::SETTLED => true,
            age => age.wrapping_add(pid).is_multiple_of(128),
        }
    }
}
