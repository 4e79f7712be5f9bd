//! Machines in QEMU processes of our own: no daemon, no root.
//!
//! ```text
//! Qemu ─► home: what a machine is, on disk          acceleration: does KVM boot a guest
//!     ├─► power: start, shut down, look             network: what leads in and out
//!     ├─► save: snapshots        ─► memory          disk: layers, merging them ─► layer
//!     ├─► restore: revert, clone                    process, command, qmp: one QEMU
//!     └─► recover: what was cut off
//! ```
//!
//! A QEMU outlives the process that started it, and is found again by the next one.
//!
//! # Invariants
//! - One process works with a directory of machines, and in it one operation with a machine.
//! - Which layer is written to is stored before QEMU switches to it: the new one is empty, so
//!   that it is right either way.

mod acceleration;
mod command;
mod disk;
#[cfg(test)]
mod fake;
pub(crate) mod home;
pub(crate) mod layer;
mod let_go;
mod memory;
mod network;
mod power;
mod process;
mod qmp;
mod recover;
mod restore;
mod save;

use crate::content::{self, Verified};
use crate::freeze::{self, Connecting, Freezer};
use crate::image::{Image, ImageId, MachineName, SnapshotName, Store};
use crate::job::Job;
use crate::machine::{
    About, Error, Hypervisor, Line, Listed, Machine, NewClone, NewSnapshot, Seen, Snapshot, Stream,
};
use crate::turn::Turns;
pub(crate) use acceleration::{Found, Trials};
use async_trait::async_trait;
use home::{Below, Definition, Home};
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

/// Why a machine does without KVM where nothing tells whether that boots a guest.
const UNTRIED: &str = "KVM was not tried: the image has no kernel of its own, and neither has \
                       another one here; make one with: twin image build debian, and start again";

/// The machines of one directory. Clones are the same machines.
#[derive(Debug, Clone)]
pub struct Qemu {
    root: PathBuf,
    images: Store,
    version: String,
    verified: Verified,
    acceleration: Arc<OnceCell<Found>>,
    turns: Turns,
    /// Locked while any of the clones is there.
    _lock: Arc<fs::File>,
}

/// What QEMU is here and how fast it can be, without any machines: as [`Qemu::about`]. What was
/// found out in this directory of machines counts; else KVM is tried with this image, if it can be
/// booted for certain. Says how long ago it was found out.
///
/// # Errors
/// When QEMU is missing or too old.
pub async fn look(
    root: &Path,
    image: Option<&Image>,
    job: &Job,
) -> Result<(About, Option<Duration>), Error> {
    let version = process::version(job).await?;
    let (trials, qemu) = (Trials::of(root), version.clone());
    let recalled = job.block(move || Ok::<_, Error>(trials.recall(&qemu))).await?;
    let direct = image.and_then(|image| image.direct.as_ref());
    let (found, age) = match (acceleration::look(), recalled, direct) {
        (Some(found), _, _) => (Some(found), None),
        (None, Some((found, age)), _) => (Some(found), Some(age)),
        (None, None, Some(direct)) => (Some(acceleration::boot(direct, job).await?), None),
        (None, None, None) => (None, None),
    };
    Ok((about(version, found.as_ref()), age))
}

fn about(version: String, known: Option<&Found>) -> About {
    let (acceleration, reason) = match known {
        Some(found) => (found.acceleration, found.reason.clone()),
        None => (
            crate::machine::Acceleration::Kvm,
            Some("/dev/kvm is there; whether it boots a guest shows at the first start".into()),
        ),
    };
    About { hypervisor: "qemu", version, acceleration, reason }
}

/// What machines with an image run with; found out once, where it can be found out: with the
/// image's own kernel, or that of any other image here.
pub(crate) async fn find_acceleration(
    known: &OnceCell<Found>,
    trials: &Trials,
    (image, images): (&Image, &Store),
    job: &Job,
) -> Result<Found, Error> {
    let (own, images, job_) = (image.direct.clone(), images.clone(), job.clone());
    let kernel = move || match own {
        Some(direct) => Ok(Some(direct)),
        None => Ok(images.with_kernel(&job_)?.and_then(|image| image.direct)),
    };
    let find = async {
        if let Some(found) = acceleration::look() {
            return Ok(found);
        }
        let tried = async {
            let qemu = process::version(job).await?;
            acceleration::remembered_or_tried(trials, &qemu, kernel, job).await
        };
        // With nothing to boot for certain it is what works everywhere, and is not kept.
        tried.await.map_err(Some)?.ok_or(None)
    };
    match known.get_or_try_init(|| find).await {
        Ok(found) => Ok(found.clone()),
        Err(None) => Ok(Found::slow(UNTRIED)),
        Err(Some(error)) => Err(error),
    }
}

impl Qemu {
    /// Opens the directory, makes it if need be, and puts in order what was cut off.
    ///
    /// # Errors
    /// When another process works with it, or QEMU is missing or too old.
    pub async fn open(root: &Path, images: Store, job: &Job) -> Result<Self, Error> {
        home::make(root)?;
        let root = root.canonicalize().map_err(Error::file("find", root))?;
        let lock = content::hold(&root).map_err(Error::file("lock", &root))?;
        let Some(lock) = lock else {
            return Err(Error::Taken { directory: root });
        };
        let qemu = Self {
            version: process::version(job).await?,
            root,
            images,
            verified: Verified::default(),
            acceleration: Arc::default(),
            turns: Turns::default(),
            _lock: Arc::new(lock),
        };
        home::sweep_partial(&qemu.root)?;
        for name in qemu.names()? {
            let _turn = qemu.turns.take(&name)?;
            if let Err(error) = qemu.recover(&qemu.home(&name)).await {
                tracing::warn!(machine = %name, error = &error as &dyn std::error::Error, "a machine could not be put in order");
            }
        }
        Ok(qemu)
    }

    fn home(&self, name: &MachineName) -> Home {
        Home::new(&self.root, name)
    }

    fn names(&self) -> Result<Vec<MachineName>, Error> {
        let names = home::entries(&self.root)?;
        let names = names.iter().filter_map(|name| name.parse().ok());
        Ok(names.filter(|name| self.home(name).exists()).collect())
    }

    /// What stops and thaws the file systems of the guest of one run. Its mark goes with the run.
    fn freezer(&self, home: &Home, run: u64) -> Freezer {
        let at = home.clone();
        let connect = move || -> Connecting {
            let at = at.clone();
            Box::pin(async move { line(&at, run, Line::GuestAgent).await })
        };
        Freezer::new(&home.name, home.run(run).join(freeze::MARK), Arc::new(connect))
    }

    async fn acceleration(&self, image: &Image, job: &Job) -> Result<Found, Error> {
        let images = (image, &self.images);
        find_acceleration(&self.acceleration, &Trials::of(&self.root), images, job).await
    }

    /// Makes a machine. It is there as a whole or not at all.
    async fn begin(
        &self,
        machine: &Machine,
        definition: &Definition,
        over: (PathBuf, Option<u64>),
        job: &Job,
    ) -> Result<Home, Error> {
        let home = self.home(&machine.name);
        if home.exists() {
            return Err(Error::Exists { name: machine.name.clone() });
        }
        let partial = Home::in_the_making(&self.root, &machine.name);
        // What a creation that was cut off has left.
        home::remove(&partial.dir)?;
        let made = async {
            partial.make()?;
            let seed = partial.seed();
            fs::write(&seed, &machine.seed).map_err(Error::file("write", &seed))?;
            disk::create(&partial.layer(1), &over.0, over.1, job).await?;
            partial.store(definition)?;
            partial.name_as(&home)
        };
        if let Err(error) = made.await {
            home::remove(&partial.dir)?;
            return Err(error);
        }
        Ok(home)
    }
}

/// The end of a line of one run.
async fn line(home: &Home, run: u64, to: Line) -> Result<Box<dyn Stream>, Error> {
    let opened = process::socket(&home.run(run), command::socket(to));
    let (_dir, path) = opened.map_err(|_error| gone(home))?;
    let stream = UnixStream::connect(&path).await.map_err(|_error| gone(home))?;
    Ok(Box::new(stream))
}

fn gone(home: &Home) -> Error {
    Error::NotRunning { name: home.name.clone(), doing: "talk to it" }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn about(&self) -> Result<About, Error> {
        let looked = acceleration::look();
        let known = match self.acceleration.get().cloned().or(looked) {
            Some(found) => Some(found),
            None => Trials::of(&self.root).recall(&self.version).map(|(found, _)| found),
        };
        Ok(about(self.version.clone(), known.as_ref()))
    }

    async fn define(&self, machine: Machine, job: &Job) -> Result<(), Error> {
        let job = &self.turns.take(&machine.name)?.over(job);
        if !machine.memory_bytes.is_multiple_of(2 << 20) || machine.memory_bytes == 0 {
            let what = "memory that is no multiple of 2 MiB";
            return Err(Error::Unsupported { what, hypervisor: "qemu" });
        }
        let image: Image = self.images.acquire_for::<Error>(&machine.image, job).await?;
        let size = machine.disk_bytes.max(image.manifest.virtual_size_bytes);
        let definition = Definition::of(&machine, Below::Image);
        self.begin(&machine, &definition, (image.disk, Some(size)), job).await.map(drop)
    }

    async fn list(&self) -> Result<Vec<MachineName>, Error> {
        self.names()
    }

    async fn show(&self, name: &MachineName) -> Result<Seen, Error> {
        self.look(&self.home(name)).await
    }

    async fn images_in_use(&self) -> Result<BTreeMap<ImageId, Vec<MachineName>>, Error> {
        let mut used: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for name in self.names()? {
            let home = self.home(&name);
            let images = match home.load() {
                Ok(definition) => vec![definition.hardware.image],
                Err(_) => {
                    home.layers().iter().filter_map(|path| layer::image_below(path)).collect()
                }
            };
            for image in images {
                used.entry(image).or_default().push(name.clone());
            }
        }
        Ok(used)
    }

    async fn start(&self, name: &MachineName, job: &Job) -> Result<(), Error> {
        let job = &self.turns.take(name)?.over(job);
        self.power_on(&self.home(name), job).await
    }

    async fn shut_down(&self, name: &MachineName, job: &Job) -> Result<(), Error> {
        let job = &self.turns.take(name)?.over(job);
        self.power_down(&self.home(name), job).await
    }

    async fn power_off(&self, name: &MachineName) -> Result<(), Error> {
        let _turn = self.turns.take(name)?;
        self.cut_power(&self.home(name)).await
    }

    async fn forget(&self, name: &MachineName) -> Result<(), Error> {
        let _turn = self.turns.take(name)?;
        let home = self.home(name);
        if !power::processes(&home)?.is_empty() {
            return Err(Error::Running { name: name.clone(), doing: "remove it" });
        }
        let clones = self.clones_of(name)?;
        if !clones.is_empty() {
            let clones = clones.keys().map(MachineName::to_string).collect::<Vec<_>>().join(", ");
            return Err(Error::Cloned { name: name.clone(), clones });
        }
        // Where that is not known, layers stay that nothing needs, until the next change there.
        let stood_on = self.stands_on(&home).unwrap_or_default();
        home::remove(&home.dir)?;
        // The layers it began from may have been kept for it alone. What can't be collected now is
        // when something is done with their machine the next time.
        for origin in stood_on.keys().filter(|origin| self.home(origin).exists()) {
            let Ok(_turn) = self.turns.take(origin) else { continue };
            if let Err(error) = self.collect(&self.home(origin)) {
                tracing::warn!(machine = %origin, error = &error as &dyn std::error::Error, "layers that nothing stands on go with the next change of their machine");
            }
        }
        Ok(())
    }

    async fn snapshot(
        &self,
        name: &MachineName,
        wish: NewSnapshot,
        job: &Job,
    ) -> Result<Snapshot, Error> {
        let job = &self.turns.take(name)?.over(job);
        self.save(&self.home(name), wish, job).await
    }

    async fn snapshots(&self, name: &MachineName) -> Result<Vec<Listed>, Error> {
        let home = self.home(name);
        home.load()?;
        let mut listed = Vec::new();
        for snapshot in home.snapshots()? {
            let manifest = home.manifest(&snapshot);
            let snapshot_ = manifest.map(|manifest| home.describe(&manifest));
            listed.push(Listed { name: snapshot, snapshot: snapshot_ });
        }
        let at = |listed: &Listed| listed.snapshot.as_ref().ok().map(|snapshot| snapshot.at);
        listed.sort_by(|a, b| at(a).cmp(&at(b)).then_with(|| a.name.cmp(&b.name)));
        Ok(listed)
    }

    async fn revert(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Result<(), Error> {
        let job = &self.turns.take(name)?.over(job);
        self.put_back(&self.home(name), snapshot, job).await
    }

    async fn delete_snapshot(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Result<(), Error> {
        let job = &self.turns.take(name)?.over(job);
        self.delete(&self.home(name), snapshot, job).await
    }

    async fn clone_at(
        &self,
        name: &MachineName,
        snapshot: &SnapshotName,
        clone: NewClone,
        job: &Job,
    ) -> Result<(), Error> {
        // The machine itself is only read, but its layers must not be merged meanwhile.
        let job = &self.turns.take(name)?.over(job);
        let job = &self.turns.take(&clone.name)?.over(job);
        self.branch(&self.home(name), snapshot, clone, job).await
    }

    async fn lead_ssh(&self, name: &MachineName, to: &[Ipv4Addr]) -> Result<(), Error> {
        let _turn = self.turns.take(name)?;
        self.move_way_in(&self.home(name), to).await
    }

    fn console_log(&self, name: &MachineName) -> PathBuf {
        self.home(name).console_log()
    }

    async fn connect(&self, name: &MachineName, to: Line) -> Result<Box<dyn Stream>, Error> {
        let home = self.home(name);
        let run = home.load()?.run.ok_or_else(|| gone(&home))?;
        line(&home, run, to).await
    }
}

#[cfg(test)]
mod tests;
