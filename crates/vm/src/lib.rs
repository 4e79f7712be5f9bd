//! The only crate that touches hypervisors: images, machines, snapshots, the channel to the guest.
//! Knows no server, no history and no HTTP.

pub mod image;
#[cfg(feature = "libvirt")]
pub mod libvirt;
