//! What can go wrong with a base image, each with what to do about it.

use crate::job;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: could not {doing}")]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Job(#[from] job::Error),
    #[error("no image is called {name}; list them to see what there is")]
    Unknown { name: String },
    #[error("{prefix} begins the digests of several images; write more of it")]
    Ambiguous { prefix: String },
    #[error("image {id} is in use by {users}; delete it when they are gone")]
    InUse { id: String, users: String },
    #[error("image {id} is damaged: {what}. It is not used; delete it and build it again")]
    Damaged { id: String, what: String },
    #[error("{path} is not a usable disk image: {what}")]
    NotAnImage { path: PathBuf, what: String },
    #[error("{what} is not what was asked for: expected {algorithm} {expected}, found {found}")]
    Checksum { what: String, algorithm: &'static str, expected: String, found: String },
    #[error("could not fetch {url}: {what}")]
    Fetch { url: String, what: String },
    #[error("the machine's apt knows no archive of {suite}; name a mirror, or run apt-get update")]
    NoMirror { suite: String },
    #[error("{path} is not an agent of a guest: {what}")]
    Agent { path: PathBuf, what: String },
    #[error(
        "images can be built only as root or where a user has ranges in /etc/subuid and /etc/subgid: {what}"
    )]
    Privilege { what: String },
    #[error(
        "root may not mount here, which building an image needs ({what}). A service is given the \
         right by a drop-in (docs/operations.md, \"Building images in the service\"); taking an \
         image from elsewhere needs none: twin image build NAME --from FILE|URL"
    )]
    Confined { what: String },
    #[error("the seed can't hold {what}")]
    Seed { what: String },
}

impl Error {
    pub(super) fn file(
        doing: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { doing, path, source }
    }
}
