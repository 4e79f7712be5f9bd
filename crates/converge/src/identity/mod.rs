//! Makes a machine that woke up in a saved moment know when and who it is.
//!
//! ```text
//! at once  │ entropy ─► clock ─► host name ─► machine id          nothing is waited for
//! settle   │ cloud-init ─► SSH host keys ─► network ─► journal ─► init ─► disk
//! ```
//!
//! A moment that is put back in its own machine needs the first two. A clone needs all: until
//! it has them it is, for everybody who asks, the machine it was cloned from.
//!
//! # Invariants
//! - Doing it again for the same identity changes nothing but the SSH host keys.
//! - The keys of the other machine are gone from the disk before the new ones are told.

mod clock;
mod cloud_init;
mod entropy;
pub(crate) mod hostname;
mod init;
mod journal;
mod link;
mod machine_id;
mod network;
mod ssh;

use crate::{file, is_live, program};
use model::{Identity, Time};
use std::io;
use std::path::Path;

/// One part of what makes a machine itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Clock,
    Entropy,
    Hostname,
    MachineId,
    CloudInit,
    HostKeys,
    Network,
    Journal,
    Init,
    Disk,
}

impl Part {
    /// As people and the wire have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clock => "clock",
            Self::Entropy => "entropy",
            Self::Hostname => "hostname",
            Self::MachineId => "machine_id",
            Self::CloudInit => "cloud_init",
            Self::HostKeys => "host_keys",
            Self::Network => "network",
            Self::Journal => "journal",
            Self::Init => "init",
            Self::Disk => "disk",
        }
    }
}

/// A part that is not as it should be.
#[derive(Debug)]
pub struct Fault {
    pub part: Part,
    pub error: Error,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] file::Error),
    #[error(transparent)]
    Program(#[from] program::Error),
    #[error("the kernel refused to {doing}")]
    Kernel {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("it was set, and is still another: {0}")]
    Unchanged(String),
    #[error("{0}")]
    Unclear(String),
}

impl Error {
    fn kernel(doing: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |error| Self::Kernel { doing, source: error.into() }
    }
}

/// What can't wait. Takes some file writes and system calls.
#[must_use]
pub fn at_once(root: &Path, now: Time, entropy: &[u8], identity: Option<&Identity>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut done = |part, result: Result<(), Error>| {
        faults.extend(result.err().map(|error| Fault { part, error }));
    };
    // What is made with random numbers from here on shall differ from the other machine's.
    done(Part::Entropy, entropy::add(root, entropy));
    done(Part::Clock, clock::set(root, now));
    if let Some(identity) = identity {
        done(Part::Hostname, hostname::set(root, &identity.hostname));
        done(Part::MachineId, machine_id::set(root, &identity.machine_id));
    }
    faults
}

/// What came of a part that takes longer.
#[derive(Debug)]
pub enum Settled {
    /// The public halves of the machine's SSH host keys; none if it has no SSH server.
    HostKeys(Vec<String>),
    /// The machine has its addresses.
    Network,
    Fault(Fault),
}

/// The rest of it, told as it comes. Can be dropped anywhere, and done again.
pub async fn settle(root: &Path, identity: &Identity, mut tell: impl FnMut(Settled)) {
    let Identity { hostname, machine_id, mac } = identity;
    let fault = |part| move |error| Settled::Fault(Fault { part, error });
    if let Err(error) = cloud_init::leave_alone(root) {
        tell(fault(Part::CloudInit)(error));
    }
    let keys = ssh::renew(root, hostname).await;
    tell(keys.map_or_else(fault(Part::HostKeys), Settled::HostKeys));
    if let Some(mac) = mac {
        let renewed = network::set(root, mac).await;
        tell(renewed.map_or_else(fault(Part::Network), |()| Settled::Network));
    } else {
        tell(Settled::Network);
    }
    if let Err(error) = journal::rename(root, machine_id).await {
        tell(fault(Part::Journal)(error));
    }
    if let Err(error) = init::renew(root, machine_id).await {
        tell(fault(Part::Init)(error));
    }
    if let Err(error) = keep(root).await {
        tell(fault(Part::Disk)(error));
    }
}

/// Waits until it is on the disk: a power cut must not bring the other machine back.
async fn keep(root: &Path) -> Result<(), Error> {
    let root = root.to_owned();
    let sync = move || Ok(file::keep(&root)?);
    let ended = tokio::task::spawn_blocking(sync).await;
    ended.unwrap_or_else(|_panic| Err(Error::Unclear("writing to the disk broke off".to_owned())))
}
