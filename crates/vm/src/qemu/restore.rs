//! Brings a saved moment back: in its machine, or as another one.
//!
//! ```text
//! an empty layer over the snapshot's ─► a new QEMU beside the old one, its memory mapped from
//! the snapshot ─► devices are read ─► stored: this is the machine now ─► the old QEMU ends
//! ─► the guest goes on
//! ```
//!
//! # Invariants
//! - Up to the moment when it is stored the machine is as it was; from then on it is the other.

use super::Qemu;
use super::command::Memory;
use super::home::{Below, Definition, Home, Manifest, Moment, Origin};
use super::power::{Start, Started, abandon, refused, running};
use super::qmp::{self, Qmp};
use super::save::{DEVICES, MEMORY, capabilities};
use crate::image::{Image, SnapshotName};
use crate::job::Job;
use crate::machine::{Error, Machine, Network, NewClone};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// For reading devices.
const READ: Duration = Duration::from_secs(60);

/// Whose moment it is, and what it needs.
#[derive(Clone, Copy)]
struct Saved<'a> {
    home: &'a Home,
    manifest: &'a Manifest,
    image: &'a Image,
}

/// A machine that is what it was in a saved moment, and waits for a word to go on.
struct Resumed {
    qmp: Qmp,
    /// Whether SSH comes in.
    opened: Result<(), Error>,
}

impl Resumed {
    async fn go_on(mut self, home: &Home) -> Result<(), Error> {
        let went_on = self.qmp.act("cont", json!({})).await;
        went_on.map_err(refused(home, "go on"))?;
        self.opened
    }
}

impl Qemu {
    /// The snapshot, compared with what it was when it was taken.
    async fn checked(
        &self,
        home: &Home,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Result<(Definition, Manifest), Error> {
        let definition = home.load()?;
        let manifest = home.manifest(snapshot)?;
        let (this, at) = (self.clone(), home.clone());
        let (definition_, manifest_, job_) = (definition.clone(), manifest.clone(), job.clone());
        let check = move || {
            this.verify(&at, &definition_, manifest_.layer, &job_)?;
            let dir = at.snapshot(&manifest_.name);
            let Some(moment) = &manifest_.moment else { return Ok::<_, Error>(()) };
            for (name, record) in [(MEMORY, &moment.memory), (DEVICES, &moment.devices)] {
                let path = dir.join(name);
                let checked = this.verified.check(&path, record, || job_.go_on());
                job_.check()?;
                checked.map_err(|what| Error::Damaged { path, what })?;
            }
            Ok(())
        };
        job.block(check).await?;
        Ok((definition, manifest))
    }

    pub(super) async fn put_back(
        &self,
        home: &Home,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Result<(), Error> {
        let (definition, manifest) = self.checked(home, snapshot, job).await?;
        let image = self.image(&definition, job).await?;
        job.step(format!("Putting {} back to {snapshot}", home.name));
        let old = running(home, &definition)?;
        let layer = self.add_layer(home, Below::Layer(manifest.layer), job).await?;
        let from = Saved { home, manifest: &manifest, image: &image };
        let done = match &manifest.moment {
            Some(moment) => self.resume(home, layer, (from, moment), job).await.map(Some),
            None => self.swap_disk(home, snapshot, layer, job).await.map(|()| None),
        };
        match done {
            Ok(Some(resumed)) => {
                // QEMU is slow to say that the guest goes on, once it does.
                let collected = async { self.collect(home) };
                let (went_on, collected) = tokio::join!(resumed.go_on(home), collected);
                went_on.and(collected)
            }
            Ok(None) => {
                self.collect(home)?;
                match old {
                    Some(_) => self.power_on(home, job).await,
                    None => Ok(()),
                }
            }
            Err(error) => {
                // Before the switch was stored; the layer is nobody's then.
                self.collect(home)?;
                Err(error)
            }
        }
    }

    /// The machine's disk goes back; its memory is lost, so it has no power afterwards.
    async fn swap_disk(
        &self,
        home: &Home,
        snapshot: &SnapshotName,
        layer: u64,
        job: &Job,
    ) -> Result<(), Error> {
        job.line("the snapshot holds the disk alone: the machine boots from it".to_owned());
        // Stored first: where that fails, it runs on.
        home.change(|definition| {
            definition.active = layer;
            definition.run = None;
            definition.current = Some(snapshot.clone());
        })?;
        self.cut_power(home).await
    }

    /// Makes a machine what it was in a saved moment, on this layer. Its guest stands still yet.
    async fn resume(
        &self,
        home: &Home,
        layer: u64,
        (from, moment): (Saved<'_>, &Moment),
        job: &Job,
    ) -> Result<Resumed, Error> {
        let Saved { manifest, image, .. } = from;
        let dir = from.home.snapshot(&manifest.name);
        let definition = home.load()?;
        // No run had the layer's number either.
        let (run, old) = (layer, running(home, &definition)?);
        let start = Start {
            definition: &definition,
            image,
            run,
            layer,
            machine_type: &moment.machine_type,
            acceleration: moment.acceleration,
            memory: Memory::Saved { path: dir.join(MEMORY), offset: moment.memory_offset },
            network: definition.network,
        };
        let mut started = self.spawn(home, start, job).await?;
        let devices = dir.join(DEVICES);
        let read = read_devices(&mut started, &devices);
        let read = match tokio::time::timeout(READ, read).await {
            Ok(read) => read.map_err(refused(home, "read the saved devices")),
            Err(_) => {
                let (name, doing) = (home.name.clone(), "read the saved devices");
                Err(Error::Overdue { name, doing, limit: READ })
            }
        };
        let stored = read.and_then(|()| {
            home.change(|definition| {
                definition.active = layer;
                definition.run = Some(run);
                definition.guest = moment.guest;
                definition.current = Some(manifest.name.clone());
            })
        });
        if let Err(error) = stored {
            abandon(home, run).await?;
            return Err(error);
        }
        if let Some((old, _)) = old
            && let Err(error) = abandon(home, old).await
        {
            // The machine is the other one by now, and goes on as such.
            tracing::warn!(machine = %home.name, error = %model::with_causes(&error), "what a machine was before it was put back is ended with its next change");
        }
        // A monitor answers sooner before the guest goes on.
        let opened = self.open_way_in(home, &mut started, job).await;
        Ok(Resumed { qmp: started.qmp, opened })
    }

    pub(super) async fn branch(
        &self,
        home: &Home,
        snapshot: &SnapshotName,
        clone: NewClone,
        job: &Job,
    ) -> Result<(), Error> {
        let (definition, manifest) = self.checked(home, snapshot, job).await?;
        let image = self.image(&definition, job).await?;
        job.step(format!("Cloning {} from {}@{snapshot}", clone.name, home.name));
        let machine = Machine {
            name: clone.name,
            image: manifest.hardware.image.clone(),
            memory_bytes: manifest.hardware.memory_bytes,
            processors: manifest.hardware.processors,
            disk_bytes: 0,
            mac: clone.mac,
            network: Network::Isolated,
            seed: clone.seed,
        };
        let below = Below::Of { machine: home.name.clone(), layer: manifest.layer };
        let over = (home.layer(manifest.layer), None);
        let mut made = Definition::of(&machine, below);
        made.origin = Some(Origin { machine: home.name.clone(), snapshot: snapshot.clone() });
        let new = self.begin(&machine, &made, over, job).await?;
        let resumed = async {
            let from = Saved { home, manifest: &manifest, image: &image };
            if let Some(moment) = &manifest.moment {
                let resumed = self.resume(&new, made.active, (from, moment), job).await?;
                resumed.go_on(&new).await?;
            }
            new.change(|definition| definition.current = None)?;
            Ok(())
        };
        if let Err(error) = resumed.await {
            self.cut_power(&new).await?;
            super::home::remove(&new.dir)?;
            return Err(error);
        }
        Ok(())
    }
}

/// Has a QEMU that waits for them read the devices.
async fn read_devices(started: &mut Started, path: &Path) -> Result<(), qmp::Error> {
    let qmp = &mut started.qmp;
    capabilities(qmp, false).await?;
    qmp.act("migrate-incoming", json!({ "uri": format!("file:{}", path.to_string_lossy()) }))
        .await?;
    let ended = |event: &qmp::Event| {
        let status = event.data.get("status").and_then(Value::as_str)?;
        let ended = event.event == "MIGRATION" && matches!(status, "completed" | "failed");
        ended.then(|| status == "completed")
    };
    if qmp.event(ended).await? {
        return Ok(());
    }
    let text = "QEMU could not read them; is it another version than the one that saved them?";
    Err(qmp::Error::Refused { command: "migrate-incoming", text: text.to_owned() })
}
