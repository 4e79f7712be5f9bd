//! Carries out a plan: each step is check, act, check.
//!
//! ```text
//! waiting ─► ready ─► under way ─┬─► already, changed
//!    │                           └─► failed ─► skips what needs it
//!    └─► skipped, cancelled
//! ```
//!
//! Steps that wait for nothing run side by side, [`AT_ONCE`] at most. Those of packages that are
//! ready together go into one transaction, and alone where that fails.
//!
//! # Invariants
//! - Each step is told as ended exactly once, and as failed if it is not so in the end.
//! - A failed step skips what needs it, and nothing else.
//! - What is right already is left alone, so a plan can be carried out again from the start.

mod accounts;
mod docker;
mod error;
mod files;
mod images;
mod manager;
mod packages;
mod units;

pub use error::Error;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use model::plan::{Action, Event, Outcome, Plan};
use model::{ContentId, with_causes};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Steps under way at once.
const AT_ONCE: usize = 4;

/// The machine that is changed.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Below which its files are.
    pub root: PathBuf,
    /// Where its engine for containers listens.
    pub docker: PathBuf,
    /// The port of its loopback at which packages and images are asked for, where it reaches
    /// nothing itself, or is to have them from the server.
    pub relay: Option<u16>,
}

/// Where contents are by their names; `None` for one that is not there.
pub type Contents = Arc<dyn Fn(&ContentId) -> Option<Vec<u8>> + Send + Sync>;

/// Steps that ended together, each with whether something was changed.
type Ended = Vec<(usize, Result<bool, Error>)>;

/// Where events go; one and the same for all that runs side by side.
type Tell<'t> = &'t (dyn Fn(Event) + Send + Sync);

/// Carries out a plan until all of it ended, or until told to stop: then what is under way is cut
/// off, and the rest is cancelled. Returns what became of each step.
pub async fn apply(
    machine: &Machine,
    plan: &Plan,
    contents: &Contents,
    tell: Tell<'_>,
    stop: impl Future<Output = ()>,
) -> Vec<Outcome> {
    let mut run = Run::new(machine, plan, contents, tell);
    let mut stop = std::pin::pin!(stop);
    loop {
        run.begin();
        if run.under_way.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            () = &mut stop => {
                run.under_way.clear();
                break;
            }
            ended = run.under_way.next() => run.take(ended.unwrap_or_default()),
        }
    }
    if run.reload_owed {
        let say = |text: &str| tell(Event::Said { step: 0, text: text.to_owned() });
        if let Err(error) = units::reload(&say).await {
            say(&format!("systemd did not read its files again: {}", with_causes(&error)));
        }
    }
    let (root, kept) = (machine.root.clone(), run.changed);
    if kept {
        // A power cut must not take back what was told as done.
        let kept = tokio::task::spawn_blocking(move || crate::file::keep(&root)).await;
        if let Ok(Err(error)) = kept {
            tell(Event::Said { step: 0, text: with_causes(&error) });
        }
    }
    run.finish()
}

struct Run<'r> {
    machine: &'r Machine,
    plan: &'r Plan,
    contents: &'r Contents,
    tell: Tell<'r>,
    outcomes: Vec<Option<Outcome>>,
    waiting: BTreeSet<usize>,
    begun: BTreeSet<usize>,
    under_way: FuturesUnordered<BoxFuture<'r, Ended>>,
    /// Whether packages are being changed, which only one can do.
    packages: bool,
    changed: bool,
    /// Whether systemd has to read its files again in the end.
    reload_owed: bool,
}

impl<'r> Run<'r> {
    fn new(machine: &'r Machine, plan: &'r Plan, contents: &'r Contents, tell: Tell<'r>) -> Self {
        Self {
            machine,
            plan,
            contents,
            tell,
            outcomes: vec![None; plan.steps().len()],
            waiting: (0..plan.steps().len()).collect(),
            begun: BTreeSet::new(),
            under_way: FuturesUnordered::new(),
            packages: false,
            changed: false,
            reload_owed: false,
        }
    }

    fn outcome(&self, at: usize) -> Option<&Outcome> {
        self.outcomes.get(at)?.as_ref()
    }

    /// Begins what can begin now.
    fn begin(&mut self) {
        let mut batch = Vec::new();
        let waiting: Vec<usize> = self.waiting.iter().copied().collect();
        for at in waiting {
            let Some(step) = self.plan.steps().get(at) else { continue };
            let failed = step
                .needs
                .iter()
                .find(|need| self.outcome(**need).is_some_and(|outcome| !outcome.is_success()));
            if let Some(need) = failed {
                self.waiting.remove(&at);
                self.end(at, Outcome::Skipped { needs: *need });
                continue;
            }
            let befores = step.needs.iter().chain(&step.after);
            if befores.into_iter().any(|before| self.outcome(*before).is_none()) {
                continue;
            }
            if packages::is_one(&step.action) {
                if !self.packages {
                    batch.push(at);
                }
            } else if self.under_way.len() < AT_ONCE {
                self.start(at);
            }
        }
        if !batch.is_empty() {
            self.packages = true;
            for at in &batch {
                self.note(*at);
            }
            let steps =
                batch.iter().filter_map(|at| Some((*at, &self.plan.steps().get(*at)?.action)));
            let (machine, plan, tell) = (self.machine, self.plan, self.tell);
            let steps: Vec<(usize, &Action)> = steps.collect();
            self.under_way.push(packages::change(machine, plan, steps, tell).boxed());
        }
    }

    fn note(&mut self, at: usize) {
        self.waiting.remove(&at);
        self.begun.insert(at);
        (self.tell)(Event::Began { step: at });
    }

    fn start(&mut self, at: usize) {
        self.note(at);
        let Some(step) = self.plan.steps().get(at) else { return };
        let (machine, contents, tell) = (self.machine, self.contents, self.tell);
        let within = step.action.within();
        let done = async move {
            let say = |text: &str| tell(Event::Said { step: at, text: text.to_owned() });
            let done = act(machine, &step.action, contents, &say);
            let done = tokio::time::timeout(within, done).await;
            vec![(at, done.unwrap_or(Err(Error::Late(within))))]
        };
        self.under_way.push(done.boxed());
    }

    fn take(&mut self, ended: Ended) {
        for (at, result) in ended {
            let action = self.plan.steps().get(at).map(|step| &step.action);
            if action.is_some_and(packages::is_one) {
                self.packages = false;
            }
            let outcome = match result {
                Ok(false) => Outcome::Already,
                Ok(true) => Outcome::Changed,
                Err(error) => Outcome::Failed(with_causes(&error)),
            };
            let is_changed = outcome == Outcome::Changed;
            self.changed |= is_changed;
            self.reload_owed |= is_changed && action.is_some_and(units::wants_reload);
            self.end(at, outcome);
        }
    }

    fn end(&mut self, at: usize, outcome: Outcome) {
        (self.tell)(Event::Ended { step: at, outcome: outcome.clone() });
        if let Some(place) = self.outcomes.get_mut(at) {
            *place = Some(outcome);
        }
    }

    fn finish(mut self) -> Vec<Outcome> {
        for at in 0..self.outcomes.len() {
            if self.outcome(at).is_none() {
                self.end(at, Outcome::Cancelled);
            }
        }
        self.outcomes.into_iter().flatten().collect()
    }
}

/// Makes it so; whether something was to do.
async fn act(
    machine: &Machine,
    action: &Action,
    contents: &Contents,
    tell: &(impl Fn(&str) + Sync),
) -> Result<bool, Error> {
    let root = machine.root.as_path();
    match action {
        Action::SetHostname(name) => {
            let (root, name) = (root.to_owned(), name.clone());
            apart(move || files::set_hostname(&root, &name)).await
        }
        Action::PutFile(file) => {
            let (root, file, contents) = (root.to_owned(), file.clone(), Arc::clone(contents));
            apart(move || files::put(&root, &file, &contents)).await
        }
        Action::PutLink { path, target } => {
            let (path, target) = (files::below(root, path), target.clone());
            apart(move || files::link(&path, &target)).await
        }
        Action::RemoveFile(path) => {
            let path = files::below(root, path);
            apart(move || files::remove(&path)).await
        }
        Action::PutGroup { .. }
        | Action::SetMembers { .. }
        | Action::RemoveGroup(_)
        | Action::PutUser { .. }
        | Action::RemoveUser(_) => accounts::change(root, action).await,
        Action::PutPackage { .. } | Action::RemovePackage(_) => {
            unreachable!("packages are changed together")
        }
        Action::ReloadManager
        | Action::Enable(_)
        | Action::Disable(_)
        | Action::Mask(_)
        | Action::Unmask(_)
        | Action::Start(_)
        | Action::Stop(_)
        | Action::Restart(_)
        | Action::Reload(_) => units::change(root, action, tell).await,
        Action::PutImage(_)
        | Action::RenewImage(_)
        | Action::CreateContainer { .. }
        | Action::StartContainer(_)
        | Action::StopContainer(_)
        | Action::PauseContainer(_)
        | Action::UnpauseContainer(_)
        | Action::RemoveContainer(_) => docker::change(machine, action).await,
    }
}

/// On a thread of its own: a disk may hang.
async fn apart(work: impl FnOnce() -> Result<bool, Error> + Send + 'static) -> Result<bool, Error> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|_panic| Err(Error::Unclear("it broke off".to_owned())))
}

#[cfg(test)]
mod tests;
