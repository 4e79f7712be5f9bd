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

use super::file::Source;
use model::HostId;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vsphere::{About, Change, Error, Objects, Session, Watch};

/// A request that waits for changes is answered after this time in any case.
const WAIT: Duration = Duration::from_secs(120);
const BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// After what only a person mends, lest the host lock the account.
const PERSON: Duration = Duration::from_secs(60);
const MAX_PERSON: Duration = Duration::from_secs(600);

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
    Changed(Vec<Change>),
    /// It answered, and nothing changed.
    Alive,
    Failed(Error),
}

/// Which time it was asked for a whole listing.
pub(super) type Ask = u64;

/// Nobody reads the reports any more.
struct Gone;

struct Reporter {
    node: HostId,
    reports: mpsc::Sender<Report>,
}

impl Reporter {
    async fn say(&self, said: Said) -> Result<(), Gone> {
        let report = Report { node: self.node.clone(), said };
        self.reports.send(report).await.map_err(|_gone| Gone)
    }
}

/// Works until told to stop, or nobody reads the reports.
pub(super) async fn run(
    source: Source,
    reports: mpsc::Sender<Report>,
    mut asked: watch::Receiver<Ask>,
    stop: CancellationToken,
) {
    let reporter = Reporter { node: source.node.clone(), reports };
    let mut failures = 0_u32;
    loop {
        let ended = tokio::select! {
            ended = keep(&source, &reporter, &mut asked, &mut failures) => ended,
            () = stop.cancelled() => return,
        };
        let Err(error) = ended else { return };
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

/// One session from its beginning to its end, which is a fault. It is well only when nobody
/// reads any more.
async fn keep(
    source: &Source,
    reporter: &Reporter,
    asked: &mut watch::Receiver<Ask>,
    failures: &mut u32,
) -> Result<(), Error> {
    let mut session = Session::open(&source.vsphere).await?;
    let ended = work(&mut session, reporter, asked, failures).await;
    // One that is over already can't be ended.
    if !matches!(&ended, Err(Ended::Fault(error)) if error.is_session_over())
        && let Err(error) = session.close().await
    {
        tracing::debug!(%error, source = %source.node, "could not log out");
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
    reporter.say(Said::Whole(first(&mut watch).await?, ask)).await?;
    *failures = 0;
    tokio::select! {
        ended = follow(&mut watch, reporter) => ended,
        ended = list(session, reporter, asked) => ended,
    }
}

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

async fn follow(watch: &mut Watch, reporter: &Reporter) -> Result<(), Ended> {
    loop {
        let changes = watch.next(WAIT).await?.changes;
        let said = if changes.is_empty() { Said::Alive } else { Said::Changed(changes) };
        reporter.say(said).await?;
    }
}

async fn list(
    session: &mut Session,
    reporter: &Reporter,
    asked: &mut watch::Receiver<Ask>,
) -> Result<(), Ended> {
    while asked.changed().await.is_ok() {
        let ask = *asked.borrow_and_update();
        let objects = session.list().await?;
        reporter.say(Said::Whole(objects, ask)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_longer_each_time() {
        let gone = Error::Status { at: "a".into(), call: "Login", status: 503 };
        let seconds = |error: &Error, failures| patience(error, failures).as_secs();
        assert_eq!([0, 1, 2, 9].map(|n| seconds(&gone, n)), [1, 2, 4, 60]);
        let denied = Error::Login { at: "a".into() };
        assert_eq!([0, 1, 9, 99].map(|n| seconds(&denied, n)), [60, 120, 600, 600]);
    }
}
