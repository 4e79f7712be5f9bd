//! One owner task for each twin: brings what changed on its host to it, again and again.
//!
//! ```text
//! woken ─► gone? stopped? busy? held? ─► is anything of it for the twin? ─► run, until it is over
//!   ▲         │ waits                       │ no: that version is reached         │
//!   └─────────┴──────────────── sleeps ◄────┴─────────────────────────────────────┘
//! ```
//!
//! It takes no input but how things are, and can be cut off anywhere: the next one looks.
//!
//! # Invariants
//! - What came while a run was on is one round, to the newest version.
//! - What is remembered of a guest is forgotten when anything else was done to it.
//! - A version of which nothing is to be done is reached only where the last look said so.
//! - What was changed is looked at again a little later, and what is reached from time to time.

use super::cycle::Goal;
use super::pace::Pace;
use super::standing::{Mode, Reached};
use crate::clock;
use crate::runs::{Cause, Subject};
use crate::twins::Twins;
use crate::twins::error::Error;
use model::Facts;
use model::spec::Spec;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vm::image::MachineName;
use vm::machine::State;

/// A look around in spite of being woken, should that have been missed.
const RESCAN: Duration = Duration::from_secs(60);
/// While something else is done to a twin, whose end wakes as well.
const BUSY: Duration = Duration::from_millis(250);
/// After the moment from which a process counts.
const SETTLING: Duration = Duration::from_millis(20);
/// How long a look at a guest holds, as far as nobody changed it.
const FRESH: Duration = Duration::from_secs(600);
/// After something was changed in a guest: what was started may have ended by then.
const SECOND_LOOK: Duration = Duration::from_secs(20);

/// Who is woken when something happened to a host or its twin. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wakers {
    known: Arc<Mutex<HashMap<String, Arc<Waker>>>>,
    /// A twin may have come.
    news: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Waker {
    notify: Notify,
    /// Counts what was done to the twin.
    touched: AtomicU64,
}

impl Wakers {
    /// Wakes who follows this host. Quick where nobody does.
    pub(crate) fn wake(&self, host: &str) {
        if let Some(waker) = self.known().get(host) {
            waker.notify.notify_one();
        }
    }

    /// Something was done to a twin, of which its controller knows nothing.
    pub(in crate::twins) fn touch(&self, name: &MachineName) {
        if let Some(waker) = self.known().get(name.as_str()) {
            waker.touched.fetch_add(1, Ordering::Relaxed);
            waker.notify.notify_one();
        }
        self.news.notify_one();
    }

    fn of(&self, name: &MachineName) -> Arc<Waker> {
        Arc::clone(self.known().entry(name.to_string()).or_default())
    }

    fn forget(&self, name: &MachineName) {
        self.known().remove(name.as_str());
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Waker>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a controller remembers between two rounds.
#[derive(Debug, Default)]
struct Memory {
    /// Of the version that was led to last, and whether a look left nothing to do for it.
    spec: Option<(Spec, bool)>,
    /// Of the guest, and when it was looked at.
    facts: Option<(Facts, Instant)>,
    /// When the guest is to be looked at whatever is known of it, and whether that is for what
    /// was changed there last.
    look_at: Option<(Instant, bool)>,
    /// How often in a row what came true did not last.
    relapses: u32,
    touched: u64,
    pace: Pace,
}

impl Memory {
    fn forget(&mut self) {
        self.spec = None;
        self.facts = None;
    }

    /// Whether it is time to see whether what was so is so still.
    fn is_to_look(&self) -> bool {
        self.look_at.is_some_and(|(at, _)| at <= Instant::now())
    }

    fn until_look(&self) -> Duration {
        let left = self.look_at.map(|(at, _)| at.duration_since(Instant::now()));
        left.unwrap_or(RESCAN).min(RESCAN)
    }

    /// Whether that was led to last, and is so.
    fn of(&self, goal: &Goal) -> Option<bool> {
        let (spec, is_so) = self.spec.as_ref()?;
        (*spec == plain(goal)).then_some(*is_so)
    }
}

enum Next {
    Gone,
    After(Duration),
}

/// Has a task for each twin of a host, until told to stop.
pub(crate) async fn run(twins: Twins, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut on: BTreeMap<MachineName, tokio::task::Id> = BTreeMap::new();
    loop {
        for name in twins.followers().await {
            on.entry(name.clone()).or_insert_with(|| tasks.spawn(follow(twins.clone(), name)).id());
        }
        let news = Arc::clone(&twins.inner.wakers.news);
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            () = news.notified() => continue,
            () = tokio::time::sleep(RESCAN) => continue,
            ended = tasks.join_next_with_id(), if !tasks.is_empty() => ended,
        };
        let id = match ended {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => continue,
        };
        on.retain(|_, task| *task != id);
    }
    tasks.shutdown().await;
}

async fn follow(twins: Twins, name: MachineName) {
    let waker = twins.inner.wakers.of(&name);
    let mut memory = Memory::default();
    loop {
        let pause = match twins.reconcile(&name, &waker, &mut memory).await {
            Ok(Next::Gone) => break,
            Ok(Next::After(pause)) => pause,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(twin = %name, error, "can't follow its host now; tried again");
                memory.forget();
                RESCAN
            }
        };
        tokio::select! {
            () = waker.notify.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    twins.inner.wakers.forget(&name);
}

impl Twins {
    /// Machines that are twins of hosts, and no clones.
    async fn followers(&self) -> Vec<MachineName> {
        let mut followers = Vec::new();
        for name in self.names().await.unwrap_or_default() {
            let is_hosts = self.host(&name).is_some();
            if is_hosts && matches!(self.seen(&name).await, Ok(Some(seen)) if seen.origin.is_none())
            {
                followers.push(name);
            }
        }
        followers
    }

    async fn reconcile(
        &self,
        name: &MachineName,
        waker: &Waker,
        memory: &mut Memory,
    ) -> Result<Next, Error> {
        let touched = waker.touched.load(Ordering::Relaxed);
        if touched != memory.touched {
            memory.touched = touched;
            memory.forget();
        }
        let Some(seen) = self.seen(name).await? else { return Ok(Next::Gone) };
        if seen.state != State::Running {
            memory.forget();
            return Ok(Next::After(RESCAN));
        }
        if self.inner.runs.on(&Subject::twin(name)).is_some() {
            return Ok(Next::After(BUSY));
        }
        let goal = match self.goal(name).await {
            Err(Error::UnknownHost { .. }) => return Ok(Next::After(RESCAN)),
            goal => goal?,
        };
        let next = self.approach(name, &goal, memory).await?;
        Ok(match (next, goal.settles_at) {
            (Next::After(pause), Some(at)) => {
                Next::After(pause.min(at.since(clock::now()) + SETTLING))
            }
            (next, _) => next,
        })
    }

    async fn approach(
        &self,
        name: &MachineName,
        goal: &Arc<Goal>,
        memory: &mut Memory,
    ) -> Result<Next, Error> {
        if let Some(pause) = self.rests(name, goal, memory).await? {
            return Ok(Next::After(pause));
        }
        if memory.is_to_look() {
            if let Some(pause) = self.look_again(name, goal, memory).await? {
                return Ok(Next::After(pause));
            }
        } else if let Some((facts, at)) = memory.facts.take().filter(|(_, at)| at.elapsed() < FRESH)
        {
            let seen = self.compare(name, Arc::clone(goal), Some(facts)).await?;
            let is_nothing = seen.plan.is_empty();
            memory.facts = Some((seen.facts, at));
            if is_nothing {
                self.has_reached(name, goal).await?;
                memory.spec = Some((plain(goal), true));
                return Ok(Next::After(memory.until_look()));
            }
        }
        let pause = memory.pace.wait(Instant::now());
        if !pause.is_zero() {
            return Ok(Next::After(pause));
        }
        self.lead_there(name, goal, memory).await
    }

    /// Sees whether what came true is so still; for how long nothing is to be done then.
    async fn look_again(
        &self,
        name: &MachineName,
        goal: &Arc<Goal>,
        memory: &mut Memory,
    ) -> Result<Option<Duration>, Error> {
        let now = Instant::now();
        let is_of_change = memory.look_at.is_some_and(|(_, is_of_change)| is_of_change);
        memory.look_at = Some((now + FRESH, false));
        let seen = self.compare(name, Arc::clone(goal), None).await?;
        if seen.plan.is_empty() {
            self.note_look(name, &seen, None).await?;
            memory.relapses = 0;
            (memory.spec, memory.facts) = (Some((plain(goal), true)), Some((seen.facts, now)));
            return Ok(Some(RESCAN));
        }
        if is_of_change && memory.of(goal) == Some(true) {
            memory.relapses = memory.relapses.saturating_add(1);
            self.note_look(name, &seen, Some(memory.relapses)).await?;
            memory.facts = Some((seen.facts, now));
            return Ok(Some(BUSY));
        }
        memory.facts = Some((seen.facts, now));
        Ok(None)
    }

    /// For how long nothing is to be done, whatever the twin is.
    async fn rests(
        &self,
        name: &MachineName,
        goal: &Goal,
        memory: &mut Memory,
    ) -> Result<Option<Duration>, Error> {
        let default = match self.inner.settings.follows {
            true => goal.unsafe_because,
            false => Some("the server's configuration says so: twins.follow"),
        };
        let why = default.map(str::to_owned);
        self.change_standing(name, |standing| standing.unsafe_because = why).await?;
        let subject = name.clone();
        let standing = self.off_thread(move |this| this.inner.standings.get(&subject)).await?;
        if standing.held_because().is_some() {
            return Ok(Some(RESCAN));
        }
        // Nothing of the host changed that a twin has?
        let Some(is_so) = memory.of(goal) else { return Ok(None) };
        if let Some(failed) = &standing.failure {
            let left = failed.retry_at().since(clock::now());
            return Ok((!left.is_zero()).then_some(left));
        }
        if self.pardon_what_lacks(name, &goal.host) {
            memory.forget();
            return Ok(None);
        }
        if !is_so || memory.is_to_look() {
            return Ok(None);
        }
        self.has_reached(name, goal).await?;
        Ok(Some(memory.until_look()))
    }

    /// A version of which nothing had to be brought to the twin.
    async fn has_reached(&self, name: &MachineName, goal: &Goal) -> Result<(), Error> {
        let version = goal.version;
        self.change_standing(name, move |standing| {
            // It may be put back just now.
            if matches!(standing.mode, Mode::Held(_)) {
                return;
            }
            let took = standing.reached.as_ref().and_then(|before| before.took);
            standing.reached = Some(Reached { version, took });
        })
        .await
    }

    async fn lead_there(
        &self,
        name: &MachineName,
        goal: &Goal,
        memory: &mut Memory,
    ) -> Result<Next, Error> {
        let known = memory.facts.take().map(|(facts, _)| facts);
        let cause = Cause::Host { version: goal.version.0 };
        let told = match self.begin_to_bring(name, known, cause).await {
            Ok((_, told)) => told,
            Err(Error::Runs(crate::runs::Error::Busy { .. } | crate::runs::Error::Full(_))) => {
                return Ok(Next::After(BUSY));
            }
            Err(error) => return Err(error),
        };
        // Told of nothing, nobody saw that it is so: why is written down, or it is tried again.
        let seen = told.await.ok();
        memory.pace.ended(Instant::now());
        let spec = plain(seen.as_ref().map_or(goal, |seen| &seen.goal));
        memory.spec = Some((spec, seen.is_some()));
        memory.look_at = Some((Instant::now() + SECOND_LOOK, true));
        memory.facts = seen.map(|seen| (seen.facts, Instant::now()));
        // Its end is told a little later, and there may be news by now.
        Ok(Next::After(Duration::from_millis(50)))
    }
}

/// The spec without its moment, which is no reason to touch a twin.
fn plain(goal: &Goal) -> Spec {
    Spec { at: None, ..goal.spec.clone() }
}
