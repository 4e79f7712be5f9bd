//! A hypervisor for tests that no machine has to boot for, and twins over it.

use super::follow::Wakers;
use super::record::Record;
use super::settings::TwinsFile;
use super::{Shared, Twins};
use crate::runs::{Limits, RunId, Runs};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use store::{History, Options};
use tokio::sync::Semaphore;
use vm::image::{ImageId, Job, MachineName, SnapshotName, Store};
use vm::machine::{
    About, Acceleration, Error, Hypervisor, Kind, Line, Listed, Machine, Network, NewClone,
    NewSnapshot, Seen, Snapshot, State, Stream,
};

type Outcome<T> = Result<T, Error>;

/// Machines that are stopped, and never do anything.
#[derive(Debug)]
pub(super) struct Fake {
    machines: Mutex<BTreeMap<MachineName, Option<(MachineName, SnapshotName)>>>,
    damaged: Mutex<BTreeSet<MachineName>>,
    logs: Mutex<BTreeMap<MachineName, PathBuf>>,
    /// What a clone waits for once it is there.
    pub(super) clones: Semaphore,
}

pub(super) fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

/// Twins of a data directory, by this hypervisor.
pub(super) fn twins(dir: &Path, fake: &Arc<Fake>) -> Twins {
    let shared = Shared {
        images: Store::open(&dir.join("images")).unwrap(),
        history: History::open(&dir.join("history"), Options::default()).unwrap(),
        runs: Runs::open(&dir.join("runs"), Limits::default()).unwrap(),
        wakers: Wakers::default(),
    };
    let settings = TwinsFile::default().check(None, None, 10).unwrap();
    let twins = Twins::new(dir, settings, shared);
    let hypervisor: Arc<dyn Hypervisor> = fake.clone();
    twins.inner.hypervisor.set(hypervisor).unwrap();
    twins
}

/// A machine that the server knows, too.
pub(super) fn known(twins: &Twins, fake: &Fake, text: &str) -> MachineName {
    let name = name(text);
    fake.machines.lock().unwrap().insert(name.clone(), None);
    let record = Record {
        user: "twin".parse().unwrap(),
        instance: "i-1".parse().unwrap(),
        host_keys: Vec::new(),
        half_made: false,
        leaving: false,
    };
    twins.inner.book.put(&name, &record).unwrap();
    name
}

/// The run's end: how, and what it says.
pub(super) async fn over(twins: &Twins, run: RunId) -> String {
    let mut log = twins.inner.runs.follow(run, 0, true).unwrap();
    while log.next().await.unwrap().is_some() {}
    let run = twins.inner.runs.show(run).unwrap();
    format!("{} {}", run.state, run.message.unwrap_or_default()).trim().to_owned()
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            machines: Mutex::default(),
            damaged: Mutex::default(),
            logs: Mutex::default(),
            clones: Semaphore::new(0),
        })
    }

    pub(super) fn damage(&self, name: &MachineName) {
        self.damaged.lock().unwrap().insert(name.clone());
    }

    pub(super) fn write_console_to(&self, name: &MachineName, log: &Path) {
        self.logs.lock().unwrap().insert(name.clone(), log.to_owned());
    }

    pub(super) fn put_back(&self, name: &MachineName) {
        self.machines.lock().unwrap().insert(name.clone(), None);
    }

    pub(super) fn has(&self, name: &MachineName) -> bool {
        self.machines.lock().unwrap().contains_key(name)
    }

    fn origin(&self, name: &MachineName) -> Outcome<Option<(MachineName, SnapshotName)>> {
        let found = self.machines.lock().unwrap().get(name).cloned();
        if found.is_some() && self.damaged.lock().unwrap().contains(name) {
            return Err(Error::Definition { name: name.clone(), what: "it ends".to_owned() });
        }
        found.ok_or_else(|| Error::Unknown { name: name.clone() })
    }
}

fn nothing<T>(name: &MachineName, doing: &'static str) -> Outcome<T> {
    Err(Error::NotRunning { name: name.clone(), doing })
}

#[async_trait]
impl Hypervisor for Fake {
    async fn about(&self) -> Outcome<About> {
        Ok(About {
            hypervisor: "qemu",
            version: "10.0".to_owned(),
            acceleration: Acceleration::Tcg,
            reason: None,
        })
    }

    async fn define(&self, machine: Machine, _job: &Job) -> Outcome<()> {
        match self.machines.lock().unwrap().insert(machine.name.clone(), None) {
            None => Ok(()),
            Some(_) => Err(Error::Exists { name: machine.name }),
        }
    }

    async fn list(&self) -> Outcome<Vec<MachineName>> {
        Ok(self.machines.lock().unwrap().keys().cloned().collect())
    }

    async fn show(&self, name: &MachineName) -> Outcome<Seen> {
        Ok(Seen {
            state: State::Stopped,
            image: "0a".repeat(32).parse().unwrap(),
            memory_bytes: 1 << 30,
            processors: 1,
            mac: "52:54:00:00:00:01".parse().unwrap(),
            network: Network::Isolated,
            acceleration: None,
            ssh_port: None,
            origin: self.origin(name)?,
            current: None,
            used_bytes: 0,
            console_log: "/none".into(),
        })
    }

    async fn images_in_use(&self) -> Outcome<BTreeMap<ImageId, Vec<MachineName>>> {
        Ok(BTreeMap::new())
    }

    async fn start(&self, name: &MachineName, _job: &Job) -> Outcome<()> {
        nothing(name, "start")
    }

    async fn shut_down(&self, _name: &MachineName, _job: &Job) -> Outcome<()> {
        Ok(())
    }

    async fn power_off(&self, _name: &MachineName) -> Outcome<()> {
        Ok(())
    }

    async fn forget(&self, name: &MachineName) -> Outcome<()> {
        self.machines.lock().unwrap().remove(name);
        Ok(())
    }

    async fn snapshot(
        &self,
        _name: &MachineName,
        wish: NewSnapshot,
        _job: &Job,
    ) -> Outcome<Snapshot> {
        Ok(Snapshot {
            name: wish.name,
            kind: Kind::Disk,
            at: wish.at,
            labels: wish.labels,
            pause: std::time::Duration::ZERO,
            used_bytes: 0,
        })
    }

    async fn snapshots(&self, _name: &MachineName) -> Outcome<Vec<Listed>> {
        Ok(Vec::new())
    }

    async fn revert(&self, name: &MachineName, _to: &SnapshotName, _job: &Job) -> Outcome<()> {
        nothing(name, "go back")
    }

    async fn delete_snapshot(
        &self,
        name: &MachineName,
        _snapshot: &SnapshotName,
        _job: &Job,
    ) -> Outcome<()> {
        nothing(name, "let go of a snapshot")
    }

    async fn clone_at(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        clone: NewClone,
        _job: &Job,
    ) -> Outcome<()> {
        if self.has(&clone.name) {
            return Err(Error::Exists { name: clone.name });
        }
        let origin = Some((name.clone(), snapshot.clone()));
        self.machines.lock().unwrap().insert(clone.name, origin);
        self.clones.acquire().await.unwrap().forget();
        Ok(())
    }

    async fn lead_ssh(&self, name: &MachineName, _to: &[Ipv4Addr]) -> Outcome<()> {
        nothing(name, "lead SSH to it")
    }

    fn console_log(&self, name: &MachineName) -> PathBuf {
        self.logs.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    async fn connect(&self, name: &MachineName, _to: Line) -> Outcome<Box<dyn Stream>> {
        nothing(name, "talk to it")
    }
}
