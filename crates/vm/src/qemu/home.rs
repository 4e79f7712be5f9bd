//! A machine's directory: what it is, its disk's layers, its saved moments, where it runs.
//!
//! ```text
//! twins/NAME/
//!   machine.json     the definition: hardware, layers, which layer is written to, which run is on
//!   seed.iso         who the guest is
//!   layers/N.qcow2   each over the one below it; the active one is written to, the others sealed
//!   snapshots/NAME/  manifest.json; for a live one memory and devices
//!   run/N/           sockets and process id of one QEMU; `frozen` while its guest's file systems
//!                    may stand still for a snapshot
//!   console.log      what the guest wrote to its console
//! twins/.partial-NAME/   the same, of a machine that is being made
//! ```
//!
//! # Invariants
//! - The definition is replaced whole. What it does not name (layers, runs, half-made
//!   snapshots) is rubbish, and swept when the machines are opened.
//! - What has a machine's name was a whole machine once, and only goes when that is removed.

use super::process;
use crate::content::{self, FileRecord};
use crate::image::{ImageId, MacAddress, MachineName, SnapshotName};
use crate::left::is_machine;
use crate::machine::{Error, Kind, Machine, Network, Snapshot};
use model::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FORMAT: u32 = 1;
pub(crate) const DEFINITION: &str = "machine.json";
const MANIFEST: &str = "manifest.json";
pub(crate) const LAYERS: &str = "layers";
/// A machine or a snapshot in the making, or on its way out: no name of one begins so.
pub(crate) const PARTIAL: &str = ".partial-";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    pub(super) format: u32,
    pub(super) hardware: Hardware,
    pub(super) network: Network,
    pub(super) origin: Option<Origin>,
    pub(super) layers: BTreeMap<u64, Layer>,
    /// The layer that is written to.
    pub(super) active: u64,
    /// Higher than any layer's and run's number, ever.
    pub(super) next: u64,
    /// The run that is on, or was.
    pub(super) run: Option<u64>,
    pub(super) ssh_port: Option<u16>,
    /// Where SSH is led to; `None` while the guest has the address that QEMU gives out first.
    #[serde(default)]
    pub(super) guest: Option<Ipv4Addr>,
    /// The snapshot that the active layer began in.
    pub(super) current: Option<SnapshotName>,
}

/// What a QEMU must be like for a saved moment to go on in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hardware {
    pub(super) image: ImageId,
    pub(super) memory_bytes: u64,
    pub(super) processors: u32,
    pub(super) mac: MacAddress,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Origin {
    pub(super) machine: MachineName,
    pub(super) snapshot: SnapshotName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    pub(super) below: Below,
    /// What it held when it was sealed; `None` while it is written to or not digested yet.
    pub(super) sealed: Option<FileRecord>,
    /// What it is about to be replaced with: the same disk over a deeper layer.
    pub(super) merged: Option<FileRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Below {
    /// The machine's image.
    Image,
    Layer(u64),
    /// A layer of the machine it was cloned from.
    Of {
        machine: MachineName,
        layer: u64,
    },
}

/// A snapshot as its directory tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format: u32,
    pub(super) name: SnapshotName,
    pub(super) at: Time,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) pause_us: u64,
    /// The topmost layer of its disk.
    pub(super) layer: u64,
    pub(super) hardware: Hardware,
    pub(super) moment: Option<Moment>,
}

/// Memory and devices of a live snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Moment {
    pub(super) memory: FileRecord,
    /// Where in the file the memory begins.
    pub(super) memory_offset: u64,
    pub(super) devices: FileRecord,
    /// QEMU's name of the machine type with its version, and of the accelerator and processor.
    pub(super) machine_type: String,
    pub(super) acceleration: crate::machine::Acceleration,
    pub(super) network: Network,
    /// Where SSH was led to.
    #[serde(default)]
    pub(super) guest: Option<Ipv4Addr>,
}

/// The directory of one machine.
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
    pub(super) fn in_the_making(root: &Path, name: &MachineName) -> Self {
        Self { name: name.clone(), dir: root.join(format!("{PARTIAL}{name}")) }
    }

    /// Gives a machine that was made its name: from now on it is there.
    pub(super) fn name_as(&self, home: &Self) -> Result<(), Error> {
        content::name_directory(&self.dir, &home.dir).map_err(Error::file("name", &home.dir))
    }

    /// Whether there is such a machine, be it one that can't be read.
    pub(super) fn exists(&self) -> bool {
        is_machine(&self.dir)
    }

    pub(super) fn load(&self) -> Result<Definition, Error> {
        let wrong = |what: String| Error::Definition { name: self.name.clone(), what };
        let text = match fs::read(self.dir.join(DEFINITION)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(match self.exists() {
                    true => wrong(format!("its {DEFINITION} is gone")),
                    false => Error::Unknown { name: self.name.clone() },
                });
            }
            Err(error) => return Err(Error::file("read", self.dir.join(DEFINITION))(error)),
        };
        let definition: Definition =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if definition.format != FORMAT || !definition.layers.contains_key(&definition.active) {
            return Err(wrong(format!("its {DEFINITION} is not one of this version")));
        }
        Ok(definition)
    }

    pub(super) fn store(&self, definition: &Definition) -> Result<(), Error> {
        let path = self.dir.join(DEFINITION);
        content::write_json(&path, definition, 0o600).map_err(Error::file("write", &path))
    }

    /// Loads, changes, stores.
    pub(super) fn change(&self, change: impl FnOnce(&mut Definition)) -> Result<Definition, Error> {
        let mut definition = self.load()?;
        change(&mut definition);
        self.store(&definition)?;
        Ok(definition)
    }

    /// Makes the directories of a new machine.
    pub(super) fn make(&self) -> Result<(), Error> {
        for dir in [LAYERS, "snapshots", "run"] {
            make(&self.dir.join(dir))?;
        }
        Ok(())
    }

    pub(super) fn seed(&self) -> PathBuf {
        self.dir.join("seed.iso")
    }

    pub(super) fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub(super) fn layer(&self, number: u64) -> PathBuf {
        self.dir.join(LAYERS).join(format!("{number}.qcow2"))
    }

    /// The files of all its layers, also of those it does not know.
    pub(super) fn layers(&self) -> Vec<PathBuf> {
        let dir = self.dir.join(LAYERS);
        let names = entries(&dir).unwrap_or_default().into_iter();
        names.filter(|name| name.ends_with(".qcow2")).map(|name| dir.join(name)).collect()
    }

    pub(super) fn run(&self, number: u64) -> PathBuf {
        self.dir.join("run").join(number.to_string())
    }

    pub(super) fn snapshot(&self, name: &SnapshotName) -> PathBuf {
        self.dir.join("snapshots").join(name.as_str())
    }

    /// A place to make a snapshot in, or to move it to before it is removed.
    pub(super) fn partial(&self, name: &SnapshotName) -> PathBuf {
        self.dir.join("snapshots").join(format!("{PARTIAL}{name}"))
    }

    pub(super) fn manifest(&self, name: &SnapshotName) -> Result<Manifest, Error> {
        let path = self.snapshot(name).join(MANIFEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && !self.snapshot(name).exists() =>
            {
                let (name, snapshot) = (self.name.clone(), name.clone());
                return Err(Error::UnknownSnapshot { name, snapshot });
            }
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        let damaged = |what: String| Error::Damaged { path: path.clone(), what };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if manifest.format != FORMAT || manifest.name != *name {
            return Err(damaged("it is not the one of this snapshot".to_owned()));
        }
        Ok(manifest)
    }

    /// Names the snapshot: from now on it is there.
    pub(super) fn seal(&self, manifest: &Manifest) -> Result<Snapshot, Error> {
        let partial = self.partial(&manifest.name);
        let path = partial.join(MANIFEST);
        content::write_json(&path, manifest, 0o600).map_err(Error::file("write", &path))?;
        let path = self.snapshot(&manifest.name);
        fs::rename(&partial, &path).map_err(Error::file("name", &path))?;
        if let Err(error) = content::sync_directory(&self.dir.join("snapshots")) {
            // One that may be gone after a loss of power is none.
            fs::rename(&path, &partial).map_err(Error::file("remove", &path))?;
            return Err(Error::file("write", &path)(error));
        }
        Ok(self.describe(manifest))
    }

    pub(super) fn describe(&self, manifest: &Manifest) -> Snapshot {
        Snapshot {
            name: manifest.name.clone(),
            kind: if manifest.moment.is_some() { Kind::Live } else { Kind::Disk },
            at: manifest.at,
            labels: manifest.labels.clone(),
            pause: Duration::from_micros(manifest.pause_us),
            used_bytes: content::used(&self.snapshot(&manifest.name)),
        }
    }

    /// The names of all snapshots, those that can't be read among them.
    pub(super) fn snapshots(&self) -> Result<Vec<SnapshotName>, Error> {
        let names = entries(&self.dir.join("snapshots"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Removes what an operation left that did not get to its end.
    pub(super) fn sweep(&self, definition: &Definition) -> Result<(), Error> {
        sweep_new(&self.dir)?;
        let snapshots = self.dir.join("snapshots");
        for name in entries(&snapshots)?.iter().filter(|name| name.starts_with(PARTIAL)) {
            remove(&snapshots.join(name))?;
        }
        let layers = self.dir.join(LAYERS);
        for name in entries(&layers)? {
            let number = name.strip_suffix(".qcow2").and_then(|stem| stem.parse::<u64>().ok());
            if !number.is_some_and(|number| definition.layers.contains_key(&number)) {
                remove(&layers.join(name))?;
            }
        }
        let runs = self.dir.join("run");
        for name in entries(&runs)? {
            if name.parse::<u64>().ok().is_none_or(|number| definition.run != Some(number)) {
                let run = runs.join(name);
                // Nobody would find it again.
                if let Some(process) = process::find(&run)? {
                    process.cut()?;
                }
                remove(&run)?;
            }
        }
        Ok(())
    }
}

impl Definition {
    /// Of a new machine, with one layer.
    pub(super) fn of(machine: &Machine, below: Below) -> Self {
        let hardware = Hardware {
            image: machine.image.clone(),
            memory_bytes: machine.memory_bytes,
            processors: machine.processors,
            mac: machine.mac.clone(),
        };
        Self::new(hardware, machine.network, below)
    }

    pub(super) fn new(hardware: Hardware, network: Network, below: Below) -> Self {
        let first = Layer { below, sealed: None, merged: None };
        Self {
            format: FORMAT,
            hardware,
            network,
            origin: None,
            layers: BTreeMap::from([(1, first)]),
            active: 1,
            next: 2,
            run: None,
            ssh_port: None,
            guest: None,
            current: None,
        }
    }

    /// The layers from this one down that were never digested.
    pub(super) fn unsealed(&self, top: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = Some(top);
        while let Some((number, layer)) = at.and_then(|at| Some((at, self.layers.get(&at)?))) {
            if layer.sealed.is_none() {
                found.push(number);
            }
            at = match layer.below {
                Below::Layer(below) => Some(below),
                _ => None,
            };
        }
        found
    }

    /// A number that no layer and no run had.
    pub(super) fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }
}

impl Manifest {
    pub(super) const FORMAT: u32 = FORMAT;
}

pub(super) fn make(dir: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(Error::file("make the directory", dir))
}

/// Names that are no text are none of ours.
pub(crate) fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let fail = || Error::file("list", dir);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail())? {
        names.extend(entry.map_err(fail())?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Removes documents that were not written to their end. Nobody else may write there.
pub(crate) fn sweep_new(dir: &Path) -> Result<(), Error> {
    content::sweep_new(dir).map_err(Error::file("look for what is half written in", dir))
}

/// Removes the machines of a directory that were never finished. Nobody else may work there.
pub(crate) fn sweep_partial(root: &Path) -> Result<(), Error> {
    sweep_new(root)?;
    for name in entries(root)?.iter().filter(|name| name.starts_with(PARTIAL)) {
        tracing::warn!(name, "a machine was never finished, and is removed");
        remove(&root.join(name))?;
    }
    Ok(())
}

/// Removes a file or a tree; what is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}
