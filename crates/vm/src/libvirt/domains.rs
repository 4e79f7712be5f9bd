//! What libvirt is asked of a domain: each call on a blocking thread, with a deadline.

use super::connection::{Connection, Error, Uri};
use super::xml;
use crate::image::{MachineName, SnapshotName};
use serde_json::Value;
use std::time::Duration;
use virt::domain::{Domain, DomainState};
use virt::domain_snapshot::DomainSnapshot;
use virt::sys;

/// For calls that only ask or change a definition.
const SHORT: Duration = Duration::from_secs(30);
/// For calls that move memory or disks.
const LONG: Duration = Duration::from_secs(300);

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    Stopped,
}

/// The domains of one libvirt daemon. Clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct Domains {
    connection: Connection,
}

impl Domains {
    /// Connects at the first call.
    pub(super) fn new(uri: Uri) -> Self {
        Self { connection: Connection::new(uri) }
    }

    /// The daemon's version, as major, minor, release.
    pub(super) async fn version(&self) -> Result<(u32, u32, u32), Error> {
        let ask = |connect: &virt::connect::Connect| connect.lib_version();
        let version = self.connection.call("ask for the version", SHORT, ask).await?;
        Ok((version / 1_000_000, version / 1000 % 1000, version % 1000))
    }

    /// Defines a domain, or changes the definition of the one with this name and UUID.
    pub(super) async fn define(&self, domain: &xml::Domain<'_>) -> Result<(), Error> {
        let xml = domain.xml();
        let define =
            move |connect: &virt::connect::Connect| connect.define_domain_xml(&xml).map(drop);
        self.connection.call("define the machine", SHORT, define).await
    }

    pub(super) async fn state(&self, name: &MachineName) -> Result<State, Error> {
        let state = self.on(name, "ask for the machine's state", SHORT, |domain| domain.state());
        let (state, _reason) = state.await?;
        Ok(match state.known() {
            Some(DomainState::Running | DomainState::Blocked | DomainState::Shutdown) => {
                State::Running
            }
            Some(DomainState::Paused | DomainState::PMSuspended) => State::Paused,
            _ => State::Stopped,
        })
    }

    pub(super) async fn start(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "start the machine", LONG, Domain::create).await
    }

    /// Asks the guest to power off; it may take its time, or not do it.
    pub(super) async fn shut_down(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "ask the guest to power off", SHORT, Domain::shutdown).await
    }

    /// Takes the power away.
    pub(super) async fn power_off(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "power the machine off", SHORT, Domain::destroy).await
    }

    /// Forgets a stopped machine and what libvirt knows of its snapshots. Its disk stays.
    pub(super) async fn forget(&self, name: &MachineName) -> Result<(), Error> {
        let flags =
            sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE;
        self.on(name, "forget the machine", SHORT, move |domain| domain.undefine_flags(flags)).await
    }

    /// What the guest's agent answers to one command of its protocol.
    pub(super) async fn ask_guest(
        &self,
        name: &MachineName,
        command: &Value,
    ) -> Result<String, Error> {
        let (command, seconds) = (command.to_string(), 10);
        let ask = move |domain: &Domain| domain.qemu_agent_command(&command, seconds, 0);
        self.on(name, "ask the guest's agent", SHORT, ask).await
    }

    /// Saves disk, and memory if it runs, within the domain's disk.
    pub(super) async fn snapshot(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
    ) -> Result<(), Error> {
        let xml = xml::snapshot(snapshot);
        let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
        let take = move |domain: &Domain| domain.create_snapshot_xml(&xml, flags).map(drop);
        self.on(name, "take the snapshot", LONG, take).await
    }

    pub(super) async fn snapshots(&self, name: &MachineName) -> Result<Vec<String>, Error> {
        let list = |domain: &Domain| {
            domain.list_all_snapshots(0)?.iter().map(DomainSnapshot::name).collect()
        };
        self.on(name, "list the snapshots", SHORT, list).await
    }

    /// Begins anew from the disk, as if the power had been away for a moment.
    pub(super) async fn reset(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "reset the machine", SHORT, Domain::reset).await
    }

    /// Lets a machine that stands still go on.
    pub(super) async fn resume(&self, name: &MachineName) -> Result<(), Error> {
        self.on(name, "go on", SHORT, Domain::resume).await
    }

    /// How the domain is now; as it runs, if it does.
    pub(super) async fn description(&self, name: &MachineName) -> Result<String, Error> {
        self.on(name, "describe the machine", SHORT, |domain| domain.xml_desc(0)).await
    }

    /// Puts the machine back to a snapshot; it runs afterwards if it did then.
    pub(super) async fn revert(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
    ) -> Result<(), Error> {
        let at = snapshot.to_string();
        let revert =
            move |domain: &Domain| Domain::lookup_snapshot_by_name(domain, &at, 0)?.revert(0);
        self.on(name, "revert to the snapshot", LONG, revert).await
    }

    /// Deletes one snapshot; those made after it stay whole.
    pub(super) async fn delete_snapshot(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
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
