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
//! - What can't be read back is given up as a whole: until the whole state is told again, which is
//!   marked with the gap, nothing is taken.
//! - A disk that takes nothing does not stop the agent: deltas are then held in memory, within
//!   the same rules, and the journal is written anew as soon as it can be.

mod journal;
mod merging;
#[cfg(test)]
mod tests;

use api::wire::{Body, Delta, Gap};
use journal::{Found, MAGIC, Place, Record, Waiting, encode, framed, read_acked, read_journal};
use merging::{apply, condensed, merged};
use model::{Digest, Facts, Patch, Time};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Bytes of acknowledged deltas that may lie in the journal before it is written anew.
const ROTATE_AT: u64 = 4 << 20;
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

impl Error {
    /// Whether what waits can't be read back.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Read { .. })
    }
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
    /// What was given up, while the whole state is awaited that stands for it.
    lost: Option<Gap>,
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
            lost: None,
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

    /// Gives up what waits, since it can't be read back. What leads on from there leads nowhere,
    /// until the whole state is added.
    pub(crate) fn give_up(&mut self) -> io::Result<()> {
        let Some(since) = self.oldest() else { return Ok(()) };
        let merged = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
        self.lost = Some(Gap { since, merged });
        self.waiting.clear();
        self.whole = false;
        self.mark_stale()
    }

    /// Whether nothing but the whole state is taken.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_some()
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
        let is_whole = matches!(body, Body::Keyframe(_));
        let gap = match &mut self.lost {
            Some(lost) => {
                lost.merged += 1;
                Some(*lost)
            }
            None => gap,
        };
        if self.is_lost() && !is_whole {
            return None;
        }
        self.lost = None;
        let delta = Delta { sequence: self.next_sequence, at, body, gap };
        self.next_sequence += 1;
        let mut trouble = None;
        if !self.whole {
            trouble = self.rewrite().err();
        }
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
        if self.is_lost() {
            return Ok(());
        }
        self.begin_anew(stream, now)?;
        self.rewrite()
    }

    /// The same in memory.
    fn begin_anew(&mut self, stream: String, now: Time) -> Result<(), Error> {
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
        Ok(())
    }

    /// Gives up the single steps that wait: starts a new stream with the state they lead to,
    /// marked as a gap. Where the disk takes nothing that is so in memory, and goes on from there.
    pub(crate) fn collapse(&mut self, stream: String, now: Time) -> Result<(), Error> {
        self.begin_anew(stream, now)?;
        let deltas: Vec<Delta> =
            self.waiting.iter().map(|waiting| self.read(waiting)).collect::<Result<_, _>>()?;
        let mut one = deltas.into_iter().reduce(merged);
        if let Some(one) = &mut one {
            one.gap.get_or_insert(Gap { since: one.at, merged: 1 });
        }
        self.hold(one.into_iter().collect());
        self.is_stale = false;
        self.rewrite()
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
        if self.is_stale {
            return Ok(());
        }
        match fs::remove_file(self.dir.join(STALE)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::Write { path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
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

/// The body of a delta between two states.
pub(crate) fn patch_body(before: Digest, after: Digest, patch: Patch) -> Body {
    Body::Patch { base: before, next: after, patch }
}
