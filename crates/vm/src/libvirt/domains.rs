//! What libvirt is asked of a domain: each call on a blocking thread, with a deadline.
//!
//! # Invariants
//! - A domain is found by its UUID, which nobody else's has. Names are not ours alone.

use super::connection::{Connection, Error, Uri};
use super::xml;
use crate::image::{MachineName, SnapshotName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;
use virt::domain::{Domain, DomainPausedReason, DomainState, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::ErrorNumber;
use virt::sys;

/// For calls that only ask or change a definition.
const SHORT: Duration = Duration::from_secs(30);
/// For calls that move memory or disks.
const LONG: Duration = Duration::from_secs(300);

/// By what a domain is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Uuid(String);

impl Uuid {
    pub(super) fn new() -> Result<Self, io::Error> {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        Ok(Self(uuid.trim().to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    /// Paused by libvirt, since its disk could not be written.
    Starved,
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

    #[cfg(test)]
    pub(super) fn over(connection: Connection) -> Self {
        Self { connection }
    }

    /// The daemon's version, as major, minor, release.
    pub(super) async fn version(&self) -> Result<(u32, u32, u32), Error> {
        let ask = |connect: &virt::connect::Connect| connect.lib_version();
        let version = self.connection.call("ask for the version", SHORT, ask).await?;
        Ok((version / 1_000_000, version / 1000 % 1000, version % 1000))
    }

    /// As which user the daemon runs machines, where it says so.
    pub(super) async fn runs_as(&self) -> Result<Option<u32>, Error> {
        let ask = |connect: &virt::connect::Connect| connect.capabilities();
        let told = self.connection.call("ask what it can do", SHORT, ask).await?;
        Ok(xml::runs_as(&told))
    }

    pub(super) fn uri(&self) -> &Uri {
        self.connection.uri()
    }

    /// The names of all domains, also of those that are not ours.
    pub(super) async fn names(&self) -> Result<Vec<String>, Error> {
        let list = |connect: &virt::connect::Connect| {
            connect.list_all_domains(0)?.iter().map(Domain::name).collect()
        };
        self.connection.call("list the machines", SHORT, list).await
    }

    /// The domain of this name, if it has this disk: it is the one that was made with it.
    pub(super) async fn with_disk(
        &self,
        name: &MachineName,
        disk: &Path,
    ) -> Result<Option<Uuid>, Error> {
        let (name, disk) = (name.to_string(), disk.to_owned());
        let find = move |connect: &virt::connect::Connect| {
            for domain in connect.list_all_domains(0)? {
                if domain.name()? == name {
                    let description = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
                    // Where the place was moved, a link leads to it from where it was.
                    let same = |file: String| fs::canonicalize(file).is_ok_and(|at| at == disk);
                    let is_its_own = xml::files(&description).any(same);
                    return is_its_own.then(|| domain.uuid_string().map(Uuid)).transpose();
                }
            }
            Ok(None)
        };
        self.connection.call("find the machine", SHORT, find).await
    }

    /// Defines a domain, or changes the definition of the one with this name and UUID.
    pub(super) async fn define(&self, domain: &xml::Domain<'_>) -> Result<(), Error> {
        let xml = domain.xml();
        let define =
            move |connect: &virt::connect::Connect| connect.define_domain_xml(&xml).map(drop);
        self.connection.call("define the machine", SHORT, define).await
    }

    pub(super) async fn state(&self, uuid: &Uuid) -> Result<State, Error> {
        let state = self.on(uuid, "ask for the machine's state", SHORT, |domain| domain.state());
        let (state, reason) = state.await?;
        let starved = Enum::Known(DomainPausedReason::IOError);
        let starved = reason == Enum::Known(DomainStateReason::Paused(starved));
        Ok(match state.known() {
            Some(DomainState::Running | DomainState::Blocked | DomainState::Shutdown) => {
                State::Running
            }
            Some(DomainState::Paused) if starved => State::Starved,
            Some(DomainState::Paused | DomainState::PMSuspended) => State::Paused,
            _ => State::Stopped,
        })
    }

    pub(super) async fn start(&self, uuid: &Uuid) -> Result<(), Error> {
        self.on(uuid, "start the machine", LONG, Domain::create).await
    }

    /// Asks the guest to power off; it may take its time, or not do it.
    pub(super) async fn shut_down(&self, uuid: &Uuid) -> Result<(), Error> {
        self.on(uuid, "ask the guest to power off", SHORT, Domain::shutdown).await
    }

    /// Takes the power away.
    pub(super) async fn power_off(&self, uuid: &Uuid) -> Result<(), Error> {
        self.on(uuid, "power the machine off", SHORT, Domain::destroy).await
    }

    /// Forgets a stopped machine and what libvirt knows of its snapshots. Its disk stays.
    pub(super) async fn forget(&self, uuid: &Uuid) -> Result<(), Error> {
        let flags =
            sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE;
        self.on(uuid, "forget the machine", SHORT, move |domain| domain.undefine_flags(flags)).await
    }

    /// What the guest's agent answers to one command of its protocol.
    pub(super) async fn ask_guest(&self, uuid: &Uuid, command: &Value) -> Result<String, Error> {
        let (command, seconds) = (command.to_string(), 10);
        let ask = move |domain: &Domain| domain.qemu_agent_command(&command, seconds, 0);
        self.on(uuid, "ask the guest's agent", SHORT, ask).await
    }

    /// Saves disk, and memory if it runs, within the domain's disk.
    pub(super) async fn snapshot(&self, uuid: &Uuid, snapshot: &SnapshotName) -> Result<(), Error> {
        let xml = xml::snapshot(snapshot);
        let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
        let take = move |domain: &Domain| domain.create_snapshot_xml(&xml, flags).map(drop);
        self.on(uuid, "take the snapshot", LONG, take).await
    }

    /// Those that were taken by [`Self::snapshot`]. Users may have taken others.
    pub(super) async fn snapshots(&self, uuid: &Uuid) -> Result<Vec<String>, Error> {
        let list = |domain: &Domain| {
            let mut names = Vec::new();
            for snapshot in domain.list_all_snapshots(0)? {
                if xml::is_own_snapshot(&snapshot.xml_desc(0)?) {
                    names.push(snapshot.name()?);
                }
            }
            Ok(names)
        };
        self.on(uuid, "list the snapshots", SHORT, list).await
    }

    /// Begins anew from the disk, as if the power had been away for a moment.
    pub(super) async fn reset(&self, uuid: &Uuid) -> Result<(), Error> {
        self.on(uuid, "reset the machine", SHORT, Domain::reset).await
    }

    /// Lets a machine that stands still go on.
    pub(super) async fn resume(&self, uuid: &Uuid) -> Result<(), Error> {
        self.on(uuid, "go on", SHORT, Domain::resume).await
    }

    /// How the domain is now; as it runs, if it does.
    pub(super) async fn description(&self, uuid: &Uuid) -> Result<String, Error> {
        self.on(uuid, "describe the machine", SHORT, |domain| domain.xml_desc(0)).await
    }

    /// Puts the machine back to a snapshot; it runs afterwards if it did then.
    pub(super) async fn revert(&self, uuid: &Uuid, snapshot: &SnapshotName) -> Result<(), Error> {
        let at = snapshot.to_string();
        let revert =
            move |domain: &Domain| Domain::lookup_snapshot_by_name(domain, &at, 0)?.revert(0);
        self.on(uuid, "revert to the snapshot", LONG, revert).await
    }

    /// Deletes one snapshot; those made after it stay whole.
    pub(super) async fn delete_snapshot(
        &self,
        uuid: &Uuid,
        snapshot: &SnapshotName,
    ) -> Result<(), Error> {
        let at = snapshot.to_string();
        let delete =
            move |domain: &Domain| Domain::lookup_snapshot_by_name(domain, &at, 0)?.delete(0);
        self.on(uuid, "delete the snapshot", LONG, delete).await
    }

    /// Deletes what there may be of a snapshot within the disk that libvirt does not know: its
    /// daemon was killed as QEMU took it. libvirt is told of it first. What somebody has under
    /// this name stays.
    pub(super) async fn delete_unknown(
        &self,
        uuid: &Uuid,
        snapshot: &SnapshotName,
    ) -> Result<(), Error> {
        let name = snapshot.clone();
        let delete = move |domain: &Domain| {
            match Domain::lookup_snapshot_by_name(domain, name.as_str(), 0) {
                Ok(_theirs) => return Ok(()),
                Err(error) if error.code().known() == Some(ErrorNumber::NoDomainSnapshot) => {}
                Err(error) => return Err(error),
            }
            let description = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?;
            let xml = xml::snapshot_within(&name, &description);
            let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE;
            domain.create_snapshot_xml(&xml, flags)?.delete(0)
        };
        self.on(uuid, "delete what is left of the snapshot", LONG, delete).await
    }

    async fn on<T: Send + 'static>(
        &self,
        uuid: &Uuid,
        doing: &'static str,
        deadline: Duration,
        work: impl FnOnce(&Domain) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let uuid = uuid.0.clone();
        let work = move |connect: &virt::connect::Connect| {
            work(&connect.lookup_domain_by_uuid_string(&uuid)?)
        };
        self.connection.call(doing, deadline, work).await
    }
}
