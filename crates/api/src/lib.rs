//! What outsiders rely on: the wire between agent and server, the REST answers, the bridge's
//! formats, the one error body, a client for all of it, and a look at whether an address answers.
//!
//! Nothing here decides anything. Types convert to and from those of `model`; names and forms
//! only ever gain members, because agents and servers of different ages talk to each other.

#[macro_use]
mod words;

pub mod answer;
pub mod bridge;
pub mod client;
pub mod container_image;
pub mod extras;
pub mod following;
pub mod guest;
mod json;
pub mod node;
pub mod places;
pub mod reach;
pub mod run;
pub mod sync;
pub mod twin;
pub mod vm;
pub mod wire;

pub use answer::ErrorBody;

/// Bytes a request body may have.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

/// Where a server listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 8470;
