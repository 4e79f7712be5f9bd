//! What a VMM says of its VM at its API socket, and whether the guest's agent answers: QEMU by
//! QMP, cloud-hypervisor and firecracker by HTTP.
//!
//! ```text
//!   unit's control group ─► processes ─► the VMM, by its program ─► sockets, by its arguments
//!       ask    ─► state, processors, memory, whether the guest's agent is there
//!       guest  ─► ask ─► the agent's channel ─► it says again what it is told
//! ```
//!
//! # Invariants
//! - Nothing is told to a VMM but questions.
//! - A socket is believed only if a process of the VM's own unit listens at it: what a command
//!   line names may be anybody's.
//! - Every conversation has a deadline and a limit of bytes: one that hangs holds up nobody else.

mod arguments;
mod guest;
mod lines;
mod qmp;
mod rest;
mod socket;

use crate::Root;
use crate::bounded;
use crate::text::{decimal, lines, printable};
use arguments::Sockets;
use model::load::VmmLoad;
use model::vm::{Layer, Vmm};
use socket::{Looks, Turn};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Processes of a unit that are looked at.
const PROCESSES_MAX: usize = 64;
/// Bytes of a command line that are read.
const ARGUMENTS_MAX: u64 = 256 * 1024;
/// Characters of a VMM's word that are kept.
const WORD_MAX: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no VMM that is known runs in its unit")]
    NoMonitor,
    #[error("its VMM ({0}) was not started with a socket that can be asked")]
    NoSocket(Vmm),
    #[error(
        "its VMM ({0}) has no channel to a guest agent: QEMU has one with a virtserialport named \
         org.qemu.guest_agent.0, the others with a vsock device and vsock_port in the check"
    )]
    NoChannel(Vmm),
    #[error("{path} is left alone: no process of the VM's unit listens there")]
    Foreign { path: PathBuf },
    #[error("{path} serves another program, and takes one at a time")]
    Taken { path: PathBuf },
    #[error("could not connect to {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("its VMM does not answer at {path} within {} s", .limit.as_secs_f32())]
    Silent { path: PathBuf, limit: Duration },
    #[error("its VMM broke off at {path}")]
    Broken {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("its VMM has the guest stopped: {0}")]
    Stopped(String),
    #[error("nothing in the guest has its agent's channel open")]
    NoAgent,
    #[error("nothing in the guest listens at vsock port {0}")]
    NobodyAtPort(u32),
    #[error("its guest agent does not answer within {} s", .limit.as_secs_f32())]
    SilentAgent { limit: Duration },
    #[error("its guest agent broke off")]
    BrokenAgent(#[source] io::Error),
}

impl Error {
    /// What of a VM it speaks of; the node, where it says nothing of the VM.
    #[must_use]
    pub fn layer(&self) -> Layer {
        match self {
            Self::NoMonitor | Self::Silent { .. } | Self::Broken { .. } | Self::Stopped(_) => {
                Layer::Vmm
            }
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => {
                Layer::Vmm
            }
            Self::NoSocket(_)
            | Self::NoChannel(_)
            | Self::Foreign { .. }
            | Self::Taken { .. }
            | Self::Connect { .. } => Layer::Node,
            Self::NoAgent
            | Self::NobodyAtPort(_)
            | Self::SilentAgent { .. }
            | Self::BrokenAgent(_) => Layer::Guest,
        }
    }
}

/// Who asks the VMMs of a machine. What its clones look at of the whole machine, they share.
#[derive(Debug, Clone)]
pub struct Asker {
    root: Root,
    looks: Looks,
}

impl Asker {
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self { root, looks: Looks::default() }
    }

    /// The VMM that runs in a control group, as the unit has it. Blocks.
    #[must_use]
    pub fn find(&self, cgroup: &str) -> Option<Monitor> {
        Monitor::find(&self.root, cgroup)
    }
}

/// The VMM of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    vmm: Vmm,
    pid: u32,
    /// All processes of the unit: one of them listens at its sockets.
    unit: Vec<u32>,
    sockets: Sockets,
}

impl Monitor {
    fn find(root: &Root, cgroup: &str) -> Option<Self> {
        let unit = processes(root, cgroup);
        let mut found: Option<Self> = None;
        for &pid in unit.iter().take(PROCESSES_MAX) {
            let directory = root.proc(pid.to_string());
            let Ok(line) = bounded::read(&directory.join("cmdline"), ARGUMENTS_MAX) else {
                continue;
            };
            let words: Vec<String> = line
                .split(|&b| b == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let program = fs::read_link(directory.join("exe")).ok();
            let of_program = program.as_deref().and_then(Path::to_str).and_then(Vmm::of_program);
            let Some(vmm) = of_program.or_else(|| Vmm::of_program(words.first()?)) else {
                continue;
            };
            let sockets = Sockets::of(vmm, words.get(1..).unwrap_or_default());
            // A VMM may have helpers of its own name beside it.
            if found.as_ref().is_none_or(|found| found.sockets.api.is_none()) {
                found = Some(Self { vmm, pid, unit: unit.clone(), sockets });
            }
        }
        found
    }

    /// Whether there is a socket to ask at.
    #[must_use]
    pub fn can_be_asked(&self) -> bool {
        self.sockets.api.is_some()
    }

    /// Asks the VMM how its VM is.
    ///
    /// # Errors
    /// When it has no socket, or does not answer in time.
    pub async fn ask(&self, asker: &Asker, limit: Duration) -> Result<VmmLoad, Error> {
        let Asker { root, looks } = asker;
        let late = Instant::now() + limit / 2;
        let path = self.sockets.api.as_deref().ok_or(Error::NoSocket(self.vmm))?;
        let asked = async {
            match self.vmm {
                Vmm::Qemu | Vmm::Stratovirt => {
                    let stream = socket::connect(root, self, path).await?;
                    let channel = self.sockets.agent.as_ref().map(|channel| channel.id.as_str());
                    qmp::ask(stream, channel).await.map_err(|source| broken(path, source))
                }
                Vmm::CloudHypervisor => rest::cloud_hypervisor(root, self, path).await,
                Vmm::Firecracker => rest::firecracker(root, self, path).await,
                other @ (Vmm::Crosvm | Vmm::Kvmtool) => Err(Error::NoSocket(other)),
            }
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(asked) => asked,
            Err(_)
                if matches!(self.vmm, Vmm::Qemu | Vmm::Stratovirt)
                    && looks.turn(root, path, late).await == Turn::Behind =>
            {
                Err(Error::Taken { path: path.to_owned() })
            }
            Err(_) => Err(Error::Silent { path: path.to_owned(), limit }),
        }
    }

    /// Whether the guest's agent answers, and if not, what of the VM is in the way. `token` is
    /// what it has to say again; `port` where it listens, if that is a port of a vsock device.
    ///
    /// # Errors
    /// When it does not, in time.
    pub async fn guest(
        &self,
        asker: &Asker,
        port: Option<u32>,
        token: u64,
        limit: Duration,
    ) -> Result<(), Error> {
        let begin = Instant::now();
        // One that is silent leaves time to say so.
        let half = limit / 2;
        match self.ask(asker, half).await {
            Ok(VmmLoad { runs: Some(false), status, .. }) => {
                return Err(Error::Stopped(status.unwrap_or_default()));
            }
            Ok(VmmLoad { guest_agent: Some(false), .. }) if port.is_none() => {
                return Err(Error::NoAgent);
            }
            Ok(_) | Err(Error::NoSocket(_) | Error::Taken { .. }) => {}
            Err(error) => return Err(error),
        }
        let rest = limit.saturating_sub(begin.elapsed());
        match port {
            Some(port) => guest::at_port(&asker.root, self, port, token, rest).await,
            None => guest::at_channel(asker, self, token, rest).await,
        }
    }
}

/// The processes of a control group, in whichever hierarchy systemd has it.
fn processes(root: &Root, cgroup: &str) -> Vec<u32> {
    let group = cgroup.trim_matches('/');
    if group.is_empty() || group.split('/').any(|part| part == "..") || group.contains('\0') {
        return Vec::new();
    }
    let base = root.sys("fs/cgroup");
    let read = |hierarchy: &str| {
        bounded::read(&base.join(hierarchy).join(group).join("cgroup.procs"), bounded::SMALL).ok()
    };
    let listed = ["", "unified", "systemd"].into_iter().find_map(read).unwrap_or_default();
    let pid = |line: &[u8]| u32::try_from(decimal(line.trim_ascii())?).ok();
    lines(&listed).filter_map(pid).collect()
}

fn broken(path: &Path, source: io::Error) -> Error {
    Error::Broken { path: path.to_owned(), source }
}

/// A VMM's word, small and plain.
fn word(text: &str) -> String {
    let plain = printable(text.as_bytes()).to_lowercase();
    plain.chars().take(WORD_MAX).collect()
}

#[cfg(test)]
mod tests;
