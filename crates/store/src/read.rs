//! Reads one host's history: states, entries, the log. Changes nothing.

use crate::block::{self, Block, Since};
use crate::cache::Cache;
use crate::codec::{Malformed, Reader as Bytes};
use crate::engine::{Bucket, Db, era_of};
use crate::error::Error;
use crate::keys;
use crate::record::{Base, HostNumber, Keyframe, Meta, Origin, Plain, Record, check_of};
use crate::types::{Entry, Filter, Gap};
use model::{Facts, Patch, Significance, Subject, Time, Version};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

/// Full states in memory, by host, era and version.
pub(crate) type Bases = Mutex<Cache<BaseKey, Arc<Base>>>;

pub(crate) type BaseKey = (HostNumber, i64, Version);

pub(crate) fn base_key(host: HostNumber, day: i64, version: Version) -> BaseKey {
    (host, era_of(day), version)
}

/// The versions of a host in one bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) day: i64,
    pub(crate) first: Version,
    pub(crate) first_at: Time,
    pub(crate) last: Version,
}

/// A host's newest state as the writer needs it.
#[derive(Debug)]
pub(crate) struct HeadState {
    pub(crate) version: Version,
    pub(crate) facts: Facts,
    /// `None` when the next version begins a bucket.
    pub(crate) block: Option<Block>,
}

/// One host's history, as of the head that `meta` has.
pub(crate) struct Past<'a> {
    pub(crate) db: &'a Db,
    pub(crate) bases: &'a Bases,
    pub(crate) meta: &'a Meta,
}

impl Past<'_> {
    fn number(&self) -> HostNumber {
        self.meta.number
    }

    fn head(&self) -> Version {
        self.meta.state.head
    }

    fn damaged(
        &self,
        what: &'static str,
        version: Version,
    ) -> impl FnOnce(Malformed) -> Error + '_ {
        move |Malformed| Error::corrupt(what).of(&self.meta.host, Some(version))
    }

    fn failed(&self, version: Option<Version>) -> impl Fn(fjall::Error) -> Error + '_ {
        move |source| Error::storage("read the history")(source).of(&self.meta.host, version)
    }

    pub(crate) fn spans(&self) -> Result<Vec<Span>, Error> {
        let mut spans: Vec<Span> = Vec::new();
        for entry in self.db.hosts.prefix(keys::spans(self.number())) {
            let (key, value) = entry.into_inner().map_err(self.failed(None))?;
            let (first, first_at) =
                decode_span(&value).map_err(self.damaged("the list of days", self.head()))?;
            if first > self.head() {
                break;
            }
            if let Some(previous) = spans.last_mut() {
                previous.last = Version(first.0.saturating_sub(1));
            }
            spans.push(Span { day: keys::signed_of(&key), first, first_at, last: self.head() });
        }
        Ok(spans)
    }

    fn span_of(&self, version: Version) -> Result<Option<Span>, Error> {
        if version > self.head() {
            return Ok(None);
        }
        Ok(self.spans()?.into_iter().rev().find(|span| span.first <= version))
    }

    fn origin_bytes(&self) -> Result<Option<fjall::UserValue>, Error> {
        self.db.origins.get(keys::host_start(self.number())).map_err(self.failed(None))
    }

    /// The last version before all that is kept, when it is this one or `None` was asked.
    pub(crate) fn origin_record(&self) -> Result<Option<Record>, Error> {
        let decode = |bytes: fjall::UserValue| {
            Origin::decode_record(self.number(), &bytes)
                .map_err(self.damaged("the origin", self.head()))
        };
        self.origin_bytes()?.map(decode).transpose()
    }

    /// The last version before the days that are kept. That there is one, where it is damaged.
    fn before_days(&self, spans: &[Span]) -> Result<Option<Entry>, Error> {
        let first = spans.first();
        match self.origin_record() {
            Ok(record) => {
                let is_before = |entry: &Entry| first.is_none_or(|span| entry.version < span.first);
                Ok(record.map(|record| record.entry).filter(is_before))
            }
            Err(error) => {
                let end = first.map_or(self.head().0.saturating_add(1), |span| span.first.0);
                let Some(last) = end.checked_sub(1).filter(|last| *last > 0) else {
                    return Ok(None);
                };
                let first_at = first.map_or(self.meta.state.head_at, |span| span.first_at);
                let last = Version(last);
                let span = Span { day: 0, first: last, first_at, last };
                damaged_part(span, last, last, error).map(Some)
            }
        }
    }

    fn origin(&self, version: Version) -> Result<Option<Origin>, Error> {
        let Some(bytes) = self.origin_bytes()? else { return Ok(None) };
        let origin =
            Origin::decode(self.number(), &bytes).map_err(self.damaged("the origin", version))?;
        Ok((origin.record.entry.version == version).then_some(origin))
    }

    fn decode(&self, bucket: &Bucket, version: Version, bytes: &[u8]) -> Result<Record, Error> {
        Record::decode(self.number(), bucket.day, version, bytes)
            .map_err(self.damaged("a version", version))
    }

    fn record(&self, bucket: &Bucket, version: Version) -> Result<Option<Record>, Error> {
        let key = keys::version(self.number(), version);
        let bytes = bucket.keyspace.get(key).map_err(self.failed(Some(version)))?;
        bytes.map(|bytes| self.decode(bucket, version, &bytes)).transpose()
    }

    /// The versions of a bucket in a range, in order or, from the back, in reverse.
    pub(crate) fn records<'a>(
        &'a self,
        bucket: &'a Bucket,
        range: RangeInclusive<Version>,
    ) -> impl DoubleEndedIterator<Item = Result<Record, Error>> + 'a {
        let (from, to) = range.into_inner();
        let keys = keys::version(self.number(), from)..=keys::version(self.number(), to);
        // An empty range whose ends are the wrong way round is no error.
        let entries = (from <= to).then(|| bucket.keyspace.range(keys));
        entries.into_iter().flatten().map(move |entry| {
            let (key, bytes) = entry.into_inner().map_err(self.failed(Some(from)))?;
            self.decode(bucket, keys::version_of(&key), &bytes)
        })
    }

    /// The newest keyframe of a bucket up to a version: its version, the state and its base.
    pub(crate) fn keyframe(
        &self,
        bucket: &Bucket,
        upto: Version,
    ) -> Result<Option<(Version, Facts, Arc<Base>)>, Error> {
        let keys = keys::keyframe(self.number(), Version(0))..=keys::keyframe(self.number(), upto);
        let Some(entry) = bucket.keyspace.range(keys).next_back() else { return Ok(None) };
        let (key, bytes) = entry.into_inner().map_err(self.failed(Some(upto)))?;
        let version = keys::version_of(&key);
        let damaged = || self.damaged("a keyframe", version);
        let keyframe = Keyframe::decode(self.number(), version, &bytes).map_err(damaged())?;
        let Keyframe::Partial { base, .. } = &keyframe else { return Err(damaged()(Malformed)) };
        let base = self.base(bucket.day, *base)?;
        let facts = keyframe.over(&base).map_err(damaged())?;
        Ok(Some((version, facts, base)))
    }

    /// A full state that the keyframes of a day refer to, from memory when it is there.
    pub(crate) fn base(&self, day: i64, version: Version) -> Result<Arc<Base>, Error> {
        let key = base_key(self.number(), day, version);
        let cached = || self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = cached().get(key) {
            return Ok(base.clone());
        }
        let base = self.full(day, version, |keyframe| keyframe.to_base(version))?;
        let base = Arc::new(base);
        cached().put(key, base.clone(), base.weight());
        Ok(base)
    }

    /// The same, as far as writing needs it. That is not kept: the next keyframe of the same
    /// host is far away.
    pub(crate) fn plain_base(&self, day: i64, version: Version) -> Result<Arc<Plain>, Error> {
        let key = base_key(self.number(), day, version);
        let cached = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = { cached }.get(key).map(|base| Arc::clone(&base.plain));
        match cached {
            Some(plain) => Ok(plain),
            None => self.full(day, version, |keyframe| keyframe.to_plain()).map(Arc::new),
        }
    }

    fn full<T>(
        &self,
        day: i64,
        version: Version,
        read: impl FnOnce(&Keyframe<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let damaged = || self.damaged("a full state", version);
        let era = self.db.era(day).ok_or(Malformed).map_err(damaged())?;
        let bytes = era.get(keys::keyframe(self.number(), version));
        let bytes = bytes.map_err(self.failed(Some(version)))?.ok_or(Malformed);
        let bytes = bytes.map_err(damaged())?;
        let keyframe = Keyframe::decode(self.number(), version, &bytes);
        keyframe.and_then(|keyframe| read(&keyframe)).map_err(damaged())
    }

    /// The state after a version; `None` when it is not kept.
    pub(crate) fn state(&self, version: Version) -> Result<Option<Facts>, Error> {
        let Some(span) = self.span_of(version)? else {
            return Ok(self.origin(version)?.map(|origin| origin.facts));
        };
        let Some(bucket) = self.db.bucket(span.day) else {
            // Dropped just now.
            return Ok(self.origin(version)?.map(|origin| origin.facts));
        };
        self.state_in(&bucket, version)
    }

    pub(crate) fn state_in(
        &self,
        bucket: &Bucket,
        version: Version,
    ) -> Result<Option<Facts>, Error> {
        let missing = || {
            let corrupt =
                || Error::corrupt("a version is missing").of(&self.meta.host, Some(version));
            if bucket.thinned { Ok(None) } else { Err(corrupt()) }
        };
        let Some((keyframe, mut facts, _)) = self.keyframe(bucket, version)? else {
            return missing();
        };
        let mut last = keyframe;
        let mut check = check_of(facts.digest());
        for record in self.records(bucket, Version(keyframe.0 + 1)..=version) {
            let record = record?;
            last = record.entry.version;
            check = record.check;
            self.apply(&record.entry.patch, last, &mut facts)?;
        }
        if last != version {
            return missing();
        }
        if check_of(facts.digest()) != check {
            return Err(
                Error::corrupt("patches lead to another state").of(&self.meta.host, Some(version))
            );
        }
        Ok(Some(facts))
    }

    fn apply(&self, patch: &Patch, version: Version, facts: &mut Facts) -> Result<(), Error> {
        let corrupt = |error| Error::corrupt(format!("{error}")).of(&self.meta.host, Some(version));
        patch.apply(facts).map_err(corrupt)
    }

    /// The head, and the block that the next version continues.
    pub(crate) fn head_state(&self) -> Result<HeadState, Error> {
        let version = self.head();
        if version == Version(0) {
            return Ok(HeadState { version, facts: Facts::default(), block: None });
        }
        let span = self.span_of(version)?;
        let Some((span, bucket)) = span.and_then(|span| Some((span, self.db.bucket(span.day)?)))
        else {
            let origin = self.origin(version)?.ok_or(Malformed);
            let facts = origin.map_err(self.damaged("the head is missing", version))?.facts;
            return Ok(HeadState { version, facts, block: None });
        };
        let facts = self.state_in(&bucket, version)?.ok_or(Malformed);
        let facts = facts.map_err(self.damaged("the head is missing", version))?;
        let keyframe = self.keyframe(&bucket, version)?.ok_or(Malformed);
        let (keyframe, _, base) = keyframe.map_err(self.damaged("a keyframe", version))?;
        let first = first_open(span, keyframe);
        let since = Since::between(&base, &facts);
        let mut block = Block::after(self.number(), bucket.day, since, first);
        for record in self.records(&bucket, first..=version) {
            self.note(&mut block, &record?);
        }
        Ok(HeadState { version, facts, block: Some(block) })
    }

    fn note(&self, block: &mut Block, record: &Record) {
        block.note(record, record.encode(self.number(), block.day).len());
    }

    /// What takes the place of a head that can't be read: no facts, and the versions of the
    /// open block that can be, so that they are found by the log later.
    pub(crate) fn lost_head(&self) -> Result<HeadState, Error> {
        let version = self.head();
        let mut head = HeadState { version, facts: Facts::default(), block: None };
        let span = self.span_of(version)?;
        let Some((span, bucket)) = span.and_then(|span| Some((span, self.db.bucket(span.day)?)))
        else {
            return Ok(head);
        };
        let keyframe = self.newest_keyframe(&bucket).ok().flatten().unwrap_or(span.first);
        let first = first_open(span, keyframe);
        let mut block = Block::after(self.number(), bucket.day, Since::new(keyframe), first);
        // So many at most, whatever the engine does behind the damage.
        let count = usize::try_from(version.0 - first.0).unwrap_or(0) + 1;
        for record in self.records(&bucket, first..=version).take(count).flatten() {
            self.note(&mut block, &record);
        }
        head.block = Some(block);
        Ok(head)
    }

    /// The newest version that is not after a time.
    pub(crate) fn version_at(&self, time: Time) -> Result<Option<Version>, Error> {
        let span = self.spans()?.into_iter().rev().find(|span| span.first_at <= time);
        let Some((span, bucket)) = span.and_then(|span| Some((span, self.db.bucket(span.day)?)))
        else {
            let origin = self.origin_record()?.map(|record| record.entry);
            return Ok(origin.filter(|entry| entry.at <= time).map(|entry| entry.version));
        };
        let (mut low, mut high) = (span.first.0, span.last.0);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.at_or_before(&bucket, span.first..=Version(middle))? {
                Some((_, at)) if at <= time => low = middle,
                Some((version, _)) => high = version.0.saturating_sub(1).max(span.first.0),
                None => high = middle - 1,
            }
        }
        let found = self.at_or_before(&bucket, span.first..=Version(low))?;
        Ok(found.map(|(version, _)| version))
    }

    /// The newest version of a range that is kept, and its time.
    fn at_or_before(
        &self,
        bucket: &Bucket,
        range: RangeInclusive<Version>,
    ) -> Result<Option<(Version, Time)>, Error> {
        let (from, to) = range.into_inner();
        let keys = keys::version(self.number(), from)..=keys::version(self.number(), to);
        let Some(entry) = bucket.keyspace.range(keys).next_back() else { return Ok(None) };
        let (key, bytes) = entry.into_inner().map_err(self.failed(Some(to)))?;
        let version = keys::version_of(&key);
        let at = Record::decode_at(self.number(), bucket.day, version.0, &bytes)
            .map_err(self.damaged("a version", version))?;
        Ok(Some((version, at)))
    }

    pub(crate) fn entry(&self, version: Version) -> Result<Option<Entry>, Error> {
        let span = self.span_of(version)?;
        let bucket = span.and_then(|span| self.db.bucket(span.day));
        let record = match bucket {
            Some(bucket) => self.record(&bucket, version)?,
            None => self.origin_record()?.filter(|record| record.entry.version == version),
        };
        Ok(record.map(|record| record.entry))
    }

    /// Versions after one, oldest first.
    pub(crate) fn after(&self, version: Version, limit: usize) -> Result<Vec<Entry>, Error> {
        let from = Version(version.0.saturating_add(1));
        let mut entries = Vec::new();
        let spans = self.spans()?;
        entries.extend(self.before_days(&spans)?.filter(|entry| entry.version >= from));
        for span in spans {
            let Some(bucket) = self.db.bucket(span.day) else { continue };
            for record in self.records(&bucket, span.first.max(from)..=span.last) {
                if entries.len() >= limit {
                    return Ok(entries);
                }
                match record {
                    Ok(record) => entries.push(record.entry),
                    Err(error) => {
                        let reached = entries.last().map_or(Version(0), |last| last.version);
                        entries.push(damaged_part(span, reached.max(from), span.last, error)?);
                        break;
                    }
                }
            }
        }
        entries.truncate(limit);
        Ok(entries)
    }

    /// What led from one version to a later one; `None` where not every version between them is
    /// kept.
    pub(crate) fn between(&self, from: Version, to: Version) -> Result<Option<Patch>, Error> {
        let (mut reached, mut whole) = (from, Patch::default());
        for span in self.spans()?.into_iter().filter(|span| span.last > from && span.first <= to) {
            let Some(bucket) = self.db.bucket(span.day) else { return Ok(None) };
            let first = span.first.max(Version(from.0.saturating_add(1)));
            for record in self.records(&bucket, first..=span.last.min(to)) {
                let Record { entry, .. } = record?;
                // Behind a gap may be what a damaged state was replaced with.
                if entry.version.0 != reached.0.saturating_add(1) || entry.gap.is_some() {
                    return Ok(None);
                }
                reached = entry.version;
                whole = whole.then(entry.patch);
            }
        }
        Ok((reached == to).then_some(whole))
    }

    /// Entries that fit the filter, newest first, before a version.
    pub(crate) fn log(
        &self,
        filter: &Filter,
        before: Option<Version>,
        limit: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut upto = before.map_or(self.head(), |before| Version(before.0.saturating_sub(1)));
        if let Some(until) = filter.until {
            let Some(last) = self.version_at(until)? else { return Ok(Vec::new()) };
            upto = upto.min(last);
        }
        let mut found = Found { filter, limit, entries: Vec::new() };
        let spans = self.spans()?;
        for span in spans.iter().rev().filter(|span| span.first <= upto) {
            let Some(bucket) = self.db.bucket(span.day) else { continue };
            let last = span.last.min(upto);
            match self.log_of(&bucket, *span, last, &mut found) {
                Ok(true) => {}
                Ok(false) => return Ok(found.entries),
                Err(error) => {
                    let below = found.entries.last().map(|entry| entry.version.0 - 1);
                    let last = last.min(Version(below.unwrap_or(last.0))).max(span.first);
                    found.entries.push(damaged_part(*span, span.first, last, error)?);
                }
            }
        }
        if let Some(entry) = self.before_days(&spans)?.filter(|entry| entry.version <= upto) {
            found.take(entry);
        }
        Ok(found.entries)
    }

    /// Takes what fits from a bucket, up to a version; false when nothing more can be taken.
    fn log_of(
        &self,
        bucket: &Bucket,
        span: Span,
        last: Version,
        found: &mut Found<'_>,
    ) -> Result<bool, Error> {
        let range = span.first..=last;
        match self.candidates(bucket, span, range.clone(), found.filter)? {
            None => {
                for record in self.records(bucket, range).rev() {
                    if !found.take(record?.entry) {
                        return Ok(false);
                    }
                }
            }
            Some(versions) => {
                for version in versions.into_iter().rev() {
                    let Some(record) = self.record(bucket, version)? else { continue };
                    if !found.take(record.entry) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// The versions of a bucket that may fit a filter, by its postings; `None` for all.
    fn candidates(
        &self,
        bucket: &Bucket,
        span: Span,
        range: RangeInclusive<Version>,
        filter: &Filter,
    ) -> Result<Option<BTreeSet<Version>>, Error> {
        let major = filter.significance == Some(Significance::Major);
        let terms: Vec<keys::Term> = if !filter.subjects.is_empty() {
            filter.subjects.iter().map(keys::subject_term).collect()
        } else if !filter.kinds.is_empty() {
            filter.kinds.iter().map(|kind| keys::kind_term(*kind)).collect()
        } else if major {
            vec![keys::MAJOR]
        } else {
            return Ok(None);
        };
        let mut versions = BTreeSet::new();
        for term in &terms {
            versions.append(&mut self.posted(bucket, *term, &range)?);
        }
        if major && terms != [keys::MAJOR] {
            let majors = self.posted(bucket, keys::MAJOR, &range)?;
            versions.retain(|version| majors.contains(version));
        }
        if span.last == self.head() {
            // The open block has no postings yet.
            let keyframe = self.newest_keyframe(bucket)?.unwrap_or(span.first);
            let first = first_open(span, keyframe);
            versions.extend(
                (first.0..=range.end().0).map(Version).filter(|version| range.contains(version)),
            );
        }
        Ok(Some(versions))
    }

    fn newest_keyframe(&self, bucket: &Bucket) -> Result<Option<Version>, Error> {
        let keys =
            keys::keyframe(self.number(), Version(0))..=keys::keyframe(self.number(), self.head());
        let newest = bucket.keyspace.range(keys).next_back();
        let key = newest.map(fjall::Guard::key).transpose().map_err(self.failed(None))?;
        Ok(key.map(|key| keys::version_of(&key)))
    }

    fn posted(
        &self,
        bucket: &Bucket,
        term: keys::Term,
        range: &RangeInclusive<Version>,
    ) -> Result<BTreeSet<Version>, Error> {
        let number = self.number();
        let keys =
            keys::posting(number, term, Version(0))..=keys::posting(number, term, *range.end());
        let mut versions = BTreeSet::new();
        for entry in bucket.keyspace.range(keys) {
            let (key, value) = entry.into_inner().map_err(self.failed(None))?;
            let posted = block::postings(&key, &value)
                .map_err(self.damaged("the index", keys::version_of(&key)))?;
            versions.extend(posted.into_iter().filter(|version| range.contains(version)));
        }
        Ok(versions)
    }

    /// Every subject the host has, or had in what is kept.
    pub(crate) fn subjects(&self) -> Result<Vec<Subject>, Error> {
        let mut subjects = Vec::new();
        for entry in self.db.subjects.range(keys::subjects(self.number())) {
            let key = entry.key().map_err(self.failed(None))?;
            let text = key.get(4..).and_then(|text| std::str::from_utf8(text).ok());
            let subject = text.and_then(|text| text.parse().ok()).ok_or(Malformed);
            subjects.push(subject.map_err(self.damaged("the list of subjects", self.head()))?);
        }
        subjects.sort();
        Ok(subjects)
    }
}

/// The first version of a bucket that no postings cover, by its newest keyframe.
fn first_open(span: Span, keyframe: Version) -> Version {
    if keyframe <= span.first { span.first } else { Version(keyframe.0 + 1) }
}

/// What the log says of versions that can't be read; the error itself when that is no damage.
fn damaged_part(span: Span, first: Version, last: Version, error: Error) -> Result<Entry, Error> {
    if !error.is_damage() {
        return Err(error);
    }
    Ok(Entry {
        version: last,
        at: span.first_at,
        host_time: None,
        received: span.first_at,
        significance: Significance::Major,
        patch: Patch::default(),
        narrowed: true,
        first_looks: BTreeSet::new(),
        gap: Some(Gap { since: span.first_at, merged: (last.0 + 1).saturating_sub(first.0) }),
        label: Some(format!("left out from {first} on: {error}")),
        merged: 0,
    })
}

fn decode_span(bytes: &[u8]) -> Result<(Version, Time), Malformed> {
    let mut reader = Bytes::new(bytes);
    Ok((Version(reader.varint()?), Time(reader.signed()?)))
}

struct Found<'a> {
    filter: &'a Filter,
    limit: usize,
    entries: Vec<Entry>,
}

impl Found<'_> {
    /// Takes an entry if it fits; false when nothing more can.
    fn take(&mut self, entry: Entry) -> bool {
        if self.entries.len() >= self.limit
            || self.filter.since.is_some_and(|since| entry.at < since)
        {
            return false;
        }
        self.entries.extend(narrow(entry, self.filter));
        self.entries.len() < self.limit
    }
}

/// The entry with only what the filter asks for; `None` when that is nothing.
fn narrow(mut entry: Entry, filter: &Filter) -> Option<Entry> {
    if !filter.subjects.is_empty() || !filter.kinds.is_empty() {
        let is_wanted = |subject: &Subject| {
            (filter.subjects.is_empty() || filter.subjects.contains(subject))
                && (filter.kinds.is_empty() || filter.kinds.contains(&subject.kind()))
        };
        if !entry.narrow(is_wanted) {
            return None;
        }
    }
    let matters = filter.significance.is_none_or(|least| entry.significance >= least);
    matters.then_some(entry)
}
