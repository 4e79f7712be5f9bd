//! Names and words of the VM inventory: what sources, records, answers and the command line have
//! in common.

use crate::{checked, words};

checked!(
    /// What one record of the inventory is called, for as long as there is one: a microVM
    /// `NAME@NODE`, that of a user's manager `USER:NAME@NODE`, one of a vSphere its `config.uuid`.
    VmId,
    "the id of a VM: 1 to 400 of A-Z a-z 0-9 . _ : @ - , beginning with a letter, a digit or _",
    is_id
);
checked!(
    /// What a microVM is called on its node. Safe in a path, a key and as an argument.
    VmName,
    "the name of a VM: 1 to 128 of A-Z a-z 0-9 . _ - , beginning with a letter or digit, without '..'",
    is_name
);
checked!(
    /// What a VM is called by its source, as people write it there. For people and other programs
    /// to read; never part of a path or an argument.
    VmTitle,
    "the name of a VM: 1 to 255 bytes without control characters, and no space at either end",
    is_title
);
checked!(
    /// What a check of a VM's health is called.
    CheckName,
    "the name of a check: 1 to 63 of a-z 0-9 _ - , beginning with a letter",
    is_check
);

words!(
    /// Where records come from.
    VmSource, "a source":
    /// A node's units that run microVMs.
    Microvm = "microvm",
    /// An ESXi host or a vCenter.
    Vsphere = "vsphere",
);

words!(
    /// How a VM is as a machine.
    VmState, "a state":
    Unknown = "unknown",
    Creating = "creating",
    Starting = "starting",
    Running = "running",
    Stopping = "stopping",
    Stopped = "stopped",
    Failed = "failed",
);

words!(
    /// How well a VM does what it is there for.
    VmHealth, "a health":
    /// Nothing is known of it, or it isn't meant to run.
    Unknown = "unknown",
    Healthy = "healthy",
    Degraded = "degraded",
    Unhealthy = "unhealthy",
    /// It runs, and the guest does not answer.
    Unresponsive = "unresponsive",
    /// A check that is critical fails again and again.
    Critical = "critical",
);

words!(
    /// What a check looks at, from the outside in: what is wrong further out explains what is
    /// wrong further in.
    Layer, "a layer":
    Node = "node",
    Unit = "unit",
    Vmm = "vmm",
    Guest = "guest",
    Service = "service",
);

words!(
    /// What a decision about a listing does.
    DecisionKind, "a decision":
    /// A VM that was not known.
    Register = "register",
    /// Something of it is another than before.
    Refresh = "refresh",
    Rename = "rename",
    /// It is on another node.
    Move = "move",
    /// It was not seen, and that says nothing.
    Stale = "stale",
    /// A complete listing does not have it.
    Orphan = "orphan",
    /// It is seen again.
    Reactivate = "reactivate",
    /// What was listed is no VM of the inventory's.
    Ignore = "ignore",
    /// Too many at once would be orphans: somebody has to say that it is so.
    Hold = "hold",
);

impl VmTitle {
    /// Bytes that a title may have.
    pub const MAX_BYTES: usize = 255;
}

impl From<VmName> for VmTitle {
    fn from(name: VmName) -> Self {
        Self(name.0)
    }
}

words!(
    /// A program that runs VMs.
    Vmm, "a VMM":
    Qemu = "qemu",
    CloudHypervisor = "cloud-hypervisor",
    Firecracker = "firecracker",
    Crosvm = "crosvm",
    Kvmtool = "kvmtool",
    Stratovirt = "stratovirt",
);

/// How the names of their programs begin.
const PROGRAMS: [(&str, Vmm); 7] = [
    ("qemu-system-", Vmm::Qemu),
    ("cloud-hypervisor", Vmm::CloudHypervisor),
    ("firecracker", Vmm::Firecracker),
    ("crosvm", Vmm::Crosvm),
    ("lkvm", Vmm::Kvmtool),
    ("kvmtool", Vmm::Kvmtool),
    ("stratovirt", Vmm::Stratovirt),
];

impl Vmm {
    /// By the name of a program, or the path to it. One that is wrapped has a dot before it.
    #[must_use]
    pub fn of_program(program: &str) -> Option<Self> {
        let name = program.rsplit('/').next().unwrap_or(program);
        let name = name.strip_prefix('.').unwrap_or(name);
        PROGRAMS.iter().find_map(|(begin, vmm)| name.starts_with(begin).then_some(*vmm))
    }
}

impl VmState {
    /// As the older monitor numbers them.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Unknown => 0,
            Self::Creating => 1,
            Self::Starting => 2,
            Self::Running => 3,
            Self::Stopping => 4,
            Self::Stopped => 5,
            Self::Failed => 6,
        }
    }
}

/// The `sub_state` of a microVM's unit of which systemd said that it has let it go: one that was
/// stopped, or has failed, and nothing wants. One that is merely not loaded has none.
pub const LET_GO: &str = "let-go";

/// Whether a unit may be a microVM's, by a look at its id alone.
#[must_use]
pub fn may_be_microvm(unit: &str) -> bool {
    let (_, name) = unit.split_once('/').unwrap_or(("", unit));
    name.starts_with("microvm@") || (unit.contains('/') && name.starts_with("microvm-"))
}

fn is_id(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._:@-".contains(&b);
    (1..=400).contains(&text.len())
        && text.bytes().all(legal)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=128).contains(&text.len())
        && text.bytes().all(legal)
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !text.contains("..")
}

fn is_title(text: &str) -> bool {
    (1..=VmTitle::MAX_BYTES).contains(&text.len())
        && text.trim() == text
        && !text.chars().any(char::is_control)
}

fn is_check(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    (1..=63).contains(&text.len())
        && text.bytes().all(legal)
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: std::str::FromStr>(good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(text.parse::<T>().is_ok(), "{text:?}");
        }
        for text in bad {
            assert!(text.parse::<T>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn names() {
        let long = "a".repeat(129);
        check::<VmName>(
            &["web", "Web-01.a_b", "0"],
            &["", ".", "..", "a..b", "../x", "a/b", "-a", "a b", "ü", "a\n", "a@b", "a:b", &long],
        );
        check::<VmTitle>(
            &["web", "Büro (alt) 50%2f2", "../x"],
            &["", " ", " a", "a ", "a\nb", "a\u{1b}[31m", &"ü".repeat(128)],
        );
        check::<VmId>(
            &["web@node1", "alice:web@node1", "_apt:web@node1.example"],
            &["", "a/b", "@web", "-x", "a b", "a\0"],
        );
        check::<CheckName>(&["http", "port-22", "a_1"], &["", "Http", "1a", "-a", "a b"]);
    }

    #[test]
    fn programs_that_run_vms() {
        for (program, vmm) in [
            ("/usr/bin/qemu-system-x86_64", Some(Vmm::Qemu)),
            ("/nix/store/x/bin/.qemu-system-x86_64-wrapped", Some(Vmm::Qemu)),
            ("cloud-hypervisor", Some(Vmm::CloudHypervisor)),
            ("/usr/bin/qemu-img", None),
            ("", None),
        ] {
            assert_eq!(Vmm::of_program(program), vmm, "{program}");
        }
    }

    #[test]
    fn words_read_as_they_are_written() {
        assert_eq!("failed".parse(), Ok(VmState::Failed));
        assert_eq!(serde_json::to_string(&VmHealth::Healthy).unwrap(), "\"healthy\"");
        assert!("dead".parse::<VmState>().unwrap_err().starts_with("a state is one of unknown, "));
        let numbers: Vec<i64> = VmState::ALL.iter().map(|state| state.number()).collect();
        assert_eq!(numbers, (0..7).collect::<Vec<_>>());
    }
}
