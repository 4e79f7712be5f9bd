//! Tracked files: unit files, configuration of what runs, and chosen paths.
//!
//! Which files those are follows from units and packages, and is worked out again when these
//! change; what is in them is looked at when inotify says so, and every interval.

use super::apart::Apart;
use super::{Context, DEADLINE, items};
use crate::engine::{Scope, Seen};
use host::files::{Pattern, Scan, TrackedSet, Tracker};
use host::users::Accounts;
use host::watch::{Wanted, Watch};
use model::{ContentId, Kind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(20);
/// Units and packages change in bursts; which files are tracked may wait a little.
const REBUILD_AFTER: Duration = Duration::from_millis(500);

struct Sight {
    tracker: Tracker,
    set: TrackedSet,
    /// What an agent before this one tracked.
    known: Vec<String>,
}

struct Look {
    scan: Scan,
    wanted: Option<Wanted>,
    limits: Vec<String>,
}

pub(crate) async fn run(context: Context) {
    let sink = context.sink("files");
    // The configuration was checked; a pattern that is none by the stricter rules is left out
    // and named.
    let (mut chosen, mut refused) = (Vec::new(), Vec::new());
    for text in &context.config.track {
        match text.parse::<Pattern>() {
            Ok(pattern) => chosen.push(pattern),
            Err(error) => refused.push(format!("track: {error}")),
        }
    }
    let mut units = context.units.subscribe();
    let mut packages_changed = context.packages_changed.subscribe();
    let mut missing = context.missing.clone();
    let tracker = Tracker::new(context.root.clone(), context.redactor.clone());
    let mut sight = Apart::new(Sight {
        tracker,
        set: TrackedSet::default(),
        known: context.known_files.to_vec(),
    });
    let mut watch = Watch::new();
    wait_for_first(&context, &mut units, &mut packages_changed).await;
    let mut rebuild = true;
    loop {
        let units_now = Arc::clone(&units.borrow_and_update());
        packages_changed.borrow_and_update();
        let (root, packages, chosen) =
            (context.root.clone(), context.packages.clone(), chosen.clone());
        let again = std::mem::take(&mut rebuild);
        let look = sight.look(DEADLINE * 2, move |sight| {
            let accounts = Accounts::read(&root).unwrap_or_default();
            if again {
                let mut packages = packages.lock().unwrap_or_else(PoisonError::into_inner);
                let mut set = TrackedSet::build(&root, units_now.iter(), &mut packages, &chosen);
                let known = sight.known.iter().map(String::as_str).chain(sight.set.paths());
                set.keep(&root, known, &mut packages);
                sight.set = set;
                sight.known.clear();
            }
            let scan = sight.tracker.scan(&sight.set, &accounts);
            let left_out = sight.set.left_out();
            let limits = (left_out > 0)
                .then(|| format!("{left_out} files beyond the limit are not tracked"));
            Look {
                scan,
                wanted: again.then(|| sight.set.watched(&root)),
                limits: limits.into_iter().collect(),
            }
        });
        match look.await {
            Ok(look) => {
                if !look.scan.contents.is_empty() {
                    sink.say(Seen::Contents(
                        look.scan.contents.into_iter().map(|(_, bytes)| bytes).collect(),
                    ))
                    .await;
                }
                let limits = look.limits.into_iter().chain(refused.iter().cloned()).collect();
                sink.all(vec![Scope::Kind(Kind::FILE)], items(&look.scan.files), limits).await;
                if let Some(wanted) = look.wanted {
                    watch.set(wanted);
                }
            }
            Err(error) => sink.fault(&error).await,
        }
        if context.once {
            return;
        }
        loop {
            tokio::select! {
                _ = watch.next_change() => {
                    tokio::time::sleep(SETTLE).await;
                    break;
                }
                changed = units.changed() => {
                    if changed.is_err() { return; }
                    rebuild = true;
                    tokio::time::sleep(REBUILD_AFTER).await;
                    break;
                }
                changed = packages_changed.changed() => {
                    if changed.is_err() { return; }
                    rebuild = true;
                    break;
                }
                changed = missing.changed() => {
                    if changed.is_err() { return; }
                    let wanted = missing.borrow_and_update().clone();
                    hand_out_again(&mut sight, &sink, wanted).await;
                }
                () = tokio::time::sleep(context.config.interval) => break,
                () = context.shutdown.cancelled() => return,
            }
        }
    }
}

/// Which files are tracked follows from units and packages: waits for both, but not for ever.
async fn wait_for_first(
    context: &Context,
    units: &mut tokio::sync::watch::Receiver<Arc<Vec<model::entity::Unit>>>,
    packages: &mut tokio::sync::watch::Receiver<u64>,
) {
    let both = async { (units.changed().await, packages.changed().await) };
    tokio::select! {
        _ = both => {}
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
        () = context.shutdown.cancelled() => {}
    }
}

async fn hand_out_again(sight: &mut Apart<Sight>, sink: &super::Sink, wanted: Vec<ContentId>) {
    let found = sight.look(DEADLINE, move |sight| {
        wanted.into_iter().filter_map(|id| sight.tracker.content(id)).collect::<Vec<_>>()
    });
    match found.await {
        Ok(contents) if !contents.is_empty() => sink.say(Seen::Contents(contents)).await,
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "could not read contents again"),
    }
}
