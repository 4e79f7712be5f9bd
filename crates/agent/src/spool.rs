//! What the server has not acknowledged yet, on disk.
//!
//! ```text
//! journal:  MAGIC  record(Base)  record(Delta) record(Delta) …      acked: sequence    stale: a mark
//!           record = length u32 | crc32 u32 | MessagePack
//! ```
//!
//! The base is the state before the first delta, so a restarted agent knows what it said last
//! and sends differences, not its whole state. A torn tail is cut off: what it held is seen
//! again by looking at the host.
//!
//! # Invariants
//! - The journal's deltas form a chain from its base: each begins where the one before ended.
//! - It has a limit. At the limit the older half of what waits is merged into one delta that
//!   says so ([`Gap`]); nothing is dropped without a mark.
//! - A disk that takes nothing does not stop the agent: deltas are then held in memory, within
//!   the same rules, and the journal is written anew as soon as it can be.

use api::wire::{Body, Delta, Gap};
use model::{Digest, Facts, Fields, Item, Op, Patch, Subject, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"twspool1";
/// Bytes of acknowledged deltas that may lie in the journal before it is written anew.
const ROTATE_AT: u64 = 4 << 20;
/// Bytes one record may have.
const MAX_RECORD: usize = 64 << 20;
/// Beyond it a sequence is damage: no agent counts so far, and what follows it can't be counted.
const LAST_SEQUENCE: u64 = u64::MAX / 2;
/// There while the spool is known to be stale.
const STALE: &str = "stale";
/// Deltas and bytes in one request.
const BATCH: (usize, usize) = (64, 1 << 20);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("could not open the spool in {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another agent uses the spool in {path}; stop it or give this one its own state_dir")]
    InUse { path: PathBuf },
    #[error("could not write the spool in {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not read the spool in {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
enum Record {
    Base {
        stream: String,
        sequence: u64,
        facts: Facts,
    },
    Delta(Delta),
    /// One that belongs to the whole state at the beginning.
    First(Delta),
}

impl Record {
    fn of(delta: Delta, of_first: bool) -> Self {
        if of_first { Self::First(delta) } else { Self::Delta(delta) }
    }
}

/// Where a waiting delta is.
#[derive(Debug)]
enum Place {
    Journal { offset: u64, length: usize },
    Held(Vec<u8>),
}

#[derive(Debug)]
struct Waiting {
    sequence: u64,
    at: Time,
    /// A whole state, not a step from the one before.
    is_whole: bool,
    /// Tells of what was there before it: belongs to the whole state at the beginning.
    of_first: bool,
    place: Place,
}

#[derive(Debug)]
pub(crate) struct Spool {
    dir: PathBuf,
    /// Kept locked: two agents on one spool would tear the chain.
    _lock: File,
    journal: File,
    end: u64,
    /// False when the journal misses deltas that are held in memory.
    whole: bool,
    limit: u64,
    stream: String,
    next_sequence: u64,
    waiting: VecDeque<Waiting>,
    /// The state at the last acknowledged delta.
    acknowledged: Facts,
    acked: u64,
    /// What it held is not all there, or was put back: its numbers can't be gone on with, and
    /// what it has is not how the host is.
    is_stale: bool,
}

/// A spool as found on disk, and the state it ends with.
pub(crate) struct Opened {
    pub(crate) spool: Spool,
    pub(crate) facts: Facts,
}

impl Spool {
    /// Opens or makes the spool in `dir`. `fresh_stream` names the sequence space if a new one
    /// begins.
    pub(crate) fn open(
        dir: &Path,
        limit: u64,
        fresh_stream: impl Fn() -> String,
    ) -> Result<Opened, Error> {
        let failed = |source| Error::Open { path: dir.to_owned(), source };
        private_directory(dir).map_err(failed)?;
        let lock = private(&dir.join("lock")).map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_held| Error::InUse { path: dir.to_owned() })?;
        let mut journal = private(&dir.join("journal")).map_err(failed)?;
        let acked = read_acked(&dir.join("acked"));
        let found = read_journal(&mut journal, acked).map_err(failed)?;
        // What it held that is not there any more, the server may have: the numbers that come
        // next were given out before, and what goes by them would be taken for a repetition.
        let is_behind = dir.join(STALE).exists()
            || found.as_ref().is_some_and(|found| found.cut > 0 || acked >= found.next_sequence);
        let empty = Found { stream: fresh_stream(), ..Found::default() };
        let found = found.unwrap_or(empty);
        if is_behind {
            let cut = found.cut;
            tracing::warn!(
                cut,
                acked,
                "the spool lacks what it held before; sending the whole state, once it was seen"
            );
        }
        let mut spool = Self {
            dir: dir.to_owned(),
            _lock: lock,
            journal,
            end: found.end,
            whole: found.end > 0,
            limit,
            stream: found.stream,
            next_sequence: found.next_sequence.max(1),
            waiting: found.waiting,
            acknowledged: found.acknowledged,
            acked: acked.max(found.base_sequence),
            is_stale: false,
        };
        if is_behind {
            spool.mark_stale().map_err(failed)?;
        }
        if !spool.whole {
            spool.rewrite()?;
        }
        Ok(Opened { spool, facts: found.facts })
    }

    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    /// The number of the last delta that is known to be acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// The number of the newest delta, acknowledged or not.
    pub(crate) fn newest(&self) -> u64 {
        self.next_sequence - 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether what comes next is a whole state, which replaces all that the server knows.
    pub(crate) fn begins_whole(&self) -> bool {
        self.is_stale || self.waiting.front().is_some_and(|waiting| waiting.is_whole)
    }

    /// It was found out that the spool lost something, or was put back. Known until it begins
    /// anew, whatever happens in between.
    pub(crate) fn mark_stale(&mut self) -> io::Result<()> {
        self.is_stale = true;
        private(&self.dir.join(STALE))?.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// Makes one of the whole state that comes next and what belongs to it: the rest of the look
    /// that it is of. What happened meanwhile stays as it was.
    pub(crate) fn condense(&mut self) -> Result<(), Error> {
        let more = self.waiting.iter().skip(1).any(|waiting| waiting.of_first);
        if !self.begins_whole() || self.is_stale || !more {
            return Ok(());
        }
        let mut deltas = Vec::new();
        for waiting in &self.waiting {
            deltas.push((self.read(waiting)?, waiting.of_first));
        }
        self.hold(condensed(deltas));
        self.rewrite()
    }

    /// Adds a delta. Gives a description of the trouble when it could only be held in memory.
    pub(crate) fn push(&mut self, at: Time, body: Body, gap: Option<Gap>) -> Option<Error> {
        self.add(at, body, gap, false)
    }

    /// Adds one that tells of what was there before it.
    pub(crate) fn push_first(&mut self, at: Time, body: Body) -> Option<Error> {
        self.add(at, body, None, true)
    }

    fn add(&mut self, at: Time, body: Body, gap: Option<Gap>, of_first: bool) -> Option<Error> {
        let delta = Delta { sequence: self.next_sequence, at, body, gap };
        self.next_sequence += 1;
        let mut trouble = None;
        if !self.whole {
            trouble = self.rewrite().err();
        }
        let is_whole = matches!(delta.body, Body::Keyframe(_));
        let sequence = delta.sequence;
        let payload = encode(&Record::of(delta, of_first));
        let place = if self.whole {
            match self.append(&payload) {
                Ok(place) => place,
                Err(error) => {
                    self.whole = false;
                    trouble = Some(error);
                    Place::Held(payload)
                }
            }
        } else {
            Place::Held(payload)
        };
        self.waiting.push_back(Waiting { sequence, at, is_whole, of_first, place });
        if self.size() > self.limit {
            trouble = self.merge().err().or(trouble);
        }
        trouble
    }

    /// The next deltas to send, oldest first.
    pub(crate) fn batch(&mut self) -> Result<Vec<Delta>, Error> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for waiting in self.waiting.iter().take(BATCH.0) {
            let delta = self.read(waiting)?;
            bytes += match &waiting.place {
                Place::Journal { length, .. } => *length,
                Place::Held(payload) => payload.len(),
            };
            if bytes > BATCH.1 && !batch.is_empty() {
                break;
            }
            batch.push(delta);
        }
        Ok(batch)
    }

    /// Everything up to `sequence` is durable on the server.
    pub(crate) fn acknowledged(&mut self, sequence: u64) -> Result<(), Error> {
        while let Some(waiting) = self.waiting.front().filter(|w| w.sequence <= sequence) {
            let delta = self.read(waiting)?;
            apply(&mut self.acknowledged, delta.body);
            self.acked = delta.sequence;
            self.waiting.pop_front();
        }
        self.write_acked();
        if self.waiting.is_empty() && self.end > ROTATE_AT.max(self.limit / 8) || !self.whole {
            self.rewrite()?;
        }
        Ok(())
    }

    /// The server knows another state than the one the deltas begin from: starts a new stream
    /// whose first delta is the whole state, and puts what waits behind it. `now` is the time of
    /// that state when nothing waits.
    pub(crate) fn resync(&mut self, stream: String, now: Time) -> Result<(), Error> {
        let waiting: Vec<Delta> =
            self.waiting.iter().map(|waiting| self.read(waiting)).collect::<Result<_, _>>()?;
        let mut deltas = Vec::with_capacity(waiting.len() + 1);
        let begins_whole = matches!(waiting.first(), Some(Delta { body: Body::Keyframe(_), .. }));
        if !begins_whole {
            let at = waiting.first().map_or(now, |delta| delta.at);
            let body = Body::Keyframe(self.acknowledged.clone());
            deltas.push(Delta { sequence: 1, at, body, gap: None });
        }
        deltas.extend(waiting);
        for (sequence, delta) in (1..).zip(&mut deltas) {
            delta.sequence = sequence;
        }
        self.stream = stream;
        self.acked = 0;
        self.next_sequence = deltas.last().map_or(1, |delta| delta.sequence + 1);
        self.hold(deltas);
        self.rewrite()
    }

    /// Gives up the single steps that wait: starts a new stream with the state they lead to,
    /// marked as a gap.
    pub(crate) fn collapse(&mut self, stream: String, now: Time) -> Result<(), Error> {
        self.resync(stream, now)?;
        let deltas: Vec<Delta> =
            self.waiting.iter().map(|waiting| self.read(waiting)).collect::<Result<_, _>>()?;
        let mut one = deltas.into_iter().reduce(merged);
        if let Some(one) = &mut one {
            one.gap.get_or_insert(Gap { since: one.at, merged: 1 });
        }
        self.hold(one.into_iter().collect());
        self.rewrite()?;
        self.is_stale = false;
        match fs::remove_file(self.dir.join(STALE)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Write { path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Bytes that wait.
    fn size(&self) -> u64 {
        let held: usize = self
            .waiting
            .iter()
            .map(
                |waiting| if let Place::Held(payload) = &waiting.place { payload.len() } else { 0 },
            )
            .sum();
        self.end + u64::try_from(held).unwrap_or(u64::MAX)
    }

    /// Merges the older half of what waits, or, when little waits, writes the journal anew.
    fn merge(&mut self) -> Result<(), Error> {
        let deltas: Vec<Delta> =
            self.waiting.iter().map(|waiting| self.read(waiting)).collect::<Result<_, _>>()?;
        // The newest stay apart; a quarter of the limit is free after this, or nearly so.
        let cut = (deltas.len() / 2).max(deltas.len().saturating_sub(10_000));
        let mut deltas = deltas.into_iter();
        let mut kept: Vec<Delta> = Vec::new();
        for delta in deltas.by_ref().take(cut) {
            match kept.pop() {
                Some(before) => kept.push(merged(before, delta)),
                None => kept.push(delta),
            }
        }
        kept.extend(deltas);
        self.hold(kept);
        self.rewrite()
    }

    fn hold(&mut self, deltas: Vec<Delta>) {
        self.waiting = deltas
            .into_iter()
            .map(|delta| Waiting {
                sequence: delta.sequence,
                at: delta.at,
                is_whole: matches!(delta.body, Body::Keyframe(_)),
                of_first: false,
                place: Place::Held(encode(&Record::Delta(delta))),
            })
            .collect();
        self.whole = false;
    }

    fn read(&self, waiting: &Waiting) -> Result<Delta, Error> {
        let corrupt = |source| Error::Read { path: self.dir.clone(), source };
        let payload = match &waiting.place {
            Place::Held(payload) => payload.clone(),
            Place::Journal { offset, length } => {
                let mut payload = vec![0; *length];
                self.journal.read_exact_at(&mut payload, *offset).map_err(corrupt)?;
                payload
            }
        };
        match rmp_serde::from_slice(&payload) {
            Ok(Record::Delta(delta) | Record::First(delta)) => Ok(delta),
            _ => Err(corrupt(io::ErrorKind::InvalidData.into())),
        }
    }

    fn append(&mut self, payload: &[u8]) -> Result<Place, Error> {
        let offset = self.end;
        self.journal.write_all_at(&framed(payload), offset).map_err(|source| {
            // What was half written lies beyond `end` and is overwritten or cut off.
            Error::Write { path: self.dir.clone(), source }
        })?;
        let length = payload.len();
        self.end += u64::try_from(length + 8).unwrap_or(u64::MAX);
        Ok(Place::Journal { offset: offset + 8, length })
    }

    /// Writes a new journal: the acknowledged state, then what waits. All or nothing.
    fn rewrite(&mut self) -> Result<(), Error> {
        let path = self.dir.join("journal");
        let fresh = self.dir.join("journal.new");
        let failed = |source| Error::Write { path: path.clone(), source };
        let base = encode(&Record::Base {
            stream: self.stream.clone(),
            sequence: self.acked,
            facts: self.acknowledged.clone(),
        });
        let mut bytes = MAGIC.to_vec();
        bytes.extend(framed(&base));
        let mut places = Vec::with_capacity(self.waiting.len());
        for waiting in &self.waiting {
            let payload = encode(&Record::of(self.read(waiting)?, waiting.of_first));
            places.push((bytes.len() + 8, payload.len()));
            bytes.extend(framed(&payload));
        }
        let write = || {
            let _stale = fs::remove_file(&fresh);
            let mut file = private(&fresh)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            fs::rename(&fresh, &path)?;
            Ok(file)
        };
        self.journal = write().map_err(|source| {
            let _half = fs::remove_file(&fresh);
            failed(source)
        })?;
        self.end = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.whole = true;
        for (waiting, (offset, length)) in self.waiting.iter_mut().zip(places) {
            waiting.place =
                Place::Journal { offset: u64::try_from(offset).unwrap_or(u64::MAX), length };
        }
        self.write_acked();
        Ok(())
    }

    /// Not synced: losing it only makes the agent send again what the server knows.
    fn write_acked(&self) {
        let mut bytes = self.acked.to_le_bytes().to_vec();
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        let written =
            private(&self.dir.join("acked")).and_then(|file| file.write_all_at(&bytes, 0));
        if let Err(error) = written {
            tracing::debug!(%error, "could not note the acknowledged sequence");
        }
    }

    /// Time of the oldest delta that waits.
    pub(crate) fn oldest(&self) -> Option<Time> {
        self.waiting.front().map(|waiting| waiting.at)
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A directory that only its owner may look into, whatever the one above it is.
pub(crate) fn private_directory(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

fn encode(record: &Record) -> Vec<u8> {
    rmp_serde::to_vec_named(record).expect("records are plain data")
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(payload.len() + 8);
    record.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend(crc32fast::hash(payload).to_le_bytes());
    record.extend(payload);
    record
}

fn apply(facts: &mut Facts, body: Body) {
    match body {
        Body::Keyframe(state) => *facts = state,
        Body::Patch { patch, .. } => {
            if let Err(error) = patch.apply(facts) {
                tracing::error!(%error, "a spooled delta does not fit its base");
            }
        }
    }
}

/// Two deltas as one, marked as a gap.
fn merged(first: Delta, second: Delta) -> Delta {
    let since = first.gap.map_or(first.at, |gap| gap.since);
    let count = |gap: Option<Gap>| gap.map_or(1, |gap| gap.merged);
    let gap = Some(Gap { since, merged: count(first.gap) + count(second.gap) });
    let body = match (first.body, second.body) {
        (_, keyframe @ Body::Keyframe(_)) => keyframe,
        (Body::Keyframe(mut facts), patch @ Body::Patch { .. }) => {
            apply(&mut facts, patch);
            Body::Keyframe(facts)
        }
        (Body::Patch { base, patch, .. }, Body::Patch { next, patch: later, .. }) => {
            Body::Patch { base, next, patch: patch.then(later) }
        }
    };
    Delta { sequence: second.sequence, at: second.at, body, gap }
}

/// Puts what is of the first look into the whole state at the beginning, and leads the others
/// from there to where they led: a step that is left with nothing to do goes.
fn condensed(deltas: Vec<(Delta, bool)>) -> Vec<Delta> {
    let mut was = Facts::default();
    let mut now = Facts::default();
    for (delta, of_first) in &deltas {
        match &delta.body {
            Body::Keyframe(facts) => now = facts.clone(),
            Body::Patch { patch, .. } if *of_first => {
                for (subject, op) in patch.iter() {
                    take(&mut now, subject, op);
                }
            }
            Body::Patch { .. } => {}
        }
    }
    let mut kept = Vec::with_capacity(deltas.len());
    for (mut delta, _) in deltas {
        match delta.body {
            Body::Keyframe(facts) => {
                was = facts;
                delta.body = Body::Keyframe(now.clone());
            }
            Body::Patch { base, next, patch } => {
                let subjects: BTreeSet<Subject> =
                    patch.iter().map(|(subject, _)| subject.clone()).collect();
                apply(&mut was, Body::Patch { base, next, patch });
                let (mut before, base) = (Facts::default(), now.digest());
                for subject in &subjects {
                    let known = match was.get(subject) {
                        Some(item) => now.put(subject.clone(), item.clone()),
                        None => now.remove(subject),
                    };
                    if let Some(item) = known {
                        before.put(subject.clone(), item);
                    }
                }
                let patch = Patch::of(&before, &now, &subjects);
                if patch.is_empty() {
                    continue;
                }
                delta.body = patch_body(base, now.digest(), patch);
            }
        }
        kept.push(delta);
    }
    kept
}

/// Does what can be done of an op.
fn take(facts: &mut Facts, subject: &Subject, op: &Op) {
    match op {
        Op::Added(fields) => drop(facts.put(subject.clone(), Item::new(fields))),
        Op::Removed(_) => drop(facts.remove(subject)),
        Op::Edited { was, now } => {
            let mut fields: Fields = facts.get(subject).map(Item::fields).unwrap_or_default();
            fields.retain(|name, _| !was.contains_key(name));
            fields.extend(now.clone());
            facts.put(subject.clone(), Item::new(&fields));
        }
    }
}

#[derive(Default)]
struct Found {
    stream: String,
    base_sequence: u64,
    next_sequence: u64,
    waiting: VecDeque<Waiting>,
    acknowledged: Facts,
    facts: Facts,
    end: u64,
    /// Bytes that were not whole.
    cut: u64,
}

/// Reads what is whole, and cuts off the rest.
fn read_journal(journal: &mut File, acked: u64) -> io::Result<Option<Found>> {
    let mut bytes = Vec::new();
    journal.seek(SeekFrom::Start(0))?;
    journal.read_to_end(&mut bytes)?;
    if bytes.get(..8) != Some(MAGIC.as_slice()) {
        return Ok(None);
    }
    let mut found = Found::default();
    let mut position = 8;
    while let Some((payload, next)) = record_at(&bytes, position) {
        let record = rmp_serde::from_slice(payload);
        let of_first = matches!(record, Ok(Record::First(_)));
        match record {
            Ok(Record::Base { stream, sequence, facts })
                if position == 8 && sequence < LAST_SEQUENCE =>
            {
                found.stream = stream;
                found.base_sequence = sequence;
                found.next_sequence = sequence + 1;
                found.acknowledged = facts.clone();
                found.facts = facts;
            }
            Ok(Record::Delta(delta) | Record::First(delta))
                if position > 8 && fits(&delta, &found) =>
            {
                found.next_sequence = delta.sequence + 1;
                if delta.sequence > acked {
                    found.waiting.push_back(Waiting {
                        sequence: delta.sequence,
                        at: delta.at,
                        is_whole: matches!(delta.body, Body::Keyframe(_)),
                        of_first,
                        place: Place::Journal {
                            offset: u64::try_from(position + 8).unwrap_or(u64::MAX),
                            length: payload.len(),
                        },
                    });
                } else {
                    apply(&mut found.acknowledged, delta.body.clone());
                }
                apply(&mut found.facts, delta.body);
            }
            _ => break,
        }
        position = next;
    }
    if found.stream.is_empty() {
        return Ok(None);
    }
    found.end = u64::try_from(position).unwrap_or(u64::MAX);
    found.cut = u64::try_from(bytes.len()).unwrap_or(u64::MAX).saturating_sub(found.end);
    journal.set_len(found.end)?;
    Ok(Some(found))
}

fn fits(delta: &Delta, found: &Found) -> bool {
    let follows = (found.next_sequence..LAST_SEQUENCE).contains(&delta.sequence);
    match &delta.body {
        Body::Keyframe(_) => follows,
        Body::Patch { base, .. } => follows && *base == found.facts.digest(),
    }
}

fn record_at(bytes: &[u8], position: usize) -> Option<(&[u8], usize)> {
    let header = bytes.get(position..position + 8)?;
    let (length, checksum) = header.split_at(4);
    let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    let checksum = u32::from_le_bytes(checksum.try_into().ok()?);
    if length > MAX_RECORD {
        return None;
    }
    let end = position + 8 + length;
    let payload = bytes.get(position + 8..end)?;
    (crc32fast::hash(payload) == checksum).then_some((payload, end))
}

fn read_acked(path: &Path) -> u64 {
    let read = || {
        let bytes = fs::read(path).ok()?;
        let (number, checksum) = bytes.get(..12)?.split_at(8);
        let checksum = u32::from_le_bytes(checksum.try_into().ok()?);
        (crc32fast::hash(number) == checksum).then_some(u64::from_le_bytes(number.try_into().ok()?))
    };
    read().unwrap_or(0)
}

/// The body of a delta between two states.
pub(crate) fn patch_body(before: Digest, after: Digest, patch: Patch) -> Body {
    Body::Patch { base: before, next: after, patch }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Kind, Value};

    fn facts(number: i64) -> Facts {
        let fields: Fields =
            [("n".to_owned(), Value::Int(number)), ("pad".to_owned(), "x".repeat(200).into())]
                .into();
        [(Subject::escaped(Kind::UNIT, "a.service"), Item::new(&fields))].into_iter().collect()
    }

    fn push(spool: &mut Spool, from: i64, to: i64) {
        let (before, after) = (facts(from), facts(to));
        let body = patch_body(before.digest(), after.digest(), model::diff(&before, &after));
        assert!(spool.push(Time(to), body, None).is_none());
    }

    fn open(dir: &Path, limit: u64) -> Opened {
        Spool::open(dir, limit, || "stream".into()).unwrap()
    }

    fn begin(dir: &Path, limit: u64, last: i64) -> Spool {
        let mut spool = open(dir, limit).spool;
        assert!(spool.push(Time(0), Body::Keyframe(facts(0)), None).is_none());
        for number in 1..=last {
            push(&mut spool, number - 1, number);
        }
        spool
    }

    /// Applies all that the spool gives to a state, as a server would.
    fn drain(spool: &mut Spool) -> (Facts, u64) {
        let (mut state, mut merged) = (spool.acknowledged.clone(), 0);
        while !spool.is_empty() {
            let batch = spool.batch().unwrap();
            for delta in &batch {
                if let Body::Patch { base, .. } = &delta.body {
                    assert_eq!(*base, state.digest());
                }
                merged += delta.gap.map_or(0, |gap| gap.merged);
                apply(&mut state, delta.body.clone());
            }
            spool.acknowledged(batch.last().unwrap().sequence).unwrap();
        }
        (state, merged)
    }

    #[test]
    fn what_waits_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = begin(dir.path(), 1 << 20, 5);
        spool.acknowledged(3).unwrap();
        drop(spool);
        let Opened { mut spool, facts: state } = open(dir.path(), 1 << 20);
        assert_eq!(state, facts(5));
        assert_eq!(
            spool.batch().unwrap().iter().map(|d| d.sequence).collect::<Vec<_>>(),
            [4, 5, 6]
        );
        assert_eq!(drain(&mut spool).0, facts(5));
    }

    #[test]
    fn a_torn_tail_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        drop(begin(dir.path(), 1 << 20, 5));
        let whole = fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            fs::write(&path, whole.get(..cut).unwrap()).unwrap();
            let mut spool = open(dir.path(), 1 << 20).spool;
            drain(&mut spool);
        }
        let mut garbage = whole.clone();
        garbage.extend([0xff; 100]);
        fs::write(&path, garbage).unwrap();
        let _unread = fs::remove_file(dir.path().join("acked"));
        assert_eq!(open(dir.path(), 1 << 20).facts, facts(5));
    }

    /// Numbers that may have been given out already are not given out again for something else.
    #[test]
    fn a_spool_that_lost_its_end_begins_a_new_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let reopened = || {
            // Killed before it began anew, it is known all the same.
            drop(open(dir.path(), 1 << 20));
            let Opened { mut spool, facts } = open(dir.path(), 1 << 20);
            assert!(spool.is_stale() && spool.begins_whole());
            spool.collapse("fresh".into(), Time(9)).unwrap();
            let batch = spool.batch().unwrap();
            let is_whole = matches!(&batch[0].body, Body::Keyframe(whole) if *whole == facts);
            let told = (spool.stream() == "fresh", batch.len(), is_whole && batch[0].gap.is_some());
            drop(spool);
            assert!(!open(dir.path(), 1 << 20).spool.is_stale());
            told
        };
        drop(begin(dir.path(), 1 << 20, 5));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(reopened(), (true, 1, true), "half a record at the end");
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert_eq!(reopened(), (true, 1, true), "damage in the middle");
        // Put back from a copy, and what was acknowledged is known still.
        fs::write(&path, &whole).unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20, || "fresh".into()).unwrap().spool;
        assert_eq!((spool.stream(), spool.newest()), ("stream", 6));
        push(&mut spool, 5, 6);
        spool.acknowledged(7).unwrap();
        drop(spool);
        fs::write(&path, &whole).unwrap();
        assert_eq!(reopened(), (true, 1, true), "acknowledged beyond its end");
    }

    /// Adds what leads from one state to another.
    fn lead(spool: &mut Spool, from: &Facts, to: &Facts, at: i64, of_first: bool) {
        let subjects: BTreeSet<Subject> =
            from.iter().chain(to.iter()).map(|(subject, _)| subject.clone()).collect();
        let patch = Patch::of(from, to, &subjects);
        let body = patch_body(from.digest(), to.digest(), patch);
        let trouble = if of_first {
            spool.push_first(Time(at), body)
        } else {
            spool.push(Time(at), body, None)
        };
        assert!(trouble.is_none());
    }

    fn with(facts: &Facts, id: &str, number: i64) -> Facts {
        let mut facts = facts.clone();
        let fields: Fields = [("n".to_owned(), Value::Int(number))].into();
        facts.put(Subject::escaped(Kind::UNIT, id), Item::new(&fields));
        facts
    }

    #[test]
    fn what_was_there_is_one_state_and_what_happened_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = open(dir.path(), 1 << 20).spool;
        let found = with(&facts(0), "late", 1);
        let busy = with(&found, "busy", 1);
        let over = found.clone();
        let recalled = with(&with(&over, "recalled", 1), "busy", 2);
        assert!(spool.push_first(Time(1), Body::Keyframe(facts(0))).is_none());
        lead(&mut spool, &facts(0), &found, 2, true);
        lead(&mut spool, &found, &busy, 3, false);
        lead(&mut spool, &busy, &over, 4, false);
        lead(&mut spool, &over, &recalled, 5, true);
        drop(spool);
        let mut spool = open(dir.path(), 1 << 20).spool;
        spool.condense().unwrap();
        let batch = spool.batch().unwrap();
        let told: Vec<_> = batch.iter().map(|delta| (delta.at, delta.gap)).collect();
        assert_eq!(told, [1, 3, 4, 5].map(|at| (Time(at), None)));
        let Body::Keyframe(whole) = &batch[0].body else { panic!("not whole") };
        for id in ["a.service", "late", "recalled"] {
            assert!(whole.get(&Subject::escaped(Kind::UNIT, id)).is_some(), "{id}");
        }
        assert_eq!(drain(&mut spool).0, recalled);
    }

    #[test]
    fn what_happened_is_never_condensed() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = begin(dir.path(), 1 << 20, 5);
        let waiting = spool.len();
        spool.condense().unwrap();
        assert_eq!(spool.len(), waiting);
    }

    #[test]
    fn a_full_spool_merges_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let limit = 64 << 10;
        let mut spool = begin(dir.path(), limit, 1000);
        assert!(spool.size() <= limit + 1024, "{}", spool.size());
        let (state, merged) = drain(&mut spool);
        assert_eq!(state, facts(1000));
        assert!(merged > 500, "{merged}");
    }

    #[test]
    fn a_resync_begins_with_the_whole_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = begin(dir.path(), 1 << 20, 5);
        spool.acknowledged(3).unwrap();
        spool.resync("another".into(), Time(9)).unwrap();
        drop(spool);
        let mut spool = open(dir.path(), 1 << 20).spool;
        assert_eq!(spool.stream(), "another");
        let first = spool.batch().unwrap().remove(0);
        assert_eq!(first.body, Body::Keyframe(facts(2)));
        assert_eq!(drain(&mut spool).0, facts(5));
    }

    #[test]
    fn what_is_refused_becomes_one_whole_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = begin(dir.path(), 1 << 20, 5);
        spool.acknowledged(3).unwrap();
        spool.collapse("another".into(), Time(9)).unwrap();
        let batch = spool.batch().unwrap();
        assert_eq!((batch.len(), &batch[0].body), (1, &Body::Keyframe(facts(5))));
        assert_eq!(batch[0].gap.unwrap().merged, 4);
        assert_eq!(drain(&mut spool).0, facts(5));
    }

    #[test]
    fn two_agents_can_not_share_a_spool() {
        let dir = tempfile::tempdir().unwrap();
        let _first = begin(dir.path(), 1 << 20, 1);
        let second = Spool::open(dir.path(), 1 << 20, String::new);
        assert!(matches!(second, Err(Error::InUse { .. })));
    }
}
