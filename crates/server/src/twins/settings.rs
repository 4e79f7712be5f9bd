//! What a twin is made of unless somebody says otherwise, and what is kept of it.

use super::error::Error;
use api::twin::{NewTwin, TwinNetwork};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use vm::image::UserName;
use vm::machine::Network;

const DAY: Duration = Duration::from_secs(86_400);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The part of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TwinsFile {
    pub hypervisor: Option<HypervisorName>,
    pub image: Option<String>,
    pub build_image: Option<bool>,
    pub memory_mb: Option<u64>,
    pub processors: Option<u32>,
    pub disk_gb: Option<u64>,
    pub network: Option<TwinNetwork>,
    pub boot_seconds: Option<u64>,
    pub snapshot_days: Option<u32>,
    pub follow: Option<bool>,
    pub snapshot_before: Option<Saving>,
    pub apply: Option<Way>,
    pub relay_packages: Option<bool>,
    pub relay_images: Option<bool>,
    pub container_images_gb: Option<u64>,
}

/// What carries out plans in twins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The agent in the guest.
    #[default]
    Native,
    /// Ansible, over SSH.
    Ansible,
}

/// What is saved of a twin before a change of its host is brought to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Saving {
    /// Memory, devices and disk.
    #[default]
    Live,
    /// The disk alone.
    Disk,
    Never,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorName {
    #[default]
    Qemu,
    /// The daemon at `libvirt_uri`.
    Libvirt,
}

/// What runs twins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    Qemu,
    #[cfg(feature = "libvirt")]
    Libvirt(vm::libvirt::Uri),
}

impl By {
    fn new(name: HypervisorName, libvirt_uri: Option<&str>) -> Result<Self, String> {
        match name {
            HypervisorName::Qemu => Ok(Self::Qemu),
            #[cfg(feature = "libvirt")]
            HypervisorName::Libvirt => {
                let uri = libvirt_uri.unwrap_or("qemu:///system").parse();
                uri.map(Self::Libvirt).map_err(|error: vm::libvirt::UriError| error.to_string())
            }
            #[cfg(not(feature = "libvirt"))]
            HypervisorName::Libvirt => {
                let wanted = libvirt_uri.unwrap_or("qemu:///system");
                Err(format!(
                    "this program was built without libvirt, so {wanted:?} can't be used; \
                     build it with --features libvirt, or set hypervisor to qemu"
                ))
            }
        }
    }
}

/// Checked, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub by: By,
    /// The newest there is unless named.
    pub image: Option<String>,
    /// Whether one is built where there is none at all.
    pub builds_image: bool,
    pub made_of: MadeOf,
    /// Who SSH gets in as.
    pub user: UserName,
    /// For a guest to boot and answer.
    pub boot: Duration,
    pub keep: Keep,
    /// Whether twins follow their hosts, where nobody decided about one.
    pub follows: bool,
    pub saving: Saving,
    pub way: Way,
    /// Whether packages come through this server to twins that reach nothing.
    pub relays: bool,
    /// Whether images of containers come from hosts to their twins, where hosts hand them out.
    pub relays_images: bool,
    /// Bytes of those that are kept.
    pub container_images_bytes: u64,
    /// What Ansible plays, if it is not ours.
    pub playbook: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MadeOf {
    pub memory_bytes: u64,
    pub processors: u32,
    pub disk_bytes: u64,
    pub network: Network,
}

/// Which snapshots stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    pub most: usize,
    pub age: Option<Duration>,
}

impl TwinsFile {
    /// # Errors
    /// The key and what is wrong with its value.
    pub(crate) fn check(
        self,
        user: Option<&str>,
        libvirt_uri: Option<&str>,
        max_snapshots: usize,
    ) -> Result<Settings, (&'static str, String)> {
        let user = user.unwrap_or("twin").parse();
        let user = user.map_err(|error: vm::image::NameError| ("vm_user", error.to_string()))?;
        let by = By::new(self.hypervisor.unwrap_or_default(), libvirt_uri);
        let by = by.map_err(|what| ("twins", format!("hypervisor: {what}")))?;
        let asked = NewTwin {
            image: None,
            memory_mb: self.memory_mb,
            processors: self.processors,
            disk_gb: self.disk_gb,
            network: self.network,
        };
        let plain = MadeOf {
            memory_bytes: GIB,
            processors: 2,
            disk_bytes: 10 * GIB,
            network: Network::Isolated,
        };
        let made_of =
            plain.but(&asked).map_err(|(key, what)| ("twins", format!("{key} {what}")))?;
        let boot = self.boot_seconds.unwrap_or(300);
        if !(5..=3600).contains(&boot) {
            return Err(("twins", "boot_seconds is between 5 and 3600".to_owned()));
        }
        if self.snapshot_days == Some(0) {
            return Err(("twins", "snapshot_days is at least 1".to_owned()));
        }
        let container_images_gb = self.container_images_gb.unwrap_or(10);
        if !(1..=1 << 20).contains(&container_images_gb) {
            let what = "container_images_gb is between 1 and 1048576";
            return Err(("twins", what.to_owned()));
        }
        let age = self.snapshot_days.map(|days| DAY * days);
        Ok(Settings {
            by,
            image: self.image,
            builds_image: self.build_image.unwrap_or(true),
            made_of,
            user,
            boot: Duration::from_secs(boot),
            keep: Keep { most: max_snapshots, age },
            follows: self.follow.unwrap_or(true),
            saving: self.snapshot_before.unwrap_or_default(),
            way: self.apply.unwrap_or_default(),
            relays: self.relay_packages.unwrap_or(false),
            relays_images: self.relay_images.unwrap_or(true),
            container_images_bytes: container_images_gb * GIB,
            playbook: None,
        })
    }
}

impl MadeOf {
    /// These, but for what is asked for; or the key that is wrong, and why.
    fn but(self, asked: &NewTwin) -> Result<Self, (&'static str, &'static str)> {
        let memory_mb = asked.memory_mb.unwrap_or(self.memory_bytes / MIB);
        if !(128..=1 << 22).contains(&memory_mb) || !memory_mb.is_multiple_of(2) {
            return Err(("memory_mb", "is an even number of MiB between 128 and 4194304"));
        }
        let processors = asked.processors.unwrap_or(self.processors);
        if !(1..=255).contains(&processors) {
            return Err(("processors", "is between 1 and 255"));
        }
        let disk_gb = asked.disk_gb.unwrap_or(self.disk_bytes / GIB);
        if !(1..=1 << 16).contains(&disk_gb) {
            return Err(("disk_gb", "is between 1 and 65536 GiB"));
        }
        Ok(Self {
            memory_bytes: memory_mb * MIB,
            processors,
            disk_bytes: disk_gb * GIB,
            network: asked.network.map_or(self.network, network),
        })
    }

    pub(super) fn asked(self, asked: &NewTwin) -> Result<Self, Error> {
        self.but(asked).map_err(|(key, what)| Error::Value { key, what: what.to_owned() })
    }
}

pub(super) fn network(network: TwinNetwork) -> Network {
    match network {
        TwinNetwork::Isolated => Network::Isolated,
        TwinNetwork::Nat => Network::Nat,
        TwinNetwork::Open => Network::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: &NewTwin, expected: &str) {
        let plain = TwinsFile::default().check(None, None, 10).unwrap().made_of;
        let shown = match plain.asked(asked) {
            Ok(made) => format!(
                "{} MiB, {}, {} GiB, {}",
                made.memory_bytes / MIB,
                made.processors,
                made.disk_bytes / GIB,
                made.network.as_str()
            ),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_asked_for_goes_before_what_is_configured() {
        check(&NewTwin::default(), "1024 MiB, 2, 10 GiB, isolated");
        let asked =
            NewTwin { memory_mb: Some(512), network: Some(TwinNetwork::Nat), ..NewTwin::default() };
        check(&asked, "512 MiB, 2, 10 GiB, nat");
        let odd = NewTwin { memory_mb: Some(513), ..NewTwin::default() };
        check(&odd, "memory_mb: is an even number of MiB between 128 and 4194304");
        let none = NewTwin { processors: Some(0), ..NewTwin::default() };
        check(&none, "processors: is between 1 and 255");
    }

    #[cfg(feature = "libvirt")]
    #[test]
    fn a_libvirt_elsewhere_is_refused_when_the_configuration_is_read() {
        let file = TwinsFile { hypervisor: Some(HypervisorName::Libvirt), ..TwinsFile::default() };
        assert!(file.clone().check(None, None, 10).is_ok());
        let refused = file.check(None, Some("qemu+ssh://root@host/system"), 10).unwrap_err();
        assert_eq!(refused.0, "twins");
        assert!(refused.1.contains("leads to another machine"), "{}", refused.1);
    }

    #[test]
    fn configuration_is_checked() {
        let user = TwinsFile::default().check(Some("../x"), None, 10).unwrap_err();
        assert_eq!(user.0, "vm_user");
        let file = TwinsFile { boot_seconds: Some(1), ..TwinsFile::default() };
        assert_eq!(file.check(None, None, 10).unwrap_err().1, "boot_seconds is between 5 and 3600");
        let file = TwinsFile { container_images_gb: Some(0), ..TwinsFile::default() };
        assert!(file.check(None, None, 10).unwrap_err().1.starts_with("container_images_gb is"));
    }
}
