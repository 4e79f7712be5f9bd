//! Owns the facts. Takes what collectors see, gathers bursts, and passes on what changed.
//!
//! ```text
//!   quiet ──change──► leading (5 ms) ──► flush ──► quiet
//!     ▲                                    ▲
//!     └── change within 100 ms of a flush ─┴─ gathering (until 100 ms quiet, at most 1 s; 20 ms
//!                                             after a VM came to another state)
//! ```
//!
//! A lone change goes out at once; a burst goes out as one delta. Load passes through and is
//! never a change.
//!
//! # Invariants
//! - What a collector did not report is not gone: only a complete look by the owner of a scope
//!   removes items, and a faulty collector's items stay, marked stale.
//! - A collector has a fault for as long as one of its parts has.
//! - `recorded` is the state at the last delta given to the outbox; the next delta begins there.

use crate::clock;
use crate::metrics::Sample;
use crate::outbox::Outgoing;
use crate::spool::patch_body;
use api::wire::Body;
use model::entity::Collector;
use model::load::Load;
use model::vm::may_be_microvm;
use model::{Facts, Item, Kind, Patch, Subject, Time};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LEAD: Duration = Duration::from_millis(5);
const QUIET: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(1);
/// A VM that came to another state waits for no burst to be over: others act on it.
const URGENT: Duration = Duration::from_millis(20);
/// The field of a unit that says whether it runs.
const ACTIVE_STATE: &str = "active_state";
/// How long the first delta waits for collectors that have not looked yet: what they see later
/// would seem to be new on the machine.
const FIRST: Duration = Duration::from_secs(2);
/// A first look at everything is over by then, or something hangs.
pub(crate) const LOOKS: Duration = Duration::from_secs(30);

/// Which items a complete look speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    Kind(Kind),
    /// Units of the system manager.
    SystemUnits,
    /// Units of one user's manager.
    UnitsOf(String),
    /// Units of users' managers but those of these users.
    UnitsBut(BTreeSet<String>),
    /// Containers but these.
    ContainersBut(BTreeSet<Subject>),
}

impl Scope {
    fn kind(&self) -> Kind {
        match self {
            Self::Kind(kind) => *kind,
            Self::SystemUnits | Self::UnitsOf(_) | Self::UnitsBut(_) => Kind::UNIT,
            Self::ContainersBut(_) => Kind::CONTAINER,
        }
    }

    fn holds(&self, subject: &Subject) -> bool {
        match self {
            Self::Kind(kind) => subject.kind() == *kind,
            Self::SystemUnits => subject.kind() == Kind::UNIT && !subject.id().contains('/'),
            Self::UnitsOf(user) => {
                let owner = subject.id().split_once('/').map(|(owner, _)| owner);
                subject.kind() == Kind::UNIT && owner == Some(user)
            }
            Self::UnitsBut(users) => {
                let owner = subject.id().split_once('/').map(|(owner, _)| owner);
                subject.kind() == Kind::UNIT && owner.is_some_and(|owner| !users.contains(owner))
            }
            Self::ContainersBut(these) => {
                subject.kind() == Kind::CONTAINER && !these.contains(subject)
            }
        }
    }
}

/// What a collector has to say.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A complete look: these are all items of these scopes.
    All {
        scopes: Vec<Scope>,
        items: Vec<(Subject, Item)>,
        limits: Vec<String>,
    },
    /// Some items, looked at because of an event.
    Some {
        put: Vec<(Subject, Item)>,
        gone: Vec<Subject>,
    },
    /// Some of what a look is about to find, ahead of the rest.
    Part {
        put: Vec<(Subject, Item)>,
        gone: Vec<Subject>,
    },
    /// There is nothing of these scopes; says nothing of others.
    None(Vec<Scope>),
    /// Of what all is in the complete look that follows, and where nothing is.
    Whole {
        directories: Vec<String>,
        missing: Vec<String>,
    },
    /// It could not look.
    Fault(String),
    /// It is through with the look that was asked for by this number.
    CaughtUp(u64),
    /// What the server was told of kinds that nobody could look at so far.
    Recalled(Facts),
    /// What was passed on was lost before it was told.
    Lost,
    /// Contents of files that are about to be named.
    Contents(Vec<Vec<u8>>),
    Load(Box<Load>),
}

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) collector: &'static str,
    /// Which part of the collector says it, where it has several, each with its own fault.
    pub(crate) part: Option<String>,
    pub(crate) seen: Seen,
}

/// How far the first look is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Looked {
    /// Whether every collector has reported, and what they saw was passed on.
    pub(crate) all: bool,
    /// Kinds that could not be looked at so far, and that the spool has no memory of.
    pub(crate) unseen: Vec<Kind>,
    /// Whether what the server remembers of them was passed on.
    pub(crate) recalled: bool,
}

#[derive(Debug)]
pub(crate) struct Engine {
    facts: Facts,
    recorded: Facts,
    /// Whether the spool has a state that the next delta can begin from.
    begun: bool,
    changed: BTreeSet<Subject>,
    /// Collectors whose first report the first delta waits for.
    awaited: BTreeSet<&'static str>,
    /// Collectors that have not looked with success, where the spool has no memory either.
    unseen: BTreeSet<&'static str>,
    recalled: bool,
    /// What was recalled was not passed on yet.
    recalls: bool,
    /// Until then what is seen for the first time was there before; without memory only.
    finds_until: Option<Instant>,
    looked: watch::Sender<Looked>,
    last_look: HashMap<&'static str, Instant>,
    /// By collector: directories of which all is seen, and paths where nothing is.
    whole: HashMap<&'static str, (Vec<String>, Vec<String>)>,
    /// By collector and part.
    faults: HashMap<&'static str, BTreeMap<Option<String>, String>>,
    pending: Option<Pending>,
    /// By when what changed is to be passed on, whatever else comes.
    urgent: Option<Instant>,
    last_flush: Option<Instant>,
    /// Where the last sample of load is wanted, too.
    samples: Option<watch::Sender<Option<Arc<Sample>>>>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    at: Time,
    since: Instant,
    due: Instant,
    leading: bool,
}

impl Engine {
    /// `facts` is the state the spool ended with; empty if there was none. Collectors are awaited
    /// before it is told, or at least asked after: `unseen`.
    pub(crate) fn new(
        facts: Facts,
        awaited: impl IntoIterator<Item = &'static str>,
        unseen: impl IntoIterator<Item = &'static str>,
        looked: watch::Sender<Looked>,
    ) -> Self {
        let awaited: BTreeSet<&'static str> = awaited.into_iter().collect();
        let begun = !facts.is_empty();
        Self {
            begun,
            recorded: facts.clone(),
            facts,
            changed: BTreeSet::new(),
            unseen: if begun { BTreeSet::new() } else { unseen.into_iter().collect() },
            recalled: false,
            recalls: false,
            finds_until: (!begun).then(|| Instant::now() + LOOKS),
            awaited,
            looked,
            last_look: HashMap::new(),
            whole: HashMap::new(),
            faults: HashMap::new(),
            pending: None,
            urgent: None,
            last_flush: None,
            samples: None,
        }
    }

    /// The last sample of load is told there, too.
    pub(crate) fn tell_samples(&mut self, samples: watch::Sender<Option<Arc<Sample>>>) {
        self.samples = Some(samples);
    }

    /// Runs until cancelled or all collectors are gone; then passes on what is left.
    pub(crate) async fn run(
        mut self,
        mut reports: mpsc::Receiver<Report>,
        outgoing: mpsc::Sender<Outgoing>,
        shutdown: CancellationToken,
    ) {
        let start = Instant::now();
        let timer = tokio::time::sleep_until(start);
        tokio::pin!(timer);
        loop {
            if let Some(due) = self.due(start) {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                report = reports.recv() => match report {
                    Some(report) => self.take(report, &outgoing).await,
                    None => break,
                },
                () = &mut timer, if self.pending.is_some() => self.flush(&outgoing),
                () = shutdown.cancelled() => break,
            }
        }
        self.flush(&outgoing);
    }

    /// The facts after everything that all collectors say once.
    pub(crate) async fn once(mut self, mut reports: mpsc::Receiver<Report>) -> Facts {
        while let Some(report) = reports.recv().await {
            self.absorb(report).await;
        }
        self.facts
    }

    /// Takes what is seen into the facts, which are asked for and not passed on.
    pub(crate) async fn absorb(&mut self, report: Report) {
        if matches!(report.seen, Seen::Contents(_) | Seen::Load(_)) {
            return;
        }
        let (nowhere, _closed) = mpsc::channel(1);
        self.take(report, &nowhere).await;
        self.changed.clear();
        self.pending = None;
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    fn due(&self, start: Instant) -> Option<Instant> {
        let pending = self.pending?;
        if self.begun || self.awaited.is_empty() {
            return Some(pending.due);
        }
        Some(pending.due.max(start + FIRST))
    }

    async fn take(&mut self, report: Report, outgoing: &mpsc::Sender<Outgoing>) {
        let Report { collector, part, seen } = report;
        match seen {
            Seen::Whole { directories, missing } => {
                self.whole.insert(collector, (directories, missing));
                return;
            }
            Seen::All { scopes, items, limits } => {
                self.complete(&scopes, items);
                self.looked(collector, &part, limits);
            }
            Seen::Some { put, gone } => {
                self.change(put, gone);
                let before: Option<Collector> = self.facts.entity(collector);
                let limits = before.map(|before| before.limits).unwrap_or_default();
                self.looked(collector, &part, limits);
            }
            Seen::Part { put, gone } => {
                self.change(put, gone);
                return self.settle();
            }
            Seen::None(scopes) => {
                self.complete(&scopes, Vec::new());
                self.recovered(collector, &part);
                return self.settle();
            }
            Seen::Fault(message) => self.fault(collector, part, message),
            Seen::CaughtUp(_) => return,
            Seen::Recalled(facts) => return self.recall(&facts),
            Seen::Lost => {
                self.begun = false;
                return self.schedule();
            }
            Seen::Contents(contents) => {
                for content in contents {
                    // Waits for room: contents are few and must come before their delta.
                    let _stopping = outgoing.send(Outgoing::Content(content)).await;
                }
                return;
            }
            Seen::Load(load) => return self.pass_on(load, outgoing),
        }
        if self.awaited.remove(collector) {
            tracing::debug!(collector, left = self.awaited.len(), "first look");
        }
        self.settle();
    }

    /// Load goes to those who show it here, and out.
    fn pass_on(&self, mut load: Box<Load>, outgoing: &mpsc::Sender<Outgoing>) {
        load.collector_age_seconds = self
            .last_look
            .iter()
            .map(|(name, at)| ((*name).to_owned(), at.elapsed().as_secs_f64()))
            .collect();
        if let Some(samples) = &self.samples {
            let faulty = self.facts.entities::<Collector>().filter(|one| one.fault.is_some());
            let faults = faulty.map(|one| one.name).collect();
            let sample = Sample { at: Instant::now(), load: (*load).clone(), faults };
            samples.send_replace(Some(Arc::new(sample)));
        }
        if outgoing.try_send(Outgoing::Load(load)).is_err() {
            tracing::debug!("a load sample found no room");
        }
    }

    fn settle(&mut self) {
        if !self.changed.is_empty() || self.pending.is_some() {
            self.schedule();
        } else {
            self.passed_on();
        }
    }

    /// Nothing that was seen waits here.
    fn passed_on(&mut self) {
        self.recalls = false;
        let kinds: BTreeSet<&Kind> =
            self.unseen.iter().flat_map(|name| Collector::kinds(name)).collect();
        let now = Looked {
            all: self.awaited.is_empty(),
            unseen: kinds.into_iter().copied().collect(),
            recalled: self.recalled,
        };
        self.looked.send_if_modified(|looked| {
            let news = *looked != now;
            *looked = now;
            news
        });
    }

    fn schedule(&mut self) {
        let now = Instant::now();
        let first = !self.begun && self.awaited.is_empty();
        match &mut self.pending {
            Some(pending) if first => pending.due = now,
            Some(pending) if !pending.leading => {
                pending.due = (now + QUIET).min(pending.since + MOST);
            }
            Some(_) => {}
            None => {
                let leading = self.last_flush.is_none_or(|at| now.duration_since(at) >= QUIET);
                let due = now + if leading { LEAD } else { QUIET };
                self.pending = Some(Pending { at: clock::now(), since: now, due, leading });
            }
        }
        if let (Some(pending), Some(urgent)) = (&mut self.pending, self.urgent) {
            pending.due = pending.due.min(urgent);
        }
    }

    fn complete(&mut self, scopes: &[Scope], items: Vec<(Subject, Item)>) {
        let seen: BTreeSet<&Subject> = items.iter().map(|(subject, _)| subject).collect();
        let gone: Vec<Subject> = scopes
            .iter()
            .flat_map(|scope| {
                self.facts
                    .of_kind(scope.kind())
                    .map(|(subject, _)| subject)
                    .filter(|subject| scope.holds(subject) && !seen.contains(subject))
            })
            .cloned()
            .collect();
        for subject in gone {
            self.remove(subject);
        }
        for (subject, item) in items {
            self.put(subject, item);
        }
    }

    fn change(&mut self, put: Vec<(Subject, Item)>, gone: Vec<Subject>) {
        for (subject, item) in put {
            self.put(subject, item);
        }
        for subject in gone {
            self.remove(subject);
        }
    }

    fn put(&mut self, subject: Subject, item: Item) {
        if self.facts.get(&subject) == Some(&item) {
            return;
        }
        self.changed.insert(subject.clone());
        let is_vm = subject.kind() == Kind::UNIT && may_be_microvm(subject.id());
        if !is_vm {
            self.facts.put(subject, item);
            return;
        }
        let before = self.facts.field(&subject, ACTIVE_STATE);
        self.facts.put(subject.clone(), item);
        if self.facts.field(&subject, ACTIVE_STATE) != before {
            self.urgent.get_or_insert_with(|| Instant::now() + URGENT);
        }
    }

    fn remove(&mut self, subject: Subject) {
        if self.facts.remove(&subject).is_some() {
            self.changed.insert(subject);
        }
    }

    /// Takes for true what was true when it was told, of those that could not look since.
    fn recall(&mut self, told: &Facts) {
        let of_unseen = |subject: &Subject| {
            self.unseen.iter().any(|name| match *name {
                "units" => Scope::SystemUnits.holds(subject),
                Collector::USER_UNITS => Scope::UnitsBut(BTreeSet::new()).holds(subject),
                name => Collector::kinds(name).contains(&subject.kind()),
            })
        };
        let lacking: Vec<_> = told
            .iter()
            .filter(|(subject, _)| of_unseen(subject) && self.facts.get(subject).is_none())
            .map(|(subject, item)| (subject.clone(), item.clone()))
            .collect();
        for (subject, item) in lacking {
            self.put(subject, item);
        }
        self.recalled = true;
        self.recalls = true;
        self.settle();
    }

    /// The collector has looked, if no other part of it has a fault.
    fn looked(&mut self, collector: &'static str, part: &Option<String>, limits: Vec<String>) {
        self.recovered(collector, part);
        if self.faults.contains_key(collector) {
            return;
        }
        self.unseen.remove(collector);
        self.last_look.insert(collector, Instant::now());
        let (directories, missing) = self.whole.get(collector).cloned().unwrap_or_default();
        let name = collector.to_owned();
        let collector = Collector { name, limits, directories, missing, ..Collector::default() };
        self.note(&collector);
    }

    fn fault(&mut self, collector: &'static str, part: Option<String>, message: String) {
        let faults = self.faults.entry(collector).or_default();
        if faults.get(&part) != Some(&message) {
            tracing::warn!(collector, part, message, "could not look");
        }
        faults.insert(part, message);
        self.note_faults(collector);
    }

    /// A part of a collector has no fault.
    fn recovered(&mut self, collector: &'static str, part: &Option<String>) {
        let Some(faults) = self.faults.get_mut(collector) else { return };
        if faults.remove(part).is_none() {
            return;
        }
        if faults.is_empty() {
            self.faults.remove(collector);
        }
        self.note_faults(collector);
    }

    /// What is wrong with all parts of a collector.
    fn note_faults(&mut self, collector: &'static str) {
        let faults = self.faults.get(collector).into_iter().flatten();
        let told: Vec<String> = faults
            .map(|(part, message)| match part {
                Some(part) => format!("{part}: {message}"),
                None => message.clone(),
            })
            .collect();
        let fault = (!told.is_empty()).then(|| told.join("; "));
        let before: Collector = self.facts.entity(collector).unwrap_or_default();
        let since = before.fault.and(before.fault_since).or_else(|| Some(clock::now()));
        let fault_since = since.filter(|_| fault.is_some());
        let name = collector.to_owned();
        self.note(&Collector { name, fault, fault_since, ..before });
    }

    fn note(&mut self, collector: &Collector) {
        use model::entity::Entity;
        let (subject, fields) = collector.to_item();
        self.put(subject, Item::new(&fields));
    }

    /// Gives what changed to the outbox. When that has no room the changes stay, and go out
    /// together a little later.
    fn flush(&mut self, outgoing: &mpsc::Sender<Outgoing>) {
        let Some(pending) = self.pending.take() else { return };
        self.urgent = None;
        let patch = Patch::of(&self.recorded, &self.facts, &self.changed);
        if patch.is_empty() && self.begun {
            self.changed.clear();
            self.passed_on();
            return;
        }
        let body = if self.begun {
            patch_body(self.recorded.digest(), self.facts.digest(), patch)
        } else {
            Body::Keyframe(self.facts.clone())
        };
        let now = Instant::now();
        let finds = self.finds_until.is_some_and(|end| now < end) && !self.looked.borrow().all;
        let of_first = finds || self.recalls;
        match outgoing.try_send(Outgoing::Delta { at: pending.at, body, of_first }) {
            Ok(()) => {
                self.record();
                self.last_flush = Some(now);
                self.passed_on();
            }
            Err(_) => {
                self.pending = Some(Pending { due: now + QUIET, leading: false, ..pending });
            }
        }
    }

    fn record(&mut self) {
        for subject in std::mem::take(&mut self.changed) {
            match self.facts.get(&subject) {
                Some(item) => self.recorded.put(subject, item.clone()),
                None => self.recorded.remove(&subject),
            };
        }
        self.begun = true;
    }
}

#[cfg(test)]
mod tests;
