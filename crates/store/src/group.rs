//! What is committed together: the batch being filled, the heads taken out for it, and who is
//! to be told.

use crate::block::{self, Block, Since, contents_of};
use crate::cache::Cache;
use crate::codec::{put_signed, put_varint};
use crate::engine::{Bucket, Db, LoadBucket, era_of};
use crate::error::Error;
use crate::ingest::{Step, history_time, step};
use crate::keys;
use crate::read::{HeadState, Past, base_key};
use crate::record::{HostNumber, Meta, Record, check_of};
use crate::shared::{CachedHead, Shared};
use crate::stats::Counters;
use crate::types::{Append, Appended, Body, Committed, Delta, Entry, Gap, Reply};
use crate::writer::Writer;
use fjall::{Keyspace, OwnedWriteBatch};
use model::{ContentId, HostId, Op, Patch, Time, Version, significance_of};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

/// A patch may be so large, encoded.
const MAX_PATCH_BYTES: usize = 64 << 20;
/// One load sample in so many microseconds is kept long.
const LOAD_SLOT: i64 = 300_000_000;

/// Told once, when it is known whether the write is durable.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

pub(crate) enum Job {
    Append(Append, Reply),
    /// A load sample, encoded. Nobody waits for it.
    Load {
        host: HostId,
        at: Time,
        bytes: Vec<u8>,
    },
    /// A durable write to `contents` or `records`.
    Put {
        to: Place,
        entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        done: Done,
    },
    /// Runs alone, between groups.
    Exclusive(Box<dyn FnOnce(&mut Writer) + Send>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Contents,
    Records,
}

impl Job {
    /// Memory it takes while it waits, roughly.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Append(append, _) => append
                .deltas
                .iter()
                .map(|delta| match &delta.body {
                    Body::Patch { patch, .. } => 200 + patch.len() * 400,
                    Body::State(facts) => 200 + facts.len() * 400,
                })
                .sum(),
            Self::Load { bytes, .. } => bytes.len(),
            Self::Put { entries, .. } => entries
                .iter()
                .map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len))
                .sum(),
            Self::Exclusive(_) => 0,
        }
    }

    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Append(_, reply) => reply(Err(error)),
            Self::Put { done, .. } => done(Err(error)),
            Self::Load { .. } | Self::Exclusive(_) => {}
        }
    }
}

/// A host that this group changes.
struct Working {
    meta: Meta,
    head: HeadState,
    /// Of the facts, in bytes; kept up change by change.
    weight: usize,
    is_new: bool,
    touched: bool,
    /// The head can't be read. Only a whole state can follow, and begins anew.
    lost: bool,
    /// What becomes of the list of subjects, by key: each is written once.
    subjects: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Working {
    fn of(meta: Meta, head: HeadState, weight: usize) -> Self {
        let (is_new, touched, lost) = (false, false, false);
        Self { meta, head, weight, is_new, touched, lost, subjects: BTreeMap::new() }
    }
}

pub(crate) struct Group {
    batch: Option<OwnedWriteBatch>,
    sync: bool,
    /// Boxed: each is moved out and in for each append.
    working: HashMap<HostId, Box<Working>>,
    events: Vec<Committed>,
    replies: Vec<Done>,
    appends: u64,
    /// The batch is half filled, and must not be committed.
    failure: Option<Error>,
}

/// What is to be told once the group is durable, or is not.
pub(crate) struct Finished {
    pub(crate) events: Vec<Committed>,
    pub(crate) replies: Vec<Box<dyn FnOnce() + Send>>,
}

impl Group {
    pub(crate) fn new(db: &Db) -> Self {
        Self {
            batch: Some(db.batch()),
            sync: false,
            working: HashMap::new(),
            events: Vec::new(),
            replies: Vec::new(),
            appends: 0,
            failure: None,
        }
    }

    fn put(
        &mut self,
        keyspace: &Keyspace,
        key: impl Into<fjall::UserKey>,
        value: impl Into<fjall::UserValue>,
    ) {
        if let Some(batch) = &mut self.batch {
            batch.insert(keyspace, key, value);
        }
    }

    pub(crate) fn add(&mut self, writer: &mut Writer, db: &Db, job: Job) {
        match job {
            Job::Append(append, reply) => {
                self.appends += 1;
                let outcome = self.append(writer, db, append);
                self.replies.push(Box::new(move |committed| reply(committed.and(outcome))));
            }
            Job::Load { host, at, bytes } => {
                if let Err(error) = self.load(writer, db, &host, (at, bytes)) {
                    tracing::warn!(%host, %error, "a load sample is lost");
                }
            }
            Job::Put { to, entries, done } => {
                self.sync = true;
                let keyspace = match to {
                    Place::Contents => &db.contents,
                    Place::Records => &db.records,
                };
                if let Some(batch) = &mut self.batch {
                    for (key, value) in entries {
                        match value {
                            Some(value) => batch.insert(keyspace, key, value),
                            None => batch.remove(keyspace, key),
                        }
                    }
                }
                self.replies.push(done);
            }
            Job::Exclusive(_) => {}
        }
    }

    fn load(
        &mut self,
        writer: &mut Writer,
        db: &Db,
        host: &HostId,
        (at, bytes): (Time, Vec<u8>),
    ) -> Result<(), Error> {
        let known = self.working.get(host).map(|working| working.meta.number);
        let known = known.or_else(|| writer.shared.meta(host).map(|meta| meta.number));
        let Some(number) = known else { return Err(Error::UnknownHost { host: host.clone() }) };
        let slot = at.0.div_euclid(LOAD_SLOT);
        if writer.load_slots.get(&number) != Some(&slot) {
            writer.load_slots.insert(number, slot);
            let days = db.make_load_bucket(LoadBucket::Day(at.day()))?;
            self.put(&days, keys::load(number, at), bytes.as_slice());
        }
        let hours = db.make_load_bucket(LoadBucket::Quarter(at.hour().div_euclid(6)))?;
        self.put(&hours, keys::load(number, at), bytes);
        Ok(())
    }

    fn append(&mut self, writer: &mut Writer, db: &Db, append: Append) -> Result<Appended, Error> {
        let host = append.host.clone();
        let mut working = match self.working.remove(&host) {
            Some(working) => working,
            None => Box::new(take_out(writer, db, &host)?),
        };
        let outcome = self.deltas(writer, db, &mut working, append);
        self.working.insert(host, working);
        outcome
    }

    fn deltas(
        &mut self,
        writer: &mut Writer,
        db: &Db,
        working: &mut Working,
        append: Append,
    ) -> Result<Appended, Error> {
        writer.notice_time(&working.meta, append.received);
        let stream = append.stream.as_deref();
        let mut recorded = Vec::new();
        for mut delta in append.deltas {
            let sequence = delta.sequence;
            let body = std::mem::replace(&mut delta.body, Body::State(model::Facts::default()));
            if working.lost {
                delta.gap.get_or_insert(Gap { since: working.meta.state.head_at, merged: 1 });
                delta.label.get_or_insert_with(|| "what was before is damaged".to_owned());
            }
            let about = Delta { body, ..delta.clone() };
            match step(&working.meta, &mut working.head.facts, stream, about)? {
                Step::Repeated => continue,
                Step::Unchanged => {}
                Step::Changed(patch) => {
                    let version = self.record(writer, db, working, (patch, delta, append.received));
                    if let Err(error) = &version
                        && !matches!(error, Error::TooLarge { .. })
                    {
                        self.failure.get_or_insert(error.clone());
                    }
                    recorded.push(version?);
                }
            }
            working.touched = true;
            // Also where that is before: a clock that was ahead hides nobody who falls silent.
            working.meta.state.seen_at = append.received;
            if let (Some(stream), Some(sequence)) = (stream, sequence) {
                working.meta.set_sequence(stream, sequence);
            }
        }
        let state = &working.meta.state;
        let acknowledged = stream.and_then(|stream| working.meta.sequence(stream));
        Ok(Appended { head: state.head, digest: state.digest, recorded, acknowledged })
    }

    /// Makes a version of a patch that is applied to the head already.
    fn record(
        &mut self,
        writer: &Writer,
        db: &Db,
        working: &mut Working,
        (patch, delta, received): (Patch, Delta, Time),
    ) -> Result<Version, Error> {
        let state = &mut working.meta.state;
        let at = history_time(delta.at, state.head_at, received);
        // What is older than the days kept in full goes with the oldest of them.
        let oldest = received.day().saturating_sub(i64::from(writer.retention.full_days));
        // A damaged bucket is in the way of whatever comes into it.
        let beside = if working.lost { state.day.saturating_add(1) } else { state.day };
        let day = at.day().max(oldest).max(writer.floor).max(beside);
        let version = Version(state.head.0 + 1);
        let entry = Entry {
            version,
            at,
            host_time: (delta.at != at).then_some(delta.at),
            received,
            significance: significance_of(&patch),
            patch,
            narrowed: false,
            first_looks: BTreeSet::new(),
            gap: delta.gap,
            label: delta.label,
            merged: 0,
        };
        let record = Record { entry, check: check_of(working.head.facts.digest()) };
        let bytes = record.encode(working.meta.number, day);
        if bytes.len() > MAX_PATCH_BYTES {
            let undone = record.entry.patch.inverse().apply(&mut working.head.facts);
            undone.expect("the patch was applied just now");
            return Err(Error::TooLarge { what: "a patch", limit: MAX_PATCH_BYTES });
        }
        let bucket = db.make_bucket(day)?;
        working.weight = weigh(working.weight, &record.entry.patch);
        state.digest = working.head.facts.digest();
        state.items = working.head.facts.len() as u64;
        state.head = version;
        state.head_at = at;
        state.day = day;
        if version == Version(1) {
            state.first_at = at;
        }
        self.put_version(writer, db, working, (&bucket, &record, bytes))?;
        working.lost = false;
        self.sync = true;
        let digest = working.meta.state.digest;
        let host = working.meta.host.clone();
        self.events.push(Committed { host, digest, entry: record.entry });
        Ok(version)
    }

    fn put_version(
        &mut self,
        writer: &Writer,
        db: &Db,
        working: &mut Working,
        (bucket, record, bytes): (&Bucket, &Record, Vec<u8>),
    ) -> Result<(), Error> {
        let (number, version) = (working.meta.number, record.entry.version);
        let stored = bytes.len();
        self.put(&bucket.keyspace, keys::version(number, version), bytes);
        for content in contents_of(&record.entry.patch) {
            self.mention(db, bucket, &content)?;
        }
        note_subjects(db, working, &record.entry.patch, bucket.day)?;
        working.head.version = version;
        match working.head.block.take() {
            Some(mut block) if block.day == bucket.day => {
                block.since.touch(&record.entry.patch);
                block.note(record, stored);
                if block.is_full() {
                    block.close_after(version, |key, value| self.put(&bucket.keyspace, key, value));
                    let new =
                        self.put_keyframe(writer, db, working, (bucket.day, Some(&block.since)))?;
                    if let Some(new) = new {
                        block.since = new;
                    }
                }
                working.head.block = Some(block);
            }
            old => {
                // A bucket that was thinned meanwhile has all its postings, and of fewer versions.
                let mut since = None;
                if let Some(mut old) = old {
                    if let Some(place) = db.bucket(old.day).filter(|place| !place.thinned) {
                        old.close(|key, value| self.put(&place.keyspace, key, value));
                    }
                    let leads_on = era_of(old.day) == era_of(bucket.day) && !working.lost;
                    since = leads_on.then_some(old.since);
                }
                if let Some(since) = &mut since {
                    since.touch(&record.entry.patch);
                }
                let new = self.put_keyframe(writer, db, working, (bucket.day, since.as_ref()))?;
                let since = new.or(since).unwrap_or_else(|| Since::new(version));
                let mut block = Block::after(number, bucket.day, since, version);
                block.note(record, stored);
                working.head.block = Some(block);
                let mut span = Vec::new();
                put_varint(&mut span, version.0);
                put_signed(&mut span, record.entry.at.0);
                self.put(&db.hosts, keys::span(number, bucket.day), span);
            }
        }
        Ok(())
    }

    /// Puts a keyframe of the head into the bucket of a day. It refers to the base given, or to
    /// a new one, which it gives back.
    fn put_keyframe(
        &mut self,
        writer: &Writer,
        db: &Db,
        working: &Working,
        (day, since): (i64, Option<&Since>),
    ) -> Result<Option<Since>, Error> {
        let (number, version) = (working.meta.number, working.head.version);
        let past = Past { db, bases: &writer.shared.bases, meta: &working.meta };
        // A base that this very group writes is not in the store, but most likely in memory.
        // When it is not, or is damaged, a new one is made.
        let base = since.and_then(|since| Some((since, past.plain_base(day, since.base).ok()?)));
        let base = base.as_ref().map(|(since, plain)| (*since, &**plain));
        let made = block::keyframe(number, version, &working.head.facts, base);
        let bucket = db.make_bucket(day)?;
        self.put(&bucket.keyspace, keys::keyframe(number, version), made.keyframe);
        let Some((bytes, new)) = made.base else { return Ok(None) };
        self.put(&db.make_era(day)?, keys::keyframe(number, version), bytes);
        let (key, weight) = (base_key(number, day, version), new.weight());
        let mut bases = writer.shared.bases.lock().unwrap_or_else(PoisonError::into_inner);
        bases.put(key, Arc::new(new), weight);
        Ok(Some(Since::new(version)))
    }

    /// Notes that the bucket names some content, which then is not unused.
    fn mention(&mut self, db: &Db, bucket: &Bucket, content: &ContentId) -> Result<(), Error> {
        self.put(&bucket.keyspace, keys::mention(content), Vec::new());
        let unused = keys::unused(content);
        let looked_up = db.contents.contains_key(&unused);
        if looked_up.map_err(Error::storage("look up a content"))?
            && let Some(batch) = &mut self.batch
        {
            batch.remove(&db.contents, unused);
        }
        Ok(())
    }

    /// The batch with the hosts' new heads, and whether it must be synced; `None` when there is
    /// nothing to write.
    pub(crate) fn take_batch(&mut self, db: &Db) -> Result<Option<(OwnedWriteBatch, bool)>, Error> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let Some(mut batch) = self.batch.take() else { return Ok(None) };
        let mut next_host = None;
        for working in self.working.values().filter(|working| working.touched) {
            let number = working.meta.number;
            self.sync = true;
            batch.insert(&db.hosts, keys::host_state(number), working.meta.state.encode(number));
            for (key, value) in &working.subjects {
                batch.insert(&db.subjects, key.as_slice(), value.as_slice());
            }
            if working.is_new {
                next_host = next_host.max(Some(u64::from(number) + 1));
                batch.insert(&db.hosts, keys::host_name(number), working.meta.host.as_str());
            }
        }
        if let Some(next) = next_host {
            batch.insert(&db.hosts, keys::NEXT_HOST, next.to_be_bytes());
        }
        if !self.sync {
            batch = batch.durability(None);
        }
        Ok((!batch.is_empty()).then_some((batch, self.sync)))
    }

    /// Publishes the heads if the commit worked, and gives out who is to be told.
    pub(crate) fn finish(self, shared: &Shared, commit: &Result<(), Error>) -> Finished {
        let mut events = Vec::new();
        if commit.is_ok() {
            Counters::count(&shared.counters.appends, self.appends);
            let (mut hosts, mut heads) = (shared.hosts_mut(), shared.heads());
            for working in self.working.into_values() {
                put_back(&mut hosts, &mut heads, *working);
            }
            events = self.events;
        } else {
            // Bases of keyframes that were not stored after all.
            shared.bases.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let tell = |done: Done| -> Box<dyn FnOnce() + Send> {
            let commit = commit.clone();
            Box::new(move || done(commit))
        };
        Finished { events, replies: self.replies.into_iter().map(tell).collect() }
    }
}

/// Puts what comes into the list of subjects, and marks there what goes, and when.
fn note_subjects(db: &Db, working: &mut Working, patch: &Patch, day: i64) -> Result<(), Error> {
    let number = working.meta.number;
    for (subject, op) in patch.iter() {
        let key = keys::subject(number, subject);
        match op {
            Op::Added(_) => {
                let stored = match working.subjects.get(&key) {
                    Some(mark) => Some(mark.is_empty()),
                    None if working.is_new => None,
                    None => {
                        let mark =
                            db.subjects.get(&key).map_err(Error::storage("look up a subject"))?;
                        mark.map(|mark| mark.is_empty())
                    }
                };
                if stored != Some(true) {
                    working.subjects.insert(key, Vec::new());
                }
            }
            Op::Removed(_) => {
                working.subjects.insert(keys::gone(number, day, subject), Vec::new());
                working.subjects.insert(key, keys::gone_on(day));
            }
            Op::Edited { .. } => {}
        }
    }
    Ok(())
}

/// Takes a host's head out of the cache or reads it; makes up a new host.
fn take_out(writer: &mut Writer, db: &Db, host: &HostId) -> Result<Working, Error> {
    let Some(meta) = writer.shared.meta(host) else {
        let number = writer.next_host;
        writer.next_host = number.saturating_add(1);
        let meta = Meta::new(number, host.clone());
        let head = HeadState { version: Version(0), facts: model::Facts::default(), block: None };
        return Ok(Working { is_new: true, ..Working::of(meta, head, 0) });
    };
    let meta = Meta::clone(&meta);
    let cached = writer.shared.heads().take(meta.number);
    let cached = cached.filter(|cached| cached.state.version == meta.state.head);
    if let Some(CachedHead { state: head, weight }) = cached {
        return Ok(Working::of(meta, head, weight));
    }
    let past = Past { db, bases: &writer.shared.bases, meta: &meta };
    let (head, lost) = match past.head_state() {
        Ok(head) => (head, false),
        Err(error) if error.is_damage() => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the newest state of a host is damaged; the next whole state begins anew"
            );
            (past.lost_head()?, true)
        }
        Err(error) => return Err(error),
    };
    let weight = head.facts.weight();
    Ok(Working { lost, ..Working::of(meta, head, weight) })
}

fn put_back(
    hosts: &mut BTreeMap<HostId, Arc<Meta>>,
    heads: &mut Cache<HostNumber, CachedHead>,
    working: Working,
) {
    let Working { meta, head, weight, touched, is_new, lost, .. } = working;
    if is_new && !touched {
        return;
    }
    let all = weight + head.block.as_ref().map_or(0, Block::weight) + 512;
    let number = meta.number;
    match hosts.get_mut(&meta.host) {
        Some(known) if touched => *known = Arc::new(meta),
        None if touched => drop(hosts.insert(meta.host.clone(), Arc::new(meta))),
        _ => {}
    }
    if !lost {
        heads.put(number, CachedHead { state: head, weight }, all);
    }
}

/// The weight of facts after a patch, roughly, at the cost of the patch.
fn weigh(weight: usize, patch: &Patch) -> usize {
    let size = |fields: &model::Fields| {
        fields.iter().map(|(name, value)| name.len() + 2 + value_size(value)).sum::<usize>()
    };
    patch.iter().fold(weight, |weight, (subject, op)| match op {
        Op::Added(fields) => weight + subject.id().len() + 80 + size(fields),
        Op::Removed(fields) => weight.saturating_sub(subject.id().len() + 80 + size(fields)),
        Op::Edited { was, now } => (weight + size(now)).saturating_sub(size(was)),
    })
}

fn value_size(value: &model::Value) -> usize {
    match value {
        model::Value::Bool(_) => 1,
        model::Value::Int(_) => 4,
        model::Value::Text(text) => 2 + text.len(),
        model::Value::List(list) => 1 + list.iter().map(value_size).sum::<usize>(),
        model::Value::Map(map) => {
            1 + map.iter().map(|(key, value)| key.len() + 1 + value_size(value)).sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{History, Options, testing};
    use std::sync::mpsc;

    fn state(host: &str, number: i64) -> Append {
        let body = Body::State(testing::small(number));
        let delta = Delta { sequence: None, at: Time(0), body, gap: None, label: None };
        let host = HostId::new(host).unwrap();
        Append { host, stream: None, received: Time(0), deltas: vec![delta] }
    }

    /// Hosts that begin in one commit, in another order than that of their names.
    #[test]
    fn no_number_of_a_host_is_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let open = || History::open(directory.path(), Options::default()).unwrap();
        let history = open();
        let (begun, has_begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let holding = history.clone();
        let holder = std::thread::spawn(move || {
            holding.exclusively(move |_writer| {
                begun.send(()).unwrap();
                may_go.recv().unwrap();
                Ok(())
            })
        });
        has_begun.recv().unwrap();
        let (told, answers) = mpsc::channel();
        for (host, number) in [("b", 1), ("a", 2)] {
            let told = told.clone();
            history.append(state(host, number), move |done| told.send(done.is_ok()).unwrap());
        }
        go.send(()).unwrap();
        holder.join().unwrap().unwrap();
        assert_eq!(answers.iter().take(2).collect::<Vec<_>>(), [true, true]);
        drop(history);
        let history = open();
        history.append_and_wait(state("c", 3)).unwrap();
        for (host, number) in [("b", 1), ("a", 2), ("c", 3)] {
            let head = history.head(&HostId::new(host).unwrap()).unwrap().unwrap();
            assert_eq!(head.facts, testing::small(number), "{host}");
        }
    }
}
