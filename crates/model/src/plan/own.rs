//! What belongs to a twin and not to its host: it stays, whatever the host has or has not.

use crate::{Facts, Subject};
use std::collections::BTreeSet;

/// What a twin keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// What its base image brought.
    base: BTreeSet<Subject>,
    lacks_packages: bool,
    lacks_images: bool,
}

/// Packages without which it does not boot, or is not reached. The first words of their names.
const PACKAGES: [&str; 20] = [
    "linux-image",
    "linux-headers",
    "linux-base",
    "firmware-",
    "grub",
    "shim-",
    "efibootmgr",
    "initramfs-tools",
    "systemd",
    "libsystemd",
    "libpam-systemd",
    "udev",
    "libudev",
    "cloud-",
    "qemu-guest-agent",
    "openssh-server",
    "openssh-sftp-server",
    "netplan",
    "ifupdown",
    "dbus",
];
/// The first words of the names of units.
const UNITS: [&str; 16] = [
    "systemd-",
    "dbus.",
    "dbus-broker.",
    "ssh.",
    "sshd.",
    "sshd@",
    "getty",
    "serial-getty@",
    "console-getty.",
    "cloud-",
    "qemu-guest-agent.",
    "twin-agent",
    "twin-guest.",
    "safetytwin",
    "networking.",
    "user@",
];
/// Files and directories that say what this machine is, and how it boots and is reached.
const FILES: [&str; 20] = [
    "/boot",
    "/etc/cloud",
    "/etc/default/grub",
    "/etc/default/grub.d",
    "/etc/fstab",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/initramfs-tools",
    "/etc/machine-id",
    "/etc/netplan",
    "/etc/network",
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/resolv.conf",
    "/etc/ssh",
    "/etc/safetytwin",
    "/etc/systemd/network",
    "/etc/udev",
    "/etc/localtime",
];

impl Own {
    /// With all that was there before anything of a host's was applied.
    #[must_use]
    pub fn of(base: &Facts) -> Self {
        base.iter().map(|(subject, _)| subject.clone()).collect()
    }

    /// The same of a twin that reaches nothing to have packages and images from.
    #[must_use]
    pub fn cut_off(self) -> Self {
        Self { lacks_packages: true, lacks_images: true, ..self }
    }

    /// The same of a twin that reaches nothing, and is brought packages all the same.
    #[must_use]
    pub fn cut_off_but_for_packages(self) -> Self {
        Self { lacks_images: true, ..self }
    }

    /// Whether packages can't come to it.
    pub(crate) fn lacks_packages(&self) -> bool {
        self.lacks_packages
    }

    /// Whether images of containers can't come to it.
    pub(crate) fn lacks_images(&self) -> bool {
        self.lacks_images
    }

    /// Whether it was there from the beginning: the host does not have it, and that is no reason
    /// to remove it.
    #[must_use]
    pub(crate) fn has(&self, subject: &Subject) -> bool {
        self.base.contains(subject)
    }

    /// Whether the twin is not to be touched there at all.
    pub(crate) fn keeps_package(name: &str) -> bool {
        PACKAGES.iter().any(|start| name.starts_with(start))
    }

    pub(crate) fn keeps_unit(name: &str) -> bool {
        UNITS.iter().any(|start| name.starts_with(start))
    }

    pub(crate) fn keeps_file(path: &str) -> bool {
        FILES.iter().any(|own| {
            path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }) || path
            .strip_prefix("/etc/systemd/system/")
            .or_else(|| path.strip_prefix("/lib/systemd/system/"))
            .or_else(|| path.strip_prefix("/usr/lib/systemd/system/"))
            .is_some_and(Self::keeps_unit)
    }
}

impl FromIterator<Subject> for Own {
    fn from_iter<T: IntoIterator<Item = Subject>>(base: T) -> Self {
        Self { base: base.into_iter().collect(), ..Self::default() }
    }
}
