//! What has to reach the sessions and the endpoints, durable until it did.
//!
//! ```text
//!   enqueue ─► record ─► waiting ─► under way ─► arrived ─► no record
//!                ▲          ▲           │
//!                │          └─ later ◄──┤ failed
//!   restart ─────┘    retry ◄── dead ◄──┘ too often (endpoints only)
//! ```
//!
//! Entries of one VM, and of VMs that pass names on, reach an endpoint one after the other, in the
//! order in which they were put in; a dead one holds those behind it until somebody has it tried
//! again, or discards it. What is put in at once is put in so that a name is free before it is
//! given anew. The sessions have one line for all VMs. Nothing of it dies: a Redis that is away for
//! long has everything when it is back.
//!
//! # Invariants
//! - An entry is delivered only after it is durable, and its record goes only after it arrived:
//!   at least once. After that it is delivered no more.
//! - What is recorded of an entry is recorded by one at a time.

mod catching_up;
mod delivery;
mod endpoint;
mod known;
mod order;
mod queue;

pub use catching_up::Standing;
pub use delivery::{Leave, Receivers, deliver};
pub use endpoint::Endpoints;
pub use known::Known;

use crate::session::{Edit, SessionChange};
use model::Time;
use queue::{Queue, Turn};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use store::{Changes, Records};
use tokio::sync::Notify;

const ENTRIES: &str = "sync_outbox";
const STATE: (&str, &str) = ("sync_outbox_state", "state");
/// Entries there may be. Beyond them nothing is decided any more, so that nothing is lost.
const MAX_ENTRIES: usize = 200_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the outbox could not be kept")]
    Store(#[from] store::Error),
    #[error(
        "{MAX_ENTRIES} messages wait in the outbox; look at `twin sync outbox`, and at the servers that they are for"
    )]
    Full,
    #[error("only renames are told to endpoints")]
    NoCall,
    #[error("there is no randomness")]
    Random(#[source] getrandom::Error),
}

/// Whom it has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The sessions in Redis.
    Sessions,
    /// The endpoint of the groups of VMs.
    Group,
    /// The endpoint of the sessions' service.
    Auth,
}

impl Target {
    pub const ALL: [Self; 3] = [Self::Sessions, Self::Group, Self::Auth];
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sessions => "sessions",
            Self::Group => "group",
            Self::Auth => "auth",
        })
    }
}

/// What is to be put in. Endpoints are told of renames only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Its uuid.
    pub vm: String,
    pub target: Target,
    pub change: SessionChange,
}

/// What waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Sorts by age. The idempotency key of a call.
    pub id: String,
    pub vm: String,
    pub target: Target,
    pub change: SessionChange,
    pub created_at: Time,
    /// That failed.
    pub attempts: u32,
    /// Not before.
    pub next_at: Time,
    pub last_error: Option<String>,
    pub dead: bool,
}

impl Entry {
    fn edit(&self) -> Edit {
        Edit { id: self.id.clone(), vm: self.vm.clone(), change: self.change.clone() }
    }
}

/// How long what failed is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// After these an entry for an endpoint is dead.
    pub max_attempts: u32,
    /// After the first; it doubles with each one.
    pub backoff: Duration,
    pub max_backoff: Duration,
    /// For the sessions.
    pub max_backoff_of_sessions: Duration,
}

impl Default for Policy {
    /// An endpoint may be away for about eight hours.
    fn default() -> Self {
        Self {
            max_attempts: 100,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(300),
            max_backoff_of_sessions: Duration::from_secs(30),
        }
    }
}

impl Policy {
    /// The entry, after one more attempt failed.
    fn failed(&self, mut entry: Entry, reason: String, now: Time) -> Entry {
        let is_session = entry.target == Target::Sessions;
        let cap = if is_session { self.max_backoff_of_sessions } else { self.max_backoff };
        let factor = 2_u32.saturating_pow(entry.attempts);
        entry.attempts = entry.attempts.saturating_add(1);
        entry.next_at = now.plus(self.backoff.saturating_mul(factor).min(cap));
        entry.last_error = Some(reason);
        entry.dead = !is_session && entry.attempts >= self.max_attempts;
        entry
    }
}

/// The number of the last entry, and whose numbers these are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct State {
    outbox: u32,
    last: i64,
}

/// What became of an entry that was under way.
enum Outcome {
    Arrived,
    /// As it is after that.
    Failed(Entry),
}

/// The outbox of one history. Clones are the same one. What changes it writes, and so blocks.
#[derive(Debug, Clone)]
pub struct Outbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    records: Records,
    state: Mutex<State>,
    queue: Mutex<Queue>,
    /// Held while records of entries are changed.
    writing: Mutex<()>,
    /// What arrived, and is not noted yet for other instances.
    notes: Mutex<BTreeMap<(Target, String), Known>>,
    woken: Notify,
}

impl Outbox {
    /// With everything that was waiting.
    ///
    /// # Errors
    /// When the records can't be read.
    pub fn open(records: Records, now: Time) -> Result<Self, Error> {
        let (collection, key) = STATE;
        let mut state = match records.get(collection, key)? {
            Some(state) => state,
            None => State { outbox: getrandom::u32().map_err(Error::Random)?, last: 0 },
        };
        let mut queue = Queue::default();
        let latest = now.plus(Policy::default().max_backoff);
        for (_, entry) in records.list::<Entry>(ENTRIES)? {
            state.last = state.last.max(number(&entry.id));
            // A clock that went back is not waited for.
            queue.put(Entry { next_at: entry.next_at.min(latest), ..entry });
        }
        Ok(Self(Arc::new(Inner {
            records,
            state: Mutex::new(state),
            queue: Mutex::new(queue),
            writing: Mutex::new(()),
            notes: Mutex::default(),
            woken: Notify::new(),
        })))
    }

    /// Adds entries to a change of the records, so that they are durable with the rest of it.
    /// Once it is, [`Self::added`].
    ///
    /// # Errors
    /// When there are too many, or one can't be kept.
    pub fn enqueue(
        &self,
        changes: &mut Changes,
        drafts: &[Draft],
        now: Time,
    ) -> Result<Vec<Entry>, Error> {
        if self.queue().len() + drafts.len() > MAX_ENTRIES {
            return Err(Error::Full);
        }
        let mut state = lock(&self.0.state);
        let mut entries = Vec::new();
        for Draft { vm, target, change } in order::in_order(drafts) {
            if target != Target::Sessions && !matches!(change, SessionChange::Rename { .. }) {
                return Err(Error::NoCall);
            }
            state.last = now.0.max(state.last.saturating_add(1));
            let entry = Entry {
                id: format!("{:016x}-{:08x}", state.last, state.outbox),
                vm,
                target,
                change,
                created_at: now,
                attempts: 0,
                next_at: now,
                last_error: None,
                dead: false,
            };
            changes.put(ENTRIES, &entry.id, &entry)?;
            entries.push(entry);
        }
        if !entries.is_empty() {
            let (collection, key) = STATE;
            changes.put(collection, key, &*state)?;
        }
        Ok(entries)
    }

    /// That entries are durable: they are delivered from now on.
    pub fn added(&self, entries: Vec<Entry>) {
        let mut queue = self.queue();
        for entry in entries {
            queue.put(entry);
        }
        self.0.woken.notify_one();
    }

    /// That what was not to be told may be told now.
    pub fn wake(&self) {
        self.0.woken.notify_one();
    }

    /// As what these VMs are known to those whom something of them waits for.
    #[must_use]
    pub fn known_before(&self, vms: &HashSet<String>) -> Vec<Known> {
        let queue = self.queue();
        let mut known = BTreeMap::new();
        for entry in queue.entries().filter(|entry| vms.contains(&entry.vm)) {
            let before = Known::before(entry);
            known.entry(before.line()).or_insert(before);
        }
        known.into_values().collect()
    }

    fn has_notes(&self) -> bool {
        !lock(&self.0.notes).is_empty()
    }

    fn take_notes(&self) -> Vec<Known> {
        std::mem::take(&mut *lock(&self.0.notes)).into_values().collect()
    }

    /// What arrived.
    fn to_note(&self, arrived: &[Entry]) {
        let known = arrived.iter().map(Known::after).map(|known| (known.line(), known));
        lock(&self.0.notes).extend(known);
    }

    /// What could not be noted is older than what arrived since.
    fn note_later(&self, notes: Vec<Known>) {
        let mut waiting = lock(&self.0.notes);
        for note in notes {
            waiting.entry(note.line()).or_insert(note);
        }
    }

    /// By age.
    #[must_use]
    pub fn list(&self) -> Vec<Entry> {
        self.queue().list()
    }

    /// How many wait, and how many are dead.
    #[must_use]
    pub fn depth(&self) -> (usize, usize) {
        self.queue().depth()
    }

    /// Has one tried again now, a dead one as often as a new one. False: there is none.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn retry(&self, id: &str, now: Time) -> Result<bool, Error> {
        Ok(self.retry_where(|entry| entry.id == id, now)? > 0)
    }

    /// Has all dead ones tried again now; how many.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn retry_dead(&self, now: Time) -> Result<usize, Error> {
        self.retry_where(|entry| entry.dead, now)
    }

    fn retry_where(&self, is_wanted: impl Fn(&Entry) -> bool, now: Time) -> Result<usize, Error> {
        let _writing = lock(&self.0.writing);
        let mut wanted = self.list();
        wanted.retain(is_wanted);
        let mut changes = Changes::default();
        for entry in &mut wanted {
            *entry = Entry { attempts: 0, next_at: now, dead: false, ..entry.clone() };
            changes.put(ENTRIES, &entry.id, entry)?;
        }
        self.0.records.write(changes)?;
        let count = wanted.len();
        self.added(wanted);
        Ok(count)
    }

    /// Has one delivered no more. False: there is none.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn discard(&self, id: &str) -> Result<bool, Error> {
        let _writing = lock(&self.0.writing);
        let Some(known) = self.queue().get(id).map(Known::after) else { return Ok(false) };
        self.0.records.delete(ENTRIES, id)?;
        lock(&self.0.notes).insert(known.line(), known);
        self.queue().remove(id);
        self.0.woken.notify_one();
        Ok(true)
    }

    /// After another told of the same VMs: what waits here and does not lead from what is known of
    /// them to what they are now is put together anew, so that it does, with what has a name in
    /// common with it; and so is what another was to tell and did not. How many entries that took.
    ///
    /// # Errors
    /// When it can't be written; then it is as it was.
    pub fn catch_up(
        &self,
        known: Vec<Known>,
        is_now: impl Fn(&str) -> Option<Standing>,
        now: Time,
    ) -> Result<usize, Error> {
        let _writing = lock(&self.0.writing);
        let anew = catching_up::anew(self.list(), known, is_now);
        if anew.wrong.is_empty() && anew.drafts.is_empty() {
            return Ok(0);
        }
        let mut changes = Changes::default();
        for id in &anew.wrong {
            changes.delete(ENTRIES, id)?;
        }
        let entries = self.enqueue(&mut changes, &anew.drafts, now)?;
        self.0.records.write(changes)?;
        for id in &anew.wrong {
            self.queue().remove(id);
        }
        let count = anew.wrong.len().max(entries.len());
        self.added(entries);
        Ok(count)
    }

    /// Records what became of what was under way, and lets those behind it go on.
    fn settle(&self, turn: &Turn, outcomes: &[(String, Outcome)]) -> Result<(), Error> {
        let _writing = lock(&self.0.writing);
        let mut changes = Changes::default();
        for (id, outcome) in outcomes {
            match outcome {
                Outcome::Arrived => changes.delete(ENTRIES, id)?,
                // Unless it was discarded meanwhile.
                Outcome::Failed(entry) if self.queue().contains(id) => {
                    changes.put(ENTRIES, id, entry)?;
                }
                Outcome::Failed(_) => {}
            }
        }
        self.0.records.write(changes)?;
        let mut queue = self.queue();
        for (id, outcome) in outcomes {
            match outcome {
                Outcome::Arrived => queue.remove(id),
                Outcome::Failed(entry) if queue.contains(id) => queue.put(entry.clone()),
                Outcome::Failed(_) => {}
            }
        }
        queue.settled(turn);
        Ok(())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.0.queue)
    }
}

/// What is behind these locks is whole after each statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number in an id; zero for what is none.
fn number(id: &str) -> i64 {
    let digits = id.split_once('-').map_or(id, |(digits, _)| digits);
    i64::from_str_radix(digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests;
