//! Machines by way of a libvirt daemon, local or over SSH.
//!
//! ```text
//! Libvirt ─► Connection: one cached connection, each call on a blocking thread with a deadline
//!         └► xml: the description of a machine and of a snapshot
//! ```
//!
//! libvirt keeps the machines: they outlive this process, and are found again by name. Live
//! snapshots are libvirt's internal ones (memory and disk in the qcow2 file), disk snapshots
//! its external ones (one more layer). Built with the feature `libvirt`, which links the
//! system's libvirt (LGPL).
//!
//! # Invariants
//! - Nothing waits for libvirt longer than its deadline, and no more than eight calls
//!   can hang at a time.
//! - A call that was cut off is reported as such, never repeated: it may have taken effect.
//! - Names are checked, and XML is written by one function that escapes.

mod connection;
mod xml;

pub use connection::{Connection, Error, Uri, UriError};
pub use xml::{Acceleration, Channel, Direct, Forward, Machine, MachineName};

use std::time::Duration;
use virt::domain::{Domain, DomainState};
use virt::domain_snapshot::DomainSnapshot;
use virt::sys;

/// For calls that only ask or change a definition.
const SHORT: Duration = Duration::from_secs(30);
/// For calls that move memory or disks.
const LONG: Duration = Duration::from_secs(300);

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Running,
    Paused,
    Stopped,
    Crashed,
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Memory, devices and disk: the machine goes on from there.
    Live,
    /// The disk alone, after the guest's agent wrote out what was pending if `quiesce`.
    Disk { quiesce: bool },
}

/// Machines of one libvirt daemon. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Libvirt {
    connection: Connection,
}

impl Libvirt {
    /// Connects at the first call.
    #[must_use]
    pub fn new(uri: Uri) -> Self {
        Self { connection: Connection::new(uri) }
    }

    /// The daemon's version, as major, minor, release.
    pub async fn version(&self) -> Result<(u32, u32, u32), Error> {
        let ask = |connect: &virt::connect::Connect| connect.lib_version();
        let version = self.connection.call("ask for the version", SHORT, ask).await?;
        Ok((version / 1_000_000, version / 1000 % 1000, version % 1000))
    }

    /// Defines a machine, or changes the definition of the one with this name.
    pub async fn define(&self, machine: &Machine) -> Result<(), Error> {
        let xml = machine.xml();
        let define =
            move |connect: &virt::connect::Connect| connect.define_domain_xml(&xml).map(drop);
        self.connection.call("define the machine", SHORT, define).await
    }

    /// Names of all machines that are defined, by whomever.
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        let list = |connect: &virt::connect::Connect| {
            let domains = connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_PERSISTENT)?;
            domains.iter().map(Domain::name).collect()
        };
        self.connection.call("list the machines", SHORT, list).await
    }

    pub async fn state(&self, name: &MachineName) -> Result<State, Error> {
        let state = self.on(name, "ask for the machine's state", SHORT, |domain| domain.state());
        let (state, _reason) = state.await?;
        Ok(match state.known() {
            Some(DomainState::Running | DomainState::Blocked | DomainState::Shutdown) => {
                State::Running
            }
            Some(DomainState::Paused | DomainState::PMSuspended) => State::Paused,
            Some(DomainState::Crashed) => State::Crashed,
            _ => State::Stopped,
        })
    }

    pub async fn start(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "start the machine", LONG, Domain::create).await
    }

    /// Asks the guest to power off; it may take its time, or not do it.
    pub async fn shut_down(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "ask the guest to power off", SHORT, Domain::shutdown).await
    }

    /// Takes the power away.
    pub async fn power_off(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "power the machine off", SHORT, Domain::destroy).await
    }

    /// Forgets a stopped machine and what libvirt knows of its snapshots. Its disk stays.
    pub async fn forget(&self, name: &MachineName) -> Result<(), Error> {
        let flags =
            sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE;
        self.on(name, "forget the machine", SHORT, move |domain| domain.undefine_flags(flags)).await
    }

    /// What the guest's agent answers to one command of its protocol.
    pub async fn ask_guest(
        &self,
        name: &MachineName,
        command: &serde_json::Value,
    ) -> Result<String, Error> {
        let (command, seconds) = (command.to_string(), 10);
        let ask = move |domain: &Domain| domain.qemu_agent_command(&command, seconds, 0);
        self.on(name, "ask the guest's agent", SHORT, ask).await
    }

    pub async fn snapshot(
        &self,
        name: &MachineName,
        snapshot: &MachineName,
        kind: Kind,
    ) -> Result<(), Error> {
        let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | match kind {
                Kind::Live => 0,
                Kind::Disk { quiesce: false } => sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
                Kind::Disk { quiesce: true } => {
                    sys::VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
                        | sys::VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE
                }
            };
        let xml = xml::snapshot(snapshot);
        let take = move |domain: &Domain| domain.create_snapshot_xml(&xml, flags).map(drop);
        self.on(name, "take the snapshot", LONG, take).await
    }

    pub async fn snapshots(&self, name: &MachineName) -> Result<Vec<String>, Error> {
        let list = |domain: &Domain| {
            domain.list_all_snapshots(0)?.iter().map(DomainSnapshot::name).collect()
        };
        self.on(name, "list the snapshots", SHORT, list).await
    }

    /// Puts the machine back to a snapshot; it runs afterwards if it did then.
    pub async fn revert(&self, name: &MachineName, snapshot: &MachineName) -> Result<(), Error> {
        let at = snapshot.to_string();
        let revert =
            move |domain: &Domain| Domain::lookup_snapshot_by_name(domain, &at, 0)?.revert(0);
        self.on(name, "revert to the snapshot", LONG, revert).await
    }

    /// Deletes one snapshot; those made after it stay whole.
    pub async fn delete_snapshot(
        &self,
        name: &MachineName,
        snapshot: &MachineName,
    ) -> Result<(), Error> {
        let at = snapshot.to_string();
        let delete =
            move |domain: &Domain| Domain::lookup_snapshot_by_name(domain, &at, 0)?.delete(0);
        self.on(name, "delete the snapshot", LONG, delete).await
    }

    async fn on<T: Send + 'static>(
        &self,
        name: &MachineName,
        doing: &'static str,
        deadline: Duration,
        work: impl FnOnce(&Domain) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let name = name.to_string();
        let work =
            move |connect: &virt::connect::Connect| work(&connect.lookup_domain_by_name(&name)?);
        self.connection.call(doing, deadline, work).await
    }
}
