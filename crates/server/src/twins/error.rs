//! What can be wrong with what is asked of twins.

use crate::runs;
use model::{HostId, Version};
use std::io;
use std::path::PathBuf;
use vm::image::{self, MachineName};
use vm::machine;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no twin of {name}; make one with: twin start {name}")]
    Unknown { name: MachineName },
    #[error(
        "the server knows no host {host}, so it has no twin; start an agent there with: twin agent"
    )]
    UnknownHost { host: HostId },
    #[error(
        "{name} has a twin already; what it is made of is decided when it is made: \
         twin delete {name}, then start it anew"
    )]
    Made { name: MachineName },
    #[error(
        "{name} has a twin that {by} runs, and this server is configured to run twins with \
         {configured}; to use that one set twins: {{hypervisor: {by}}}, to have another one \
         delete it there first"
    )]
    Elsewhere { name: MachineName, by: &'static str, configured: &'static str },
    #[error(
        "the machine of {name} is not in {place}; if that is on a disk that is not mounted, mount \
         it and restart the server, and {name} is as it was. To let go of it: twin delete {name}"
    )]
    Lost { name: MachineName, place: PathBuf },
    #[error("a machine called {name} is being made; wait for it: twin run list")]
    BeingMade { name: MachineName },
    #[error("there is no image to start from; make one with: twin image build debian")]
    NoImage,
    #[error(
        "there is no image to start from, and none is built: {path} has {free_mb} MiB free and a \
         build needs {needed_mb}; make room, or give an image with: twin image build NAME --from FILE"
    )]
    NoRoom { path: PathBuf, free_mb: u64, needed_mb: u64 },
    #[error(
        "twins.image names {name:?}, which is not there; make it with: twin image build {name}"
    )]
    NoSuchImage { name: String },
    #[error("{name} has no snapshot from {moment} or before; the oldest is {oldest}")]
    NoMoment { name: MachineName, moment: String, oldest: String },
    #[error("{name} has no version {version}; its newest is {newest}")]
    UnknownVersion { name: MachineName, version: Version, newest: Version },
    #[error("{name} has no snapshot to go back to; take one with: twin snapshot create {name}")]
    NoSnapshot { name: MachineName },
    #[error("{key}: {what}")]
    Value { key: &'static str, what: String },
    #[error("{name} is taken: {by}; choose another name with --name")]
    Taken { name: MachineName, by: &'static str },
    #[error(transparent)]
    Extra(#[from] model::spec::ExtraError),
    #[error("nothing is declared of {subject}; list what is with: twin extras list")]
    NotDeclared { subject: String },
    #[error("{snapshot} stays: it is {why}")]
    Kept { snapshot: String, why: &'static str },
    #[error(
        "{name} is a clone, and follows no host; the twin it was cloned from does. Compare it by \
         hand with: twin ssh {name}"
    )]
    Clone { name: MachineName },
    #[error(
        "twin-guest does not answer in {name}; is it in its image? Look with: twin ssh {name} \
         systemctl status twin-guest"
    )]
    Silent { name: MachineName },
    #[error("twin-guest in {name} answers something else; is it of another age?")]
    Strange { name: MachineName },
    #[error(transparent)]
    Guest(#[from] api::guest::Error),
    #[error("somebody else has the console of {name}; there is one at a time")]
    ConsoleTaken { name: MachineName },
    #[error("ssh-keygen is not installed; it is in the package openssh-client")]
    NoKeygen,
    #[error("ssh-keygen made no key: {said}")]
    Keygen { said: String },
    #[error("{path}: could not {doing}")]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Image(#[from] image::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Runs(#[from] runs::Error),
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
}

impl Error {
    pub(super) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// Whether what is written down of one machine can't be read.
    #[must_use]
    pub(crate) fn is_damage(&self) -> bool {
        matches!(self, Self::Machine(error) if error.is_damage())
    }

    /// Whether there is nothing here to run machines with.
    #[must_use]
    pub fn lacks_hypervisor(&self) -> bool {
        matches!(
            self,
            Self::Machine(
                machine::Error::TooOld { .. }
                    | machine::Error::Job(
                        vm::job::Error::Missing { .. } | vm::job::Error::Start { .. }
                    )
            )
        )
    }
}
