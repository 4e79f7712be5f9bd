//! Machines by way of a libvirt daemon on this machine.
//!
//! ```text
//! Libvirt ─► domains ─► connection: one connection, each call on a blocking thread, with a deadline
//!        ├─► xml: the description of a machine and of a snapshot
//!        ├─► agent: the guest agent's line, whose other end libvirt holds
//!        └─► home: what libvirt does not keep of a machine
//! ```
//!
//! libvirt keeps the machines: they outlive this process and the daemon, and are found again by
//! UUID. Snapshots are libvirt's internal ones, within the disk's file: deleting one leaves the
//! others whole. A clone is a copy of the disk as it was in the snapshot, and boots from there:
//! libvirt gives no machine another one's memory. Built with the feature `libvirt`, which links
//! the system's libvirt (LGPL).
//!
//! # Invariants
//! - Nothing waits for libvirt longer than its deadline, and no more than eight calls
//!   can hang at a time.
//! - A call that was cut off is reported as such, never repeated: it may have taken effect.
//! - The daemon is one of this machine: all it is given are files here.
//! - What is not ours stays as it is: machines are found by the UUID that we gave them, and
//!   snapshots by how they are described, never by their names alone.
//! - Names are checked, and XML is written by one function that escapes.

mod agent;
mod connection;
mod domains;
mod home;
mod xml;

pub use connection::{Error, Uri, UriError};

use crate::content;
use crate::freeze::{self, Connecting, Freezer};
use crate::guest_agent::last_of;
use crate::image::{ImageId, MachineName, SnapshotName, Store};
use crate::job::{self, Job, Tool};
use crate::machine::{
    self, About, Acceleration, Hypervisor, Kind, Line, Listed, Machine, Network, NewClone,
    NewSnapshot, Seen, Snapshot, Stream,
};
use crate::qemu::layer::image_below;
use crate::qemu::{Found, Trials, find_acceleration};
use crate::turn::Turns;
use async_trait::async_trait;
use domains::{Domains, State, Uuid};
use home::{Definition, Home, Record};
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tokio::time::Instant;

const NAME: &str = "libvirt";
/// How long a guest may take to power off.
const SHUTDOWN: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(100);
/// The address that QEMU's network gives to a machine, and leads its ports to.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// How `qemu-img check` ends when it finds damage, and when room is lost but no data.
const CORRUPT: i32 = 2;
const LEAKS: i32 = 3;
/// Between finding a free port and taking it another program may have it.
const TRIES: usize = 4;

type Outcome<T> = Result<T, machine::Error>;

/// The machines of one directory, by way of one daemon. Clones are the same machines.
#[derive(Debug, Clone)]
pub struct Libvirt {
    root: PathBuf,
    images: Store,
    domains: Domains,
    acceleration: Arc<OnceCell<Found>>,
    turns: Turns,
    /// Locked while any of the clones is there.
    _lock: Arc<fs::File>,
}

impl Libvirt {
    /// Opens the directory, makes it if need be, and has libvirt delete snapshots that nobody
    /// was told of. The daemon, and what it starts, must be able to enter the directory.
    ///
    /// # Errors
    /// When another process works with it, or the daemon can't be reached.
    pub async fn open(root: &Path, images: Store, uri: Uri) -> Outcome<Self> {
        fs::create_dir_all(root).map_err(machine::Error::file("make the directory", root))?;
        let root = root.canonicalize().map_err(machine::Error::file("find", root))?;
        let lock = content::hold(&root).map_err(machine::Error::file("lock", &root))?;
        let Some(lock) = lock else {
            return Err(machine::Error::Taken { directory: root });
        };
        let libvirt = Self {
            root,
            images,
            domains: Domains::new(uri),
            acceleration: Arc::default(),
            turns: Turns::default(),
            _lock: Arc::new(lock),
        };
        libvirt.domains.version().await?;
        libvirt.refuse_strangers().await?;
        home::sweep_partial(&libvirt.root)?;
        for name in libvirt.names()? {
            if let Err(error) = libvirt.recover(&libvirt.home(&name)).await {
                tracing::warn!(machine = %name, error = &error as &dyn std::error::Error, "a machine could not be put in order");
            }
        }
        Ok(libvirt)
    }

    /// Machines make sockets and logs in directories that are the server's user's alone.
    async fn refuse_strangers(&self) -> Outcome<()> {
        let Some(user) = self.domains.runs_as().await? else { return Ok(()) };
        let found =
            fs::metadata(&self.root).map_err(machine::Error::file("look at", &self.root))?;
        if user == 0 || user == found.uid() {
            return Ok(());
        }
        let (uri, directory) = (self.domains.uri().clone(), self.root.clone());
        Err(Error::Stranger { uri, user, directory }.into())
    }

    async fn recover(&self, home: &Home) -> Outcome<()> {
        home.sweep()?;
        let uuid = match self.uuid(home).await {
            Err(machine::Error::Libvirt(Error::Unknown { .. })) => return Ok(()),
            found => found?,
        };
        self.freezer(home, &uuid).thaw_later();
        match self.clear(home, &uuid).await {
            Err(machine::Error::Libvirt(Error::Unknown { .. })) => Ok(()),
            cleared => cleared,
        }
    }

    /// Deletes snapshots of ours that nobody was told of: they were cut off.
    async fn clear(&self, home: &Home, uuid: &Uuid) -> Outcome<()> {
        let named = home.snapshots()?;
        let known = self.domains.snapshots(uuid).await?;
        for name in known.iter().filter_map(|name| name.parse::<SnapshotName>().ok()) {
            if !named.contains(&name) {
                self.domains.delete_snapshot(uuid, &name).await?;
            }
        }
        for name in home.begun()? {
            if !named.contains(&name) {
                self.domains.delete_unknown(uuid, &name).await?;
            }
            home.end(&name)?;
        }
        Ok(())
    }

    /// Takes a snapshot of a machine, which runs or not; how long the guest stood still for it.
    async fn take(
        &self,
        home: &Home,
        uuid: &Uuid,
        (wish, ran): (&NewSnapshot, bool),
        job: &Job,
    ) -> Outcome<Duration> {
        let freezer = self.freezer(home, uuid);
        if ran {
            freezer.settled().await?;
        }
        if wish.kind == Kind::Live {
            // Clones begin with the disk: what was written before has to be on it.
            freezer.still(job, async {}).await;
            // In the moment that is saved the guest goes on.
            freezer.settled().await?;
        }
        home.begin(&wish.name)?;
        let begun = Instant::now();
        let take = self.domains.snapshot(uuid, &wish.name);
        let taken = match wish.kind {
            Kind::Disk if ran => freezer.still(job, take).await,
            Kind::Disk | Kind::Live => take.await,
        };
        // libvirt stops the guest for all of it.
        let pause = if ran { begun.elapsed() } else { Duration::ZERO };
        if let Err(Error::Unreachable { .. } | Error::Busy { .. } | Error::Refused { .. }) = &taken
        {
            // Nothing of it is there. What is under this name is somebody's.
            home.end(&wish.name)?;
        }
        taken?;
        Ok(pause)
    }

    fn home(&self, name: &MachineName) -> Home {
        Home::new(&self.root, name)
    }

    fn names(&self) -> Outcome<Vec<MachineName>> {
        let names = home::entries(&self.root)?;
        let names = names.iter().filter_map(|name| name.parse().ok());
        Ok(names.filter(|name| self.home(name).exists()).collect())
    }

    /// What libvirt knows a machine by. Where its definition can't be read, it is the domain of
    /// this name with this disk.
    async fn uuid(&self, home: &Home) -> Outcome<Uuid> {
        match home.load() {
            Err(error) if error.is_damage() => {
                let found = self.domains.with_disk(&home.name, &home.disk()).await?;
                Ok(found.ok_or_else(|| Error::Unknown { what: home.name.to_string() })?)
            }
            definition => Ok(definition?.uuid),
        }
    }

    /// How a machine is; one that libvirt does not know has no power.
    async fn state(&self, home: &Home) -> Outcome<State> {
        let state = async { Ok(self.domains.state(&self.uuid(home).await?).await?) };
        match state.await {
            Err(machine::Error::Libvirt(Error::Unknown { .. })) => Ok(State::Stopped),
            other => other,
        }
    }

    async fn runs(&self, home: &Home) -> Outcome<bool> {
        Ok(self.state(home).await? != State::Stopped)
    }

    /// Has libvirt forget a machine that is ours, and removes it.
    async fn remove(&self, home: &Home) -> Outcome<()> {
        let forgotten = async { Ok(self.domains.forget(&self.uuid(home).await?).await?) };
        match forgotten.await {
            Ok(()) | Err(machine::Error::Libvirt(Error::Unknown { .. })) => home::remove(&home.dir),
            Err(error) => Err(error),
        }
    }

    /// Tells libvirt what the machine is. The image is looked over each time.
    async fn describe(&self, home: &Home, port: u16, job: &Job) -> Outcome<()> {
        let definition = home.load()?;
        let image = self.images.acquire_for::<machine::Error>(&definition.image, job).await?;
        let images = (&image, &self.images);
        let found =
            find_acceleration(&self.acceleration, &Trials::of(&self.root), images, job).await?;
        if let Some(reason) = &found.reason {
            job.line(reason.clone());
        }
        let (disk, seed) = (home.disk(), home.seed());
        let (agent, console, console_log) = (home.agent(), home.console(), home.console_log());
        let domain = xml::Domain {
            name: &home.name,
            uuid: definition.uuid.as_str(),
            memory_bytes: definition.memory_bytes,
            processors: definition.processors,
            acceleration: found.acceleration,
            direct: image.direct.as_ref(),
            disk: &disk,
            seed: &seed,
            mac: &definition.mac,
            network: definition.network,
            ssh_port: port,
            console: &console,
            console_log: &console_log,
            agent: &agent,
        };
        self.domains.define(&domain).await.map_err(machine::Error::from)
    }

    async fn power_on(&self, home: &Home, job: &Job) -> Outcome<()> {
        let uuid = home.load()?.uuid;
        match self.state(home).await? {
            State::Running => return Ok(()),
            State::Paused | State::Starved => return Ok(self.domains.resume(&uuid).await?),
            State::Stopped => self.freezer(home, &uuid).forget()?,
        }
        job.step(format!("Starting {} by way of libvirt", home.name));
        let mut failure = None;
        for _ in 0..TRIES {
            self.describe(home, free_port()?, job).await?;
            match self.domains.start(&uuid).await {
                Ok(()) => return Ok(()),
                // The port may be taken meanwhile.
                Err(Error::Refused { what, doing }) if what.contains("hostfwd") => {
                    failure = Some(Error::Refused { what, doing });
                }
                Err(error) => return Err(error.into()),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Refuses a disk whose structure is damaged. Contents are not looked at: they have no digest
    /// here.
    async fn look_over(&self, home: &Home, job: &Job) -> Outcome<()> {
        let runs = self.runs(home).await?;
        // What a machine writes meanwhile may look like damage; that does not stay.
        for tries_left in (0..if runs { TRIES } else { 1 }).rev() {
            let check = Tool::new("qemu-img", "qemu-utils").args(["check", "-q", "-f", "qcow2"]);
            let check = if runs { check.args(["-U"]) } else { check };
            match job.quiet().run(check.arg(home.disk())).await {
                Ok(()) | Err(job::Error::Failed { code: Some(LEAKS), .. }) => break,
                Err(job::Error::Failed { code: Some(CORRUPT), .. }) if tries_left > 0 => {}
                Err(job::Error::Failed { code: Some(CORRUPT), last, .. }) => {
                    let what = last.split("; ").find(|line| line.starts_with("ERROR"));
                    let what = what.unwrap_or("qemu-img says so").to_owned();
                    return Err(Error::Corrupt { disk: home.disk(), what }.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes a machine's directory, with its disk at a path by `disk`. It is there as a whole or
    /// not at all.
    async fn make(
        &self,
        home: &Home,
        definition: &Definition,
        seed: &[u8],
        disk: impl AsyncFnOnce(PathBuf) -> Outcome<()>,
    ) -> Outcome<()> {
        if home.exists() {
            return Err(machine::Error::Exists { name: home.name.clone() });
        }
        let partial = home.in_the_making();
        let made = async {
            partial.make()?;
            let at = partial.seed();
            fs::write(&at, seed).map_err(machine::Error::file("write", &at))?;
            disk(partial.disk()).await?;
            partial.store(definition)?;
            partial.name_as(home)
        };
        let made = made.await;
        if made.is_err() {
            home::remove(&partial.dir)?;
        }
        made
    }

    /// What stops and thaws the file systems of a machine's guest.
    fn freezer(&self, home: &Home, uuid: &Uuid) -> Freezer {
        let (domains, uuid) = (self.domains.clone(), uuid.clone());
        let connect = move || -> Connecting {
            let line = agent::line(domains.clone(), uuid.clone());
            Box::pin(async move { Ok(Box::new(line) as Box<dyn Stream>) })
        };
        Freezer::new(&home.name, home.dir.join(freeze::MARK), Arc::new(connect))
    }

    async fn power_down(&self, home: &Home, job: &Job) -> Outcome<()> {
        let name = &home.name;
        if !self.runs(home).await? {
            return Ok(());
        }
        job.step(format!("Asking {name} to power off"));
        self.domains.shut_down(&home.load()?.uuid).await?;
        let until = Instant::now() + SHUTDOWN;
        job.within(async {
            while self.runs(home).await? {
                if Instant::now() > until {
                    let (doing, limit) = ("power off", SHUTDOWN);
                    let console = last_of(&home.console_log());
                    return Err(machine::Error::Silent {
                        name: name.clone(),
                        doing,
                        limit,
                        console,
                    });
                }
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        })
        .await
    }

    fn clones_of(&self, name: &MachineName) -> Outcome<Vec<String>> {
        let mut clones = Vec::new();
        for other in self.names()? {
            // A clone has a disk of its own: nothing of one that can't be read would be missing.
            let origin = self.home(&other).load().ok().and_then(|of| of.origin);
            if origin.is_some_and(|(machine, _)| machine == *name) {
                clones.push(other.to_string());
            }
        }
        Ok(clones)
    }
}

fn free_port() -> Outcome<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let port = listener.and_then(|listener| Ok(listener.local_addr()?.port()));
    port.map_err(machine::Error::file("find a free port on", "127.0.0.1"))
}

fn new_uuid() -> Outcome<Uuid> {
    Uuid::new().map_err(machine::Error::file("make a UUID by", "/proc"))
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn about(&self) -> Outcome<About> {
        let (major, minor, release) = self.domains.version().await?;
        let known = self.acceleration.get();
        Ok(About {
            hypervisor: NAME,
            version: format!("{major}.{minor}.{release}"),
            acceleration: known.map_or(Acceleration::Kvm, |found| found.acceleration),
            reason: match known {
                Some(found) => found.reason.clone(),
                None => Some("whether KVM boots a guest shows at the first start".to_owned()),
            },
        })
    }

    async fn define(&self, machine: Machine, job: &Job) -> Outcome<()> {
        let job = &self.turns.take(&machine.name)?.over(job);
        if machine.network == Network::Nat {
            let what = "`network: nat`, with which libvirt lets a guest reach this machine, too,";
            return Err(machine::Error::Unsupported { what, hypervisor: NAME });
        }
        let home = self.home(&machine.name);
        self.refuse_foreign(&machine.name).await?;
        let image = self.images.acquire_for::<machine::Error>(&machine.image, job).await?;
        let size = machine.disk_bytes.max(image.manifest.virtual_size_bytes);
        let definition = Definition {
            uuid: new_uuid()?,
            image: machine.image,
            memory_bytes: machine.memory_bytes,
            processors: machine.processors,
            mac: machine.mac,
            network: machine.network,
            origin: None,
            current: None,
        };
        let create = Tool::new("qemu-img", "qemu-utils")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(&image.disk);
        let disk = async |path: PathBuf| {
            let create = create.arg(path).arg(size.to_string());
            job.run(create).await.map_err(machine::Error::from)
        };
        self.make(&home, &definition, &machine.seed, disk).await?;
        let described = self.describe(&home, free_port()?, job).await;
        if described.is_err() {
            self.remove(&home).await?;
        }
        described
    }

    async fn list(&self) -> Outcome<Vec<MachineName>> {
        self.names()
    }

    async fn refuse_foreign(&self, name: &MachineName) -> Outcome<()> {
        let is_foreign = !self.home(name).exists()
            && self.domains.names().await?.iter().any(|known| known == name.as_str());
        match is_foreign {
            true => Err(machine::Error::Foreign { name: name.clone(), hypervisor: NAME }),
            false => Ok(()),
        }
    }

    async fn images_in_use(&self) -> Outcome<BTreeMap<ImageId, Vec<MachineName>>> {
        let mut used: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for name in self.names()? {
            let home = self.home(&name);
            let image = match home.load() {
                Ok(definition) => Some(definition.image),
                Err(_) => image_below(&home.disk()),
            };
            if let Some(image) = image {
                used.entry(image).or_default().push(name);
            }
        }
        Ok(used)
    }

    async fn show(&self, name: &MachineName) -> Outcome<Seen> {
        let home = self.home(name);
        let definition = home.load()?;
        let state = match self.state(&home).await? {
            State::Running => machine::State::Running,
            State::Paused => machine::State::Stuck("it was paused; start it".to_owned()),
            State::Starved => machine::State::Starved,
            State::Stopped => machine::State::Stopped,
        };
        let (mut ssh_port, mut acceleration) = (None, None);
        if state != machine::State::Stopped {
            let description = self.domains.description(&definition.uuid).await?;
            ssh_port = xml::ssh_port(&description);
            let kvm = description.contains("<domain type='kvm'");
            acceleration = Some(if kvm { Acceleration::Kvm } else { Acceleration::Tcg });
        }
        Ok(Seen {
            state,
            image: definition.image,
            memory_bytes: definition.memory_bytes,
            processors: definition.processors,
            mac: definition.mac,
            network: definition.network,
            acceleration,
            ssh_port,
            origin: definition.origin,
            current: definition.current,
            used_bytes: content::used(&home.dir),
            console_log: home.console_log(),
        })
    }

    async fn start(&self, name: &MachineName, job: &Job) -> Outcome<()> {
        let job = &self.turns.take(name)?.over(job);
        let home = self.home(name);
        home.load()?;
        self.power_on(&home, job).await
    }

    async fn shut_down(&self, name: &MachineName, job: &Job) -> Outcome<()> {
        let job = &self.turns.take(name)?.over(job);
        let home = self.home(name);
        home.load()?;
        self.power_down(&home, job).await
    }

    async fn power_off(&self, name: &MachineName) -> Outcome<()> {
        let _turn = self.turns.take(name)?;
        let home = self.home(name);
        home.known()?;
        match self.runs(&home).await? {
            true => Ok(self.domains.power_off(&self.uuid(&home).await?).await?),
            false => Ok(()),
        }
    }

    async fn forget(&self, name: &MachineName) -> Outcome<()> {
        let _turn = self.turns.take(name)?;
        let home = self.home(name);
        home.known()?;
        if self.runs(&home).await? {
            return Err(machine::Error::Running { name: name.clone(), doing: "remove it" });
        }
        let clones = self.clones_of(name)?;
        if !clones.is_empty() {
            return Err(machine::Error::Cloned { name: name.clone(), clones: clones.join(", ") });
        }
        self.remove(&home).await
    }

    async fn snapshot(
        &self,
        name: &MachineName,
        wish: NewSnapshot,
        job: &Job,
    ) -> Outcome<Snapshot> {
        let job = &self.turns.take(name)?.over(job);
        let home = self.home(name);
        let mut definition = home.load()?;
        if home.snapshots()?.contains(&wish.name) {
            let (name, snapshot) = (name.clone(), wish.name);
            return Err(machine::Error::SnapshotExists { name, snapshot });
        }
        let ran = self.runs(&home).await?;
        if wish.kind == Kind::Live && !ran {
            let doing = "take a live snapshot of it";
            return Err(machine::Error::NotRunning { name: name.clone(), doing });
        }
        job.step(format!("Saving {name} as {}", wish.name));
        let uuid = definition.uuid.clone();
        self.clear(&home, &uuid).await?;
        let pause = self.take(&home, &uuid, (&wish, ran), job).await?;
        let record = Record {
            name: wish.name,
            kind: wish.kind,
            ran,
            at: wish.at,
            labels: wish.labels,
            pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
        };
        definition.current = Some(record.name.clone());
        let kept = home.keep(&record).and_then(|()| home.end(&record.name));
        let kept = kept.and_then(|()| home.store(&definition));
        if let Err(error) = kept {
            home.drop_record(&record.name)?;
            self.domains.delete_snapshot(&uuid, &record.name).await?;
            return Err(error);
        }
        Ok(record.snapshot())
    }

    async fn snapshots(&self, name: &MachineName) -> Outcome<Vec<Listed>> {
        let home = self.home(name);
        home.load()?;
        let mut listed = Vec::new();
        for snapshot in home.snapshots()? {
            let found = home.record(&snapshot).map(|record| record.snapshot());
            listed.push(Listed { name: snapshot, snapshot: found });
        }
        let at = |listed: &Listed| listed.snapshot.as_ref().ok().map(|snapshot| snapshot.at);
        listed.sort_by(|a, b| at(a).cmp(&at(b)).then_with(|| a.name.cmp(&b.name)));
        Ok(listed)
    }

    async fn revert(&self, name: &MachineName, snapshot: &SnapshotName, job: &Job) -> Outcome<()> {
        let job = &self.turns.take(name)?.over(job);
        let home = self.home(name);
        let mut definition = home.load()?;
        let record = home.record(snapshot)?;
        let (uuid, runs) = (definition.uuid.clone(), self.runs(&home).await?);
        job.step(format!("Putting {name} back to {snapshot}"));
        // QEMU has the disk of one that runs, and reads it as it is.
        if !runs {
            self.look_over(&home, job).await?;
        }
        self.domains.revert(&uuid, snapshot).await?;
        self.freezer(&home, &uuid).forget()?;
        definition.current = Some(snapshot.clone());
        home.store(&definition)?;
        match (record.kind, record.ran, runs) {
            (Kind::Live, _, _) | (Kind::Disk, false, false) => Ok(()),
            // Its memory is there as well, and is not what was asked for.
            (Kind::Disk, true, true) => Ok(self.domains.reset(&uuid).await?),
            (Kind::Disk, true, false) => Ok(self.domains.power_off(&uuid).await?),
            (Kind::Disk, false, true) => self.power_on(&home, job).await,
        }
    }

    async fn delete_snapshot(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Outcome<()> {
        let job = &self.turns.take(name)?.over(job);
        let home = self.home(name);
        let mut definition = home.load()?;
        if !home.snapshots()?.contains(snapshot) {
            let (name, snapshot) = (name.clone(), snapshot.clone());
            return Err(machine::Error::UnknownSnapshot { name, snapshot });
        }
        job.step(format!("Deleting {snapshot} of {name}"));
        match self.domains.delete_snapshot(&definition.uuid, snapshot).await {
            Ok(()) | Err(Error::Unknown { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        home.drop_record(snapshot)?;
        if definition.current.as_ref() == Some(snapshot) {
            definition.current = None;
            home.store(&definition)?;
        }
        Ok(())
    }

    async fn clone_at(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        clone: NewClone,
        job: &Job,
    ) -> Outcome<()> {
        let job = &self.turns.take(name)?.over(job);
        let job = &self.turns.take(&clone.name)?.over(job);
        let (home, new) = (self.home(name), self.home(&clone.name));
        let of = home.load()?;
        let record = home.record(snapshot)?;
        self.refuse_foreign(&clone.name).await?;
        let image = self.images.acquire_for::<machine::Error>(&of.image, job).await?;
        let definition = Definition {
            uuid: new_uuid()?,
            mac: clone.mac,
            network: Network::Isolated,
            origin: Some((name.clone(), snapshot.clone())),
            current: None,
            ..of
        };
        job.step(format!("Copying the disk of {name} as it was in {snapshot}"));
        self.look_over(&home, job).await?;
        // A snapshot within the file does not change while the machine goes on.
        let copy = Tool::new("qemu-img", "qemu-utils")
            .args(["convert", "-q", "-U", "-f", "qcow2", "-O", "qcow2", "-F", "qcow2", "-B"])
            .arg(&image.disk)
            .args(["-l", &format!("snapshot.name={snapshot}")])
            .arg(home.disk());
        let disk =
            async |path: PathBuf| job.run(copy.arg(path)).await.map_err(machine::Error::from);
        self.make(&new, &definition, &clone.seed, disk).await?;
        let described = match self.describe(&new, free_port()?, job).await {
            Ok(()) if record.kind == Kind::Live => {
                job.line("by way of libvirt it boots from there: memory is not cloned".to_owned());
                self.power_on(&new, job).await
            }
            other => other,
        };
        if described.is_err() {
            self.remove(&new).await?;
        }
        described
    }

    /// A clone boots as who it is, and every guest is where QEMU's network puts the first one.
    async fn lead_ssh(&self, name: &MachineName, to: &[Ipv4Addr]) -> Outcome<()> {
        let (home, doing) = (self.home(name), "lead SSH to where its guest is");
        let definition = home.load()?;
        if !self.runs(&home).await? {
            return Err(machine::Error::NotRunning { name: name.clone(), doing });
        }
        if definition.network == Network::Isolated && !to.contains(&FIRST) {
            let what = format!("the guest does not say that it is at {FIRST}");
            return Err(machine::Error::Refused { name: name.clone(), doing, what });
        }
        Ok(())
    }

    fn console_log(&self, name: &MachineName) -> PathBuf {
        self.home(name).console_log()
    }

    async fn connect(&self, name: &MachineName, to: Line) -> Outcome<Box<dyn Stream>> {
        let home = self.home(name);
        let uuid = home.load()?.uuid;
        if !self.runs(&home).await? {
            return Err(machine::Error::NotRunning { name: name.clone(), doing: "talk to it" });
        }
        let socket = match to {
            Line::GuestAgent => {
                return Ok(Box::new(agent::line(self.domains.clone(), uuid)));
            }
            Line::TwinAgent => home.agent(),
            Line::Console => home.console(),
        };
        let stream = UnixStream::connect(&socket).await;
        Ok(Box::new(stream.map_err(machine::Error::file("connect to", &socket))?))
    }
}

#[cfg(test)]
mod tests;
