//! The one thread that writes. It drains its queue into a group, applies everything to the
//! heads it took out of the cache, commits one batch durably, and only then tells anyone.
//!
//! ```text
//! queue ─► group: step each delta ─► one batch, synced ─► heads and hosts put back
//!                                        │                  ─► on_commit ─► replies
//!                                        └ failed ─► heads forgotten ─► replies say so
//!                                                      next group: engine opened anew
//! ```
//!
//! # Invariants
//! - Nothing is acknowledged, announced or readable from the cache before it is durable.
//! - After a failed commit the heads are what the store says, whichever way the commit went.

use crate::engine::Db;
use crate::error::Error;
use crate::group::{Group, Job};
use crate::ingest::stands_still;
use crate::keys;
use crate::record::Meta;
use crate::shared::Shared;
use crate::stats::Counters;
use crate::types::{Committed, OnCommit, Options, Retention};
use model::Time;
use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Limits of one group, in jobs, in bytes as queued, and in time. The first waits for the last.
const GROUP: usize = 4096;
const GROUP_BYTES: usize = 16 << 20;
const GROUP_TIME: Duration = Duration::from_millis(20);
/// Between attempts to open the engine anew.
const RETRY: Duration = Duration::from_millis(500);
/// How long closing waits for tables to be written.
const SETTLE: Duration = Duration::from_secs(20);

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) retention: Retention,
    pub(crate) next_host: u32,
    /// No version goes into a bucket before this day.
    pub(crate) floor: i64,
    /// The last five minutes of each host that have their lasting load sample.
    pub(crate) load_slots: HashMap<u32, i64>,
    /// Hosts of which it was said that their times stand still.
    pub(crate) standing_still: HashSet<u32>,
    on_commit: Option<OnCommit>,
    reserve_bytes: u64,
    persist_interval: Duration,
    /// Since when something is written and not yet synced.
    unsynced: Option<Instant>,
    /// A commit failed; the engine takes no more until it is opened anew. When that was tried.
    broken: Option<Option<Instant>>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, options: Options) -> Result<Self, Error> {
        let mut writer = Self {
            shared,
            retention: options.retention,
            next_host: 0,
            floor: i64::MIN,
            load_slots: HashMap::new(),
            standing_still: HashSet::new(),
            on_commit: options.on_commit,
            reserve_bytes: options.reserve_bytes,
            persist_interval: options.persist_interval,
            unsynced: None,
            broken: None,
        };
        writer.read_counters()?;
        Ok(writer)
    }

    fn read_counters(&mut self) -> Result<(), Error> {
        let db = self.shared.db()?;
        let read = |key: &[u8]| -> Result<Option<[u8; 8]>, Error> {
            let bytes = db.hosts.get(key).map_err(Error::storage("read the counters"))?;
            Ok(bytes.and_then(|bytes| bytes.first_chunk().copied()))
        };
        let next = read(keys::NEXT_HOST)?.map_or(0, u64::from_be_bytes);
        let floor = read(keys::FLOOR)?.map_or(i64::MIN, i64::from_be_bytes);
        drop(db);
        self.next_host = self.next_host.max(u32::try_from(next).unwrap_or(u32::MAX));
        self.floor = floor;
        Ok(())
    }

    pub(crate) fn run(mut self, jobs: &Receiver<Job>) {
        let mut next = None;
        loop {
            let job = match next.take() {
                Some(job) => job,
                None => match jobs.recv_timeout(self.patience()) {
                    Ok(job) => self.taken(job),
                    Err(RecvTimeoutError::Timeout) => {
                        self.sync();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                },
            };
            match job {
                Job::Exclusive(act) => act(&mut self),
                job => next = self.commit_group(job, jobs),
            }
        }
        self.close();
    }

    fn taken(&self, job: Job) -> Job {
        self.shared.counters.queue.fetch_sub(1, Ordering::Relaxed);
        self.shared.counters.queue_bytes.fetch_sub(job.weight(), Ordering::Relaxed);
        job
    }

    /// How long to wait for work before what is unsynced must be synced.
    fn patience(&self) -> Duration {
        self.unsynced.map_or(Duration::from_secs(3600), |since| {
            self.persist_interval.saturating_sub(since.elapsed())
        })
    }

    fn sync(&mut self) {
        if self.unsynced.take().is_some() {
            let synced = self.shared.db().and_then(|db| db.persist());
            if let Err(error) = synced {
                self.failed(&error);
            }
        }
    }

    /// Takes what is queued behind `first` into one commit. Gives back a job that needs its own
    /// turn.
    fn commit_group(&mut self, first: Job, jobs: &Receiver<Job>) -> Option<Job> {
        let begun = Instant::now();
        if let Err(error) = self.ready() {
            self.shared.counters.failed();
            guarded(|| first.refuse(error));
            return None;
        }
        let shared = self.shared.clone();
        let mut left = None;
        let (group, commit) = match shared.db() {
            Ok(db) => {
                let mut group = Group::new(&db);
                let mut bytes = first.weight();
                group.add(self, &db, first);
                for _ in 1..GROUP {
                    if bytes > GROUP_BYTES || begun.elapsed() > GROUP_TIME {
                        break;
                    }
                    let Ok(job) = jobs.try_recv() else { break };
                    let job = self.taken(job);
                    if matches!(job, Job::Exclusive(_)) {
                        left = Some(job);
                        break;
                    }
                    bytes += job.weight();
                    group.add(self, &db, job);
                }
                let commit = self.commit(&db, &mut group);
                (group, commit)
            }
            Err(error) => {
                guarded(|| first.refuse(error));
                return None;
            }
        };
        match &commit {
            Ok(()) => shared.counters.committed(begun.elapsed()),
            Err(error) => self.failed(error),
        }
        let durable = group.finish(&shared, &commit);
        self.announce(durable.events);
        for reply in durable.replies {
            guarded(reply);
        }
        left
    }

    fn commit(&mut self, db: &Db, group: &mut Group) -> Result<(), Error> {
        let Some((batch, sync)) = group.take_batch(db)? else { return Ok(()) };
        let committed = db.commit(batch);
        match (&committed, sync) {
            (Ok(()), true) => self.unsynced = None,
            (Ok(()), false) => {
                self.unsynced.get_or_insert_with(Instant::now);
                if self.patience().is_zero() {
                    self.unsynced = None;
                    return db.persist().map_err(|error| self.full_or(error));
                }
            }
            (Err(_), _) => {}
        }
        committed.map_err(|error| self.full_or(error))
    }

    /// The engine says that it is poisoned, not why. With no space left, that is why.
    pub(crate) fn full_or(&self, error: Error) -> Error {
        let least = self.reserve_bytes.max(1 << 20);
        if available(&self.shared.path).is_some_and(|bytes| bytes < least) {
            return Error::Full { path: self.shared.path.clone() };
        }
        error
    }

    /// Says once of a host that its times stand still, when they do.
    pub(crate) fn notice_time(&mut self, meta: &Meta, received: Time) {
        let newest = meta.state.head_at;
        if !stands_still(newest, received) {
            self.standing_still.remove(&meta.number);
        } else if self.standing_still.insert(meta.number) {
            tracing::warn!(
                host = %meta.host,
                %newest,
                clock = %received,
                "the clock was set back: until it has caught up, versions of this host have the \
                 time of its newest, and are kept whole; docs/operations.md, Clock jumps, says \
                 how to get out of that"
            );
        }
    }

    fn announce(&self, events: Vec<Committed>) {
        let Some(on_commit) = &self.on_commit else { return };
        for event in events {
            guarded(|| on_commit(&event));
        }
    }

    /// Remembers that the engine must be opened anew.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.shared.counters.failed();
        tracing::error!(%error, source = ?std::error::Error::source(error), "a commit to the history failed");
        if self.broken.is_none() {
            self.broken = Some(None);
        }
    }

    /// Whether a commit can work: the engine is in order, or is put in order now, and there is
    /// space left.
    pub(crate) fn ready(&mut self) -> Result<(), Error> {
        let full = || Error::Full { path: self.shared.path.clone() };
        if available(&self.shared.path).is_some_and(|bytes| bytes < self.reserve_bytes) {
            return Err(full());
        }
        self.mended()
    }

    /// Opens the engine anew if it failed.
    pub(crate) fn mended(&mut self) -> Result<(), Error> {
        let Some(tried) = self.broken else { return Ok(()) };
        if tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return Err(self.full_or(Error::Closed));
        }
        self.broken = Some(Some(Instant::now()));
        self.shared
            .reopen()
            .and_then(|()| self.read_counters())
            .map_err(|error| self.full_or(error))?;
        self.broken = None;
        self.unsynced = None;
        self.load_slots.clear();
        Counters::count(&self.shared.counters.reopened, 1);
        tracing::warn!(path = %self.shared.path.display(), "opened the history anew after a failure");
        Ok(())
    }

    /// Leaves tables and empty journals behind, so that the next start is quick and the
    /// journals' space is free.
    fn close(mut self) {
        self.sync();
        let settled = self.broken.is_none()
            && self.shared.db().and_then(|db| db.settle(SETTLE)).unwrap_or(false);
        self.shared.close();
        if settled && let Err(error) = crate::journal::empty(&self.shared.path) {
            tracing::warn!(%error, "could not empty the journals of the history");
        }
    }
}

/// Calls what others gave us. Their panic must not end the writer.
pub(crate) fn guarded(call: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!("a callback of the history panicked");
    }
}

/// Bytes that may still be written to the filesystem of `path`; `None` when it won't say.
fn available(path: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(path).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}
