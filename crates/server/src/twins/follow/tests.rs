//! Following as a whole, with a guest that does what a test wants.

use super::*;
use crate::runs::{Limits, New, State as RunIs};
use crate::twins::fake::{Fake, Fate, Guest, LONG, called, known, limited, over, tell};
use api::following::FollowState;
use model::Time;
use standing::Failed;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The twin of a host that is called `web01`, let follow it.
struct Bench {
    _dir: tempfile::TempDir,
    fake: Arc<Fake>,
    guest: Arc<Guest>,
    twins: Twins,
    name: MachineName,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Bench {
    /// The guest is called so, and after the plans that come so.
    async fn new<const N: usize>(hostname: &str, next: [&str; N], limits: Limits) -> Self {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let twins = limited(dir.path(), &fake, limits);
        let name = known(&twins, &fake, "web01");
        tell(&twins, "web01", "web01");
        let guest = Guest::new(called(hostname), next.map(called));
        fake.inhabit(&name, &guest);
        twins.follow(&name).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), JoinSet::new());
        Self { _dir: dir, fake, guest, twins, name, stop, tasks }
    }

    fn begin_to_follow(&mut self) {
        self.tasks.spawn(run(self.twins.clone(), self.stop.clone()));
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        self.twins.inner.runs.close().await;
    }

    /// Takes the place that runs have, until it is told to go.
    async fn occupy(&self) -> CancellationToken {
        let (kind, cause, go) = (Kind::SnapshotCreate, Cause::Local, CancellationToken::new());
        let subject = Subject::twin(&"other".parse().unwrap());
        let told = go.clone();
        let work = async move |_handle| {
            told.cancelled().await;
            Ok(())
        };
        let id = self.twins.inner.runs.start(New { kind, subject, cause }, work).unwrap();
        let runs = &self.twins.inner.runs;
        until("the place is taken", || runs.show(id).unwrap().state == RunIs::Running).await;
        go
    }

    /// The run that is on.
    async fn run(&self) -> RunId {
        let subject = Subject::twin(&self.name);
        let on = || self.twins.inner.runs.on(&subject);
        until("a run is on", || on().is_some_and(|id| self.twins.inner.runs.show(id).is_ok()))
            .await;
        on().unwrap()
    }

    async fn following(&self) -> Following {
        self.twins.following(&self.name).await.unwrap().unwrap()
    }

    async fn until(&self, state: FollowState) -> Following {
        let is_so = async {
            loop {
                let following = self.following().await;
                if following.state == state {
                    return following;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, is_so).await.unwrap_or_else(|_| panic!("it never is {state}"))
    }

    /// Somebody lets it follow, and it does.
    async fn comes_true(&self) {
        let following = self.twins.follow(&self.name).await.unwrap();
        assert_eq!(following.state, FollowState::Unknown);
        self.until(FollowState::Current).await;
        assert_eq!(self.guest.asked.borrow().1, 1);
        assert_eq!(*self.guest.facts.lock().unwrap(), called("web01"));
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, waited).await.unwrap_or_else(|_| panic!("not so: {what}"));
}

fn none_left(semaphore: &Semaphore) {
    semaphore.forget_permits(semaphore.available_permits());
}

fn one_at_once() -> Limits {
    Limits { at_once: 1, ..Limits::default() }
}

#[tokio::test]
async fn a_run_that_was_cancelled_while_it_waited_reached_nothing() {
    let mut bench = Bench::new("base", ["web01"], one_at_once()).await;
    let go = bench.occupy().await;
    bench.begin_to_follow();
    let run = bench.run().await;
    bench.twins.inner.runs.cancel(run).unwrap();
    let held = bench.until(FollowState::Held).await;
    assert_eq!(held.reason.as_deref(), Some("the run that changed it was cancelled"));
    assert_eq!(over(&bench.twins, run).await, "cancelled it had not begun");
    assert_eq!((held.version, *bench.guest.asked.borrow()), (None, (0, 0)));
    go.cancel();
    bench.comes_true().await;
    bench.end().await;
}

#[tokio::test]
async fn a_run_that_was_cut_off_reached_nothing() {
    let limits = Limits { grace: Duration::from_millis(1), ..Limits::default() };
    let mut bench = Bench::new("base", ["web01"], limits).await;
    *bench.fake.fate.lock().unwrap() = Fate::NeverEnds;
    bench.begin_to_follow();
    until("it is being saved", || *bench.fake.fate.lock().unwrap() == Fate::Done).await;
    let run = bench.run().await;
    bench.twins.inner.runs.cancel(run).unwrap();
    let held = bench.until(FollowState::Held).await;
    assert_eq!(held.reason.as_deref(), Some("the run that changed it was cancelled"));
    assert!(over(&bench.twins, run).await.ends_with("was cut off"));
    bench.comes_true().await;
    bench.end().await;
}

#[tokio::test]
async fn a_run_that_panicked_failed() {
    let mut bench = Bench::new("base", ["web01"], Limits::default()).await;
    *bench.fake.fate.lock().unwrap() = Fate::Panics;
    bench.begin_to_follow();
    let failed = bench.until(FollowState::Degraded).await.failure.unwrap();
    assert_eq!(failed.tries, 1);
    assert!(failed.output[0].contains("made a mistake"), "{failed:?}");
    bench.comes_true().await;
    bench.end().await;
}

#[tokio::test]
async fn a_look_ends_with_its_run() {
    // No run is cut off here.
    let limits = Limits { grace: Duration::from_secs(86_400), ..Limits::default() };
    let mut bench = Bench::new("base", ["web01"], limits).await;
    none_left(&bench.guest.looks);
    bench.begin_to_follow();
    bench.guest.until_asked(1, 0).await;
    let run = bench.run().await;
    bench.twins.inner.runs.cancel(run).unwrap();
    assert_eq!(over(&bench.twins, run).await, "cancelled cancelled");
    bench.until(FollowState::Held).await;
    bench.guest.looks.add_permits(1000);
    bench.comes_true().await;
    bench.end().await;
}

#[tokio::test]
async fn a_run_that_waits_ends_when_its_twin_is_held() {
    let mut bench = Bench::new("base", ["web01"], one_at_once()).await;
    let go = bench.occupy().await;
    bench.begin_to_follow();
    let run = bench.run().await;
    let held = bench.twins.hold(&bench.name).await.unwrap();
    assert_eq!((held.state, held.run), (FollowState::Held, None));
    assert_eq!(held.reason.as_deref(), Some("somebody holds it"));
    assert_eq!(over(&bench.twins, run).await, "cancelled it had not begun");
    assert_eq!(*bench.guest.asked.borrow(), (0, 0));
    go.cancel();
    bench.comes_true().await;
    bench.end().await;
}

#[tokio::test]
async fn nothing_more_is_carried_out_in_a_twin_that_is_held() {
    let mut bench = Bench::new("base", ["half", "web01"], Limits::default()).await;
    none_left(&bench.guest.plans);
    bench.begin_to_follow();
    bench.guest.until_asked(1, 1).await;
    let run = bench.run().await;
    let (held, ()) = tokio::join!(bench.twins.hold(&bench.name), async {
        let held = bench.until(FollowState::Held).await;
        assert_eq!(held.run, Some(run), "its plan is still being carried out");
        bench.guest.plans.add_permits(1000);
    });
    let held = held.unwrap();
    assert_eq!((held.state, held.run), (FollowState::Held, None));
    assert_eq!(over(&bench.twins, run).await, "cancelled web01 is held: somebody holds it");
    assert_eq!(bench.guest.asked.borrow().1, 1);
    assert_eq!(*bench.guest.facts.lock().unwrap(), called("half"));
    // Whoever asks for it is not refused.
    let asked = bench.twins.apply(&bench.name, Cause::Local).await.unwrap();
    assert_eq!(over(&bench.twins, asked).await, "succeeded");
    assert_eq!(*bench.guest.facts.lock().unwrap(), called("web01"));
    let held = bench.following().await;
    assert_eq!((held.state, held.version), (FollowState::Held, Some(1)));
    bench.end().await;
}

#[tokio::test]
async fn what_a_run_wrote_down_is_not_undone_by_an_older_look() {
    let bench = Bench::new("web01", [], Limits::default()).await;
    none_left(&bench.guest.looks);
    let (verified, go) = tokio::join!(bench.twins.verify(&bench.name), async {
        bench.guest.until_asked(1, 0).await;
        let (kind, cause, go) = (Kind::Apply, Cause::Local, CancellationToken::new());
        let told = go.clone();
        let work = async move |_this, _handle| {
            told.cancelled().await;
            Ok(())
        };
        bench.twins.begin((kind, &bench.name), cause, work).await.unwrap();
        let change = |standing: &mut Standing| {
            let (at, step, output) = (Time(1), None, vec!["exit 1".to_owned()]);
            standing.failure = Some(Failed { at, step, output, tries: 1 });
            standing.under_way = Some("a".to_owned());
        };
        bench.twins.change_standing(&bench.name, change).await.unwrap();
        bench.guest.looks.add_permits(2);
        go
    });
    let verified = verified.unwrap();
    assert!(verified.is_current);
    assert_eq!(verified.following.state, FollowState::Degraded);
    let run = bench.run().await;
    go.cancel();
    assert_eq!(over(&bench.twins, run).await, "succeeded");
    let verified = bench.twins.verify(&bench.name).await.unwrap();
    assert_eq!(verified.following.state, FollowState::Current);
    let standing = bench.twins.inner.standings.get(&bench.name).unwrap();
    assert_eq!(standing.under_way.as_deref(), Some("a"), "it may go on in the guest");
    bench.end().await;
}
