//! The agent: sees every change on a host and brings it to the server.
//!
//! ```text
//!   collectors ──Report──► engine ──delta──► outbox ──► spool ──HTTP──► server
//!   (one task each,        (owns the        (owns the spool
//!    own deadline)          facts)           and the connection)
//! ```
//!
//! Each part has one owner task. A collector that hangs or fails says so in its own item and
//! holds up nothing else.

mod clock;
pub mod config;
mod contents;
mod engine;
mod outbox;
mod spool;
