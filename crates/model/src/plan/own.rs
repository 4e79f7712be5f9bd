//! What belongs to a twin and not to its host: it stays, whatever the host has or has not.

use crate::spec::{Image, PackageName, PackageVersion, UnitName};
use crate::{Facts, Subject};
use std::collections::{BTreeMap, BTreeSet};

/// What a twin keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// What its base image brought.
    base: BTreeSet<Subject>,
    lacks_packages: bool,
    /// Versions of packages that are nowhere where it may look.
    gone: BTreeSet<(PackageName, PackageVersion)>,
    /// Units that do not start on such a machine.
    unmet: BTreeSet<UnitName>,
    images: Images,
}

/// Which images of containers come to a twin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Images {
    #[default]
    All,
    /// What its engine has is all there is.
    None,
    /// Those that a host hands out, but for these.
    OfHost(BTreeMap<Image, Lack>),
}

/// Why an image can't come to a twin, and what can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    pub what: String,
    pub remedy: String,
}

impl Lack {
    fn new(what: &str, remedy: &str) -> Self {
        Self { what: what.to_owned(), remedy: remedy.to_owned() }
    }
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
const UNITS: [&str; 18] = [
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
    "ifup@",
    "user@",
    "user-runtime-dir@",
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

    /// The same of a twin that reaches nothing to have packages from.
    #[must_use]
    pub fn without_packages(self) -> Self {
        Self { lacks_packages: true, ..self }
    }

    /// The same of a twin that reaches no repository with these versions.
    #[must_use]
    pub fn without_versions(self, gone: BTreeSet<(PackageName, PackageVersion)>) -> Self {
        Self { gone, ..self }
    }

    /// The same of a twin that is no machine on which these units start.
    #[must_use]
    pub fn without_units(self, unmet: BTreeSet<UnitName>) -> Self {
        Self { unmet, ..self }
    }

    /// The same of a twin that reaches nothing to have images of containers from.
    #[must_use]
    pub fn without_images(self) -> Self {
        Self { images: Images::None, ..self }
    }

    /// The same of a twin that is brought the images of its host, but for these.
    #[must_use]
    pub fn with_images_of_host(self, but: BTreeMap<Image, Lack>) -> Self {
        Self { images: Images::OfHost(but), ..self }
    }

    /// Whether packages can't come to it.
    pub(crate) fn lacks_packages(&self) -> bool {
        self.lacks_packages
    }

    /// Whether no repository that it reaches has this version.
    pub(crate) fn lacks_version(&self, package: &(PackageName, PackageVersion)) -> bool {
        self.gone.contains(package)
    }

    /// Whether a unit was seen not to start there.
    pub(crate) fn lacks_conditions_of(&self, unit: &UnitName) -> bool {
        self.unmet.contains(unit)
    }

    /// Why an image can't come to it, if that is so.
    pub(crate) fn lacks_image(&self, image: &Image) -> Option<Lack> {
        match &self.images {
            Images::All => None,
            Images::None => {
                let what = "its image can't come to the twin, which reaches nothing";
                let remedy =
                    "load the image in the twin: docker save and docker load, with twin ssh";
                Some(Lack::new(what, remedy))
            }
            Images::OfHost(_) if image.is_of_registry() => {
                let what = "its image is named by a digest, by which a registry alone gives it";
                let remedy = "name the image by a tag on the host, or let the twin reach the \
                              registry: twin start, --network nat";
                Some(Lack::new(what, remedy))
            }
            Images::OfHost(but) => but.get(image).cloned(),
        }
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
