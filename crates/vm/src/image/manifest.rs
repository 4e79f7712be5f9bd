//! What an image is: where it came from, what is in it, how it boots. One JSON file beside it.

use super::names::{ImageId, ImageName, Mirror, PackageName, Suite};
use super::{Error, names};
use crate::content::FileRecord;
use model::Time;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Raised when a manifest means something else than before.
pub(super) const FORMAT: u32 = 2;

/// The disk of every image.
pub const DISK: &str = "disk.qcow2";
/// The kernel of an image that is booted directly.
pub const KERNEL: &str = "vmlinuz";
/// Its initial RAM disk.
pub const INITRD: &str = "initrd.img";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// Over the fields of [`Manifest::identify`]; also the name of the image's directory.
    pub digest: ImageId,
    /// What people call it. Not part of its identity.
    pub names: BTreeSet<ImageName>,
    pub created: Time,
    /// As the distribution writes it: `amd64`, `arm64`; `None` for an image of unknown content.
    pub architecture: Option<String>,
    pub origin: Origin,
    /// What was asked for, as one digest: equal inputs need no second build.
    pub inputs: ImageId,
    /// Installed packages and their versions; empty for an image made elsewhere.
    pub packages: BTreeMap<String, String>,
    /// Of the disk as the guest sees it.
    pub virtual_size_bytes: u64,
    pub boot: Boot,
    pub files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// From distribution packages.
    Built {
        suite: Suite,
        /// Only one that was asked for; the machine's own is not written down.
        mirror: Option<Mirror>,
        /// Asked for beyond the ones every image has.
        packages: Vec<PackageName>,
        /// Of the guest's agent, when there is one in it.
        agent: Option<ImageId>,
    },
    /// From a disk image made elsewhere.
    Imported {
        /// A path or URL, without user and password.
        source: String,
        /// Of the file as it came, before it was converted.
        digest: ImageId,
        source_format: String,
    },
}

/// How a machine starts from the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Boot {
    /// The hypervisor loads kernel and initial RAM disk itself.
    Kernel { command_line: String },
    /// The firmware finds a boot loader on the disk.
    Firmware,
}

impl Manifest {
    /// The digest that these contents have. Names, time and package list do not count: the
    /// packages are in the disk, whose digest does.
    pub(super) fn identify(&self) -> Result<ImageId, Error> {
        digest_of(&(
            "safetytwin image",
            FORMAT,
            &self.origin,
            &self.inputs,
            self.virtual_size_bytes,
            &self.boot,
            &self.files,
        ))
    }

    /// Reads a manifest found under this name. Anything that contradicts itself is damaged.
    pub(super) fn parse(id: &ImageId, text: &[u8]) -> Result<Self, Error> {
        let damaged = |what: String| Error::Damaged { id: id.to_string(), what };
        let manifest: Self = serde_json::from_slice(text)
            .map_err(|error| damaged(format!("its manifest can't be read: {error}")))?;
        if manifest.format != FORMAT {
            return Err(damaged(format!("format {} is not known here", manifest.format)));
        }
        if manifest.digest != *id || manifest.identify()? != *id {
            return Err(damaged("its manifest is not the one it was made with".to_owned()));
        }
        let known =
            manifest.files.keys().all(|name| [DISK, KERNEL, INITRD].contains(&name.as_str()));
        let bootable = match manifest.boot {
            Boot::Kernel { .. } => manifest.files.len() == 3,
            Boot::Firmware => manifest.files.len() == 1,
        };
        if !known || !bootable || !manifest.files.contains_key(DISK) {
            return Err(damaged("its manifest names other files than an image has".to_owned()));
        }
        Ok(manifest)
    }
}

/// BLAKE3 over the JSON of a value whose fields have one order.
pub(super) fn digest_of(value: &impl Serialize) -> Result<ImageId, Error> {
    let json = serde_json::to_vec(value)
        .map_err(|error| Error::Seed { what: format!("a manifest: {error}") })?;
    Ok(id_of(&blake3::hash(&json)))
}

pub(crate) fn id_of(hash: &blake3::Hash) -> ImageId {
    let hex = hash.to_hex();
    debug_assert!(names::is_digest(&hex));
    hex.parse().expect("a hash in hexadecimal is 64 digits of it")
}
