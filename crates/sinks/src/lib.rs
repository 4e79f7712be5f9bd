//! Where the inventory of VMs is told to others: documents in MongoDB, sessions in Redis, calls
//! of two endpoints. The formats are those of the sync service that this replaces.
//!
//! ```text
//!   VM ─────► document ─► the fields that differ ─────────────────────────► MongoDB
//!   change ─► outbox, durable ─┬─► edits ─► one pass, compare and set ────► Redis sessions
//!                              └─► call ──► POST, in the order of the VM ─► endpoints
//! ```
//!
//! What is decided of VMs is none of this crate's. [`document`], [`session`] and [`call`] say
//! what a decision means for a document, a session, an endpoint: they are pure. [`MongoSink`],
//! [`RedisSink`] and [`outbox`] carry it out.
//!
//! # Invariants
//! - Fields, documents, keys and elements of others stay as they are.
//! - Everything can be done again: what is so already is not changed, and a change of names
//!   reaches a session once, however often a pass breaks off.
//! - Where there is a MongoDB nobody else is told what documents do not say.
//! - What waits in the outbox is durable, and leaves it only when it is known to have arrived.
//! - Contents of sessions, names within them, passwords and bodies of answers are in no error
//!   and no log.

pub mod call;
pub mod document;
mod error;
mod lease;
mod mongo;
pub mod outbox;
mod redis;
pub mod session;
pub mod stamp;

pub use document::VmDocument;
pub use error::Error;
pub use lease::Lease;
pub use mongo::{Loaded, MongoSettings, MongoSink, Written};
pub use outbox::{
    Draft, Endpoints, Entry, Known, Leave, Outbox, Policy, Receivers, Target, deliver,
};
pub use redis::{Applied, RedisSettings, RedisSink};
pub use session::{Edit, SessionChange};
