//! A hypervisor for tests that no machine has to boot for, and twins over it.

mod guest;

pub(crate) use guest::Guest;

use super::follow::Wakers;
use super::record::Record;
use super::settings::TwinsFile;
use super::{Shared, Twins};
use crate::clock;
use crate::runs::{Limits, RunId, Runs};
use async_trait::async_trait;
use model::entity::{Entity, File, Platform};
use model::spec::ENVIRONMENT;
use model::{Facts, HostId, Subject};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store::{Append, Body, Delta, History, Options};
use tokio::sync::Semaphore;
use vm::image::{ImageId, Job, MachineName, SnapshotName, Store};
use vm::machine::{
    About, Acceleration, Error, Hypervisor, Kind, Line, Listed, Machine, Network, NewClone,
    NewSnapshot, Seen, Snapshot, State, Stream,
};

type Outcome<T> = Result<T, Error>;

/// For what a test waits for.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// What becomes of the next snapshot, clone, or way back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Fate {
    #[default]
    Done,
    Refused,
    NoRoom,
    Fails,
    Panics,
    NeverEnds,
}

/// Machines that never do anything, and are stopped unless they have a guest.
#[derive(Debug)]
pub(crate) struct Fake {
    machines: Mutex<BTreeMap<MachineName, Option<(MachineName, SnapshotName)>>>,
    damaged: Mutex<BTreeSet<MachineName>>,
    logs: Mutex<BTreeMap<MachineName, PathBuf>>,
    guests: Mutex<BTreeMap<MachineName, Arc<Guest>>>,
    /// Of each machine; none can be deleted.
    snapshots: Mutex<Vec<Snapshot>>,
    pub(super) fate: Mutex<Fate>,
    /// Machines whose disk was full, and whether they go on.
    starved: Mutex<BTreeMap<MachineName, bool>>,
    /// What a clone waits for once it is there.
    pub(super) clones: Semaphore,
}

pub(super) fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

/// Twins of a data directory, by this hypervisor.
pub(super) fn twins(dir: &Path, fake: &Arc<Fake>) -> Twins {
    limited(dir, fake, Limits::default())
}

pub(super) fn limited(dir: &Path, fake: &Arc<Fake>, limits: Limits) -> Twins {
    let shared = Shared {
        images: Store::open(&dir.join("images")).unwrap(),
        history: History::open(&dir.join("history"), Options::default()).unwrap(),
        runs: Runs::open(&dir.join("runs"), limits).unwrap(),
        wakers: Wakers::default(),
    };
    let settings = TwinsFile::default().check(None, None, 10).unwrap();
    let twins = Twins::new(dir, settings, shared);
    give(&twins, fake);
    twins
}

pub(crate) fn give(twins: &Twins, fake: &Arc<Fake>) {
    let hypervisor: Arc<dyn Hypervisor> = fake.clone();
    twins.inner.hypervisor.set(hypervisor).unwrap();
}

/// The facts of a machine of this name that is a twin, and of which nothing else is seen.
pub(crate) fn called(hostname: &str) -> Facts {
    let mut facts = Facts::default();
    let hostname = hostname.to_owned();
    facts.put_entity(&Platform { id: "host".into(), hostname, ..Platform::default() });
    facts.put_entity(&File { path: ENVIRONMENT.into(), ..File::default() });
    facts
}

/// A host has this name now.
pub(crate) fn tell(twins: &Twins, host: &str, hostname: &str) {
    let mut facts = called(hostname);
    facts.remove(&Subject::escaped(File::KIND, ENVIRONMENT));
    let (at, body) = (clock::now(), Body::State(facts));
    let delta = Delta { sequence: None, at, body, gap: None, label: None };
    let host = HostId::new(host).unwrap();
    let append = Append { host, stream: None, received: at, deltas: vec![delta] };
    twins.inner.history.append_and_wait(append).unwrap();
}

/// A machine that the server knows, too.
pub(crate) fn known(twins: &Twins, fake: &Fake, text: &str) -> MachineName {
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
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            machines: Mutex::default(),
            damaged: Mutex::default(),
            logs: Mutex::default(),
            guests: Mutex::default(),
            snapshots: Mutex::default(),
            fate: Mutex::default(),
            starved: Mutex::default(),
            clones: Semaphore::new(0),
        })
    }

    /// Lets a machine run.
    pub(crate) fn inhabit(&self, name: &MachineName, guest: &Arc<Guest>) {
        self.guests.lock().unwrap().insert(name.clone(), Arc::clone(guest));
    }

    /// Each machine has this snapshot, of a version of its host if that is known.
    pub(crate) fn has_saved(&self, name: &str, version: Option<u64>) {
        let label = |version: u64| (super::snapshots::VERSION.to_owned(), version.to_string());
        self.snapshots.lock().unwrap().push(Snapshot {
            name: name.parse().unwrap(),
            kind: Kind::Disk,
            at: clock::now(),
            labels: version.into_iter().map(label).collect(),
            pause: Duration::ZERO,
            used_bytes: 0,
        });
    }

    fn guest(&self, name: &MachineName) -> Option<Arc<Guest>> {
        self.guests.lock().unwrap().get(name).cloned()
    }

    async fn suffer(&self, name: &MachineName, doing: &'static str) -> Outcome<()> {
        let fate = std::mem::take(&mut *self.fate.lock().unwrap());
        match fate {
            Fate::Done => Ok(()),
            Fate::Refused => Err(Error::Busy { name: name.clone() }),
            Fate::NoRoom => {
                Err(Error::Full { directory: "/".into(), needed_bytes: 2, free_bytes: 1 })
            }
            Fate::Fails => Err(Error::Gone { name: name.clone(), doing }),
            Fate::Panics => panic!("as a test wants it"),
            Fate::NeverEnds => std::future::pending().await,
        }
    }

    pub(super) fn starves(&self, name: &MachineName) {
        self.starved.lock().unwrap().insert(name.clone(), false);
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
            state: match (self.guest(name), self.starved.lock().unwrap().get(name)) {
                (_, Some(false)) => State::Starved,
                (Some(_), _) | (_, Some(true)) => State::Running,
                (None, None) => State::Stopped,
            },
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
        match self.starved.lock().unwrap().get_mut(name) {
            Some(goes_on) => {
                *goes_on = true;
                Ok(())
            }
            None => nothing(name, "start"),
        }
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
        name: &MachineName,
        wish: NewSnapshot,
        _job: &Job,
    ) -> Outcome<Snapshot> {
        self.suffer(name, "save it").await?;
        let snapshot = Snapshot {
            name: wish.name,
            kind: Kind::Disk,
            at: wish.at,
            labels: wish.labels,
            pause: Duration::ZERO,
            used_bytes: 0,
        };
        self.snapshots.lock().unwrap().push(snapshot.clone());
        Ok(snapshot)
    }

    async fn snapshots(&self, _name: &MachineName) -> Outcome<Vec<Listed>> {
        let snapshots = self.snapshots.lock().unwrap().clone().into_iter();
        let listed = |one: Snapshot| Listed { name: one.name.clone(), snapshot: Ok(one) };
        Ok(snapshots.map(listed).collect())
    }

    async fn revert(&self, name: &MachineName, _to: &SnapshotName, _job: &Job) -> Outcome<()> {
        self.suffer(name, "go back").await
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
        self.suffer(name, "be cloned").await
    }

    async fn lead_ssh(&self, name: &MachineName, _to: &[Ipv4Addr]) -> Outcome<()> {
        nothing(name, "lead SSH to it")
    }

    fn console_log(&self, name: &MachineName) -> PathBuf {
        self.logs.lock().unwrap().get(name).cloned().unwrap_or_default()
    }

    async fn connect(&self, name: &MachineName, to: Line) -> Outcome<Box<dyn Stream>> {
        match (self.guest(name), to) {
            (Some(guest), Line::TwinAgent) => Ok(Box::new(guest.connect())),
            _ => nothing(name, "talk to it"),
        }
    }
}
