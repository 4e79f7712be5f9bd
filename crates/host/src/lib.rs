//! Reads one Linux machine: what is true of it ([`model::entity`]) and how busy it is
//! ([`model::load`]). Changes nothing.
//!
//! Each module owns one part of the sight and names what it can't see. Roots and sockets are
//! arguments ([`Root`]), so that a captured tree is read by the same code as a live machine.
//!
//! # Invariants
//! - Whatever a file, a name or an answer holds: no panic, and bounded memory.
//! - Names from the machine are made printable before they become part of an item.
//! - What could not be read is absent, never zero or empty.

mod bounded;
#[cfg(test)]
mod captured;
pub mod dependencies;
pub mod disks;
pub mod docker;
pub mod exec_events;
pub mod files;
#[cfg(fuzzing)]
#[path = "../../../fuzz/inside/host.rs"]
pub mod fuzzing;
pub mod gpu;
pub mod journal;
pub mod load;
mod netlink;
pub mod network;
mod now;
pub mod packages;
pub mod platform;
pub mod process;
pub mod readiness;
mod rights;
mod root;
pub mod sockets;
pub mod systemd;
mod text;
mod unix_http;
pub mod users;
pub mod vmm;
pub mod watch;
pub mod workload;

pub use now::Now;
pub use rights::Rights;
pub use root::Root;
