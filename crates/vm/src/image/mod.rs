//! Base images: made from packages or taken from elsewhere, kept by content, checked when used.
//!
//! ```text
//! Builder (packages) ─┐                       ┌─► Image: disk, kernel, command line ─► a hypervisor
//! Import (file, URL) ─┴─► draft ─► Store ─────┘
//!                          Seed: who the guest is at its first boot ─► ISO on a CD-ROM
//! ```
//!
//! Leaves to others: starting machines, their own disk layers, and who uses which image.
//!
//! # Invariants
//! - An image is whole or not there, and one that changed is never handed out.
//! - What was not made here is looked at by content before any program opens it.
//! - A job that is cancelled, late or dropped leaves no process, no mount and no file.

mod builder;
mod error;
mod fetch;
mod import;
mod iso;
mod manifest;
mod names;
mod privilege;
mod probe;
pub mod seed;
mod sources;
mod store;

pub use crate::content::FileRecord;
pub use crate::job::{Job, Progress};
pub use builder::{Builder, ROOT_LABEL};
pub use error::Error;
pub use fetch::{Checksum, ChecksumError, Source, SourceError};
pub use import::Import;
pub(crate) use manifest::id_of;
pub use manifest::{Boot, DISK, INITRD, KERNEL, Manifest, Origin};
pub use names::{
    GuestPath, HostName, ImageId, ImageName, MacAddress, MachineName, Mirror, NameError,
    PackageName, PasswordHash, PublicKey, SnapshotName, Suite, UserName,
};
pub use probe::{Format, Found, ProbeError, probe};
pub use seed::Seed;
pub use store::{DirectBoot, Image, Listed, Store};
