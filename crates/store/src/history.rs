//! The handle to a history: what the rest of the program calls.

use crate::error::Error;
use crate::group::{Done, Job, Place};
use crate::keys;
use crate::read::Past;
use crate::shared::Shared;
use crate::types::{Append, Appended, Entry, Filter, Head, HostInfo, Options, Stats};
use crate::writer::{Writer, guarded};
use model::{Facts, HostId, Patch, Subject, Time, Version};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, mpsc};
use std::thread::{JoinHandle, ThreadId};

/// A history that is open. Clones are handles to the same one; it closes with the last.
#[derive(Clone)]
pub struct History {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
    writer_id: ThreadId,
    queue: usize,
    queue_bytes: usize,
}

impl History {
    /// Opens the history in a directory, which is made if need be.
    ///
    /// # Errors
    /// [`Error::InUse`] while another has it open; [`Error::Damaged`] when a journal can't be
    /// read without losing what was acknowledged, with what to do.
    pub fn open(directory: &Path, options: Options) -> Result<Self, Error> {
        let shared = Arc::new(Shared::open(directory, &options)?);
        let (queue, queue_bytes) = (options.queue.max(1), options.queue_bytes);
        let (jobs, received) = sync_channel(queue);
        let writer = Writer::new(shared.clone(), options)?;
        let thread = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(|source| Error::Prepare {
                path: directory.to_owned(),
                source: Arc::new(source),
            })?;
        let writer_id = thread.thread().id();
        let inner =
            Inner { shared, jobs: Some(jobs), writer: Some(thread), writer_id, queue, queue_bytes };
        let history = Self { inner: Arc::new(inner) };
        history.finish_forgetting()?;
        Ok(history)
    }

    /// Queues an append. `reply` is called on the writer's thread once the append is durable or
    /// has failed; it must be quick and must not wait for a write. When the queue is full it is
    /// called at once, on this thread, with [`Error::Busy`].
    pub fn append(
        &self,
        append: Append,
        reply: impl FnOnce(Result<Appended, Error>) + Send + 'static,
    ) {
        if let Err(refused) = self.offer(Job::Append(append, Box::new(reply))) {
            let (job, error) = *refused;
            job.refuse(error);
        }
    }

    /// Appends and waits. For tests and tools.
    ///
    /// # Errors
    /// Those of the append.
    pub fn append_and_wait(&self, append: Append) -> Result<Appended, Error> {
        self.not_in_callback()?;
        let (send, receive) = mpsc::channel();
        // Nobody listens any more when the waiting thread is gone.
        self.append(append, move |outcome| drop(send.send(outcome)));
        receive.recv().map_err(|_gone| Error::Closed)?
    }

    /// Asks the writer for a sign of life, and writes nothing. `reply` is called on the writer's
    /// thread once what is queued now is done; it is dropped uncalled when the writer has ended.
    ///
    /// # Errors
    /// [`Error::Busy`] when the queue is full; [`Error::Closed`] when the writer has ended.
    pub fn ask(&self, reply: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let job = Job::Exclusive(Box::new(move |_writer| guarded(reply)));
        self.offer(job).map_err(|refused| {
            let (_job, error) = *refused;
            error
        })
    }

    /// Queues a job, or gives it back when there is no room.
    pub(crate) fn offer(&self, job: Job) -> Result<(), Box<(Job, Error)>> {
        let counters = &self.inner.shared.counters;
        let weight = job.weight();
        if counters.queue_bytes.load(Ordering::Relaxed) > self.inner.queue_bytes {
            return Err(Box::new((job, Error::Busy)));
        }
        let Some(jobs) = &self.inner.jobs else { return Err(Box::new((job, Error::Closed))) };
        counters.queue.fetch_add(1, Ordering::Relaxed);
        counters.queue_bytes.fetch_add(weight, Ordering::Relaxed);
        jobs.try_send(job).map_err(|refused| {
            counters.queue.fetch_sub(1, Ordering::Relaxed);
            counters.queue_bytes.fetch_sub(weight, Ordering::Relaxed);
            Box::new(match refused {
                TrySendError::Full(job) => (job, Error::Busy),
                TrySendError::Disconnected(job) => (job, Error::Closed),
            })
        })
    }

    /// Queues a job, waiting for room.
    fn send(&self, job: Job) -> Result<(), Error> {
        self.not_in_callback()?;
        let counters = &self.inner.shared.counters;
        let weight = job.weight();
        let jobs = self.inner.jobs.as_ref().ok_or(Error::Closed)?;
        counters.queue.fetch_add(1, Ordering::Relaxed);
        counters.queue_bytes.fetch_add(weight, Ordering::Relaxed);
        jobs.send(job).map_err(|_gone| Error::Closed)
    }

    fn not_in_callback(&self) -> Result<(), Error> {
        if std::thread::current().id() == self.inner.writer_id {
            return Err(Error::InCallback);
        }
        Ok(())
    }

    /// Writes entries durably, and waits. `None` deletes.
    pub(crate) fn put(
        &self,
        to: Place,
        entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    ) -> Result<(), Error> {
        let (send, receive) = mpsc::channel();
        let done: Done = Box::new(move |outcome| drop(send.send(outcome)));
        self.send(Job::Put { to, entries, done })?;
        receive.recv().map_err(|_gone| Error::Closed)?
    }

    /// Has the writer do something between groups, and waits.
    pub(crate) fn exclusively<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Writer) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (send, receive) = mpsc::channel();
        let act = move |writer: &mut Writer| {
            let outcome = writer.mended().and_then(|()| act(writer));
            if let Err(error @ (Error::Full { .. } | Error::Storage { .. })) = &outcome {
                writer.failed(error);
            }
            drop(send.send(outcome));
        };
        self.send(Job::Exclusive(Box::new(act)))?;
        receive.recv().map_err(|_gone| Error::Closed)?
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    fn past<T>(
        &self,
        host: &HostId,
        read: impl FnOnce(&Past<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.inner.shared.with_past(host, read)
    }

    /// All hosts that have a version, by name.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostInfo> {
        let metas = self.inner.shared.metas();
        metas.iter().filter(|meta| meta.state.head > Version(0)).map(|meta| meta.info()).collect()
    }

    #[must_use]
    pub fn host(&self, host: &HostId) -> Option<HostInfo> {
        let meta = self.inner.shared.meta(host).filter(|meta| meta.state.head > Version(0));
        meta.map(|meta| meta.info())
    }

    /// The newest state; `None` for an unknown host.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn head(&self, host: &HostId) -> Result<Option<Head>, Error> {
        self.past(host, |past| {
            let version = past.meta.state.head;
            let cached = {
                let mut heads = self.inner.shared.heads();
                let cached = heads.get(past.meta.number);
                let cached = cached.filter(|cached| cached.state.version == version);
                cached.map(|cached| cached.state.facts.clone())
            };
            let facts = match cached {
                Some(facts) => Some(facts),
                None => past.state(version)?,
            };
            let missing = || Error::corrupt("the head is missing").of(host, Some(version));
            Ok(Head { version, facts: facts.ok_or_else(missing)? })
        })
    }

    /// The state after a version; `None` when there is no such version or it is not kept.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn state(&self, host: &HostId, version: Version) -> Result<Option<Facts>, Error> {
        Ok(self.past(host, |past| past.state(version))?.flatten())
    }

    /// The newest kept version that is not after `time`.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn version_at(&self, host: &HostId, time: Time) -> Result<Option<Version>, Error> {
        Ok(self.past(host, |past| past.version_at(time))?.flatten())
    }

    /// One version; `None` when there is no such version or it is not kept.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn entry(&self, host: &HostId, version: Version) -> Result<Option<Entry>, Error> {
        Ok(self.past(host, |past| past.entry(version))?.flatten())
    }

    /// What led from one version to a later one, made of the versions between them; `None` where
    /// not all of those are kept. Cheaper than two states when they are near each other.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn between(
        &self,
        host: &HostId,
        from: Version,
        to: Version,
    ) -> Result<Option<Patch>, Error> {
        Ok(self.past(host, |past| past.between(from, to))?.flatten())
    }

    /// Up to `limit` entries that fit the filter, newest first, from before a version. Empty
    /// for an unknown host.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn log(
        &self,
        host: &HostId,
        filter: &Filter,
        before: Option<Version>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        Ok(self.past(host, |past| past.log(filter, before, limit))?.unwrap_or_default())
    }

    /// Up to `limit` entries after a version, oldest first: what a stream of events that was
    /// interrupted there continues with.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn after(
        &self,
        host: &HostId,
        version: Version,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        Ok(self.past(host, |past| past.after(version, limit))?.unwrap_or_default())
    }

    /// Every subject the host has, or had in what is kept, in order.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn subjects(&self, host: &HostId) -> Result<Vec<Subject>, Error> {
        Ok(self.past(host, |past| past.subjects())?.unwrap_or_default())
    }

    /// Deletes all that is known of a host. Once this returns without error it is gone for
    /// readers, also after a crash; its space comes back as the engine compacts.
    ///
    /// # Errors
    /// [`Error::UnknownHost`], or when it can't be written.
    pub fn forget(&self, host: &HostId) -> Result<(), Error> {
        let _one = self.inner.shared.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        let host = host.clone();
        self.exclusively(move |writer| {
            let shared = writer.shared.clone();
            let Some(meta) = shared.meta(&host) else { return Err(Error::UnknownHost { host }) };
            let db = shared.db()?;
            let mut batch = db.batch();
            batch.insert(&db.hosts, keys::forgotten(meta.number), Vec::new());
            batch.remove(&db.hosts, keys::host_name(meta.number));
            batch.remove(&db.hosts, keys::host_state(meta.number));
            db.commit(batch).map_err(|error| writer.full_or(error))?;
            shared.remove_meta(&host);
            shared.heads().take(meta.number);
            writer.load_slots.remove(&meta.number);
            writer.standing_still.remove(&meta.number);
            Ok(())
        })?;
        self.finish_forgetting()
    }

    /// Deletes what is left of hosts that were forgotten.
    fn finish_forgetting(&self) -> Result<(), Error> {
        let numbers: Vec<u32> = {
            let db = self.inner.shared.db()?;
            let read = Error::storage("list what is to be forgotten");
            let keys = db.hosts.prefix(b"f").map(fjall::Guard::key).collect::<Result<Vec<_>, _>>();
            let last =
                |key: &fjall::UserKey| key.last_chunk().map(|bytes| u32::from_be_bytes(*bytes));
            keys.map_err(read)?.iter().filter_map(last).collect()
        };
        for number in numbers {
            crate::expire::forget(self, number)?;
        }
        Ok(())
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let metas = shared.metas();
        let (disk_bytes, buckets) =
            shared.db().map(|db| (db.disk_bytes(), db.buckets().len() as u64)).unwrap_or_default();
        let counters = &shared.counters;
        let (commit_p50, commit_p99) = counters.latency();
        let heads = shared.heads();
        let keyframes = shared.bases.lock().unwrap_or_else(PoisonError::into_inner);
        Stats {
            hosts: metas.iter().filter(|meta| meta.state.head > Version(0)).count() as u64,
            versions: metas.iter().map(|meta| meta.state.head.0).sum(),
            buckets,
            disk_bytes,
            queue: counters.queue.load(Ordering::Relaxed) as u64,
            queue_limit: self.inner.queue as u64,
            appends: counters.appends.load(Ordering::Relaxed),
            commits: counters.commits.load(Ordering::Relaxed),
            failures: counters.failures.load(Ordering::Relaxed),
            failing: counters.failing.load(Ordering::Relaxed),
            reopened: counters.reopened.load(Ordering::Relaxed),
            commit_p50,
            commit_p99,
            heads_cached: heads.len() as u64,
            heads_cached_bytes: heads.weight() as u64,
            keyframes_cached_bytes: keyframes.weight() as u64,
            path: shared.path.clone(),
        }
    }
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").field("path", &self.inner.shared.path).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    /// Lets the writer finish what is queued, and waits for it.
    fn drop(&mut self) {
        drop(self.jobs.take());
        // The last handle may have been held by a callback on the writer's own thread.
        if std::thread::current().id() != self.writer_id
            && let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the history's writer panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_ended_gives_no_sign_of_life() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path(), Options::default()).unwrap();
        let lives = || {
            let (send, receive) = mpsc::channel();
            let asked = history.ask(move || send.send(()).unwrap());
            asked.is_ok() && receive.recv().is_ok()
        };
        assert!(lives());
        let fault = |_writer: &mut Writer| -> Result<(), Error> { panic!("the writer ends here") };
        assert!(matches!(history.exclusively(fault), Err(Error::Closed)));
        assert!(!lives());
    }
}
