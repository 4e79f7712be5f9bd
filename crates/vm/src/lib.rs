//! The only crate that touches hypervisors: images, machines, snapshots, the channel to the guest.
//! Knows no server, no history and no HTTP.

mod console;
mod content;
mod freeze;
mod guest_agent;
pub mod image;
pub mod job;
mod left;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod machine;
pub mod qemu;
mod turn;

pub use console::bound as bound_console;
pub use guest_agent::{GuestAgent, await_guest};
pub use left::left_in;
