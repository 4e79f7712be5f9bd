//! What a scanner shows of what it knows.

use super::groups;
use crate::Rights;
use crate::text::printable;
use model::{Time, entity};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a scan came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Without kernel threads and zombies.
    pub processes: usize,
    pub kernel_threads: usize,
    pub zombies: usize,
    /// Processes whose executable or open files we may not see.
    pub denied: usize,
    /// `/proc` hides the processes of others from us (`hidepid`).
    pub hidden: bool,
    /// Ids of the groups that began, changed or ended.
    pub changed: BTreeSet<Arc<str>>,
}

impl Scan {
    /// What the scan can't see by its rights, and what would let it.
    #[must_use]
    pub fn limits(&self, rights: Rights) -> Vec<String> {
        let mut limits = Vec::new();
        if self.hidden {
            let way = rights.way("the gid of /proc");
            limits.push(format!("processes of other users are hidden by hidepid; {way}"));
        }
        if self.denied > 0 {
            let way = rights.way("CAP_SYS_PTRACE");
            limits.push(format!("executables and open files of other users' processes; {way}"));
        }
        limits
    }
}

/// A group as an item, and since when it has been there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub process: entity::Process,
    pub first_seen: Time,
}

/// One process as last seen.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub pid: u32,
    /// With the pid, names one process for good.
    pub start_ticks: u64,
    pub kernel_thread: bool,
    pub parent: u32,
    /// Raw name, cut at 15 bytes; [`View::name`] is the one to show.
    pub(super) short_name: &'a [u8],
    pub(super) group: Option<&'a groups::Group>,
    /// Of one processor, over the time between the last two readings.
    pub cpu_percent: Option<f32>,
    /// User and system time since its start.
    pub cpu_ticks: u64,
    pub memory_bytes: u64,
    pub threads: u32,
    /// Nothing ran in its control group between the last two scans: it opened nothing.
    pub is_quiet: bool,
    /// Open files of interest: databases, models.
    pub open_files: &'a [Box<str>],
    /// Graphics devices it has open, by path.
    pub graphics_devices: &'a [Box<str>],
}

impl<'a> View<'a> {
    #[must_use]
    pub fn name(&self) -> String {
        self.group.map_or_else(|| printable(self.short_name), |group| group.identity.name.clone())
    }

    /// Id of its group's item; none for kernel threads and zombies.
    #[must_use]
    pub fn group_id(&self) -> Option<&'a Arc<str>> {
        self.group.map(|group| &group.id)
    }

    #[must_use]
    pub fn executable(&self) -> Option<&'a str> {
        self.group?.identity.executable.as_deref()
    }

    /// Redacted.
    #[must_use]
    pub fn arguments(&self) -> &'a [String] {
        self.group.map_or(&[], |group| &group.identity.arguments)
    }

    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.group?.identity.uid
    }

    /// With the form of a unit's id.
    #[must_use]
    pub fn unit(&self) -> Option<&'a str> {
        self.group?.identity.unit.as_deref()
    }

    /// Name of the container, or its id while the name is not known.
    #[must_use]
    pub fn container(&self) -> Option<&'a str> {
        self.group?.identity.container.as_deref()
    }
}
