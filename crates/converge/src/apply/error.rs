//! Why a step failed.

use crate::{file, identity, program};
use model::ContentId;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] file::Error),
    #[error(transparent)]
    Program(#[from] program::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("systemd did not answer {doing}")]
    Systemd {
        doing: &'static str,
        #[source]
        source: zbus::Error,
    },
    #[error("it did not end within {} s", .0.as_secs())]
    Late(Duration),
    #[error("its content {0} was not sent along")]
    NoContent(ContentId),
    #[error("there is no {kind} {name} here")]
    Nobody { kind: &'static str, name: String },
    #[error("nobody listens at {}", .path.display())]
    Engine {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the {by} refused to {doing}: {what}")]
    Refused { by: &'static str, doing: String, what: String },
    #[error("the image broke off on its way from the server")]
    Relay {
        #[source]
        source: io::Error,
    },
    #[error("apt would remove what no step of the plan removes: {0}")]
    Removes(String),
    /// It was done, and is not so.
    #[error("it was done, and is not so: {0}")]
    Unchanged(String),
    /// A unit starts only on other machines; with systemd's words for it.
    #[error("{}: {how}", model::plan::conditions::UNMET)]
    Unmet { how: String },
    #[error("{0}")]
    Unclear(String),
}
