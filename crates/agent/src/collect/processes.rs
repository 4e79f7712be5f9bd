//! Processes and what is seen through them: sockets, dependencies, language-model workloads,
//! and the load of the machine.
//!
//! One task owns the scanner, since each of these reads what it found. Between full looks the
//! kernel's exec and exit events tell which processes to read; where they are not to be had,
//! its counters tell which came and went, and the collector says so.

use super::apart::{self, Apart};
use super::transient::Transients;
use super::{Context, Gpus, Sink, UserVms, item, items, until};
use crate::clock;
use crate::engine::{Scope, Seen};
use host::dependencies::dependencies;
use host::exec_events::{Event, ExecEvents};
use host::journal::Errors;
use host::load::Sampler;
use host::process::{CENSUS_EVERY, Census, Group, Scan, Scanner};
use host::sockets::{Connection, Depth, Sockets};
use host::workload::Detector;
use host::{Now, Rights};
use model::entity::Unit;
use model::load::{Load, VmmLoad};
use model::redact::Redactor;
use model::{Item, Kind, Subject};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A process that lives shorter than this after its exec is never read.
const SETTLE: Duration = Duration::from_millis(40);
/// Exits are gathered this long.
const GATHER: Duration = Duration::from_millis(10);
/// After something started or ended: when to look for new listening sockets.
const SOCKETS_AFTER: Duration = Duration::from_millis(300);
const SCAN_AFTER: Duration = Duration::from_millis(500);
/// Events that may wait; beyond it a full look is cheaper.
const MOST_PENDING: usize = 2048;
const RETRY_EVENTS: Duration = Duration::from_secs(60);

/// What tells which processes came and went.
enum Comings {
    Told(ExecEvents),
    Counted(Census),
    /// Only full looks do.
    Unknown,
}

/// All that reads through processes.
struct Sight {
    scanner: Scanner,
    sockets: Sockets,
    sampler: Sampler,
    workloads: Detector,
    redactor: Redactor,
    journal: Arc<Mutex<Option<Errors>>>,
    vmms: Arc<Mutex<BTreeMap<String, VmmLoad>>>,
    origin: std::time::Instant,
}

/// What a full look came to.
struct Picture {
    scan: Result<Scan, host::process::Error>,
    groups: Vec<(Arc<str>, Option<Group>)>,
    sockets: Result<host::sockets::Observation, host::sockets::Error>,
    workloads: Vec<(Subject, Item)>,
    load: Box<Load>,
}

impl Sight {
    fn now(&self) -> Now {
        Now { at: clock::now(), clock: self.origin.elapsed() }
    }

    /// Looks at everything.
    fn picture(
        &mut self,
        units: &[Unit],
        user_vms: &UserVms,
        names: BTreeMap<String, String>,
        gpus: &Gpus,
    ) -> Picture {
        let now = self.now();
        self.scanner.name_containers(names);
        let all = units.iter().chain(user_vms.values().flatten());
        let cgroups = all.filter_map(|unit| Some((unit.id.as_str(), unit.cgroup.as_deref()?)));
        let measured = self.sampler.measure(now, cgroups);
        let scan = self.scanner.scan_but(now, &self.redactor, &measured.quiet);
        let changed = scan.as_ref().map(|scan| scan.changed.clone()).unwrap_or_default();
        let sockets = self.sockets.observe(&self.scanner, Depth::Connections);
        let listening = sockets.as_ref().map_or(&[][..], |seen| &seen.sockets);
        let workloads = items(&self.workloads.observe(&self.scanner, listening, &gpus.processes));
        let mut load = Box::new(self.sampler.sample(now, &self.scanner, measured));
        load.gpus.clone_from(&gpus.load);
        let all = units.iter().chain(user_vms.values().flatten());
        self.add_what_is_known_of_vms(&mut load, all, now);
        Picture { scan, groups: self.by_id(changed), sockets, workloads, load }
    }

    /// What others found out about VMs.
    fn add_what_is_known_of_vms<'u>(
        &self,
        load: &mut Load,
        units: impl Iterator<Item = &'u Unit>,
        now: Now,
    ) {
        let boots: BTreeMap<&str, u64> = units
            .filter_map(|unit| Some((unit.id.as_str(), u64::try_from(unit.boot_ms?).ok()?)))
            .collect();
        let journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let vmms = self.vmms.lock().unwrap_or_else(PoisonError::into_inner);
        for (unit, used) in &mut load.units {
            if let Some(vm) = &mut used.vm {
                vm.journal = journal.as_ref().and_then(|errors| errors.of(unit, now.at));
                vm.vmm = vmms.get(unit).cloned();
                vm.boot_ms = boots.get(unit.as_str()).copied();
            }
        }
    }

    /// Looks at some processes.
    fn refresh(&mut self, pids: &[u32]) -> Vec<(Arc<str>, Option<Group>)> {
        let now = self.now();
        let changed = self.scanner.refresh(pids, now, &self.redactor);
        self.by_id(changed)
    }

    fn all(&self) -> Vec<(Arc<str>, Option<Group>)> {
        self.scanner.groups().map(|group| (group.process.id.as_str().into(), Some(group))).collect()
    }

    fn by_id(&self, ids: BTreeSet<Arc<str>>) -> Vec<(Arc<str>, Option<Group>)> {
        ids.into_iter().map(|id| (Arc::clone(&id), self.scanner.group(&id))).collect()
    }
}

/// The task and what it remembers between looks.
struct Watcher {
    context: Context,
    sight: Apart<Sight>,
    processes: Sink,
    sockets: Sink,
    dependencies: Sink,
    workloads: Sink,
    transients: Transients,
    /// Alive and not told, being transient so far.
    held: HashSet<Arc<str>>,
    /// All groups are to be told: none were yet, or what changed was lost with a look that was late
    /// or failed.
    owes_all: bool,
    /// What the facts say is not seen.
    limits: Vec<String>,
    connections: Vec<Connection>,
    units: watch::Receiver<Option<Arc<Vec<Unit>>>>,
    /// What is not seen for lack of the kernel's events, and why there are none.
    no_events: Option<String>,
    rights: Rights,
}

pub(crate) async fn run(context: Context) {
    let sink = context.sink("processes");
    match Watcher::new(context) {
        Ok(watcher) => watcher.run().await,
        Err(error) => sink.say(Seen::Fault(error)).await,
    }
}

impl Watcher {
    fn new(context: Context) -> Result<Self, String> {
        let root = &context.root;
        let scanner = Scanner::new(root).map_err(|error| model::with_causes(&error))?;
        let sockets = Sockets::new(root).map_err(|error| model::with_causes(&error))?;
        let sight = Sight {
            scanner,
            sockets,
            sampler: Sampler::new(root),
            workloads: Detector::new(root),
            redactor: context.redactor.clone(),
            journal: Arc::clone(&context.journal),
            vmms: Arc::clone(&context.vmms),
            origin: std::time::Instant::now(),
        };
        Ok(Self {
            units: context.units.subscribe(),
            sight: Apart::new(sight),
            processes: context.sink("processes"),
            sockets: context.sink("sockets"),
            dependencies: context.sink("dependencies"),
            workloads: context.sink("workloads"),
            transients: Transients::default(),
            held: HashSet::new(),
            owes_all: true,
            limits: Vec::new(),
            connections: Vec::new(),
            no_events: None,
            rights: Rights::own(),
            context,
        })
    }

    async fn run(mut self) {
        if self.context.asked_last.is_used() {
            return self.when_asked().await;
        }
        let mut comings = self.follow();
        self.look().await;
        if self.context.once {
            return;
        }
        let mut scan = tokio::time::interval(self.context.config.interval);
        scan.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        scan.tick().await;
        let mut reopen = tokio::time::interval(RETRY_EVENTS);
        reopen.tick().await;
        let mut batch: Vec<Event> = Vec::new();
        let mut pending = Pending::default();
        let mut sockets_due: Option<Instant> = None;
        let mut soon = false;
        let shutdown = self.context.shutdown.clone();
        loop {
            let next = pending.next();
            tokio::select! {
                read = comings.next(&mut batch) => match read {
                    Ok(()) => {
                        let lost = pending.sort(&mut batch);
                        if lost || pending.due.len() > MOST_PENDING {
                            pending = Pending::default();
                            self.look().await;
                        }
                    }
                    Err(error) => {
                        self.no_events = Some(error);
                        comings = Comings::Unknown;
                    }
                },
                () = until(next) => {
                    let now = Instant::now();
                    let due = pending.take(now, matches!(comings, Comings::Counted(_)));
                    if self.refresh(due).await {
                        sockets_due.get_or_insert(now + SOCKETS_AFTER);
                    }
                }
                () = until(sockets_due) => {
                    sockets_due = None;
                    self.listeners().await;
                    self.tell_dependencies().await;
                }
                changed = self.units.changed() => {
                    if changed.is_err() { return; }
                    sockets_due.get_or_insert(Instant::now() + SOCKETS_AFTER);
                    // That a unit changed is then the best sign that processes did.
                    if !matches!(comings, Comings::Told(_)) && !soon {
                        scan.reset_after(SCAN_AFTER);
                        soon = true;
                    }
                }
                _ = scan.tick() => {
                    soon = false;
                    self.look().await;
                }
                _ = reopen.tick(), if matches!(comings, Comings::Unknown) => {
                    comings = self.follow();
                    // What was not seen for lack of them is.
                    self.owes_all |= !matches!(comings, Comings::Unknown);
                }
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn when_asked(mut self) {
        let shutdown = self.context.shutdown.clone();
        loop {
            tokio::select! {
                () = self.context.asked_last.next() => {}
                () = shutdown.cancelled() => return,
            }
            let asked = self.context.asked_last.take_up();
            self.look().await;
            self.processes.caught_up(asked).await;
        }
    }

    fn follow(&mut self) -> Comings {
        self.no_events = None;
        if !self.context.config.processes || self.context.once {
            return Comings::Unknown;
        }
        let error = match ExecEvents::open(&self.context.root) {
            Ok(events) => return Comings::Told(events),
            Err(error) => model::with_causes(&error),
        };
        let every = self.context.config.interval;
        match Census::open(&self.context.root) {
            Ok(census) => {
                self.no_events = Some(format!(
                    "spawn and exit only every {CENSUS_EVERY:?}, exec only every {every:?}: {error}"
                ));
                Comings::Counted(census)
            }
            Err(uncounted) => {
                self.no_events =
                    Some(format!("spawn and exit only every {every:?}: {error}; {uncounted}"));
                Comings::Unknown
            }
        }
    }

    /// A full look.
    async fn look(&mut self) {
        let units = self.units.borrow().clone().unwrap_or_default();
        let user_vms = self.context.user_vms.borrow().clone();
        let names = self.context.containers.borrow().clone();
        let gpus = self.context.gpus.borrow().clone();
        let all_groups = self.owes_all;
        match self
            .sight
            .look(self.context.deadline(), move |sight| {
                let picture = sight.picture(&units, &user_vms, names, &gpus);
                if all_groups { Picture { groups: sight.all(), ..picture } } else { picture }
            })
            .await
        {
            Ok(picture) => self.tell(picture).await,
            Err(error) => self.hung(&error).await,
        }
    }

    async fn hung(&mut self, error: &apart::Error) {
        self.owes_all = true;
        for sink in [&self.processes, &self.sockets, &self.dependencies, &self.workloads] {
            sink.fault(error).await;
        }
    }

    async fn tell(&mut self, picture: Picture) {
        self.processes.say(Seen::Load(picture.load)).await;
        match picture.scan {
            Ok(scan) => self.tell_scan(&scan, picture.groups).await,
            Err(error) => self.processes.fault(&error).await,
        }
        match picture.sockets {
            Ok(seen) => self.tell_sockets(&seen, true).await,
            Err(error) => self.sockets.fault(&error).await,
        }
        self.workloads.all(vec![Scope::Kind(Kind::WORKLOAD)], picture.workloads, Vec::new()).await;
        self.tell_dependencies().await;
    }

    async fn tell_scan(&mut self, scan: &Scan, changed: Vec<(Arc<str>, Option<Group>)>) {
        if !self.context.config.processes {
            return;
        }
        let mut limits = scan.limits(self.rights);
        limits.extend(self.no_events.clone());
        if !self.owes_all {
            self.tell_what_changed(changed).await;
            // Limits are told with all that they are the limits of. One that comes and goes is no
            // news each time.
            self.owes_all |= limits.iter().any(|limit| !self.limits.contains(limit));
            return;
        }
        self.owes_all = false;
        self.held.clear();
        self.limits.clone_from(&limits);
        let now = Instant::now();
        let mut found = Vec::new();
        for (id, group) in changed {
            let Some(group) = group else { continue };
            self.transients.alive(&id, now);
            found.push(item(&group.process));
        }
        self.processes.all(vec![Scope::Kind(Kind::PROCESS)], found, limits).await;
    }

    async fn tell_what_changed(&mut self, mut groups: Vec<(Arc<str>, Option<Group>)>) {
        // Those held back that have stayed are told now.
        let held: BTreeSet<Arc<str>> = self.held.drain().collect();
        if !held.is_empty() {
            match self.sight.look(self.context.deadline(), move |sight| sight.by_id(held)).await {
                Ok(again) => groups.extend(again),
                Err(error) => return self.hung(&error).await,
            }
        }
        if !self.tell_groups(groups).await {
            self.processes.unchanged().await;
        }
    }

    /// Tells which groups changed, but for the transient ones; whether there was anything.
    async fn tell_groups(&mut self, groups: Vec<(Arc<str>, Option<Group>)>) -> bool {
        let now = Instant::now();
        let (mut put, mut gone) = (Vec::new(), Vec::new());
        for (id, group) in groups {
            match group {
                Some(group) if self.transients.alive(&id, now) => put.push(item(&group.process)),
                Some(_) => {
                    self.held.insert(id);
                }
                None => {
                    self.held.remove(&id);
                    if self.transients.ended(&id, now) {
                        gone.push(Subject::escaped(Kind::PROCESS, &id));
                    }
                }
            }
        }
        let any = !put.is_empty() || !gone.is_empty();
        self.processes.some(put, gone).await;
        any
    }

    /// Reads some processes; whether that told anything.
    async fn refresh(&mut self, pids: Vec<u32>) -> bool {
        match self.sight.look(self.context.deadline(), move |sight| sight.refresh(&pids)).await {
            Ok(groups) => self.tell_groups(groups).await,
            Err(error) => {
                self.owes_all = true;
                self.processes.fault(&error).await;
                false
            }
        }
    }

    async fn listeners(&mut self) {
        let seen = self.sight.look(self.context.deadline(), |sight| {
            sight.sockets.observe(&sight.scanner, Depth::Listeners)
        });
        match seen.await {
            Ok(Ok(seen)) => self.tell_sockets(&seen, false).await,
            Ok(Err(error)) => self.sockets.fault(&error).await,
            Err(error) => self.sockets.fault(&error).await,
        }
    }

    async fn tell_sockets(&mut self, seen: &host::sockets::Observation, with_connections: bool) {
        if with_connections {
            self.connections.clone_from(&seen.connections);
        }
        if self.context.config.network {
            self.sockets
                .all(
                    vec![Scope::Kind(Kind::SOCKET)],
                    items(&seen.sockets),
                    seen.limits(self.rights),
                )
                .await;
        }
    }

    async fn tell_dependencies(&mut self) {
        if self.context.once {
            // Whoever looks once wants it whole.
            let known = self.units.wait_for(Option::is_some);
            drop(tokio::time::timeout(self.context.deadline(), known).await);
        }
        // Before the units are known nothing is: that is not the same as no dependencies.
        let Some(units) = self.units.borrow().clone() else { return };
        let found = items(&dependencies(&units, &self.connections));
        self.dependencies.all(vec![Scope::Kind(Kind::DEPENDENCY)], found, Vec::new()).await;
    }
}

/// Which processes are to be read, and when.
#[derive(Default)]
struct Pending {
    due: BTreeMap<u32, Instant>,
    /// Those that are to be read a second time.
    read_once: BTreeSet<u32>,
}

impl Pending {
    fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Notes when which process is to be read; whether events were lost.
    fn sort(&mut self, batch: &mut Vec<Event>) -> bool {
        let now = Instant::now();
        let mut lost = false;
        for event in batch.drain(..) {
            match event {
                Event::Exec(pid) => {
                    self.due.entry(pid).or_insert(now + SETTLE);
                }
                Event::Exit(pid) => match self.due.get(&pid) {
                    // Came and went within the settling time.
                    Some(due) if due.saturating_duration_since(now) > GATHER => {
                        self.due.insert(pid, now + GATHER);
                    }
                    Some(_) => {}
                    None => {
                        self.due.insert(pid, now + GATHER);
                    }
                },
                Event::Lost => lost = true,
            }
        }
        lost
    }

    /// Those to be read now. `twice`: and once more a little later, since they may have been
    /// found before they became another program.
    fn take(&mut self, now: Instant, twice: bool) -> Vec<u32> {
        let due: Vec<u32> =
            self.due.iter().filter(|(_, at)| **at <= now).map(|(pid, _)| *pid).collect();
        self.due.retain(|_, at| *at > now);
        if twice {
            for &pid in &due {
                if self.read_once.insert(pid) {
                    self.due.insert(pid, now + SCAN_AFTER);
                } else {
                    self.read_once.remove(&pid);
                }
            }
        }
        due
    }
}

impl Comings {
    async fn next(&mut self, batch: &mut Vec<Event>) -> Result<(), String> {
        match self {
            Self::Told(events) => {
                events.read(batch).await.map_err(|error| model::with_causes(&error))
            }
            Self::Counted(census) => {
                census.read(batch).await.map_err(|error| model::with_causes(&error))
            }
            Self::Unknown => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, File};
    use crate::engine::Report;
    use model::load::UnitLoad;
    use std::path::Path;
    use std::process::Command;
    use tokio::sync::mpsc;

    fn watcher() -> (Watcher, mpsc::Receiver<Report>) {
        let config = File::parse("", Path::new("agent.yaml")).and_then(File::check).unwrap();
        let (reports, seen) = mpsc::channel(1024);
        let context = Context::new(config, [7; 32], reports, watch::channel(Vec::new()).1);
        (Watcher::new(context).unwrap(), seen)
    }

    /// The processes in the last report that told all of them, if there was one.
    fn all_told(seen: &mut mpsc::Receiver<Report>) -> Option<Vec<String>> {
        let mut told = None;
        while let Ok(Report { collector, seen, .. }) = seen.try_recv() {
            if let ("processes", Seen::All { items, .. }) = (collector, seen) {
                told = Some(items.iter().map(|(subject, _)| subject.to_string()).collect());
            }
        }
        told
    }

    #[tokio::test]
    async fn what_others_found_out_about_vms() {
        let (mut watcher, _seen) = watcher();
        let told = watcher.sight.look(Duration::from_secs(30), |sight| {
            *sight.journal.lock().unwrap() = Some(Errors::default());
            let vm = || UnitLoad { vm: Some(Box::default()), ..UnitLoad::default() };
            let ids = ["microvm@web.service", "alice/microvm-notes.service"];
            let units = ids.map(|id| (id.to_owned(), vm())).into();
            let mut load = Load { units, ..Load::default() };
            let id = ids[0].to_owned();
            let web = Unit { id, boot_ms: Some(4200), ..Unit::default() };
            sight.add_what_is_known_of_vms(&mut load, [web].iter(), sight.now());
            ids.map(|id| {
                let vm = load.units[id].vm.clone().unwrap();
                (vm.boot_ms, vm.journal.is_some())
            })
        });
        // Of a user's the journal is not followed.
        assert_eq!(told.await.unwrap(), [(Some(4200), true), (None, false)]);
    }

    #[tokio::test]
    async fn what_a_late_look_saw_is_told_by_the_next() {
        let (mut watcher, mut seen) = watcher();
        watcher.look().await;
        let first = all_told(&mut seen).unwrap();
        watcher.look().await;
        assert_eq!(all_told(&mut seen), None, "only what changed");

        let mut child = Command::new("sleep").arg("98765").spawn().unwrap();
        let patient = Arc::clone(&watcher.context.config);
        let hasty = Config { look_deadline: Duration::ZERO, ..(*patient).clone() };
        watcher.context.config = Arc::new(hasty);
        watcher.look().await;
        assert!(watcher.owes_all);
        assert_eq!(all_told(&mut seen), None);
        watcher.context.config = patient;
        let until = Instant::now() + Duration::from_secs(30);
        let mut again = None;
        while watcher.owes_all && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
            watcher.look().await;
            again = all_told(&mut seen).or(again);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let again = again.unwrap();
        let is_it = |subject: &String| subject.starts_with("process:sleep#");
        assert!(again.iter().any(is_it), "{again:?}");
        assert!(again.len() >= first.len() / 2, "{} and then {}", first.len(), again.len());
    }
}
