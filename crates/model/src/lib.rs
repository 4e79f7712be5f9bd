//! The semantic model of a Linux host: what is true of it, how two moments of it differ,
//! and how much a difference matters. Reads nothing, writes nothing.
//!
//! A host's [`Facts`] are a set of items. Each item belongs to a [`Subject`] (a [`Kind`] and
//! an id, such as `unit:nginx.service`) and has named fields. Collectors write items from the
//! typed structs of [`entity`]; everything between them and the reader (diff, patch, hash,
//! history) treats items alike, so a newer agent's fields survive an older server.
//!
//! # Invariants
//! - Same inputs, same output: no I/O, no clock, no randomness in this crate.
//! - `apply(before, diff(before, after)) == after`, and the patch's inverse leads back.
//! - Equal facts have equal [`Digest`]s, in whatever order they were built.
//! - Load (volatile measurements, [`load`]) is never part of facts.

mod causes;
mod checked;
pub mod container_image;
mod digest;
mod encoded;
pub mod entity;
mod facts;
mod identity;
pub mod keys;
mod kind;
pub mod load;
mod names;
mod patch;
pub mod plan;
pub mod redact;
mod significance;
pub mod spec;
pub mod terminal;
mod time;
mod value;
pub mod vm;
mod words;

pub use causes::with_causes;
pub use checked::TextError;
pub use digest::{ContentId, Digest};
pub use facts::{Facts, Item};
pub use identity::{HostName, Identity, MacAddress, MachineId};
pub use keys::distance;
pub use kind::{Kind, Subject, SubjectError, unit_name_is_valid};
pub use names::{HostId, HostIdError};
pub use patch::{ApplyError, Op, Patch, diff};
pub use significance::{Significance, significance, significance_of};
pub use time::{Moment, MomentError, Time, in_words};
pub use value::{Fields, Value};

/// A counter per host: the first recorded state is version 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Version(pub u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "@{}", self.0)
    }
}
