//! What we may see of others' processes, and what would let us see more.

use rustix::thread::{CapabilitySet, capabilities};

/// The rights that count for looking into processes of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    pub is_root: bool,
    /// `CAP_SYS_PTRACE`. Root in a container or a user namespace may lack it.
    pub may_trace: bool,
}

impl Rights {
    /// Those of this program.
    #[must_use]
    pub fn own() -> Self {
        let is_root = rustix::process::geteuid().is_root();
        let held = capabilities(None).map(|sets| sets.effective);
        // A kernel that does not tell gives them to root.
        let may_trace = held.map_or(is_root, |held| held.contains(CapabilitySet::SYS_PTRACE));
        Self { is_root, may_trace }
    }

    /// What stands in the way of what others' processes hide, and what to do about it. `others`
    /// is what helps an ordinary user beside root's rights.
    pub(crate) fn way(self, others: &str) -> String {
        match self {
            Self { may_trace: true, .. } => {
                "out of reach even of these rights, as those of another user namespace are"
                    .to_owned()
            }
            Self { is_root: true, .. } => {
                "root needs CAP_SYS_PTRACE to see them, which it lacks here".to_owned()
            }
            Self { .. } => format!("run as root or with {others}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Scan;
    use crate::sockets::Observation;

    #[test]
    fn limits_name_what_is_lacking() {
        let check = |is_root, may_trace, expected: [&str; 3]| {
            let rights = Rights { is_root, may_trace };
            let scan = Scan { denied: 1, hidden: true, ..Scan::default() };
            let sockets = Observation { unresolved: 1, ..Observation::default() };
            let limits = [scan.limits(rights), sockets.limits(rights)].concat();
            let ways = limits.iter().map(|limit| limit.split_once("; ").unwrap().1);
            let expected: Vec<&str> = expected.into_iter().filter(|one| !one.is_empty()).collect();
            assert_eq!(ways.collect::<Vec<_>>(), expected);
        };
        let user = "run as root or with CAP_SYS_PTRACE";
        check(false, false, ["run as root or with the gid of /proc", user, user]);
        let root = "root needs CAP_SYS_PTRACE to see them, which it lacks here";
        check(true, false, [root; 3]);
        // Sockets that nobody holds are no matter of rights then.
        let elsewhere = "out of reach even of these rights, as those of another user namespace are";
        check(true, true, [elsewhere, elsewhere, ""]);
        check(false, true, [elsewhere, elsewhere, ""]);
    }
}
