//! Tracked files: unit files, configuration of what runs, and chosen paths.
//!
//! Which files those are follows from units and packages, and is worked out again when these
//! change; what is in them is looked at when inotify says so, and every interval.

use super::apart::Apart;
use super::{Context, Sink, items, until};
use crate::engine::{Scope, Seen};
use host::Root;
use host::files::{Pattern, Role, Scan, TrackedSet, Tracker};
use host::packages::Packages;
use host::users::Accounts;
use host::watch::{Wanted, Watch};
use model::entity::Unit;
use model::{ContentId, Kind, Subject};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(20);
/// Units and packages change in bursts; which files are tracked may wait a little.
const REBUILD_AFTER: Duration = Duration::from_millis(500);

/// Directories and paths that are listed by themselves.
const LISTED_MAX: usize = 1000;

const UNINFORMED: &str =
    "which files to track is not known in full: units or packages could not be looked at yet";

struct Sight {
    tracker: Tracker,
    set: TrackedSet,
    /// What an agent before this one tracked.
    known: Vec<(String, Role)>,
    /// Why it is not known of some files whose they are.
    owners_fault: Option<String>,
}

struct Look {
    scan: Scan,
    /// What to watch, and where the tracked files are; after a rebuild, where anything is.
    watched: Option<(Wanted, BTreeSet<PathBuf>)>,
    left_out: usize,
    whole: Vec<String>,
    owners_fault: Option<String>,
    /// Whether units and packages were known.
    informed: bool,
}

/// What to do after a wait.
enum Next {
    Look,
    /// Work out anew which files are tracked, then look.
    Rebuild,
    End,
}

struct Follower {
    context: Context,
    sink: Sink,
    sight: Apart<Sight>,
    watch: Watch,
    /// Where the tracked files are.
    places: BTreeSet<PathBuf>,
    /// When a new name last had the files worked out anew, or will have.
    named: Option<Instant>,
    /// When to work out anew which files are tracked.
    due: Option<Instant>,
    units: watch::Receiver<Option<Arc<Vec<Unit>>>>,
    packages_changed: watch::Receiver<u64>,
    missing: watch::Receiver<Vec<ContentId>>,
    /// What was told while not all was known.
    told: BTreeSet<Subject>,
    chosen: Vec<Pattern>,
    /// Chosen paths that can't be followed, and why.
    refused: Vec<String>,
}

pub(crate) async fn run(context: Context) {
    let tracker = Tracker::new(context.root.clone(), context.redactor.clone());
    let known = context.known_files.to_vec();
    let mut follower = Follower {
        sink: context.sink("files"),
        sight: Apart::new(Sight { tracker, set: TrackedSet::default(), known, owners_fault: None }),
        watch: Watch::new(),
        places: BTreeSet::new(),
        named: None,
        due: None,
        units: context.units.subscribe(),
        packages_changed: context.packages_changed.subscribe(),
        missing: context.missing.clone(),
        told: BTreeSet::new(),
        context,
        chosen: Vec::new(),
        refused: Vec::new(),
    };
    follower.wait_for_first().await;
    let mut rebuild = true;
    loop {
        let asked = follower.context.asked_last.take_up();
        let looked = follower.look(rebuild).await;
        follower.sink.caught_up(asked).await;
        rebuild = match follower.wait().await {
            Next::Look => rebuild && !looked,
            Next::Rebuild => true,
            Next::End => return,
        };
    }
}

impl Sight {
    fn rebuild(
        &mut self,
        root: &Root,
        units: &[Unit],
        packages: &mut Packages,
        chosen: &[Pattern],
    ) {
        let mut set = TrackedSet::build(root, units, packages, chosen);
        let known = self.known.iter().map(|(path, role)| (path.as_str(), *role));
        let known = known.chain(self.set.paths());
        set.keep(root, known, packages);
        set.keep_trees(root, &self.set, packages);
        self.set = set;
        self.known.clear();
        self.owners_fault = packages.owners_fault().map(str::to_owned);
    }
}

impl Follower {
    fn choose(&mut self) {
        self.chosen.clear();
        self.refused.clear();
        for text in self.context.config.track.iter().chain(&*self.context.paths.borrow()) {
            match text.parse::<Pattern>() {
                Ok(pattern) => self.chosen.push(pattern),
                Err(error) => self.refused.push(format!("track: {error}")),
            }
        }
    }

    /// Whether that could be done.
    async fn look(&mut self, rebuild: bool) -> bool {
        if rebuild {
            self.choose();
            self.due = None;
            self.named = self.named.map(|at| at.min(Instant::now()));
            self.packages_changed.borrow_and_update();
            self.units.borrow_and_update();
        }
        let informed = self.units.borrow().is_some() && *self.packages_changed.borrow() > 0;
        let units = self.units.borrow().clone().unwrap_or_default();
        let is_watched = rebuild && !self.context.asked_last.is_used();
        let (root, packages, chosen) =
            (self.context.root.clone(), self.context.packages.clone(), self.chosen.clone());
        let look = self.sight.look(self.context.deadline() * 2, move |sight| {
            // Files whose owners can't be named have not changed hands.
            let accounts = Accounts::read(&root)?;
            if rebuild {
                let mut packages = packages.lock().unwrap_or_else(PoisonError::into_inner);
                sight.rebuild(&root, &units, &mut packages, &chosen);
            }
            let scan = sight.tracker.scan(&sight.set, &accounts);
            let watched = is_watched.then(|| (sight.set.watched(&root), sight.set.places(&root)));
            Ok::<_, host::users::Error>(Look {
                scan,
                watched,
                left_out: sight.set.left_out(),
                whole: sight.set.whole().map(str::to_owned).collect(),
                owners_fault: sight.owners_fault.clone(),
                informed,
            })
        });
        match look.await {
            Ok(Ok(look)) => {
                self.tell(look).await;
                return true;
            }
            Ok(Err(error)) => self.sink.fault(&error).await,
            Err(error) => self.sink.fault(&error).await,
        }
        false
    }

    async fn tell(&mut self, look: Look) {
        let contents: Vec<Vec<u8>> =
            look.scan.contents.into_iter().map(|(_, bytes)| bytes).collect();
        if !contents.is_empty() {
            self.sink.say(Seen::Contents(contents)).await;
        }
        let mut limits = self.refused.clone();
        if look.left_out > 0 {
            limits.push(format!("{} files or directories are not tracked: too many, too deep, unreadable, or of unprintable names", look.left_out));
        }
        if let Some(fault) = look.owners_fault {
            // The packages' collector asks for them, and says when it knows more.
            limits.push(format!("which packages some files belong to: {fault}"));
        }
        let files = items(&look.scan.files);
        if look.informed {
            let (mut directories, mut missing) = (look.whole, look.scan.missing);
            directories.truncate(LISTED_MAX);
            missing.truncate(LISTED_MAX);
            self.sink.say(Seen::Whole { directories, missing }).await;
            self.sink.all(vec![Scope::Kind(Kind::FILE)], files, limits).await;
        } else {
            // That others are gone is known only of those that were there.
            let now: BTreeSet<Subject> = files.iter().map(|(subject, _)| subject.clone()).collect();
            let gone = std::mem::replace(&mut self.told, now.clone());
            let gone = gone.difference(&now).cloned().collect();
            self.sink.say(Seen::Part { put: files, gone }).await;
            self.sink.say(Seen::Fault(UNINFORMED.to_owned())).await;
        }
        if let Some((wanted, places)) = look.watched {
            self.watch.set(wanted);
            self.places = places;
        }
    }

    /// Until there is a reason to look again.
    async fn wait(&mut self) -> Next {
        if self.context.once {
            return Next::End;
        }
        if self.context.asked_last.is_used() {
            return tokio::select! {
                () = self.context.asked_last.next() => Next::Rebuild,
                () = self.context.shutdown.cancelled() => Next::End,
            };
        }
        loop {
            tokio::select! {
                changed = self.watch.next_change() => {
                    tokio::time::sleep(SETTLE).await;
                    if changed.is_subset(&self.places) {
                        return Next::Look;
                    }
                    // A name that was not there before; at once, unless they come in a row.
                    if self.take_name(Instant::now()) {
                        return Next::Rebuild;
                    }
                    if !changed.is_disjoint(&self.places) {
                        return Next::Look;
                    }
                }
                () = until(self.due) => return Next::Rebuild,
                changed = self.units.changed() => {
                    if changed.is_err() { return Next::End; }
                    self.due.get_or_insert(Instant::now() + REBUILD_AFTER);
                }
                changed = self.packages_changed.changed() => {
                    return if changed.is_err() { Next::End } else { Next::Rebuild };
                }
                changed = self.missing.changed() => {
                    if changed.is_err() { return Next::End; }
                    self.hand_out_again().await;
                }
                () = tokio::time::sleep(self.context.config.interval) => return Next::Look,
                () = self.context.shutdown.cancelled() => return Next::End,
            }
        }
    }

    /// A name appeared: whether to work out at once which files are tracked; else it is due.
    fn take_name(&mut self, now: Instant) -> bool {
        let next = self.named.map_or(now, |before| before + REBUILD_AFTER);
        match self.named {
            Some(planned) if planned > now => false,
            Some(_) if next > now => {
                self.named = Some(next);
                self.due = Some(self.due.map_or(next, |due| due.min(next)));
                false
            }
            _ => {
                self.named = Some(now);
                true
            }
        }
    }

    /// Which files are tracked follows from units and packages: waits for both, but not for ever.
    async fn wait_for_first(&mut self) {
        let (units, packages) = (&mut self.units, &mut self.packages_changed);
        let both = async {
            units.wait_for(Option::is_some).await.is_ok()
                && packages.wait_for(|looks| *looks > 0).await.is_ok()
        };
        tokio::select! {
            _ = both => {}
            () = tokio::time::sleep(self.context.deadline() * 2) => {}
            // Units and packages are through, or said why they can't be.
            () = self.context.asked_last.next() => {}
            () = self.context.shutdown.cancelled() => {}
        }
    }

    async fn hand_out_again(&mut self) {
        let wanted = self.missing.borrow_and_update().clone();
        let found = self.sight.look(self.context.deadline(), move |sight| {
            wanted.into_iter().filter_map(|id| sight.tracker.content(id)).collect::<Vec<_>>()
        });
        match found.await {
            Ok(contents) if !contents.is_empty() => self.sink.say(Seen::Contents(contents)).await,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "could not read contents again"),
        }
    }
}
