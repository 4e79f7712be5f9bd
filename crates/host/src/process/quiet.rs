//! Control groups in which nothing ran for a while: what their processes are, they were.
//!
//! To end, to become another program, to change its name or user and to open a file all take a
//! process time on a processor, and the kernel counts that for its control group to the
//! microsecond. One such counter stands for the reading of all processes in the group.

use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64;

/// Which groups of the unified hierarchy used no processor time between two moments, each of them
/// before a scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Quiet {
    groups: HashSet<u64>,
}

/// A control group's path, as a number.
pub(super) type GroupKey = u64;

impl Quiet {
    /// Adds one by its path.
    pub fn insert(&mut self, group: &str) {
        self.groups.extend(key(group.as_bytes()));
    }

    pub(super) fn holds(&self, group: Option<GroupKey>) -> bool {
        group.is_some_and(|group| self.groups.contains(&group))
    }
}

/// The group that `/proc/PID/cgroup` tells of; that of all groups is none.
pub(super) fn group_in(cgroup: &[u8]) -> Option<GroupKey> {
    crate::text::lines(cgroup).find_map(|line| line.strip_prefix(b"0::")).and_then(key)
}

fn key(path: &[u8]) -> Option<GroupKey> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    (!path.is_empty()).then(|| xxh3_64(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_and_its_processes() {
        let mut quiet = Quiet::default();
        quiet.insert("/system.slice/a.service");
        quiet.insert("b.scope");
        quiet.insert("/");
        let check = |cgroup: &str, expected: bool| {
            assert_eq!(quiet.holds(group_in(cgroup.as_bytes())), expected, "{cgroup}");
        };
        check("0::/system.slice/a.service\n", true);
        check("4:cpuacct:/x\n1:name=systemd:/y\n0::/b.scope\n", true);
        // What is below may be busy while another group beside it is not, and the other way round.
        check("0::/system.slice/a.service/below\n", false);
        check("0::/system.slice\n", false);
        check("0::/\n", false);
        check("1:name=systemd:/b.scope\n", false);
        check("", false);
    }
}
