//! Units of systemd: read once, then followed by its signals.
//!
//! ```text
//!   connect ──► watch, read all ──► follow ──closed──► fault, backoff ──► connect
//! ```

use super::{Context, Sink, item, items};
use crate::clock;
use crate::engine::{Scope, Seen};
use host::systemd::{Bus, Catalog, Error, Systemd, UnitEvent, Watch, user_managers};
use model::entity::{Collector, Unit};
use model::vm::{LET_GO, may_be_microvm};
use model::{Kind, Subject, Time};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// What a manager that is slow to answer is given at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// A full look in spite of the signals, should one have been missed.
const RESYNC: Duration = Duration::from_secs(900);
const RESYNC_AFTER: Duration = Duration::from_millis(200);
/// systemd lets a unit go at once when it has stopped. One that was stopped for so long is not let
/// go for that, but since its file, or what wanted it, has gone.
const LONG_STOPPED: Duration = Duration::from_secs(60);

/// One user's manager that is followed.
struct Running {
    task: AbortHandle,
    /// The look asked for that it is through with.
    is_through: watch::Receiver<u64>,
}

/// What is to be read at the next look.
#[derive(Default)]
struct Stale {
    units: BTreeSet<String>,
    /// What systemd may have made of its files.
    files: bool,
}

impl Stale {
    fn note(&mut self, event: UnitEvent) {
        match event {
            UnitEvent::Resync => self.files = true,
            UnitEvent::Changed(id) => {
                self.units.insert(id);
            }
        }
    }
}

/// Follows one manager.
struct Follower {
    context: Context,
    sink: Sink,
    bus: Bus,
    /// For each answer.
    deadline: Duration,
    scope: Scope,
    known: BTreeMap<String, Unit>,
    /// The files of units, as they were when all units were read.
    catalog: Catalog,
    /// The look asked for that the present one answers.
    asked: u64,
    /// Who waits for such looks, of a user's manager: all of them are one collector.
    through: Option<watch::Sender<u64>>,
}

/// The system's manager.
pub(crate) async fn system(context: Context) {
    let bus = match &context.config.systemd_bus {
        Some(address) => Bus::Address(address.clone()),
        None => Bus::System(context.root.clone()),
    };
    let sink = context.sink("units");
    // Where systemd runs it has to be there; where it doesn't, there are no units.
    let expected =
        context.config.systemd_bus.is_some() || context.root.path("/run/systemd/system").exists();
    Follower::new(context, sink, bus, Scope::SystemUnits, None).run(expected).await;
}

/// The managers of users, as they come and go.
pub(crate) async fn users(mut context: Context) {
    let mut running: HashMap<String, Running> = HashMap::new();
    let mut tasks = JoinSet::new();
    let sink = context.sink(Collector::USER_UNITS);
    loop {
        let asked = context.asked.take_up();
        let managers = match managers_now(&context).await {
            Ok(managers) => managers,
            // What could not be looked at is not gone.
            Err(fault) => {
                sink.say(Seen::Fault(fault)).await;
                sink.caught_up(asked).await;
                if !context.pause(context.config.interval).await {
                    break;
                }
                continue;
            }
        };
        let present: Vec<String> =
            managers.iter().filter_map(|bus| bus.owner().map(str::to_owned)).collect();
        let ended: Vec<String> =
            running.keys().filter(|name| !present.contains(name)).cloned().collect();
        for name in ended {
            if let Some(follower) = running.remove(&name) {
                follower.task.abort();
            }
            context.user_vms.send_modify(|vms| drop(vms.remove(&name)));
            sink.of(&name).say(Seen::None(Vec::new())).await;
        }
        // One that failed inside begins anew.
        while tasks.try_join_next().is_some() {}
        running.retain(|_, follower| !follower.task.is_finished());
        // Again and again: what a server remembers may come in between.
        let others = vec![Scope::UnitsBut(present.iter().cloned().collect())];
        if present.is_empty() {
            sink.all(others, Vec::new(), Vec::new()).await;
        } else {
            sink.say(Seen::None(others)).await;
        }
        for bus in managers {
            let Some(name) = bus.owner().map(str::to_owned) else { continue };
            if running.contains_key(&name) {
                continue;
            }
            let (through, is_through) = watch::channel(0);
            let scope = Scope::UnitsOf(name.clone());
            let follower =
                Follower::new(context.clone(), sink.of(&name), bus, scope, Some(through));
            let task = tasks.spawn(follower.run(false));
            running.insert(name, Running { task, is_through });
        }
        if asked > 0 {
            let all = async {
                for follower in running.values_mut() {
                    follower.caught_up(asked).await;
                }
            };
            // One that does not answer says so itself.
            drop(tokio::time::timeout(context.deadline(), all).await);
            sink.caught_up(asked).await;
        }
        if !context.pause(context.config.interval).await {
            break;
        }
    }
    if context.once {
        while tasks.join_next().await.is_some() {}
    }
}

/// The managers of users that run now.
async fn managers_now(context: &Context) -> Result<Vec<Bus>, String> {
    let root = context.root.clone();
    let managers = tokio::task::spawn_blocking(move || {
        let accounts =
            host::users::Accounts::read(&root).map_err(|error| model::with_causes(&error))?;
        user_managers(&root, &accounts).map_err(|error| model::with_causes(&error))
    });
    match tokio::time::timeout(context.deadline(), managers).await {
        Ok(Ok(managers)) => managers,
        Ok(Err(ended)) => Err(ended.to_string()),
        Err(_) => Err(format!("no look within {} s", context.deadline().as_secs())),
    }
}

impl Running {
    /// Until it is through with a look that was asked for, or has ended.
    async fn caught_up(&mut self, asked: u64) {
        drop(self.is_through.wait_for(|through| *through >= asked).await);
    }
}

impl Follower {
    fn new(
        mut context: Context,
        sink: Sink,
        bus: Bus,
        scope: Scope,
        through: Option<watch::Sender<u64>>,
    ) -> Self {
        let asked = context.asked.take_up();
        let deadline = context.deadline();
        let (known, catalog) = (BTreeMap::new(), Catalog::default());
        Self { context, sink, bus, deadline, scope, known, catalog, asked, through }
    }

    /// Until the agent stops. `expected`: that the manager is missing is a fault.
    async fn run(mut self, expected: bool) {
        let mut backoff = BACKOFF.0;
        loop {
            let error = match self.follow(&mut backoff).await {
                Ok(()) => return,
                Err(error) => error,
            };
            self.deadline = match error.is_late() {
                true => longer(self.deadline),
                false => self.context.deadline(),
            };
            if error.is_absent() && !expected && self.known.is_empty() {
                let limits = match self.scope {
                    Scope::SystemUnits => vec!["systemd does not run here".to_owned()],
                    _ => Vec::new(),
                };
                self.sink.all(vec![self.scope.clone()], Vec::new(), limits).await;
                self.publish();
            } else {
                self.sink.fault(&error).await;
            }
            self.caught_up().await;
            if !self.context.pause(backoff).await {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn follow(&mut self, backoff: &mut Duration) -> Result<(), Error> {
        self.asked = self.context.asked.take_up();
        let redactor = self.context.redactor.clone();
        let systemd = Systemd::connect_within(&self.bus, redactor, self.deadline).await?;
        if self.context.once {
            return self.read_all(&systemd).await;
        }
        let mut watch = systemd.watch().await?;
        self.read_all(&systemd).await?;
        self.caught_up().await;
        *backoff = BACKOFF.0;
        if self.context.asked.is_used() {
            return self.when_asked(&systemd, watch).await;
        }
        let resync = tokio::time::sleep(RESYNC);
        tokio::pin!(resync);
        let mut resync_soon = false;
        // Silence is not health: a bus or a manager that hangs sends no signals either.
        let mut alive = tokio::time::interval(self.context.config.interval);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        alive.reset();
        let shutdown = self.context.shutdown.clone();
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                _ = alive.tick() => {
                    systemd.answers().await?;
                    continue;
                }
                () = &mut resync => {
                    match std::mem::take(&mut resync_soon) {
                        true => self.renew(&systemd).await?,
                        false => self.read_all(&systemd).await?,
                    }
                    resync.as_mut().reset(Instant::now() + RESYNC);
                    continue;
                }
                () = shutdown.cancelled() => return Ok(()),
            };
            // All that came so far in one go, so that none that changes all the time goes before
            // others, and those who follow units are told of many at once.
            let mut stale = Stale::default();
            stale.note(event);
            while let Some(event) = watch.pending().await? {
                stale.note(event);
            }
            self.read_some(&systemd, stale.units).await?;
            if stale.files {
                // One command of systemctl may ask for several.
                resync_soon = true;
                resync.as_mut().reset(Instant::now() + RESYNC_AFTER);
            }
        }
    }

    /// The same where looks are asked for: nothing is read before.
    async fn when_asked(&mut self, systemd: &Systemd, mut watch: Watch) -> Result<(), Error> {
        let shutdown = self.context.shutdown.clone();
        let mut stale = Stale::default();
        loop {
            tokio::select! {
                event = watch.next() => {
                    stale.note(event?);
                    continue;
                }
                () = self.context.asked.next() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            self.asked = self.context.asked.take_up();
            watch.catch_up().await?;
            while let Some(event) = watch.pending().await? {
                stale.note(event);
            }
            let Stale { units, files } = std::mem::take(&mut stale);
            self.read_some(systemd, units).await?;
            if files {
                self.renew(systemd).await?;
            }
            self.caught_up().await;
        }
    }

    async fn read_all(&mut self, systemd: &Systemd) -> Result<(), Error> {
        // What changes while all is read is other than in this one.
        let catalog = systemd.catalog().await?;
        let mut units = systemd.loaded().await?;
        if self.known.is_empty() {
            // How the rest is enabled takes systemd longer than all else; this goes ahead.
            self.sink.say(Seen::Part { put: items(&units), gone: Vec::new() }).await;
        }
        let files = systemd.unit_files(&units).await?;
        self.catalog = catalog;
        units.extend(files);
        self.sink.all(vec![self.scope.clone()], items(&units), Vec::new()).await;
        self.known = units.into_iter().map(|unit| (unit.id.clone(), unit)).collect();
        self.publish();
        Ok(())
    }

    /// Reads what systemd may have made of units when it read its files again.
    async fn renew(&mut self, systemd: &Systemd) -> Result<(), Error> {
        let (put, gone) = systemd.renew(&self.known, &mut self.catalog).await?;
        let subjects = gone.iter().map(|id| Subject::escaped(Kind::UNIT, id)).collect();
        self.sink.some(items(&put), subjects).await;
        for id in gone {
            self.known.remove(&id);
        }
        self.known.extend(put.into_iter().map(|unit| (unit.id.clone(), unit)));
        self.publish();
        Ok(())
    }

    async fn read_some(&mut self, systemd: &Systemd, units: BTreeSet<String>) -> Result<(), Error> {
        if units.is_empty() {
            return Ok(());
        }
        for id in units {
            self.read_one(systemd, id).await?;
        }
        self.publish();
        Ok(())
    }

    async fn read_one(&mut self, systemd: &Systemd, id: String) -> Result<(), Error> {
        match systemd.unit(&id).await? {
            Some(unit) => {
                self.sink.some(vec![item(&unit)], Vec::new()).await;
                self.known.insert(id, unit);
            }
            None => match self.known.remove(&id).filter(|unit| may_be_let_go(unit, clock::now())) {
                Some(unit) => {
                    let unit = let_go(unit, clock::now());
                    self.sink.some(vec![item(&unit)], Vec::new()).await;
                    self.known.insert(id, unit);
                }
                None => self.sink.some(Vec::new(), vec![Subject::escaped(Kind::UNIT, &id)]).await,
            },
        }
        Ok(())
    }

    async fn caught_up(&self) {
        match &self.through {
            Some(through) => {
                through.send_replace(self.asked);
            }
            None => self.sink.caught_up(self.asked).await,
        }
    }

    /// Tells those who follow units: all of the system's manager, whose files are tracked, and
    /// those of users' that run microVMs.
    fn publish(&self) {
        match &self.scope {
            Scope::SystemUnits => {
                let units = Arc::new(self.known.values().cloned().collect());
                self.context.units.send_replace(Some(units));
            }
            Scope::UnitsOf(user) => {
                let runs_vm = |unit: &&Unit| may_be_microvm(&unit.id);
                let vms: Vec<Unit> = self.known.values().filter(runs_vm).cloned().collect();
                self.context.user_vms.send_if_modified(|known| {
                    let before = match vms.is_empty() {
                        true => known.remove(user),
                        false => known.insert(user.clone(), vms.clone()),
                    };
                    before.unwrap_or_default() != vms
                });
            }
            Scope::Kind(_) | Scope::UnitsBut(_) | Scope::ContainersBut(_) => {}
        }
    }
}

/// What is given after so much was not enough: a machine that is at its limit is one to look at.
fn longer(deadline: Duration) -> Duration {
    (deadline * 2).min(deadline.max(PATIENCE))
}

/// Whether a unit that is not there any more was let go by systemd when it stopped. Of one that was
/// not loaded its file has gone.
fn may_be_let_go(unit: &Unit, now: Time) -> bool {
    let was_stopped = unit.active_state == "inactive"
        && unit.changed_at.is_some_and(|at| now.since(at) >= LONG_STOPPED);
    let was_loaded = unit.load_state != "not-loaded" && !was_stopped;
    may_be_microvm(&unit.id) && (was_loaded || unit.sub_state == LET_GO)
}

/// A microVM's unit that systemd says it has let go: that is a state of it, until all is read
/// again and it is not there. So many that are stopped at once are not many that are missing.
/// One that has failed stays so, with its cause.
fn let_go(unit: Unit, at: Time) -> Unit {
    if unit.sub_state == LET_GO {
        return unit;
    }
    let failed = has_failed(&unit);
    let gone = Unit {
        id: unit.id,
        load_state: "not-loaded".to_owned(),
        sub_state: LET_GO.to_owned(),
        description: unit.description,
        fragment_path: unit.fragment_path,
        changed_at: Some(at),
        ..Unit::default()
    };
    if !failed {
        return gone;
    }
    Unit {
        active_state: "failed".to_owned(),
        result: unit.result,
        exit_code: unit.exit_code,
        exit_signal: unit.exit_signal,
        restarts: unit.restarts,
        ..gone
    }
}

/// Whether a unit has failed, or is about to: while it stops, its result is known already. One
/// that waits to be started anew was stopped, if it ends there.
fn has_failed(unit: &Unit) -> bool {
    let is_bad = unit.result.as_deref().is_some_and(|result| result != "success");
    match unit.active_state.as_str() {
        "failed" => true,
        "deactivating" => is_bad,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;
    use crate::engine::Report;
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn one_that_is_late_is_given_longer() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("bus");
        let silent = UnixListener::bind(&socket).unwrap();
        let file = File {
            state_dir: Some(dir.path().to_owned()),
            systemd_bus: Some(format!("unix:path={}", socket.display())),
            ..File::default()
        };
        let (reports, mut seen) = mpsc::channel(1024);
        let config = file.check().unwrap();
        let context = Context::new(config, [7; 32], reports, watch::channel(Vec::new()).1);
        let shutdown = context.shutdown.clone();
        let asking = async {
            let (mut kept, mut given) = (Vec::new(), Vec::new());
            while given.len() < 6 {
                kept.push(silent.accept().await.unwrap());
                let begin = Instant::now();
                while !matches!(seen.recv().await, Some(Report { seen: Seen::Fault(_), .. })) {}
                given.push(begin.elapsed().as_secs());
            }
            assert_eq!(given, [5, 10, 20, 40, 60, 60]);
            shutdown.cancel();
        };
        tokio::join!(system(context), asking);
    }

    #[test]
    fn a_unit_that_was_let_go_is_stopped() {
        let unit = Unit {
            id: "microvm@web.service".to_owned(),
            load_state: "loaded".to_owned(),
            active_state: "active".to_owned(),
            cgroup: Some("/system.slice/web".to_owned()),
            ..Unit::default()
        };
        let at = Time::from_seconds(7);
        let gone = let_go(unit, at);
        assert_eq!(
            (gone.id.as_str(), gone.load_state.as_str()),
            ("microvm@web.service", "not-loaded")
        );
        assert_eq!(gone.sub_state, LET_GO);
        assert_eq!((gone.active_state.as_str(), gone.cgroup.as_deref()), ("", None));
        assert_eq!(gone.changed_at, Some(at));
        assert_eq!(let_go(gone, Time::from_seconds(9)).changed_at, Some(at), "it was so before");
    }

    #[test]
    fn one_that_failed_and_was_let_go_has_failed() {
        let check = |active: &str, result: &str, expected: &str| {
            let unit = Unit {
                id: "microvm@web.service".to_owned(),
                load_state: "loaded".to_owned(),
                active_state: active.to_owned(),
                result: Some(result.to_owned()),
                exit_code: Some(3),
                main_pid: Some(7),
                ..Unit::default()
            };
            let gone = let_go(unit, Time::from_seconds(7));
            assert_eq!(gone.active_state, expected, "{active} {result}");
            assert_eq!((gone.sub_state.as_str(), gone.main_pid), (LET_GO, None));
            let cause = (!expected.is_empty()).then_some((result, 3));
            assert_eq!(gone.result.as_deref().zip(gone.exit_code), cause, "{active} {result}");
        };
        check("failed", "exit-code", "failed");
        check("deactivating", "exit-code", "failed");
        check("deactivating", "success", "");
        check("active", "success", "");
        // Somebody stopped it, after it had failed or while it waited.
        check("inactive", "exit-code", "");
        check("activating", "exit-code", "");
    }

    #[test]
    fn one_whose_file_has_gone_was_not_let_go() {
        let unit = |id: &str, load: &str, active: &str, sub: &str| Unit {
            id: id.to_owned(),
            load_state: load.to_owned(),
            active_state: active.to_owned(),
            sub_state: sub.to_owned(),
            changed_at: Some(Time::from_seconds(1000)),
            ..Unit::default()
        };
        let check = |unit: Unit, seconds: i64, expected: bool| {
            assert_eq!(may_be_let_go(&unit, Time::from_seconds(seconds)), expected, "{unit:?}");
        };
        let web = "microvm@web.service";
        check(unit(web, "loaded", "active", "running"), 9000, true);
        check(unit(web, "loaded", "inactive", "dead"), 1001, true);
        check(unit(web, "loaded", "failed", "failed"), 9000, true);
        check(unit(web, "not-loaded", "", LET_GO), 9000, true);
        check(unit(web, "loaded", "inactive", "dead"), 1060, false);
        check(unit("alice/microvm-web.service", "not-loaded", "", ""), 1001, false);
        check(unit("nginx.service", "loaded", "active", "running"), 1001, false);
    }
}
