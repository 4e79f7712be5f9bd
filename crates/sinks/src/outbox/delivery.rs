//! The one task that delivers what waits in the outbox.

use super::queue::Turn;
use super::{Endpoints, Entry, Outbox, Outcome, Target};
use crate::mongo::MongoSink;
use crate::redis::RedisSink;
use crate::session::Edit;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use model::Time;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Calls that are under way to one endpoint, of different VMs.
const MAX_CALLS: usize = 8;
/// How long calls that are under way have when it is to end.
const GRACE: Duration = Duration::from_secs(5);
/// The clock may be set: no sleep is longer.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// Whether it may deliver.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After what could not be recorded.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

/// Whom the outbox is for.
#[derive(Debug, Clone)]
pub struct Receivers {
    pub endpoints: Endpoints,
    pub sessions: Option<RedisSink>,
    /// Where all instances read as what those know VMs.
    pub known: Option<MongoSink>,
}

/// Whether it may tell.
pub trait Leave: Send + Sync {
    /// No other instance does.
    fn is_ours(&self) -> bool;

    /// Others would learn of the VM what is told, if this instance went now.
    fn may_tell(&self, _vm: &str) -> bool {
        true
    }
}

impl<F: Fn() -> bool + Send + Sync> Leave for F {
    fn is_ours(&self) -> bool {
        self()
    }
}

/// Who delivers, and by which clock.
#[derive(Clone)]
struct Carrier {
    outbox: Outbox,
    endpoints: Endpoints,
    sessions: Option<RedisSink>,
    known: Option<MongoSink>,
    noting: Arc<Mutex<()>>,
    clock: fn() -> Time,
}

/// Delivers what is due, until it is stopped, or another may deliver: then it waits for that. What
/// is for nobody waits.
pub async fn deliver(
    outbox: Outbox,
    Receivers { endpoints, sessions, known }: Receivers,
    clock: fn() -> Time,
    leave: impl Leave,
    stop: CancellationToken,
) {
    let carrier = Carrier { outbox, endpoints, sessions, known, noting: Arc::default(), clock };
    let may_tell = |vm: &str| leave.may_tell(vm);
    let mut noting: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut under_way: FuturesUnordered<BoxFuture<'static, Target>> = FuturesUnordered::new();
    let mut counts: HashMap<Target, usize> = HashMap::new();
    let targets = carrier.targets();
    loop {
        for (target, limit) in &targets {
            let count = counts.entry(*target).or_default();
            while *count < *limit && leave.is_ours() {
                let taken = carrier.outbox.queue().take(*target, clock(), may_tell);
                let Some((turn, entries)) = taken else { break };
                *count += 1;
                under_way.push(Box::pin(carrier.clone().carry(turn, entries)));
            }
        }
        let full = |target| counts.get(target).is_some_and(|count| *count >= MAX_CALLS);
        let next = {
            let queue = carrier.outbox.queue();
            let waiting = targets.iter().filter(|(target, _)| !full(target));
            waiting.filter_map(|(target, _)| queue.next_at(*target, may_tell)).min()
        };
        if noting.is_empty() && carrier.outbox.has_notes() {
            let carrier = carrier.clone();
            let rest = async move {
                sleep(RECORD_AGAIN).await;
                carrier.note().await;
            };
            noting.push(rest.boxed());
        }
        let pause = match leave.is_ours() {
            true => next.map_or(MAX_SLEEP, |next| next.since(clock()).min(MAX_SLEEP)),
            false => ASK_AGAIN,
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(target) = under_way.next() => {
                if let Some(count) = counts.get_mut(&target) { *count = count.saturating_sub(1); }
            }
            Some(()) = noting.next() => {}
            () = carrier.outbox.0.woken.notified() => {}
            () = sleep(pause) => {}
        }
    }
    let rest = async {
        while under_way.next().await.is_some() {}
        carrier.note().await;
    };
    if timeout(GRACE, rest).await.is_err() {
        tracing::warn!("calls of the outbox were cut off; they are made again with the same keys");
    }
}

impl Carrier {
    /// Who can be reached, and by how many at once.
    fn targets(&self) -> Vec<(Target, usize)> {
        let mut targets = Vec::new();
        for target in Target::ALL {
            if target == Target::Sessions && self.sessions.is_some() {
                targets.push((target, 1));
            } else if self.endpoints.has(target) {
                targets.push((target, MAX_CALLS));
            } else if self.outbox.queue().next_at(target, |_| true).is_some() {
                tracing::warn!(%target, "messages wait in the outbox for what is not configured");
            }
        }
        targets
    }

    /// Has all instances know what arrived, or keeps that for later.
    async fn note(&self) {
        // Else what is older could come later.
        let _noting = self.noting.lock().await;
        let notes = self.outbox.take_notes();
        let Some(known) = self.known.as_ref().filter(|_| !notes.is_empty()) else { return };
        if let Err(error) = known.note(&notes).await {
            tracing::debug!("what arrived is noted for others later: {}", in_words(&error));
            self.outbox.note_later(notes);
        }
    }

    /// One attempt, which is over when its outcome is recorded.
    async fn carry(self, turn: Turn, entries: Vec<Entry>) -> Target {
        let target = turn.target;
        let arrived = match (target, entries.first()) {
            (Target::Sessions, Some(_)) => self.edit(&entries).await,
            (_, Some(entry)) => self.endpoints.call(entry).await,
            (_, None) => Ok(()),
        };
        let mut outcomes = Vec::new();
        match &arrived {
            Ok(()) => {
                // Before it is forgotten here.
                self.outbox.to_note(&entries);
                self.note().await;
                outcomes.extend(entries.into_iter().map(|entry| (entry.id, Outcome::Arrived)));
            }
            Err(reason) => {
                // Those behind it wait for it.
                if let Some(entry) = entries.into_iter().next() {
                    let id = entry.id.clone();
                    outcomes.push((id, Outcome::Failed(self.failed(entry, reason))));
                }
            }
        }
        self.record(turn, outcomes).await;
        if let (Target::Sessions, Ok(()), Some(sessions)) = (target, &arrived, &self.sessions)
            && let Err(error) = sessions.forget().await
        {
            tracing::debug!("the notes of a pass go after a later one: {error}");
        }
        target
    }

    /// Carries changes out in the sessions.
    async fn edit(&self, entries: &[Entry]) -> Result<(), String> {
        let sessions = self.sessions.as_ref().ok_or("there are no sessions")?;
        let edits: Vec<Edit> = entries.iter().map(Entry::edit).collect();
        match sessions.apply(&edits).await {
            Ok(applied) => {
                tracing::debug!(
                    changes = edits.len(),
                    sessions = applied.sessions,
                    changed = applied.changed,
                    "sessions are up to date"
                );
                for skipped in applied.skipped {
                    tracing::debug!("not a session: {skipped}");
                }
                Ok(())
            }
            Err(error) => Err(in_words(&error)),
        }
    }

    fn failed(&self, entry: Entry, reason: &str) -> Entry {
        let policy = self.endpoints.policy();
        let entry = policy.failed(entry, reason.to_owned(), (self.clock)());
        if entry.dead {
            tracing::error!(
                id = entry.id,
                target = %entry.target,
                attempts = entry.attempts,
                "a message is given up until somebody says: twin sync outbox retry; {reason}"
            );
        } else if entry.attempts == 1 {
            tracing::warn!(
                id = entry.id,
                target = %entry.target,
                "a message did not arrive and is tried again: {reason}"
            );
        }
        entry
    }

    /// Tries until it is recorded: what arrived is not to be sent again.
    async fn record(&self, turn: Turn, outcomes: Vec<(String, Outcome)>) {
        let work = Arc::new((turn, outcomes));
        loop {
            let (outbox, work) = (self.outbox.clone(), work.clone());
            let settled =
                tokio::task::spawn_blocking(move || outbox.settle(&work.0, &work.1)).await;
            match settled {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    let error = in_words(&error);
                    tracing::error!("what was delivered could not be recorded: {error}");
                }
                Err(error) => tracing::error!("recording what was delivered broke off: {error}"),
            }
            sleep(RECORD_AGAIN).await;
        }
    }
}

/// With its causes.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let _written = write!(words, ": {source}");
        cause = source.source();
    }
    words
}
