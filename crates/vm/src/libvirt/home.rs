//! A machine's directory: what libvirt does not keep of it.
//!
//! ```text
//! .partial-NAME/       one that is being made
//! NAME/
//!   machine.json       what it is
//!   disk.qcow2         its disk over the image's, snapshots within it
//!   seed.iso           who the guest is
//!   snapshots/NAME     what a snapshot belongs to; the snapshot itself is libvirt's
//!   snapshots/.partial-NAME    one that is being taken
//!   agent, console     sockets while it runs
//!   frozen             the guest's file systems may stand still for a snapshot
//!   console.log        what the guest wrote to its console
//! ```

use super::domains::Uuid;
use crate::content;
use crate::image::{ImageId, MacAddress, MachineName, SnapshotName};
use crate::left::is_machine;
use crate::machine::{Error, Kind, Network, Snapshot};
use crate::qemu::home::{DEFINITION, PARTIAL, sweep_new};
pub(super) use crate::qemu::home::{entries, remove, sweep_partial};
use model::Time;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A socket's path may have so many bytes.
const SOCKET_BYTES: usize = 107;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    pub(super) uuid: Uuid,
    pub(super) image: ImageId,
    pub(super) memory_bytes: u64,
    pub(super) processors: u32,
    pub(super) mac: MacAddress,
    pub(super) network: Network,
    pub(super) origin: Option<(MachineName, SnapshotName)>,
    pub(super) current: Option<SnapshotName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) name: SnapshotName,
    pub(super) kind: Kind,
    /// Whether the machine ran: then its memory is there, too.
    pub(super) ran: bool,
    pub(super) at: Time,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) pause_us: u64,
}

impl Record {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            name: self.name.clone(),
            kind: self.kind,
            at: self.at,
            labels: self.labels.clone(),
            pause: Duration::from_micros(self.pause_us),
            // Within the disk, where it is not told apart.
            used_bytes: 0,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Home {
    pub(super) name: MachineName,
    pub(super) dir: PathBuf,
}

impl Home {
    pub(super) fn new(root: &Path, name: &MachineName) -> Self {
        Self { name: name.clone(), dir: root.join(name.as_str()) }
    }

    /// Where a new machine is made before it has its name.
    pub(super) fn in_the_making(&self) -> Self {
        let name = format!("{PARTIAL}{}", self.name);
        Self { name: self.name.clone(), dir: self.dir.with_file_name(name) }
    }

    /// Gives a machine that was made its name: from now on it is there.
    pub(super) fn name_as(&self, home: &Self) -> Result<(), Error> {
        content::name_directory(&self.dir, &home.dir).map_err(Error::file("name", &home.dir))
    }

    pub(super) fn exists(&self) -> bool {
        is_machine(&self.dir)
    }

    /// Makes the directory of a new machine.
    pub(super) fn make(&self) -> Result<(), Error> {
        let dir = self.dir.with_file_name(self.name.as_str());
        let named = Self { dir, ..self.clone() };
        if named.console().as_os_str().len() > SOCKET_BYTES {
            let error = io::Error::other("the path is too long for a socket; use a shorter one");
            return Err(Error::file("put sockets into", &self.dir)(error));
        }
        remove(&self.dir)?;
        let snapshots = self.dir.join("snapshots");
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&snapshots);
        made.map_err(Error::file("make the directory", &snapshots))
    }

    /// Whether there is such a machine, be it one that can't be read.
    pub(super) fn known(&self) -> Result<(), Error> {
        if self.exists() { Ok(()) } else { Err(Error::Unknown { name: self.name.clone() }) }
    }

    pub(super) fn load(&self) -> Result<Definition, Error> {
        let definition = match self.read(&self.dir.join(DEFINITION)) {
            Err(Error::Damaged { what, .. }) => {
                return Err(Error::Definition { name: self.name.clone(), what });
            }
            read => read?,
        };
        definition.ok_or_else(|| match self.exists() {
            true => {
                let what = format!("its {DEFINITION} is gone");
                Error::Definition { name: self.name.clone(), what }
            }
            false => Error::Unknown { name: self.name.clone() },
        })
    }

    pub(super) fn store(&self, definition: &Definition) -> Result<(), Error> {
        write(&self.dir.join(DEFINITION), definition)
    }

    /// Removes documents that were not written to their end.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        sweep_new(&self.dir)?;
        sweep_new(&self.dir.join("snapshots"))
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, Error> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        let damaged = |error: serde_json::Error| Error::Damaged {
            path: path.to_owned(),
            what: error.to_string(),
        };
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    pub(super) fn seed(&self) -> PathBuf {
        self.dir.join("seed.iso")
    }

    pub(super) fn agent(&self) -> PathBuf {
        self.dir.join("agent")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.dir.join("console")
    }

    pub(super) fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    fn path(&self, snapshot: &SnapshotName) -> PathBuf {
        self.dir.join("snapshots").join(snapshot.as_str())
    }

    fn partial(&self, snapshot: &SnapshotName) -> PathBuf {
        self.dir.join("snapshots").join(format!("{PARTIAL}{snapshot}"))
    }

    /// Writes down that a snapshot is about to be taken.
    pub(super) fn begin(&self, snapshot: &SnapshotName) -> Result<(), Error> {
        write(&self.partial(snapshot), &())
    }

    /// The names of those that were begun and did not come to an end.
    pub(super) fn begun(&self) -> Result<Vec<SnapshotName>, Error> {
        let names = entries(&self.dir.join("snapshots"))?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(PARTIAL)?.parse().ok()).collect())
    }

    /// Nothing is left of what was begun, or it is kept.
    pub(super) fn end(&self, snapshot: &SnapshotName) -> Result<(), Error> {
        remove(&self.partial(snapshot))
    }

    pub(super) fn record(&self, snapshot: &SnapshotName) -> Result<Record, Error> {
        let unknown =
            || Error::UnknownSnapshot { name: self.name.clone(), snapshot: snapshot.clone() };
        self.read(&self.path(snapshot))?.ok_or_else(unknown)
    }

    /// The names of all, those that can't be read among them.
    pub(super) fn snapshots(&self) -> Result<Vec<SnapshotName>, Error> {
        let names = entries(&self.dir.join("snapshots"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    pub(super) fn keep(&self, record: &Record) -> Result<(), Error> {
        write(&self.path(&record.name), record)
    }

    pub(super) fn drop_record(&self, snapshot: &SnapshotName) -> Result<(), Error> {
        remove(&self.path(snapshot))
    }
}

fn write(path: &Path, document: &impl Serialize) -> Result<(), Error> {
    content::write_json(path, document, 0o600).map_err(Error::file("write", path))
}
