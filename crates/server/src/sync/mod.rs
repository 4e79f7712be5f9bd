//! VMs of ESXi hosts and vCenters in the inventory, and others told of them: MongoDB, the
//! sessions in Redis, two endpoints.
//!
//! ```text
//!   source ─ reports ─┐                     ┌─► VM records ─┐ one change
//!   source ─ reports ─┼─► engine ─ decides ─┤               ├─ durable ─┬─► mirror ─► MongoDB
//!   routes, time ─────┘                     └─► outbox ─────┘           └─► sessions, endpoints
//! ```
//!
//! All of it works only while this instance has the lease, where there is a server that several
//! instances can share: [`lease`].
//!
//! # Invariants
//! - Nobody is told of what is not durable here.
//! - Documents follow the records: what could not be written is written later, as it is then.
//! - Sessions and endpoints are told of each change, in order, through the outbox; where there is a
//!   MongoDB, after the document says so: an instance that takes over knows what that says.

#[cfg(test)]
mod cost;
mod engine;
mod file;
mod kept;
mod lease;
mod mirror;
mod pass;
mod plan;
mod sight;
mod source;
mod tell;

pub use file::Settings;
pub use plan::preview;

use crate::app::App;
use crate::clock;
use crate::runs::{Cause, RunId};
use api::sync::{SelectedResult, SyncPlan, SyncStanding};
use engine::{Engine, Selected};
use inventory::Presence;
use kept::Kept;
use lease::{Held, Lease};
use mirror::Mirror;
use model::vm::VmId;
use model::{HostId, Time};
use sinks::outbox::Standing;
use sinks::{Endpoints, MongoSink, Outbox, Policy, Receivers, RedisSink};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::Records;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Commands that may wait.
const COMMANDS: usize = 64;
/// Reports of sources that may wait. Each may be a whole listing.
const REPORTS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "no vSphere is followed here; name a file with sync in the configuration, or run: twin sync serve"
    )]
    Off,
    #[error("a sync is on already")]
    Already,
    #[error("this instance does not sync: {0}")]
    StandsBy(String),
    #[error("nothing of {0} is held")]
    NothingHeld(HostId),
    #[error("more VMs of {0} went since that was held; look at twin sync plan, and confirm again")]
    MoreIsHeld(HostId),
    #[error(
        "VMs of {node} may have come to {other}, which is not in step ({why}); mend that first, or take it out of sync.yaml, too"
    )]
    Unseen { node: HostId, other: HostId, why: String },
    #[error("the outbox has no entry {0:?}; twin sync outbox lists them")]
    NoEntry(String),
    #[error(transparent)]
    Runs(#[from] crate::runs::Error),
    #[error(transparent)]
    Vms(#[from] crate::vms::Error),
    #[error(transparent)]
    Outbox(#[from] sinks::outbox::Error),
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What somebody asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Now(Cause, Reply<RunId>),
    Selected(Vec<String>, Reply<Vec<Selected>>),
    Plan(Reply<SyncPlan>),
    Confirm(HostId, Reply<Vec<VmId>>),
}

impl Command {
    fn refuse(self, why: &str) {
        let error = Error::StandsBy(why.to_owned());
        // Who asked and has gone does not need the answer.
        match self {
            Self::Now(_, reply) => drop(reply.send(Err(error))),
            Self::Selected(_, reply) => drop(reply.send(Err(error))),
            Self::Plan(reply) => drop(reply.send(Err(error))),
            Self::Confirm(_, reply) => drop(reply.send(Err(error))),
        }
    }
}

/// The handle. Clones are handles to the same.
#[derive(Debug, Clone)]
pub(crate) struct Sync {
    settings: Arc<Settings>,
    commands: mpsc::Sender<Command>,
    standing: Arc<Mutex<SyncStanding>>,
    outbox: Outbox,
    mirror: Mirror,
    kept: Kept,
    mongo: Option<MongoSink>,
    redis: Option<RedisSink>,
    endpoints: Arc<Endpoints>,
    held: Held,
}

impl Sync {
    /// The receiver is for [`run`]. Blocks, within a runtime.
    pub(crate) fn open(
        settings: Settings,
        records: Records,
        now: Time,
    ) -> Result<(Self, mpsc::Receiver<Command>), OpenError> {
        settings.warn();
        let (group, auth) = (settings.group.as_deref(), settings.auth.as_deref());
        let policy = Policy { max_attempts: settings.attempts, ..Policy::default() };
        let endpoints = Endpoints::new(group, auth, settings.timeout)?.with_policy(policy);
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let kept = Kept::open(records.clone())?;
        let standing = SyncStanding {
            in_process: false,
            stands_by: Some("who syncs is not known yet".to_owned()),
            sources: Vec::new(),
            unconfigured: std::collections::BTreeMap::new(),
            last: kept.last(),
            decisions: std::collections::BTreeMap::new(),
            documents_waiting: 0,
            documents_fault: None,
            outbox_waiting: 0,
            outbox_dead: 0,
        };
        let sync = Self {
            mongo: settings.mongo.clone().map(MongoSink::new).transpose()?,
            redis: settings.redis.clone().map(RedisSink::new).transpose()?,
            outbox: Outbox::open(records, now)?,
            mirror: Mirror::new(settings.mongo.is_some()),
            kept,
            endpoints: Arc::new(endpoints),
            commands,
            standing: Arc::new(Mutex::new(standing)),
            settings: Arc::new(settings),
            held: Held::default(),
        };
        Ok((sync, receiver))
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(crate) fn standing(&self) -> SyncStanding {
        let mut standing = self.locked().clone();
        (standing.outbox_waiting, standing.outbox_dead) = self.outbox.depth();
        (standing.documents_waiting, standing.documents_fault) = self.mirror.standing();
        standing
    }

    /// From one full pass to the next.
    pub(crate) fn interval(&self) -> Duration {
        self.settings.interval
    }

    /// Whether VMs of this node come from here.
    pub(crate) fn speaks_for(&self, node: &HostId) -> bool {
        self.settings.sources.iter().any(|source| source.node == *node)
            || self.locked().unconfigured.contains_key(node)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, SyncStanding> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a full pass.
    pub(crate) async fn now(&self, cause: Cause) -> Result<RunId, Error> {
        self.ask(|reply| Command::Now(cause, reply)).await
    }

    /// Brings some VMs in step, by their UUID, else by name; answers when their documents say so,
    /// or what is so when they do not in time.
    pub(crate) async fn selected(&self, vms: Vec<String>) -> Result<Vec<SelectedResult>, Error> {
        let done = self.ask(|reply| Command::Selected(vms, reply)).await?;
        let ids = done.iter().flat_map(|one| &one.ids).cloned().collect();
        let undone = self.mirror.written(&ids, self.settings.timeout).await;
        Ok(done.into_iter().map(|one| one.without(&undone)).collect())
    }

    /// What a full pass would decide.
    pub(crate) async fn plan(&self) -> Result<SyncPlan, Error> {
        self.ask(Command::Plan).await
    }

    /// Says that what is held of a source is gone.
    pub(crate) async fn confirm(&self, node: HostId) -> Result<Vec<VmId>, Error> {
        self.ask(|reply| Command::Confirm(node, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let closed = || Error::StandsBy("the server is stopping".to_owned());
        self.commands.send(command(reply)).await.map_err(|_gone| closed())?;
        answer.await.unwrap_or_else(|_gone| Err(closed()))
    }
}

/// Why the server can't keep anything in step.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Sink(#[from] sinks::Error),
    #[error(transparent)]
    Outbox(#[from] sinks::outbox::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Works until the server stops.
pub(crate) async fn run(app: Arc<App>, sync: Sync, mut commands: mpsc::Receiver<Command>) {
    let lease = Lease::new(&sync, &app.history.records()).await;
    while let Some(taken) = wait(&lease, &sync, &mut commands, &app.shutdown).await {
        if taken == lease::Taken::Over {
            if let Err(why) = learn(&app, &sync, &lease).await {
                tracing::warn!(why, "what was told before is not known; it is tried again");
                stand_by(&why, &sync, &mut commands, &app.shutdown).await;
            }
            // Learning may have taken longer than the lease lasts.
            continue;
        }
        sync.locked().stands_by = None;
        tracing::info!(sources = sync.settings.sources.len(), "VMs are kept in step");
        let stop = app.shutdown.child_token();
        let mut tasks = JoinSet::new();
        let (reports, receiver) = mpsc::channel(REPORTS);
        let mut engine = Engine::new(Arc::clone(&app), sync.clone(), clock::now());
        for source in &sync.settings.sources {
            let (ask, asked) = watch::channel(0);
            engine.add(source, ask);
            let known = engine.references(&source.node);
            tasks.spawn(source::run(source.clone(), known, reports.clone(), asked, stop.clone()));
        }
        drop(reports);
        engine.mark_all();
        if let Some(mongo) = &sync.mongo {
            tasks.spawn(mirror::run(Arc::clone(&app), sync.clone(), mongo.clone(), stop.clone()));
        }
        let leave = Leave { held: sync.held.clone(), mirror: sync.mirror.clone() };
        let to = Receivers {
            endpoints: Endpoints::clone(&sync.endpoints),
            sessions: sync.redis.clone(),
            known: sync.mongo.clone(),
        };
        let outbox = sync.outbox.clone();
        tasks.spawn(sinks::deliver(outbox, to, clock::now, leave, stop.clone()));
        let lost = lease.keep();
        let working = engine.run(receiver, &mut commands, &stop);
        tokio::pin!(working);
        tokio::select! {
            () = &mut working => {}
            why = lost => {
                tracing::warn!(why, "this instance does not sync any more");
                stop.cancel();
                // What it is recording just now comes with what others are to be told of it, which
                // would be durable and known to nobody.
                working.await;
                let mut standing = sync.locked();
                standing.stands_by = Some(why);
                // What it saw ages from now on, and says nothing.
                standing.in_process = false;
                standing.sources.clear();
                standing.unconfigured.clear();
            }
        }
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }
    lease.release().await;
}

/// Sessions and endpoints are told by who has the lease, and only what documents say already.
struct Leave {
    held: Held,
    mirror: Mirror,
}

impl sinks::Leave for Leave {
    fn is_ours(&self) -> bool {
        self.held.is_so()
    }

    fn may_tell(&self, vm: &str) -> bool {
        vm.parse().is_ok_and(|id| self.mirror.says(&id))
    }
}

/// Waits for the lease; nothing when the server stops.
async fn wait(
    lease: &Lease,
    sync: &Sync,
    commands: &mut mpsc::Receiver<Command>,
    shutdown: &CancellationToken,
) -> Option<lease::Taken> {
    let mut told = String::new();
    while !shutdown.is_cancelled() {
        let why = match lease.take().await {
            Ok(taken) => return Some(taken),
            Err(why) => why,
        };
        if told != why {
            tracing::warn!(why, "this instance does not sync");
            told.clone_from(&why);
        }
        stand_by(&why, sync, commands, shutdown).await;
    }
    None
}

/// Waits for a while, or until the server stops, and refuses what is asked for meanwhile.
async fn stand_by(
    why: &str,
    sync: &Sync,
    commands: &mut mpsc::Receiver<Command>,
    shutdown: &CancellationToken,
) {
    sync.locked().stands_by = Some(why.to_owned());
    let pause = tokio::time::sleep(lease::PAUSE);
    tokio::pin!(pause);
    loop {
        tokio::select! {
            () = &mut pause => return,
            Some(command) = commands.recv() => command.refuse(why),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Learns what another instance, or the older service, told others.
async fn learn(app: &Arc<App>, sync: &Sync, lease: &Lease) -> Result<(), String> {
    adopt(app, sync).await?;
    lease.learned().await
}

/// Takes VMs as MongoDB knows them.
async fn adopt(app: &Arc<App>, sync: &Sync) -> Result<(), String> {
    let Some(mongo) = &sync.mongo else { return Ok(()) };
    let known = plan::known(mongo, &sync.settings.sources);
    let known = known.await.map_err(|error| model::with_causes(&error))?;
    tracing::info!(documents = known.len(), "VMs are known from MongoDB");
    app.vms.adopt(known).await.map_err(|error| model::with_causes(&error))?;
    let known = mongo.known().await.map_err(|error| model::with_causes(&error))?;
    let targets = tell::targets(&sync.settings);
    let known = known.into_iter().filter(|one| targets.contains(&one.target)).collect();
    let (vms, outbox) = (app.vms.clone(), sync.outbox.clone());
    let caught_up = tokio::task::spawn_blocking(move || {
        let names = tell::names_of_present(&vms.table().vms);
        let is_now = |uuid: &str| {
            let table = vms.table();
            let record = &table.vms.get(&uuid.parse::<VmId>().ok()?)?.record;
            let orphan_since = match record.presence {
                Presence::Orphan { since } => Some(since),
                Presence::Present | Presence::Stale { .. } => None,
            };
            let has_namesake = orphan_since.is_some() && names.contains(record.name.as_str());
            Some(Standing { name: record.name.to_string(), orphan_since, has_namesake })
        };
        outbox.catch_up(known, is_now, clock::now())
    });
    match caught_up.await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(count)) => {
            tracing::info!(count, "what waits was put together anew by what another told");
            Ok(())
        }
        Ok(Err(error)) => Err(model::with_causes(&error)),
        Err(_) => Err("what waits in the outbox could not be looked at".to_owned()),
    }
}
