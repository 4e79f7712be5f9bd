//! The collectors: one task each, with its own rhythm, deadline and fault.
//!
//! What blocks (reading `/proc`, package databases, files) runs on threads of its own
//! ([`apart::Apart`]), so that a look that hangs holds up only itself.

mod apart;
mod containers;
mod files;
mod machine;
mod packages;
mod processes;
mod transient;
mod units;

use crate::config::Config;
use crate::engine::{Report, Scope, Seen};
use host::Root;
use host::packages::Packages;
use model::entity::{Entity, Unit};
use model::redact::Redactor;
use model::{ContentId, Item, Subject};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long one look may take before it counts as hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(5);

/// Collectors whose first look the first delta waits for: the quick and telling ones.
pub(crate) const FIRST: [&str; 6] = ["machine", "users", "network", "disks", "processes", "units"];

/// What every collector works with.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) root: Root,
    pub(crate) redactor: Redactor,
    pub(crate) config: Arc<Config>,
    pub(crate) reports: mpsc::Sender<Report>,
    /// Look once and end.
    pub(crate) once: bool,
    pub(crate) shutdown: CancellationToken,
    /// The units last seen, for those who follow them.
    pub(crate) units: watch::Sender<Arc<Vec<Unit>>>,
    /// Names of containers by id.
    pub(crate) containers: watch::Sender<BTreeMap<String, String>>,
    pub(crate) packages: Arc<Mutex<Packages>>,
    /// Contents that the server asked for again.
    pub(crate) missing: watch::Receiver<Vec<ContentId>>,
}

/// Where one collector's reports go.
#[derive(Debug, Clone)]
pub(crate) struct Sink {
    collector: &'static str,
    reports: mpsc::Sender<Report>,
}

impl Context {
    fn sink(&self, collector: &'static str) -> Sink {
        Sink { collector, reports: self.reports.clone() }
    }

    /// Waits until it is time to look again; whether there is a next time.
    async fn pause(&self, pause: Duration) -> bool {
        if self.once {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => true,
            () = self.shutdown.cancelled() => false,
        }
    }
}

impl Sink {
    /// The engine is gone only when the agent stops; then nobody needs the report.
    async fn say(&self, seen: Seen) {
        let report = Report { collector: self.collector, seen };
        if self.reports.send(report).await.is_err() {
            tracing::debug!(collector = self.collector, "reported into the shutdown");
        }
    }

    async fn all(&self, scopes: Vec<Scope>, items: Vec<(Subject, Item)>, limits: Vec<String>) {
        self.say(Seen::All { scopes, items, limits }).await;
    }

    async fn some(&self, put: Vec<(Subject, Item)>, gone: Vec<Subject>) {
        if !put.is_empty() || !gone.is_empty() {
            self.say(Seen::Some { put, gone }).await;
        }
    }

    async fn fault(&self, error: &(dyn std::error::Error + Sync)) {
        self.say(Seen::Fault(crate::outbox::describe(error))).await;
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

/// Starts all collectors.
pub(crate) fn start(context: &Context) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(machine::machine(context.clone()));
    tasks.spawn(machine::users(context.clone()));
    tasks.spawn(machine::disks(context.clone()));
    tasks.spawn(machine::gpus(context.clone()));
    if context.config.network {
        tasks.spawn(machine::network(context.clone()));
    }
    tasks.spawn(units::system(context.clone()));
    tasks.spawn(units::users(context.clone()));
    tasks.spawn(containers::run(context.clone()));
    tasks.spawn(packages::run(context.clone()));
    tasks.spawn(files::run(context.clone()));
    tasks.spawn(processes::run(context.clone()));
    tasks
}
