//! What a twin can't have of its host, why, and what somebody can do.

use crate::Subject;
use serde::{Deserialize, Serialize};

/// Why something is not reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Processors, memory, disks, graphics processors: a twin has those of a virtual machine.
    Hardware,
    /// Its kernel, its boot, its distribution.
    System,
    /// Addresses, routes, cards: a twin has its own.
    Network,
    /// Data outside of what is tracked, or more of it than is taken.
    Data,
    /// It leaves the host only as a keyed hash.
    Secret,
    /// No package brings it.
    Unpackaged,
    /// A user's own manager of units.
    UserManager,
    /// Made at run time, with nothing on the disk to make it from.
    Transient,
    /// Its name or a value of it is not what such a thing can have.
    Name,
    /// An option of a thing that is not understood; the thing is there without it.
    Option,
    /// A package or an image, and the twin reaches nothing to have it from.
    Isolated,
    /// A version of a package that no repository has which the twin reaches.
    Gone,
    /// The twin needs its own.
    Own,
    /// It could not be looked at.
    Unseen,
}

impl Cause {
    /// As people and the wire have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::System => "system",
            Self::Network => "network",
            Self::Data => "data",
            Self::Secret => "secret",
            Self::Unpackaged => "unpackaged",
            Self::UserManager => "user_manager",
            Self::Transient => "transient",
            Self::Name => "name",
            Self::Option => "option",
            Self::Isolated => "isolated",
            Self::Gone => "gone",
            Self::Own => "own",
            Self::Unseen => "unseen",
        }
    }
}

/// One thing that is not reproduced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Gap {
    pub subject: Subject,
    pub cause: Cause,
    /// Why, in words.
    pub what: String,
    /// What somebody can do.
    pub remedy: String,
}

impl Gap {
    #[must_use]
    pub fn new(subject: &Subject, cause: Cause, what: &str, remedy: &str) -> Self {
        Self { subject: subject.clone(), cause, what: what.to_owned(), remedy: remedy.to_owned() }
    }
}
