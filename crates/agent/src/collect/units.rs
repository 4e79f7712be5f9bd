//! Units of systemd: read once, then followed by its signals.
//!
//! ```text
//!   connect ──► watch, read all ──► follow ──closed──► fault, backoff ──► connect
//! ```

use super::{Context, DEADLINE, Sink, item, items};
use crate::engine::{Scope, Seen};
use host::systemd::{Bus, Error, Systemd, UnitEvent, user_managers};
use model::entity::Unit;
use model::{Kind, Subject};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A full look in spite of the signals, should one have been missed.
const RESYNC: Duration = Duration::from_secs(900);
const RESYNC_AFTER: Duration = Duration::from_millis(200);

/// Follows one manager.
struct Follower {
    context: Context,
    sink: Sink,
    bus: Bus,
    scope: Scope,
    known: BTreeMap<String, Unit>,
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
    let follower =
        Follower { context, sink, bus, scope: Scope::SystemUnits, known: BTreeMap::new() };
    follower.run(expected).await;
}

/// The managers of users, as they come and go.
pub(crate) async fn users(context: Context) {
    let mut running: HashMap<String, tokio::task::AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    let sink = context.sink("user-units");
    loop {
        let root = context.root.clone();
        let managers = tokio::task::spawn_blocking(move || {
            let accounts = host::users::Accounts::read(&root)?;
            Ok::<_, host::users::Error>(user_managers(&root, &accounts))
        });
        // What could not be looked at is not gone.
        let looked = match tokio::time::timeout(DEADLINE, managers).await {
            Ok(Ok(Ok(managers))) => Ok(managers),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(ended)) => Err(ended.to_string()),
            Err(_) => Err(format!("no look within {} s", DEADLINE.as_secs())),
        };
        let managers = match looked {
            Ok(managers) => managers,
            Err(fault) => {
                sink.say(Seen::Fault(fault)).await;
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
            if let Some(task) = running.remove(&name) {
                task.abort();
            }
        }
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
            let follower = Follower {
                context: context.clone(),
                sink: sink.clone(),
                bus,
                scope: Scope::UnitsOf(name.clone()),
                known: BTreeMap::new(),
            };
            running.insert(name, tasks.spawn(follower.run(false)));
        }
        if !context.pause(context.config.interval).await {
            break;
        }
    }
    if context.once {
        while tasks.join_next().await.is_some() {}
    }
}

impl Follower {
    /// Until the agent stops. `expected`: that the manager is missing is a fault.
    async fn run(mut self, expected: bool) {
        let mut backoff = BACKOFF.0;
        loop {
            let error = match self.follow(&mut backoff).await {
                Ok(()) => return,
                Err(error) => error,
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
            if !self.context.pause(backoff).await {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn follow(&mut self, backoff: &mut Duration) -> Result<(), Error> {
        let systemd = Systemd::connect(&self.bus, self.context.redactor.clone()).await?;
        if self.context.once {
            return self.read_all(&systemd).await;
        }
        let mut watch = systemd.watch().await?;
        self.read_all(&systemd).await?;
        *backoff = BACKOFF.0;
        let resync = tokio::time::sleep(RESYNC);
        tokio::pin!(resync);
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
                    self.read_all(&systemd).await?;
                    resync.as_mut().reset(tokio::time::Instant::now() + RESYNC);
                    continue;
                }
                () = shutdown.cancelled() => return Ok(()),
            };
            match event {
                // One command of systemctl may ask for several.
                UnitEvent::Resync => {
                    resync.as_mut().reset(tokio::time::Instant::now() + RESYNC_AFTER);
                }
                UnitEvent::Changed(id) => self.read_one(&systemd, id).await?,
            }
        }
    }

    async fn read_all(&mut self, systemd: &Systemd) -> Result<(), Error> {
        let mut units = systemd.loaded().await?;
        if self.known.is_empty() {
            // How the rest is enabled takes systemd longer than all else; this goes ahead.
            self.sink.say(Seen::Part { put: items(&units), gone: Vec::new() }).await;
        }
        let files = systemd.unit_files(&units).await?;
        units.extend(files);
        self.sink.all(vec![self.scope.clone()], items(&units), Vec::new()).await;
        self.known = units.into_iter().map(|unit| (unit.id.clone(), unit)).collect();
        self.publish();
        Ok(())
    }

    async fn read_one(&mut self, systemd: &Systemd, id: String) -> Result<(), Error> {
        match systemd.unit(&id).await? {
            Some(unit) => {
                self.sink.some(vec![item(&unit)], Vec::new()).await;
                self.known.insert(id, unit);
            }
            None => {
                self.sink.some(Vec::new(), vec![Subject::escaped(Kind::UNIT, &id)]).await;
                self.known.remove(&id);
            }
        }
        self.publish();
        Ok(())
    }

    /// Tells those who follow units: of the system's manager alone, whose files are tracked.
    fn publish(&self) {
        if self.scope == Scope::SystemUnits {
            let units = Arc::new(self.known.values().cloned().collect());
            self.context.units.send_replace(Some(units));
        }
    }
}
