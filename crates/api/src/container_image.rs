//! How images of containers come from a host to its twin: the host's agent asks whether one is
//! wanted, and hands it out in parts, of which the server takes those that it lacks.
//!
//! ```text
//! POST …/image-work              waits ─► tasks
//! POST …/image-work/TASK         Found ─► Had, or List
//!                                Listed ─► Send these       Working ─► GoOn      Unable, Sent ─► GoOn
//! POST …/image-work/TASK/DIGEST  a piece of a part
//! ```
//!
//! Who asks for a task that nobody waits for any more is told so with status 410, and leaves it.

use model::container_image::{BlobDigest, Parts};
use model::spec::{ContainerName, Image};
use serde::{Deserialize, Serialize};

/// Bytes of a piece: what one request carries of a part.
pub const PIECE: usize = 4 << 20;
/// Characters of what is said of a task that could not be done.
pub const SAID_MAX: usize = 300;

/// Images that are wanted of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageTasks {
    pub tasks: Vec<ImageTask>,
}

/// One image that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageTask {
    pub id: u64,
    /// As it was asked for when the container was made.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub image: Image,
    /// A container of it: the image that counts is the one this was made from, whatever has the
    /// name by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub container: Option<ContainerName>,
    /// A larger one is not taken.
    pub bytes_max: u64,
}

/// How a task goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ImageNews {
    /// The engine takes its time.
    Working,
    /// The engine has it, by this id.
    Found {
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        id: BlobDigest,
    },
    /// What it consists of.
    Listed {
        #[cfg_attr(feature = "openapi", schema(value_type = Object))]
        parts: Parts,
    },
    /// All that was wanted of it was sent.
    Sent,
    /// It does not come from here.
    Unable { why: WhyNot, said: String },
}

words!(
    /// Why an image does not come from its host.
    WhyNot, "a reason for which an image does not come":
    /// The host has no engine, or it does not run.
    NoEngine = "no_engine",
    /// The engine does not have it.
    Gone = "gone",
    /// It is larger than the server takes.
    TooLarge = "too_large",
    /// What the engine handed out is no image.
    Malformed = "malformed",
    /// It broke off, and may succeed the next time.
    Broken = "broken",
);

/// What the server says to that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ImageAnswer {
    GoOn,
    /// It is here already.
    Had,
    /// Say what it consists of.
    List,
    /// These parts of it are wanted.
    Send {
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        digests: Vec<BlobDigest>,
    },
}
