//! Keeps one session with one source, and reports what it says. Decides nothing.
//!
//! ```text
//!   open ─► first listing ─► follow changes ┐
//!    ▲                       list when asked ├─ a fault ─► wait, longer each time ─┐
//!    └───────────────────────────────────────┴─────────────────────────────────────┘
//! ```
//!
//! # Invariants
//! - What one source does or fails to do holds up no other.
//! - Reports wait for their reader: a source is asked no faster than is decided.
//! - A whole listing is not older than any change that was told before it: its pages are read one
//!   after another, and what changed meanwhile is applied to it.
//! - A VM that is not listed any more is asked for by itself: one that we lost the right to see is
//!   told as there.

use super::file::Source;
use model::HostId;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;
use vsphere::{About, Change, Error, Objects, PAGE, Session, Thing, Updates, Watch};

/// A request that waits for changes is answered after this time in any case.
const WAIT: Duration = Duration::from_secs(120);
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// After what only a person mends, lest the host lock the account.
const PERSON: Duration = Duration::from_secs(60);
const MAX_PERSON: Duration = Duration::from_secs(600);
/// Whoever stops does not wait longer for a log-out.
const LOG_OUT: Duration = Duration::from_secs(2);
/// Changes that are kept while a listing is read. When more came it is read anew.
const MEANWHILE_MAX: usize = 20_000;

/// What a source says.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) node: HostId,
    pub(super) said: Said,
}

#[derive(Debug)]
pub(super) enum Said {
    Connected(About),
    /// Everything there is: first of all, and when somebody asks. The last that was asked before
    /// it was listed.
    Whole(Objects, Ask),
    /// More of the same are there already, if it says so.
    Changed(Updates),
    /// It answered, and nothing changed.
    Alive,
    Failed(Error),
}

/// What VMs that are not listed are asked for with.
enum Asker<'a> {
    Session(&'a mut Session),
    Watch(&'a mut Watch),
}

impl Asker<'_> {
    async fn hidden(self, ids: &BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
        let hidden = match self {
            Self::Session(session) => session.hidden(ids).await?,
            Self::Watch(watch) => watch.hidden(ids).await?,
        };
        if !hidden.is_empty() {
            let count = hidden.len();
            tracing::warn!(
                count,
                "VMs are not to be seen any more, and not gone; see the user's rights"
            );
        }
        Ok(hidden)
    }
}

/// Which time it was asked for a whole listing.
pub(super) type Ask = u64;

/// Nobody reads the reports any more.
struct Gone;

struct Reporter {
    node: HostId,
    /// Ids of the VMs that were told last.
    known: Mutex<BTreeSet<String>>,
    reports: mpsc::Sender<Report>,
}

impl Reporter {
    /// Everything there is, with what is only hidden.
    async fn say_whole(
        &self,
        mut objects: Objects,
        asker: Asker<'_>,
        ask: Ask,
    ) -> Result<(), Ended> {
        let mut known = self.known.lock().await;
        let missing = known.iter().filter(|id| !objects.machines.contains_key(*id));
        for id in asker.hidden(&missing.cloned().collect()).await? {
            objects.apply(Change::hides(id));
        }
        *known = objects.machines.keys().cloned().collect();
        Ok(self.say(Said::Whole(objects, ask)).await?)
    }

    /// What changed, but of what is only hidden.
    async fn say_changed(&self, mut updates: Updates, watch: &mut Watch) -> Result<(), Ended> {
        let mut known = self.known.lock().await;
        let of_machines = updates.changes.iter().filter(|change| change.thing == Thing::Machine);
        let (gone, there): (Vec<_>, Vec<_>) = of_machines.partition(|change| change.leaves);
        let gone = gone.into_iter().map(|change| change.id.clone()).collect();
        known.extend(there.into_iter().map(|change| change.id.clone()));
        let hidden = Asker::Watch(watch).hidden(&gone).await?;
        known.retain(|id| !gone.contains(id) || hidden.contains(id));
        updates.changes.extend(hidden.into_iter().map(Change::hides));
        Ok(self.say(Said::Changed(updates)).await?)
    }

    async fn say(&self, said: Said) -> Result<(), Gone> {
        let report = Report { node: self.node.clone(), said };
        self.reports.send(report).await.map_err(|_gone| Gone)
    }
}

/// Works until told to stop, or nobody reads the reports. `known` are the ids that VMs of it had
/// there when it was heard of last.
pub(super) async fn run(
    source: Source,
    known: BTreeSet<String>,
    reports: mpsc::Sender<Report>,
    mut asked: watch::Receiver<Ask>,
    stop: CancellationToken,
) {
    let known = Mutex::new(known);
    let reporter = Reporter { node: source.node.clone(), known, reports };
    let (mut failures, mut page) = (0_u32, PAGE);
    loop {
        let opened = tokio::select! {
            opened = Session::open(&source.vsphere, page) => opened,
            () = stop.cancelled() => return,
        };
        let ended = match opened {
            Ok(session) => keep(session, &reporter, &mut asked, &mut failures, &stop).await,
            Err(error) => Err(error),
        };
        let Err(error) = ended else { return };
        if error.is_too_large() {
            page = (page / 4).max(1);
        }
        // A session ends now and then; that is nothing to wait for, once.
        let wait = if error.is_session_over() && failures == 0 {
            Duration::ZERO
        } else {
            patience(&error, failures)
        };
        failures = failures.saturating_add(1);
        // That it failed is the answer to whoever asked before.
        asked.mark_unchanged();
        if reporter.say(Said::Failed(error)).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Somebody wants to know now.
            asking = asked.changed() => if asking.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

fn patience(error: &Error, failures: u32) -> Duration {
    let (first, most) =
        if error.needs_somebody() { (PERSON, MAX_PERSON) } else { (BACKOFF, MAX_BACKOFF) };
    first.saturating_mul(2_u32.saturating_pow(failures)).min(most)
}

/// One session to its end, which is a fault. It is well only when nobody reads any more, or it is
/// to stop.
async fn keep(
    mut session: Session,
    reporter: &Reporter,
    asked: &mut watch::Receiver<Ask>,
    failures: &mut u32,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let ended = tokio::select! {
        ended = work(&mut session, reporter, asked, failures) => ended,
        () = stop.cancelled() => Ok(()),
    };
    // One that is over already can't be ended.
    if !matches!(&ended, Err(Ended::Fault(error)) if error.is_session_over()) {
        match tokio::time::timeout(LOG_OUT, session.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, source = %reporter.node, "could not log out"),
            Err(_late) => tracing::debug!(source = %reporter.node, "could not log out in time"),
        }
    }
    match ended {
        Ok(()) | Err(Ended::Gone) => Ok(()),
        Err(Ended::Fault(error)) => Err(error),
    }
}

enum Ended {
    Gone,
    Fault(Error),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

impl From<Gone> for Ended {
    fn from(_gone: Gone) -> Self {
        Self::Gone
    }
}

async fn work(
    session: &mut Session,
    reporter: &Reporter,
    asked: &mut watch::Receiver<Ask>,
    failures: &mut u32,
) -> Result<(), Ended> {
    reporter.say(Said::Connected(session.about().clone())).await?;
    let ask = *asked.borrow_and_update();
    let mut watch = session.watch().await?;
    let objects = first(&mut watch).await?;
    reporter.say_whole(objects, Asker::Watch(&mut watch), ask).await?;
    *failures = 0;
    let meanwhile = Meanwhile::default();
    tokio::select! {
        ended = follow(&mut watch, reporter, &meanwhile) => ended,
        ended = list(session, reporter, asked, &meanwhile) => ended,
    }
}

/// What was told since a listing was begun, while one is read. Locked for as long as a report is
/// on its way, so that they come in order.
type Meanwhile = Mutex<Option<Vec<Change>>>;

/// What there is, by the watch itself: its first changes are everything.
async fn first(watch: &mut Watch) -> Result<Objects, Error> {
    let mut objects = Objects::default();
    loop {
        let updates = watch.next(WAIT).await?;
        for change in updates.changes {
            objects.apply(change);
        }
        if !updates.more {
            return Ok(objects);
        }
    }
}

async fn follow(
    watch: &mut Watch,
    reporter: &Reporter,
    meanwhile: &Meanwhile,
) -> Result<(), Ended> {
    loop {
        let updates = watch.next(WAIT).await?;
        let mut meanwhile = meanwhile.lock().await;
        keep_for_listing(&mut meanwhile, &updates.changes);
        let is_news = !updates.changes.is_empty() || updates.more;
        match is_news {
            true => reporter.say_changed(updates, watch).await?,
            false => reporter.say(Said::Alive).await?,
        }
    }
}

fn keep_for_listing(meanwhile: &mut Option<Vec<Change>>, changes: &[Change]) {
    let Some(kept) = meanwhile else { return };
    if kept.len() + changes.len() > MEANWHILE_MAX {
        *meanwhile = None;
    } else {
        kept.extend_from_slice(changes);
    }
}

async fn list(
    session: &mut Session,
    reporter: &Reporter,
    asked: &mut watch::Receiver<Ask>,
    meanwhile: &Meanwhile,
) -> Result<(), Ended> {
    while asked.changed().await.is_ok() {
        let ask = *asked.borrow_and_update();
        loop {
            *meanwhile.lock().await = Some(Vec::new());
            let mut objects = session.list().await?;
            let mut meanwhile = meanwhile.lock().await;
            let Some(changes) = meanwhile.take() else { continue };
            for change in changes {
                objects.apply(change);
            }
            reporter.say_whole(objects, Asker::Session(session), ask).await?;
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_while_a_listing_is_read_is_kept_for_it() {
        let changes = vec![Change::default(); MEANWHILE_MAX];
        let mut meanwhile = None;
        keep_for_listing(&mut meanwhile, &changes);
        assert!(meanwhile.is_none(), "no listing is read");
        meanwhile = Some(Vec::new());
        keep_for_listing(&mut meanwhile, &changes);
        assert_eq!(meanwhile.as_ref().map(Vec::len), Some(MEANWHILE_MAX));
        keep_for_listing(&mut meanwhile, &changes[..1]);
        assert!(meanwhile.is_none(), "more than is kept: the listing is read anew");
    }

    #[test]
    fn it_waits_longer_each_time() {
        let gone = Error::Status { at: "a".into(), call: "Login", status: 503 };
        let seconds = |error: &Error, failures| patience(error, failures).as_secs();
        assert_eq!([0, 1, 2, 9].map(|n| seconds(&gone, n)), [1, 2, 4, 60]);
        let denied = Error::Login { at: "a".into() };
        assert_eq!([0, 1, 9, 99].map(|n| seconds(&denied, n)), [60, 120, 600, 600]);
    }
}
