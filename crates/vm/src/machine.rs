//! What a hypervisor does for us, whichever it is: the contract.
//!
//! ```text
//! define ──► stopped ── start ──► running ── shut_down, power_off, its own fault ──► stopped ── forget ──► gone
//!               │                   │  ▲
//!               │ snapshot (disk)   │  └── revert to any of its snapshots, from either state
//!               │                   └── snapshot (live, disk)
//!               └── clone_at: another machine that begins in a snapshot of this one
//! ```
//!
//! # Invariants
//! - An operation is done when it returns, or not done at all. What was cut off half-way is
//!   swept away when the machines are next opened.
//! - One operation at a time on a machine; a second is refused as [`Error::Busy`], never queued.
//! - A machine or a snapshot that can't be read is listed and can be deleted, and holds up nothing
//!   else.
//! - A snapshot is whole and as it was taken, or it is not used.

use crate::image::{self, ImageId, MacAddress, MachineName, SnapshotName};
use crate::job::{self, Job};
use async_trait::async_trait;
use model::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Machines, their states and their saved moments. Names are checked types; nothing else that
/// comes from outside reaches a path, a program or a socket.
#[async_trait]
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// What does the work, and how fast it can be.
    async fn about(&self) -> Result<About, Error>;

    /// Makes a machine, stopped, with a disk of its own over its image. Refuses a name that is
    /// taken.
    async fn define(&self, machine: Machine, job: &Job) -> Result<(), Error>;

    /// All machines defined here, in order.
    async fn list(&self) -> Result<Vec<MachineName>, Error>;

    /// Whether a new machine can be called so, as far as others than us go: refused as
    /// [`Error::Foreign`] where the hypervisor runs one of theirs.
    async fn refuse_foreign(&self, _name: &MachineName) -> Result<(), Error> {
        Ok(())
    }

    async fn show(&self, name: &MachineName) -> Result<Seen, Error>;

    /// Images that machines begin from, and those machines; also those that can't be read, as far
    /// as their disks tell.
    async fn images_in_use(&self) -> Result<BTreeMap<ImageId, Vec<MachineName>>, Error>;

    /// Gives it power; returns while it boots. A machine that runs is left alone.
    async fn start(&self, name: &MachineName, job: &Job) -> Result<(), Error>;

    /// Asks the guest to power off, and waits until it did. A stopped machine is left alone.
    async fn shut_down(&self, name: &MachineName, job: &Job) -> Result<(), Error>;

    /// Takes the power away. A stopped machine is left alone.
    async fn power_off(&self, name: &MachineName) -> Result<(), Error>;

    /// Removes a machine with its disk and all its snapshots. It must be stopped, and nothing
    /// may have been cloned from it. One that can't be read goes, too.
    async fn forget(&self, name: &MachineName) -> Result<(), Error>;

    /// Saves the machine as it is now. A running machine goes on as if nothing had been.
    async fn snapshot(
        &self,
        name: &MachineName,
        wish: NewSnapshot,
        job: &Job,
    ) -> Result<Snapshot, Error>;

    /// The oldest first.
    async fn snapshots(&self, name: &MachineName) -> Result<Vec<Listed>, Error>;

    /// Puts the machine back. Afterwards it runs if the snapshot is a live one, or if it ran
    /// before. What it was before is lost, unless it was saved.
    async fn revert(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Result<(), Error>;

    /// The others stay whole, older and newer ones.
    async fn delete_snapshot(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Result<(), Error>;

    /// Makes another machine that begins where the snapshot is: running if that is a live one,
    /// else stopped. Its network is its own, whatever that of the first is.
    async fn clone_at(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        clone: NewClone,
        job: &Job,
    ) -> Result<(), Error>;

    /// Leads SSH to where the guest is now, of the addresses that it says it has: one that became
    /// another machine while it ran may have got another. Of a machine that runs. A revert leads
    /// it to where it was led when the snapshot was taken.
    async fn lead_ssh(&self, name: &MachineName, to: &[Ipv4Addr]) -> Result<(), Error>;

    /// Where its console's output is kept, whether or not there is such a machine.
    fn console_log(&self, name: &MachineName) -> PathBuf;

    /// A line to something in the guest, or to its console. One at a time to each.
    async fn connect(&self, name: &MachineName, to: Line) -> Result<Box<dyn Stream>, Error>;
}

/// What is read from and written to.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// `qemu` or `libvirt`.
    pub hypervisor: &'static str,
    pub version: String,
    pub acceleration: Acceleration,
    /// Why it is not faster.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    Kvm,
    /// QEMU's own translator: slow, and works everywhere.
    Tcg,
}

impl Acceleration {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// A machine to make.
#[derive(Debug, Clone)]
pub struct Machine {
    pub name: MachineName,
    pub image: ImageId,
    pub memory_bytes: u64,
    pub processors: u32,
    /// At least that of the image; the guest's file system grows at boot.
    pub disk_bytes: u64,
    pub mac: MacAddress,
    pub network: Network,
    /// The CD-ROM that tells the guest who it is, as [`image::Seed::iso`] makes it.
    pub seed: Vec<u8>,
}

/// What the guest reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing: neither this machine nor anything beyond. SSH comes in from this machine.
    #[default]
    Isolated,
    /// What this machine reaches by the interface of its default route.
    Nat,
    /// What this machine reaches; its loopback, too, at the gateway's address.
    Open,
}

impl Network {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Isolated => "isolated",
            Self::Nat => "nat",
            Self::Open => "open",
        }
    }
}

/// A machine that begins in a moment of another one. Memory, processors and image are that
/// one's; its network is isolated.
#[derive(Debug, Clone)]
pub struct NewClone {
    pub name: MachineName,
    /// From its next boot on; until then the guest's agent sets it.
    pub mac: MacAddress,
    /// Who it is from its next boot on; until then the guest's agent tells it.
    pub seed: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub state: State,
    pub image: ImageId,
    pub memory_bytes: u64,
    pub processors: u32,
    pub mac: MacAddress,
    pub network: Network,
    /// Of a running machine.
    pub acceleration: Option<Acceleration>,
    /// The port of 127.0.0.1 that leads to the guest's SSH, while it runs.
    pub ssh_port: Option<u16>,
    /// The machine and the snapshot it was cloned from.
    pub origin: Option<(MachineName, SnapshotName)>,
    /// The snapshot its disk goes back to, the last taken or reverted to.
    pub current: Option<SnapshotName>,
    /// Of its own on disk: layers and snapshots.
    pub used_bytes: u64,
    /// Where its console's output is kept.
    pub console_log: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Running,
    Stopped,
    /// It has power and does not go on, for this reason: its kernel panicked.
    Stuck(String),
    /// It stands still since its disk could not be written, most likely for want of room. Started
    /// it goes on where it was.
    Starved,
}

impl State {
    /// Why it does not go on, though it has power.
    #[must_use]
    pub fn why_stuck(&self) -> Option<String> {
        match self {
            Self::Running | Self::Stopped => None,
            Self::Stuck(why) => Some(why.clone()),
            Self::Starved => Some(
                "its disk could not be written, most likely for want of room; where there is some \
                 it goes on"
                    .to_owned(),
            ),
        }
    }
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Memory, devices and disk: the machine goes on from there.
    Live,
    /// The disk alone, after the guest wrote out what was pending.
    Disk,
}

#[derive(Debug, Clone)]
pub struct NewSnapshot {
    pub name: SnapshotName,
    pub kind: Kind,
    pub at: Time,
    /// What it belongs to, such as the version of the host; kept and given back.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub name: SnapshotName,
    pub kind: Kind,
    pub at: Time,
    pub labels: BTreeMap<String, String>,
    /// How long the guest stood still.
    pub pause: Duration,
    /// On disk, of its own.
    pub used_bytes: u64,
}

/// A line of the list: also a snapshot that can't be read is there, and can be deleted.
#[derive(Debug)]
pub struct Listed {
    pub name: SnapshotName,
    pub snapshot: Result<Snapshot, Error>,
}

/// The ends of a machine's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// QEMU's guest agent.
    GuestAgent,
    /// `twin-guest` in the guest.
    TwinAgent,
    Console,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no machine is called {name}")]
    Unknown { name: MachineName },
    #[error("{name} has no snapshot {snapshot}; list them to see what there is")]
    UnknownSnapshot { name: MachineName, snapshot: SnapshotName },
    #[error("a machine called {name} is there already")]
    Exists { name: MachineName },
    /// What is called so is not ours: it is neither used nor changed.
    #[error(
        "{hypervisor} has a machine called {name} that is not SafetyTwin's; choose another name, \
         or give that one another, with libvirt by: virsh domrename {name} NAME"
    )]
    Foreign { name: MachineName, hypervisor: &'static str },
    #[error("{name} has a snapshot {snapshot} already")]
    SnapshotExists { name: MachineName, snapshot: SnapshotName },
    #[error("{name} is busy with another operation; wait for it, or cancel it")]
    Busy { name: MachineName },
    #[error("{name} does not run; start it first to {doing}")]
    NotRunning { name: MachineName, doing: &'static str },
    #[error("{name} runs; stop it first to {doing}")]
    Running { name: MachineName, doing: &'static str },
    #[error("{name} is what {clones} began from; remove them first")]
    Cloned { name: MachineName, clones: String },
    #[error("another process works with the machines in {directory}")]
    Taken { directory: PathBuf },
    #[error("{program} is {found}; {wanted} or newer is needed")]
    TooOld { program: String, found: String, wanted: &'static str },
    #[error("{what} is not supported by {hypervisor}")]
    Unsupported { what: &'static str, hypervisor: &'static str },
    #[error("{path} is damaged: {what}. It is not used; delete the snapshot it belongs to")]
    Damaged { path: PathBuf, what: String },
    #[error("{name} can't be read: {what}; put its machine.json back from a copy, or delete it")]
    Definition { name: MachineName, what: String },
    #[error("{free_bytes} bytes are free in {directory} and {needed_bytes} are needed; make room")]
    Full { directory: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error("{name}: the hypervisor could not {doing}: {what}")]
    Refused { name: MachineName, doing: &'static str, what: String },
    #[error("{name}: the hypervisor did not {doing} within {} s", limit.as_secs())]
    Overdue { name: MachineName, doing: &'static str, limit: Duration },
    #[error("{name} went away while it was to {doing}")]
    Gone { name: MachineName, doing: &'static str },
    #[error("{name}: its guest did not {doing} within {} s; its console says:\n{console}", limit.as_secs())]
    Silent { name: MachineName, doing: &'static str, limit: Duration, console: String },
    #[error("{path}: could not {doing}")]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[cfg(feature = "libvirt")]
    #[error(transparent)]
    Libvirt(#[from] crate::libvirt::Error),
    #[error(transparent)]
    Image(#[from] image::Error),
    #[error(transparent)]
    Job(#[from] job::Error),
}

impl Error {
    /// Whether what is written down of the machine itself can't be read.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Definition { .. } | Self::Damaged { .. } | Self::File { .. })
    }

    /// Whether it was found that it can't be done before anything was changed.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Unknown { .. }
                | Self::UnknownSnapshot { .. }
                | Self::Damaged { .. }
                | Self::Busy { .. }
                | Self::Unsupported { .. }
        )
    }

    pub(crate) fn file(
        doing: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { doing, path, source }
    }
}
