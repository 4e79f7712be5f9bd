//! Saves a machine as it is.
//!
//! ```text
//! live:  an empty layer is made ─► memory and devices go to a file while the guest runs
//!        ─► the guest stands still: last pages, then the disk switches to the empty layer
//!        ─► the guest goes on ─► the file is split, all is digested, the snapshot gets its name
//! disk:  the guest writes out what is pending and stands still (`freeze`) ─► the disk switches
//!        ─► the guest goes on
//! ```
//!
//! # Invariants
//! - Whatever goes wrong on the way, the guest goes on and nothing of the snapshot is left.

use super::command;
use super::disk;
use super::home::{Below, Definition, Home, Layer, Manifest, Moment, make, remove};
use super::memory;
use super::power::{monitor, refused, running};
use super::qmp::{self, Qmp};
use super::recover::put_right;
use super::{Qemu, process};
use crate::content::FileRecord;
use crate::image::SnapshotName;
use crate::job::Job;
use crate::machine::{Acceleration, Error, Kind, Network, NewSnapshot, Snapshot, State};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Left free on the disk beside what a snapshot needs: for what guests write meanwhile, and for the
/// history, which stops at 128 MiB.
pub(super) const SPARE_BYTES: u64 = 256 << 20;
/// After a migration, for QEMU to put away what it needed for it.
const GO_ON: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(500);
const LOOK: Duration = Duration::from_millis(250);
pub(super) const MEMORY: &str = "memory";
pub(super) const DEVICES: &str = "devices";

/// From which layer to which a machine is switched, and for what.
#[derive(Clone, Copy)]
struct Switch<'a> {
    run: u64,
    old: u64,
    new: u64,
    wish: &'a NewSnapshot,
}

/// What the monitor was found to hold.
struct Held {
    pause: Duration,
    machine_type: String,
    acceleration: Acceleration,
}

/// What is all there of a snapshot but for its name.
struct Unnamed {
    definition: Definition,
    wish: NewSnapshot,
    pause: Duration,
    /// Of a live one.
    held: Option<Held>,
}

impl Qemu {
    pub(super) async fn save(
        &self,
        home: &Home,
        wish: NewSnapshot,
        job: &Job,
    ) -> Result<Snapshot, Error> {
        let definition = home.load()?;
        if home.snapshot(&wish.name).exists() {
            let (name, snapshot) = (home.name.clone(), wish.name);
            return Err(Error::SnapshotExists { name, snapshot });
        }
        match (self.look(home).await?.state, wish.kind) {
            (State::Running, _) | (State::Stopped, Kind::Disk) => {}
            (State::Stopped, Kind::Live) => {
                let (name, doing) = (home.name.clone(), "save its memory, or save its disk alone");
                return Err(Error::NotRunning { name, doing });
            }
            (stuck, _) => {
                let (name, doing) = (home.name.clone(), "save it");
                let what = stuck.why_stuck().unwrap_or_default();
                return Err(Error::Refused { name, doing, what });
            }
        }
        if let Some((run, _)) = running(home, &definition)? {
            self.freezer(home, run).settled().await?;
            // One that was cut off may have been anywhere in between.
            let mut qmp = monitor(home, run, "be saved").await?;
            put_right(home, &mut qmp, definition).await?;
        }
        self.let_go_or_tell(home).await;
        self.collect(home)?;
        let definition = home.load()?;
        make(&home.partial(&wish.name))?;
        match self.save_into(home, definition, &wish, job).await {
            Ok(saved) => Ok(saved),
            Err(error) => Err(self.give_up(home, &wish.name, error)),
        }
    }

    /// Of a snapshot that is not to be, nothing stays. Whether the disk is full shows only before.
    fn give_up(&self, home: &Home, name: &SnapshotName, error: Error) -> Error {
        let error = or_full(home, error);
        let undone = remove(&home.partial(name)).and_then(|()| self.collect(home));
        undone.err().unwrap_or(error)
    }

    async fn save_into(
        &self,
        home: &Home,
        definition: Definition,
        wish: &NewSnapshot,
        job: &Job,
    ) -> Result<Snapshot, Error> {
        let (old, live) = (definition.active, wish.kind == Kind::Live);
        let run = running(home, &definition)?;
        if let Some((run, _)) = &run
            && live
        {
            // It goes into the file whole, but for pages that it never had.
            let had = process::memory_bytes(&home.run(*run));
            room(home, had.min(definition.hardware.memory_bytes) + SPARE_BYTES)?;
        }
        let new = self.add_layer(home, Below::Layer(old), job).await?;
        let held = match &run {
            None => {
                home.change(|definition| definition.active = new)?;
                None
            }
            Some((run, _)) => {
                let mut qmp = monitor(home, *run, "be saved").await?;
                let switch = Switch { run: *run, old, new, wish };
                match self.switch(home, &mut qmp, switch, job).await {
                    Ok(held) => Some(held),
                    Err(error) => {
                        let error = or_full(home, error);
                        // First, room: a full disk holds up the guest, and takes no definition.
                        let removed = remove(&home.partial(&wish.name));
                        settle(&mut qmp, new).await;
                        let active = active(&mut qmp).await.unwrap_or(new);
                        home.change(|definition| definition.active = active)?;
                        removed?;
                        return Err(error);
                    }
                }
            }
        };
        let pause = held.as_ref().map(|held| held.pause).unwrap_or_default();
        let held = held.filter(|_| live);
        let unnamed = Unnamed { definition, wish: wish.clone(), pause, held };
        self.finish(home, unnamed, job).await
    }

    /// An empty layer, known to the definition so that nobody sweeps it away.
    pub(super) async fn add_layer(
        &self,
        home: &Home,
        below: Below,
        job: &Job,
    ) -> Result<u64, Error> {
        let path = match &below {
            Below::Layer(number) => home.layer(*number),
            Below::Of { machine, layer } => self.home(machine).layer(*layer),
            Below::Image => return Err(Error::Unknown { name: home.name.clone() }),
        };
        let mut definition = home.load()?;
        let number = definition.number();
        disk::create(&home.layer(number), &path, None, job).await?;
        definition.layers.insert(number, Layer { below, sealed: None, merged: None });
        home.store(&definition)?;
        Ok(number)
    }

    /// Makes a running machine write to the new layer, and for a live snapshot saves its memory
    /// as it is at that moment.
    async fn switch(
        &self,
        home: &Home,
        qmp: &mut Qmp,
        Switch { run, old, new, wish }: Switch<'_>,
        job: &Job,
    ) -> Result<Held, Error> {
        #[derive(Deserialize)]
        struct Kvm {
            enabled: bool,
        }
        let failed = refused(home, "be saved");
        let machine_type =
            qmp.call::<String>("qom-get", json!({ "path": "/machine", "property": "type" }));
        let machine_type = machine_type.await.map_err(&failed)?;
        let kvm: Kvm = qmp.call("query-kvm", json!({})).await.map_err(&failed)?;
        let mut layer = command::layer(new, &home.layer(new));
        if let Some(layer) = layer.as_object_mut() {
            // It gets its place over the old one when QEMU switches to it.
            layer.insert("backing".to_owned(), Value::Null);
        }
        qmp.act("blockdev-add", layer).await.map_err(&failed)?;
        // The new layer is empty: with it the disk is right before and after the switch.
        home.change(|definition| definition.active = new)?;
        let switch = json!({ "node": command::node(old), "overlay": command::node(new) });
        let pause = match wish.kind {
            Kind::Live => {
                job.step(format!("Saving the memory of {}", home.name));
                let path = home.partial(&wish.name).join(MEMORY);
                let stopped = migrate(qmp, &path, job, &failed).await?;
                qmp.act("blockdev-snapshot", switch).await.map_err(&failed)?;
                go_on(qmp).await.map_err(&failed)?;
                let went_on = |event: &qmp::Event| (event.event == "RESUME").then(|| event.at());
                let went_on = qmp.event(went_on).await.map_err(&failed)?;
                went_on.saturating_sub(stopped)
            }
            Kind::Disk => {
                job.step(format!("Saving the disk of {}", home.name));
                let begun = Instant::now();
                let switched = qmp.act("blockdev-snapshot", switch);
                let switched = self.freezer(home, run).still(job, switched).await;
                switched.map_err(&failed)?;
                begun.elapsed()
            }
        };
        let machine_type = machine_type.trim_end_matches("-machine").to_owned();
        let acceleration = if kvm.enabled { Acceleration::Kvm } else { Acceleration::Tcg };
        Ok(Held { pause, machine_type, acceleration })
    }

    /// Digests what the snapshot is made of, and gives it its name.
    async fn finish(&self, home: &Home, unnamed: Unnamed, job: &Job) -> Result<Snapshot, Error> {
        let (this, at, job_) = (self.clone(), home.clone(), job.clone());
        job.block(move || {
            let name = unnamed.wish.name.clone();
            let sealed = this.seal_all(&at, unnamed, &job_);
            // Here, since nobody may be waiting any more.
            sealed.map_err(|error| this.give_up(&at, &name, error))
        })
        .await
    }

    fn seal_all(&self, home: &Home, unnamed: Unnamed, job: &Job) -> Result<Snapshot, Error> {
        let Unnamed { definition, wish, pause, held } = unnamed;
        let old = definition.active;
        // Also those that a snapshot switched away from which was cut off afterwards.
        let mut sealed = Vec::new();
        for number in definition.unsealed(old) {
            sealed.push((number, self.seal(home, number, job)?));
        }
        let Definition { hardware, network, guest, .. } = definition;
        let partial = home.partial(&wish.name);
        let moment = match held {
            Some(held) => {
                Some(moment(&partial, hardware.memory_bytes, (held, network, guest), job)?)
            }
            None => None,
        };
        home.change(|definition| {
            for (number, record) in sealed {
                if let Some(layer) = definition.layers.get_mut(&number) {
                    layer.sealed = Some(record);
                }
            }
        })?;
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name: wish.name,
            at: wish.at,
            labels: wish.labels,
            pause_us: u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
            layer: old,
            hardware,
            moment,
        };
        job.check()?;
        let snapshot = home.seal(&manifest)?;
        if let Err(error) = self.note_sealed(home, &manifest) {
            // It is there and whole all the same.
            tracing::warn!(machine = %home.name, snapshot = %manifest.name, error = %model::with_causes(&error), "that a machine was saved last like this could not be written down");
        }
        Ok(snapshot)
    }

    fn note_sealed(&self, home: &Home, manifest: &Manifest) -> Result<(), Error> {
        // What was digested a moment ago is not read again when it is gone back to.
        let sealed = home.snapshot(&manifest.name);
        for name in manifest.moment.iter().flat_map(|_| [MEMORY, DEVICES]) {
            let path = sealed.join(name);
            self.verified.know(&path).map_err(Error::file("look at", &path))?;
        }
        home.change(|definition| definition.current = Some(manifest.name.clone())).map(drop)
    }

    pub(super) async fn delete(
        &self,
        home: &Home,
        snapshot: &SnapshotName,
        job: &Job,
    ) -> Result<(), Error> {
        let path = home.snapshot(snapshot);
        if !path.exists() {
            let (name, snapshot) = (home.name.clone(), snapshot.clone());
            return Err(Error::UnknownSnapshot { name, snapshot });
        }
        // From the rename on it is gone; what is left is swept, now or at the next start.
        let partial = home.partial(snapshot);
        remove(&partial)?;
        std::fs::rename(&path, &partial).map_err(Error::file("remove", &path))?;
        // First, room: a full disk takes no definition.
        remove(&partial)?;
        home.change(|definition| {
            definition.current = definition.current.take().filter(|current| current != snapshot);
        })?;
        self.collect(home)?;
        self.merge(home, job).await
    }
}

/// Splits what QEMU wrote, and digests it.
fn moment(
    partial: &Path,
    memory_bytes: u64,
    (held, network, guest): (Held, Network, Option<Ipv4Addr>),
    job: &Job,
) -> Result<Moment, Error> {
    let (memory, devices) = (partial.join(MEMORY), partial.join(DEVICES));
    let memory_offset = memory::split(&memory, &devices, memory_bytes)?;
    let record = |path: &Path| {
        let record = FileRecord::of(path, || job.go_on());
        job.check()?;
        record.map_err(Error::file("read", path))
    };
    let keep = |path: &Path| {
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.map_err(Error::file("write", path))
    };
    // The disk is written to while the other processor digests.
    let (kept, records) = std::thread::scope(|scope| {
        let kept = scope.spawn(|| keep(&memory).and_then(|()| keep(&devices)));
        let records = record(&memory).and_then(|memory| Ok((memory, record(&devices)?)));
        (kept.join(), records)
    });
    kept.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let (memory, devices) = records?;
    Ok(Moment {
        memory,
        memory_offset,
        devices,
        machine_type: held.machine_type,
        acceleration: held.acceleration,
        network,
        guest,
    })
}

/// How a guest that writes faster than it is saved comes to an end all the same: it may stand
/// still for ever longer, and at last it does for all that is left.
#[derive(Debug)]
struct Patience {
    allowed_ms: u64,
    /// When all had been written once, or was hurried last.
    since: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurry {
    Allow(u64),
    Stop,
}

impl Patience {
    const FIRST_MS: u64 = 50;
    const LONGEST_MS: u64 = 1_600;
    const EACH: Duration = Duration::from_secs(5);

    fn new() -> Self {
        Self { allowed_ms: Self::FIRST_MS, since: None }
    }

    /// What is to be done now, where QEMU has begun to go through the memory so many times.
    fn hurry(&mut self, passes: u64, now: Instant) -> Option<Hurry> {
        if passes < 2 {
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < Self::EACH || self.allowed_ms > Self::LONGEST_MS {
            return None;
        }
        self.since = Some(now);
        self.allowed_ms *= 2;
        Some(match self.allowed_ms {
            ms if ms > Self::LONGEST_MS => Hurry::Stop,
            ms => Hurry::Allow(ms),
        })
    }
}

/// Has QEMU write memory and devices to a file; the guest stands still afterwards. Returns
/// since when.
async fn migrate(
    qmp: &mut Qmp,
    path: &Path,
    job: &Job,
    failed: &impl Fn(qmp::Error) -> Error,
) -> Result<Duration, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Ram {
        transferred: u64,
        total: u64,
        #[serde(default)]
        dirty_sync_count: u64,
    }
    #[derive(Deserialize)]
    struct Info {
        ram: Option<Ram>,
    }
    capabilities(qmp, true).await.map_err(failed)?;
    let parameters = json!({
        "max-bandwidth": 1_u64 << 40,
        "downtime-limit": Patience::FIRST_MS,
        "multifd-channels": 2,
    });
    qmp.act("migrate-set-parameters", parameters).await.map_err(failed)?;
    let uri = format!("file:{}", path.to_string_lossy());
    qmp.act("migrate", json!({ "uri": uri })).await.map_err(failed)?;
    let mut stopped = Duration::ZERO;
    let mut touched = false;
    let mut patience = Patience::new();
    loop {
        let pick = |event: &qmp::Event| {
            if event.event == "STOP" {
                stopped = event.at();
            }
            let status = event.data.get("status").and_then(Value::as_str);
            (event.event == "MIGRATION").then(|| status.unwrap_or_default().to_owned())
        };
        let step = job.within(async {
            let next = tokio::time::timeout(LOOK, qmp.event(pick)).await;
            next.map_or(Ok(None), |status| status.map(Some).map_err(failed))
        });
        let status = step.await?;
        match status.as_deref() {
            Some("completed") => return Ok(stopped),
            Some("failed" | "cancelled") => return Err(explain(qmp, failed).await),
            Some("active") if !touched => {
                // A file that was emptied when it was opened is written out when it is first
                // closed, by ext4 and its like. Done now, that is nothing; done by QEMU at the
                // end, the guest would stand still for it.
                touched = File::options().write(true).open(path).is_ok();
            }
            None => {
                let info: Info = qmp.call("query-migrate", json!({})).await.map_err(failed)?;
                let Some(ram) = info.ram else { continue };
                job.bytes(ram.transferred, Some(ram.total));
                match patience.hurry(ram.dirty_sync_count, Instant::now()) {
                    Some(Hurry::Allow(ms)) => {
                        let parameters = json!({ "downtime-limit": ms });
                        qmp.act("migrate-set-parameters", parameters).await.map_err(failed)?;
                    }
                    Some(Hurry::Stop) => {
                        job.line(
                            "it writes faster than is saved: it stands still for the rest"
                                .to_owned(),
                        );
                        qmp.act("stop", json!({})).await.map_err(failed)?;
                    }
                    None => {}
                }
            }
            Some(_) => {}
        }
    }
}

/// Lets the guest go on. QEMU tells that a migration is complete a little before it is done.
async fn go_on(qmp: &mut Qmp) -> Result<(), qmp::Error> {
    let until = Instant::now() + GO_ON;
    loop {
        match qmp.act("cont", json!({})).await {
            Err(qmp::Error::Refused { .. }) if Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Why saving the memory failed, as QEMU has it.
async fn explain(qmp: &mut Qmp, failed: &impl Fn(qmp::Error) -> Error) -> Error {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Info {
        error_desc: Option<String>,
    }
    match qmp.call::<Info>("query-migrate", json!({})).await {
        Ok(info) => {
            let text = info.error_desc.unwrap_or_else(|| "no reason was given".to_owned());
            failed(qmp::Error::Refused { command: "migrate", text })
        }
        Err(error) => failed(error),
    }
}

/// How migrations are written and read here.
pub(super) async fn capabilities(qmp: &mut Qmp, out: bool) -> Result<(), qmp::Error> {
    let capability = |name: &str, on: bool| json!({ "capability": name, "state": on });
    let list = [
        capability("mapped-ram", true),
        capability("events", true),
        // What is read is small.
        capability("multifd", out),
    ];
    qmp.act("migrate-set-capabilities", json!({ "capabilities": list })).await
}

/// After a failure: the guest goes on, and a layer that was not switched to is let go.
pub(super) async fn settle(qmp: &mut Qmp, unused: u64) {
    // Each may be needless; what matters is how it is afterwards.
    let cancelled = qmp.act("migrate_cancel", json!({})).await;
    let gone_on = go_on(qmp).await;
    let unused = json!({ "node-name": command::node(unused) });
    for done in [cancelled, gone_on, qmp.act("blockdev-del", unused).await] {
        if let Err(error) = done {
            tracing::debug!(%error, "while putting a machine right");
        }
    }
}

/// The layer that QEMU writes to.
pub(super) async fn active(qmp: &mut Qmp) -> Option<u64> {
    let blocks: Vec<Value> = qmp.call("query-block", json!({})).await.ok()?;
    let mut names = blocks.iter().filter_map(|block| {
        let name = block.get("inserted")?.get("node-name")?.as_str()?;
        name.strip_prefix("layer-")?.parse().ok()
    });
    names.next()
}

fn free(directory: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(directory)?;
    Ok(found.f_bavail * found.f_frsize)
}

/// A full disk shows as anything: as whatever QEMU says, or as a file that ends too early. So it
/// is looked for, before what was written is removed.
pub(super) fn or_full(home: &Home, error: Error) -> Error {
    match (&error, free(&home.dir)) {
        (Error::Job(_) | Error::Full { .. }, _) => error,
        (_, Ok(free_bytes)) if free_bytes < SPARE_BYTES => {
            tracing::warn!(error = %model::with_causes(&error), "a disk is full");
            let directory = home.dir.clone();
            Error::Full { directory, needed_bytes: SPARE_BYTES, free_bytes }
        }
        _ => error,
    }
}

pub(super) fn room(home: &Home, needed_bytes: u64) -> Result<(), Error> {
    let free_bytes = free(&home.dir).map_err(Error::file("look at", &home.dir))?;
    if free_bytes < needed_bytes {
        let directory = home.dir.clone();
        return Err(Error::Full { directory, needed_bytes, free_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freeze::MARK;
    use crate::qemu::fake::{self, until_asked};
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    #[test]
    fn a_guest_that_writes_without_end_is_hurried() {
        let (mut patience, begun) = (Patience::new(), Instant::now());
        let mut at = |passes, seconds| patience.hurry(passes, begun + Duration::from_secs(seconds));
        // However long the first time takes: it may be large.
        assert_eq!(at(1, 100), None);
        assert_eq!(at(2, 101), None);
        assert_eq!(at(9, 105), None);
        let allowed = [100, 200, 400, 800, 1_600].map(|ms| Some(Hurry::Allow(ms)));
        assert_eq!([106, 111, 116, 121, 126].map(|seconds| at(9, seconds)), allowed);
        assert_eq!(at(9, 130), None);
        assert_eq!(at(9, 131), Some(Hurry::Stop));
        assert_eq!(at(9, 999), None);
    }

    /// A run that is cut off while QEMU switches the disk.
    #[tokio::test]
    async fn a_guest_goes_on_when_its_saving_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = fake::qemu(dir.path());
        let home = fake::machine(&qemu, "web01", Below::Image);
        let _process = fake::give_power(&home);
        let (writes_to, is_hung) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(true)));
        let (active, hangs) = (Arc::clone(&writes_to), Arc::clone(&is_hung));
        let let_go: Arc<Mutex<Vec<String>>> = Arc::default();
        let gone = Arc::clone(&let_go);
        let status = move |command: &str, arguments: &Value| {
            Some(match command {
                "query-status" => json!({ "status": "running", "running": true }),
                "query-kvm" => json!({ "enabled": false }),
                "qom-get" => json!("pc-i440fx-9.0-machine"),
                "query-block" => {
                    let node = command::node(active.load(Ordering::SeqCst));
                    json!([{ "inserted": { "node-name": node } }])
                }
                "blockdev-snapshot" if hangs.swap(false, Ordering::SeqCst) => return None,
                "blockdev-snapshot" => {
                    let node = command::node(active.load(Ordering::SeqCst));
                    assert_eq!(arguments["node"], json!(node), "it is another one's");
                    let overlay = arguments["overlay"].as_str().unwrap();
                    let number = overlay.strip_prefix("layer-").unwrap().parse().unwrap();
                    active.store(number, Ordering::SeqCst);
                    json!({})
                }
                "query-named-block-nodes" => {
                    // That of the attempt that was cut off is open all the while.
                    json!([{ "node-name": "layer-2" }, { "node-name": "layer-1" }])
                }
                "blockdev-del" => {
                    gone.lock().unwrap().push(arguments["node-name"].as_str().unwrap().to_owned());
                    json!({})
                }
                _ => json!({}),
            })
        };
        let _look = fake::answer(&home, command::LOOK, status.clone());
        let monitor = fake::answer(&home, command::MONITOR, status);
        let agent = fake::answer(&home, "guest-agent", fake::guest_agent);
        let name: SnapshotName = "a".parse().unwrap();
        let wish = NewSnapshot {
            name: name.clone(),
            kind: Kind::Disk,
            at: model::Time(1),
            labels: BTreeMap::new(),
        };
        let job = fake::job();
        {
            let saving = qemu.save(&home, wish.clone(), &job);
            tokio::pin!(saving);
            tokio::select! {
                saved = &mut saving => panic!("it does not end: {saved:?}"),
                () = until_asked(&monitor, "blockdev-snapshot") => {}
            }
        }
        assert!(agent.lock().unwrap().contains(&"guest-fsfreeze-freeze".to_owned()));
        until_asked(&agent, "guest-fsfreeze-thaw").await;
        qemu.freezer(&home, 1).settled().await.unwrap();
        assert!(!home.run(1).join(MARK).exists());
        // The next one is of what the machine writes to, and whole.
        qemu.save(&home, wish, &job).await.unwrap();
        assert!(!is_hung.load(Ordering::SeqCst));
        assert!(let_go.lock().unwrap().contains(&"layer-2".to_owned()));
        assert!(!let_go.lock().unwrap().contains(&"layer-1".to_owned()));
        let (definition, manifest) = (home.load().unwrap(), home.manifest(&name).unwrap());
        assert_eq!(manifest.layer, 1);
        assert_eq!(definition.active, writes_to.load(Ordering::SeqCst));
        assert_eq!(definition.layers.len(), 2);
        assert!(definition.layers[&1].sealed.is_some());
        // As the machine goes on, what was saved does not change.
        qemu.verify(&home, &definition, manifest.layer, &job).unwrap();
    }
}
