//! The server: takes what agents see, remembers every version, and answers for any moment.
//!
//! ```text
//!   POST deltas ──► http::ingest ──► store::History (one writer, durable) ──► Event ──► SSE, WebSocket
//!   GET  …      ──► http::{hosts, log, …} ──► store::History (readers)
//! ```
//!
//! [`Server::bind`] takes a checked [`config::Config`] and holds the sockets and the history;
//! [`Server::run`] serves until it is told to stop, and ends what is under way within a grace
//! period.
//!
//! # Invariants
//! - A version is acknowledged only after it is durable.
//! - Beyond loopback nobody comes in without a token, but to the three routes of the older sync
//!   service, where its configuration says so.
//! - No reader, however slow, holds up the writer: streams have a limit and catch up from the
//!   history.

mod app;
mod clock;
pub mod config;
mod container_images;
mod http;
mod images;
mod lacks;
pub mod listening;
mod metrics;
mod pulse;
mod rendered;
mod replays;
mod resolve;
mod retention;
pub mod runs;
mod serve;
mod snapshots;
pub mod sync;
pub mod tokens;
pub mod twins;
pub mod virtualisation;
pub mod vms;

pub use http::openapi;
pub use serve::{Error, Server};
