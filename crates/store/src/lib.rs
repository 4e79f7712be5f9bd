//! The history of every host: each version of its facts, kept, found and given back.
//!
//! A version is stored as the difference to the version before, with what was and what is, so
//! that the log needs no states and a state is a keyframe and a few patches. Decides nothing
//! about machines and knows no network; times are passed in, no clock is read but to measure
//! the store's own latency.
//!
//! # Threads
//! One thread writes. Appends are queued and answered by callback once they are durable;
//! appends that arrive while a commit is on share the next one. Readers are synchronous and run
//! on the caller's thread beside it.
//!
//! # On disk
//! One embedded LSM engine (fjall) in the given directory, with these keyspaces:
//!
//! ```text
//! history.DAY   a bucket: the versions of one day (since 1970, by history's time)
//!               HOST 0 VERSION        keyframe: the items that differ from a full state
//!               HOST 1 VERSION        record: times, significance, patch, part of the digest
//!               HOST 2 TERM FIRST     posting: the versions of a block that touch a subject or
//!                                     kind (by hash), or that are major
//!               ffffffff CONTENT      some version of the bucket names this content
//! base.ERA      HOST 0 VERSION → a full state that keyframes of some 32 days refer to
//! thinned.DAY   the same after thinning, in the place of history.DAY
//! hosts         h HOST → name;  m HOST → head, streams;  d HOST DAY → first version and time;
//!               b DAY → t or d: the bucket was thinned or dropped;  n, o, q → counters;
//!               f HOST → being forgotten
//! subjects      HOST SUBJECT: every subject that a kept version mentions → the day it went
//!               HOST 0 DAY SUBJECT: it went that day
//! origins       HOST → the last version before everything kept, with its state
//! contents      c CONTENT → bytes;  x CONTENT → since when nothing names it
//! records       COLLECTION 0 KEY → anything small
//! load-quarter.N, load-day.N   HOST TIME → load sample
//! in-use        a locked file: whose directory this is
//! ```
//!
//! HOST is a number of four bytes, given at a host's first append and never again. See
//! [`block`] for how keyframes, patches and postings lie together, [`record`] for their bytes,
//! and [`expire`] for what happens to old buckets.
//!
//! # Invariants
//! - A version is acknowledged, announced or visible only after it is durable, and an
//!   acknowledged version is never lost but to retention.
//! - A bucket needs its era and no other bucket, so dropping it returns its space and breaks
//!   nothing.
//! - Damage is noticed and named (host, version), and stays with the records it hit.

mod block;
mod cache;
mod codec;
mod contents;
mod engine;
mod error;
mod expire;
mod files;
#[cfg(fuzzing)]
#[path = "../../../fuzz/inside/store.rs"]
pub mod fuzzing;
mod group;
mod history;
mod ingest;
mod journal;
mod keys;
mod loads;
mod making;
mod names;
mod read;
mod record;
mod records;
mod shared;
mod stats;
#[cfg(test)]
mod testing;
mod texts;
mod thin;
mod transcode;
mod types;
mod writer;

pub use error::Error;
pub use history::History;
pub use records::{Changes, Records};
pub use types::{
    Append, Appended, Body, Committed, Content, Delta, Entry, Filter, Gap, Head, HostInfo,
    MAX_ITEMS, OnCommit, Options, Report, Retention, Stats, StreamInfo,
};
