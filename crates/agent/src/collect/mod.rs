//! The collectors: one task each, with its own rhythm, deadline and fault.
//!
//! What blocks (reading `/proc`, package databases, files) runs on threads of its own
//! ([`apart::Apart`]), so that a look that hangs holds up only itself.

mod apart;
mod asked;
mod containers;
mod files;
mod journal;
mod machine;
mod packages;
mod processes;
mod transient;
mod units;
mod vmms;

use crate::config::Config;
use crate::engine::{Report, Scope, Seen};
pub(crate) use asked::Asked;
use host::Root;
use host::files::Role;
use host::journal::Errors;
use host::packages::Packages;
use model::entity::{Collector, Entity, Platform, Unit};
use model::load::{GpuLoad, VmmLoad};
use model::redact::Redactor;
use model::{ContentId, Item, Kind, Subject};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Collectors whose first look the first delta waits for, though not for long.
pub(crate) const FIRST: [&str; 11] = [
    "machine",
    "users",
    "network",
    "disks",
    "processes",
    "sockets",
    "units",
    "containers",
    "packages",
    "files",
    "dependencies",
];

/// Those it does not wait for.
pub(crate) const SEEN_LATER: [&str; 3] = ["gpus", Collector::USER_UNITS, "workloads"];

pub(crate) type UserVms = BTreeMap<String, Vec<Unit>>;

/// What every collector works with.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) root: Root,
    pub(crate) redactor: Redactor,
    pub(crate) config: Arc<Config>,
    pub(crate) reports: mpsc::Sender<Report>,
    /// Look once and end.
    pub(crate) once: bool,
    /// Looks that somebody asks for.
    pub(crate) asked: Asked,
    /// The same, for those whose looks build on what units and packages were found to be: the
    /// others are through with theirs by then.
    pub(crate) asked_last: Asked,
    pub(crate) shutdown: CancellationToken,
    /// The units last seen, for those who follow them; nothing before the first look.
    pub(crate) units: watch::Sender<Option<Arc<Vec<Unit>>>>,
    /// Units of users' managers that run microVMs, by user.
    pub(crate) user_vms: watch::Sender<UserVms>,
    /// Names of containers by id.
    pub(crate) containers: watch::Sender<BTreeMap<String, String>>,
    pub(crate) packages: Arc<Mutex<Packages>>,
    /// Counts up when packages were seen first, and when they changed.
    pub(crate) packages_changed: watch::Sender<u64>,
    pub(crate) gpus: watch::Sender<Gpus>,
    /// What units said in the journal lately; absent while nobody follows it.
    pub(crate) journal: Arc<Mutex<Option<Errors>>>,
    /// What VMMs said last, by the unit that they run in.
    pub(crate) vmms: Arc<Mutex<BTreeMap<String, VmmLoad>>>,
    /// The platform in the facts that the agent begins with.
    pub(crate) known_platform: Option<Arc<Platform>>,
    /// Files in the facts that the agent begins with, and why they were tracked.
    pub(crate) known_files: Arc<[(String, Role)]>,
    /// Whether there are containers in the facts that the agent begins with.
    pub(crate) had_containers: bool,
    /// Files that are tracked beside those that the configuration names.
    pub(crate) paths: watch::Receiver<Vec<String>>,
    /// Contents that the server asked for again.
    pub(crate) missing: watch::Receiver<Vec<ContentId>>,
}

/// What drivers of graphics processors say: their load, and who computes on them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gpus {
    pub(crate) load: BTreeMap<String, GpuLoad>,
    pub(crate) processes: BTreeMap<u32, Vec<String>>,
}

/// Where one collector's reports go.
#[derive(Debug, Clone)]
pub(crate) struct Sink {
    collector: &'static str,
    part: Option<String>,
    reports: mpsc::Sender<Report>,
}

impl Context {
    /// For this machine, to look again and again. `key` is that of the redaction.
    pub(crate) fn new(
        config: Config,
        key: [u8; 32],
        reports: mpsc::Sender<Report>,
        missing: watch::Receiver<Vec<ContentId>>,
    ) -> Self {
        let root = Root::live();
        Self {
            packages: Arc::new(Mutex::new(Packages::new(root.clone()))),
            root,
            redactor: Redactor::new(key, config.legible.clone()),
            config: Arc::new(config),
            reports,
            once: false,
            asked: Asked::default(),
            asked_last: Asked::default(),
            shutdown: CancellationToken::new(),
            units: watch::Sender::default(),
            user_vms: watch::Sender::default(),
            containers: watch::Sender::default(),
            packages_changed: watch::Sender::default(),
            gpus: watch::Sender::default(),
            journal: Arc::default(),
            vmms: Arc::default(),
            known_platform: None,
            known_files: Arc::default(),
            had_containers: false,
            paths: watch::channel(Vec::new()).1,
            missing,
        }
    }

    /// How long one look may take before it counts as hung.
    fn deadline(&self) -> Duration {
        self.config.look_deadline
    }

    fn sink(&self, collector: &'static str) -> Sink {
        Sink { collector, part: None, reports: self.reports.clone() }
    }

    /// Waits until it is time to look again, or somebody asks; whether there is a next time.
    async fn pause(&mut self, pause: Duration) -> bool {
        if self.once {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = self.asked.next() => true,
            () = self.shutdown.cancelled() => false,
        }
    }
}

impl Sink {
    /// That of a part of the collector, which has its own fault.
    fn of(&self, part: &str) -> Self {
        Self { part: Some(part.to_owned()), ..self.clone() }
    }

    /// The engine is gone only when the agent stops; then nobody needs the report.
    fn say(&self, seen: Seen) -> impl Future<Output = ()> + Send + use<> {
        let report = Report { collector: self.collector, part: self.part.clone(), seen };
        let reports = self.reports.clone();
        async move {
            if let Err(unheard) = reports.send(report).await {
                tracing::debug!(collector = unheard.0.collector, "reported into the shutdown");
            }
        }
    }

    fn all(
        &self,
        scopes: Vec<Scope>,
        items: Vec<(Subject, Item)>,
        limits: Vec<String>,
    ) -> impl Future<Output = ()> + Send + use<> {
        self.say(Seen::All { scopes, items, limits })
    }

    async fn some(&self, put: Vec<(Subject, Item)>, gone: Vec<Subject>) {
        if !put.is_empty() || !gone.is_empty() {
            self.say(Seen::Some { put, gone }).await;
        }
    }

    /// Everything that was so when this look was asked for has been told, or why it can't be.
    async fn caught_up(&self, asked: u64) {
        if asked > 0 {
            self.say(Seen::CaughtUp(asked)).await;
        }
    }

    /// A look that found nothing new.
    async fn unchanged(&self) {
        self.say(Seen::Some { put: Vec::new(), gone: Vec::new() }).await;
    }

    fn fault(&self, error: &dyn std::error::Error) -> impl Future<Output = ()> + Send + use<> {
        self.say(Seen::Fault(model::with_causes(error)))
    }
}

/// An entity as the engine takes it.
fn item<T: Entity>(entity: &T) -> (Subject, Item) {
    let (subject, fields) = entity.to_item();
    (subject, Item::new(&fields))
}

fn items<'e, T: Entity + 'e>(entities: impl IntoIterator<Item = &'e T>) -> Vec<(Subject, Item)> {
    entities.into_iter().map(item).collect()
}

/// What is not to be looked at is not known to be so any more.
async fn switched_off(context: Context, name: &'static str, kinds: &[Kind]) {
    let scopes = kinds.iter().copied().map(Scope::Kind).collect();
    context
        .sink(name)
        .all(scopes, Vec::new(), vec!["switched off in the agent's configuration".to_owned()])
        .await;
}

/// Runs a collector, which may have several names. That it failed inside is a fault of all it
/// looks at, and the others go on: a program that ended for that, and met it again at each start,
/// would see nothing at all.
fn guarded<C>(
    context: &Context,
    names: &[&'static str],
    collector: C,
) -> impl Future<Output = ()> + Send + use<C>
where
    C: Future<Output = ()> + Send + 'static,
{
    let sinks: Vec<Sink> = names.iter().map(|name| context.sink(name)).collect();
    let mut task = JoinSet::new();
    task.spawn(collector);
    async move {
        if let Some(Err(error)) = task.join_next().await
            && error.is_panic()
        {
            for sink in sinks {
                // What it failed with may show what nobody redacted.
                let fault = "it failed inside; restart the agent".to_owned();
                sink.say(Seen::Fault(fault)).await;
            }
        }
    }
}

/// Starts all collectors.
pub(crate) fn start(context: &Context) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(guarded(context, &["machine"], machine::machine(context.clone())));
    tasks.spawn(guarded(context, &["users"], machine::users(context.clone())));
    tasks.spawn(guarded(context, &["disks"], machine::disks(context.clone())));
    tasks.spawn(guarded(context, &["gpus"], machine::gpus(context.clone())));
    if context.config.network {
        tasks.spawn(guarded(context, &["network"], machine::network(context.clone())));
    } else {
        tasks.spawn(switched_off(context.clone(), "network", &[Kind::INTERFACE, Kind::ROUTE]));
        tasks.spawn(switched_off(context.clone(), "sockets", &[Kind::SOCKET]));
    }
    if !context.config.processes {
        tasks.spawn(switched_off(context.clone(), "processes", &[Kind::PROCESS]));
    }
    tasks.spawn(guarded(context, &["units"], units::system(context.clone())));
    tasks.spawn(guarded(context, &[Collector::USER_UNITS], units::users(context.clone())));
    tasks.spawn(guarded(context, &["containers"], containers::run(context.clone())));
    tasks.spawn(guarded(context, &["packages"], packages::run(context.clone())));
    tasks.spawn(guarded(context, &["files"], files::run(context.clone())));
    // Where looks are asked for there are no VMs that anybody follows.
    if !context.asked.is_used() {
        tasks.spawn(guarded(context, &["journal"], journal::run(context.clone())));
        tasks.spawn(guarded(context, &["vmms"], vmms::run(context.clone())));
    }
    let names = ["processes", "sockets", "dependencies", "workloads"];
    tasks.spawn(guarded(context, &names, processes::run(context.clone())));
    tasks
}

/// Waits for a moment, if there is one.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;

    #[tokio::test]
    async fn a_collector_that_fails_inside_is_a_fault_of_all_it_looks_at() {
        let (reports, mut seen) = mpsc::channel(8);
        let config = File::default().check().unwrap();
        let context = Context::new(config, [7; 32], reports, watch::channel(Vec::new()).1);
        guarded(&context, &["machine"], async {}).await;
        let failing = async { panic!("secret") };
        guarded(&context, &["processes", "sockets"], failing).await;
        drop(context);
        let mut faults = Vec::new();
        while let Some(Report { collector, seen, .. }) = seen.recv().await {
            let Seen::Fault(fault) = seen else { panic!("{seen:?}") };
            assert!(!fault.contains("secret"));
            faults.push(collector);
        }
        assert_eq!(faults, ["processes", "sockets"]);
    }
}
