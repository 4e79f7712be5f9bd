//! The stored form of versions, keyframes and what is known of a host, each with a checksum.
//!
//! A checksum is also over whose record it is and which, so that a record in the wrong place
//! is noticed like a damaged one.

use crate::codec::{
    Malformed, Reader, put_items, put_patch, put_signed, put_subjects, put_text, put_varint,
};
use crate::types::{Entry, Gap, HostInfo, StreamInfo};
use model::{Digest, Facts, HostId, Item, Patch, Significance, Subject, Time, Version};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

type Result<T> = std::result::Result<T, Malformed>;

/// What a state may weigh uncompressed.
const MAX_RAW_BYTES: u64 = 1 << 30;
/// Patches larger than this are compressed by themselves; smaller ones together with their
/// neighbours, by the engine.
const COMPRESS_FROM: usize = 400;
const LEVEL: i32 = 3;
const KEYFRAME_LEVEL: i32 = 3;

const MAJOR: u8 = 1;
const COMPRESSED: u8 = 1 << 1;
const HOST_TIME: u8 = 1 << 2;
const GAP: u8 = 1 << 3;
const LABEL: u8 = 1 << 4;
const MERGED: u8 = 1 << 5;

/// The number of a host within one store; never used again for another.
pub(crate) type HostNumber = u32;

thread_local! {
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn checksum(host: HostNumber, version: u64, bytes: &[u8]) -> [u8; 4] {
    let seed = u64::from(host).rotate_left(40) ^ version;
    let [a, b, c, d, ..] = xxh3_64_with_seed(bytes, seed).to_le_bytes();
    [a, b, c, d]
}

fn seal(host: HostNumber, version: u64, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 4);
    out.extend_from_slice(&checksum(host, version, body));
    out.extend_from_slice(body);
    out
}

fn unseal(host: HostNumber, version: u64, bytes: &[u8]) -> Result<Reader<'_>> {
    let mut reader = Reader::new(bytes);
    let expected = reader.array::<4>()?;
    if expected == checksum(host, version, reader.rest()) { Ok(reader) } else { Err(Malformed) }
}

/// The part of a digest that each version keeps, to notice when patches lead elsewhere.
pub(crate) fn check_of(digest: Digest) -> [u8; 8] {
    digest.to_bytes().first_chunk().copied().unwrap_or_default()
}

fn compress(raw: &[u8]) -> Vec<u8> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(zstd::bulk::Compressor::new(LEVEL).expect("a valid level")),
        };
        compressor.compress(raw).expect("the buffer has zstd's own bound")
    })
}

fn decompress(bytes: &[u8], raw_length: u64) -> Result<Vec<u8>> {
    let capacity = capacity(raw_length)?;
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(zstd::bulk::Decompressor::new().map_err(|_memory| Malformed)?),
        };
        decompressor.decompress(bytes, capacity).map_err(|_damaged| Malformed)
    })
}

fn capacity(raw_length: u64) -> Result<usize> {
    if raw_length > MAX_RAW_BYTES {
        return Err(Malformed);
    }
    usize::try_from(raw_length).map_err(|_beyond_memory| Malformed)
}

/// A version as stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) entry: Entry,
    pub(crate) check: [u8; 8],
}

impl Record {
    /// Times are stored relative to the day of the bucket they are in.
    pub(crate) fn encode(&self, host: HostNumber, day: i64) -> Vec<u8> {
        let entry = &self.entry;
        let mut raw = Vec::with_capacity(64);
        put_patch(&mut raw, &entry.patch);
        let raw_length = raw.len() as u64;
        let packed = (raw.len() > COMPRESS_FROM).then(|| compress(&raw));
        let packed = packed.filter(|packed| packed.len() < raw.len());

        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let mut out = Vec::with_capacity(48 + packed.as_ref().unwrap_or(&raw).len());
        out.push(
            flag(entry.significance == Significance::Major, MAJOR)
                | flag(packed.is_some(), COMPRESSED)
                | flag(entry.host_time.is_some(), HOST_TIME)
                | flag(entry.gap.is_some(), GAP)
                | flag(entry.label.is_some(), LABEL)
                | flag(entry.merged > 0, MERGED),
        );
        out.extend_from_slice(&self.check);
        put_signed(&mut out, entry.at.0.wrapping_sub(day_start(day)));
        put_signed(&mut out, entry.received.0.wrapping_sub(entry.at.0));
        if let Some(time) = entry.host_time {
            put_signed(&mut out, time.0.wrapping_sub(entry.at.0));
        }
        if let Some(gap) = entry.gap {
            put_signed(&mut out, entry.at.0.wrapping_sub(gap.since.0));
            put_varint(&mut out, gap.merged);
        }
        if let Some(label) = &entry.label {
            put_text(&mut out, label);
        }
        if entry.merged > 0 {
            put_varint(&mut out, entry.merged);
        }
        match packed {
            Some(packed) => {
                put_varint(&mut out, raw_length);
                out.extend_from_slice(&packed);
            }
            None => out.extend_from_slice(&raw),
        }
        seal(host, entry.version.0, &out)
    }

    pub(crate) fn decode(
        host: HostNumber,
        day: i64,
        version: Version,
        bytes: &[u8],
    ) -> Result<Self> {
        let mut reader = unseal(host, version.0, bytes)?;
        let flags = reader.byte()?;
        let set = |bit: u8| flags & bit != 0;
        let check = reader.array()?;
        let at = reader.signed()?.wrapping_add(day_start(day));
        let received = reader.signed()?.wrapping_add(at);
        let host_time = set(HOST_TIME)
            .then(|| reader.signed().map(|d| Time(d.wrapping_add(at))))
            .transpose()?;
        let gap = if set(GAP) {
            let since = Time(at.wrapping_sub(reader.signed()?));
            Some(Gap { since, merged: reader.varint()? })
        } else {
            None
        };
        let label = set(LABEL).then(|| reader.text().map(str::to_owned)).transpose()?;
        let merged = if set(MERGED) { reader.varint()? } else { 0 };
        let patch = if set(COMPRESSED) {
            let raw_length = reader.varint()?;
            whole_patch(&decompress(reader.rest(), raw_length)?)?
        } else {
            whole_patch(reader.rest())?
        };
        let significance = if set(MAJOR) { Significance::Major } else { Significance::Minor };
        let entry = Entry {
            version,
            at: Time(at),
            host_time,
            received: Time(received),
            significance,
            patch,
            narrowed: false,
            first_looks: BTreeSet::new(),
            gap,
            label,
            merged,
        };
        Ok(Self { entry, check })
    }

    /// Only the time, for searching.
    pub(crate) fn decode_at(
        host: HostNumber,
        day: i64,
        version: u64,
        bytes: &[u8],
    ) -> Result<Time> {
        let mut reader = unseal(host, version, bytes)?;
        reader.byte()?;
        reader.array::<8>()?;
        Ok(Time(reader.signed()?.wrapping_add(day_start(day))))
    }
}

fn day_start(day: i64) -> i64 {
    day.wrapping_mul(86_400_000_000)
}

fn whole_patch(bytes: &[u8]) -> Result<Patch> {
    let mut reader = Reader::new(bytes);
    let patch = reader.patch()?;
    reader.end()?;
    Ok(patch)
}

/// A full state that later keyframes of the same bucket refer to.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) version: Version,
    pub(crate) facts: Facts,
    pub(crate) plain: Arc<Plain>,
}

impl Base {
    pub(crate) fn weight(&self) -> usize {
        self.facts.weight() + self.plain.raw.len()
    }
}

/// A full state that is not taken apart: all that writing a keyframe needs of it.
#[derive(Debug)]
pub(crate) struct Plain {
    /// The uncompressed items: the dictionary of the keyframes that refer to it.
    pub(crate) raw: Vec<u8>,
    /// Bytes it takes where it is stored.
    pub(crate) stored: usize,
}

/// What a keyframe says beyond its base.
#[derive(Debug)]
pub(crate) struct Difference<'a> {
    pub(crate) base: Version,
    /// Items that differ from the base. One that does not costs a few bytes and no harm.
    pub(crate) changed: Vec<(&'a Subject, &'a Item)>,
    /// Subjects of the base that are gone.
    pub(crate) gone: Vec<&'a Subject>,
}

impl<'a> Difference<'a> {
    pub(crate) fn between(base: &'a Base, facts: &'a Facts) -> Self {
        let before = &base.facts;
        let changed = facts.iter().filter(|(subject, item)| before.get(subject) != Some(item));
        let gone = before.iter().map(|(subject, _)| subject);
        Self {
            base: base.version,
            changed: changed.collect(),
            gone: gone.filter(|subject| facts.get(subject).is_none()).collect(),
        }
    }
}

/// A state after some version: in full, or as the items that differ from a base.
#[derive(Debug)]
pub(crate) enum Keyframe<'a> {
    Full { digest: Digest, raw_length: u64, packed: &'a [u8] },
    Partial { digest: Digest, base: Version, raw_length: u64, packed: &'a [u8] },
}

const FULL: u8 = 0;
const PARTIAL: u8 = 1;

impl<'a> Keyframe<'a> {
    /// The stored form of a full state, and the base it is for later ones.
    pub(crate) fn encode_full(
        host: HostNumber,
        version: Version,
        facts: &Facts,
    ) -> (Vec<u8>, Base) {
        let mut raw = Vec::new();
        put_items(&mut raw, facts.iter().collect::<Vec<_>>().into_iter());
        let packed =
            zstd::bulk::compress(&raw, KEYFRAME_LEVEL).expect("the buffer has zstd's own bound");
        let mut out = vec![FULL];
        out.extend_from_slice(&facts.digest().to_bytes());
        put_varint(&mut out, raw.len() as u64);
        out.extend_from_slice(&packed);
        let plain = Arc::new(Plain { raw, stored: out.len() });
        (seal(host, version.0, &out), Base { version, facts: facts.clone(), plain })
    }

    pub(crate) fn encode_partial(
        host: HostNumber,
        version: Version,
        digest: Digest,
        (difference, plain): (Difference<'_>, &Plain),
    ) -> Vec<u8> {
        let Difference { base, changed, gone } = difference;
        let mut raw = Vec::new();
        put_subjects(&mut raw, gone.into_iter());
        put_items(&mut raw, changed.into_iter());
        let mut compressor = zstd::bulk::Compressor::with_dictionary(KEYFRAME_LEVEL, &plain.raw)
            .expect("any bytes are a dictionary");
        let packed = compressor.compress(&raw).expect("the buffer has zstd's own bound");
        let mut out = vec![PARTIAL];
        out.extend_from_slice(&digest.to_bytes());
        put_varint(&mut out, base.0);
        put_varint(&mut out, raw.len() as u64);
        out.extend_from_slice(&packed);
        seal(host, version.0, &out)
    }

    pub(crate) fn decode(host: HostNumber, version: Version, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = unseal(host, version.0, bytes)?;
        let kind = reader.byte()?;
        let digest = Digest::from_bytes(reader.array()?);
        Ok(match kind {
            FULL => Self::Full { digest, raw_length: reader.varint()?, packed: reader.rest() },
            PARTIAL => Self::Partial {
                digest,
                base: Version(reader.varint()?),
                raw_length: reader.varint()?,
                packed: reader.rest(),
            },
            _ => return Err(Malformed),
        })
    }

    /// The base this keyframe is. Malformed when it is not a full one.
    pub(crate) fn to_base(&self, version: Version) -> Result<Base> {
        let plain = self.to_plain()?;
        let Self::Full { digest, .. } = self else { return Err(Malformed) };
        let mut facts = Facts::default();
        let mut reader = Reader::new(&plain.raw);
        reader.items_into(&mut facts)?;
        reader.end()?;
        if facts.digest() != *digest {
            return Err(Malformed);
        }
        Ok(Base { version, facts, plain: Arc::new(plain) })
    }

    /// The base this keyframe is, as far as writing needs it.
    pub(crate) fn to_plain(&self) -> Result<Plain> {
        let Self::Full { raw_length, packed, .. } = self else { return Err(Malformed) };
        let raw = decompress(packed, *raw_length)?;
        Ok(Plain { raw, stored: packed.len() + 37 })
    }

    /// The state of a keyframe that refers to `base`.
    pub(crate) fn over(&self, base: &Base) -> Result<Facts> {
        let Self::Partial { digest, raw_length, packed, .. } = self else { return Err(Malformed) };
        let mut decompressor = zstd::bulk::Decompressor::with_dictionary(&base.plain.raw)
            .map_err(|_memory| Malformed)?;
        let raw = decompressor
            .decompress(packed, capacity(*raw_length)?)
            .map_err(|_damaged| Malformed)?;
        let mut reader = Reader::new(&raw);
        let mut facts = base.facts.clone();
        for subject in reader.subjects()? {
            facts.remove(&subject).ok_or(Malformed)?;
        }
        reader.items_into(&mut facts)?;
        reader.end()?;
        if facts.digest() == *digest { Ok(facts) } else { Err(Malformed) }
    }
}

/// The last version of a host before everything that is kept.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) record: Record,
    pub(crate) facts: Facts,
}

impl Origin {
    pub(crate) fn encode(&self, host: HostNumber) -> Vec<u8> {
        let version = self.record.entry.version;
        let record = self.record.encode(host, 0);
        let (keyframe, _) = Keyframe::encode_full(host, version, &self.facts);
        let mut out = Vec::with_capacity(record.len() + keyframe.len() + 16);
        put_varint(&mut out, version.0);
        put_varint(&mut out, record.len() as u64);
        out.extend_from_slice(&record);
        out.extend_from_slice(&keyframe);
        out
    }

    pub(crate) fn decode(host: HostNumber, bytes: &[u8]) -> Result<Self> {
        let (record, keyframe) = Self::split(host, bytes)?;
        let version = record.entry.version;
        let facts = Keyframe::decode(host, version, keyframe)?.to_base(version)?.facts;
        Ok(Self { record, facts })
    }

    pub(crate) fn decode_record(host: HostNumber, bytes: &[u8]) -> Result<Record> {
        Self::split(host, bytes).map(|(record, _)| record)
    }

    fn split(host: HostNumber, bytes: &[u8]) -> Result<(Record, &[u8])> {
        let mut reader = Reader::new(bytes);
        let version = Version(reader.varint()?);
        let length = capacity(reader.varint()?)?;
        let record = Record::decode(host, 0, version, reader.bytes(length)?)?;
        Ok((record, reader.rest()))
    }
}

/// What is known of a host at its head.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Meta {
    pub(crate) number: HostNumber,
    pub(crate) host: HostId,
    pub(crate) state: MetaState,
}

/// The part of [`Meta`] that changes. Fields are only ever appended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MetaState {
    pub(crate) first_at: Time,
    pub(crate) head: Version,
    pub(crate) head_at: Time,
    pub(crate) seen_at: Time,
    pub(crate) digest: Digest,
    pub(crate) items: u64,
    /// The bucket that has the head.
    pub(crate) day: i64,
    pub(crate) streams: Vec<(String, u64)>,
}

/// How many streams of a host are remembered.
const STREAMS: usize = 8;

impl Meta {
    pub(crate) fn new(number: HostNumber, host: HostId) -> Self {
        let state = MetaState {
            first_at: Time::default(),
            head: Version(0),
            head_at: Time(i64::MIN),
            seen_at: Time(i64::MIN),
            digest: Digest::default(),
            items: 0,
            day: i64::MIN,
            streams: Vec::new(),
        };
        Self { number, host, state }
    }

    pub(crate) fn sequence(&self, stream: &str) -> Option<u64> {
        self.state.streams.iter().find(|(id, _)| id == stream).map(|(_, last)| *last)
    }

    pub(crate) fn set_sequence(&mut self, stream: &str, sequence: u64) {
        let streams = &mut self.state.streams;
        if let Some(index) = streams.iter().position(|(id, _)| id == stream) {
            streams.remove(index);
        }
        streams.push((stream.to_owned(), sequence));
        if streams.len() > STREAMS {
            streams.remove(0);
        }
    }

    pub(crate) fn info(&self) -> HostInfo {
        let state = &self.state;
        HostInfo {
            host: self.host.clone(),
            first_at: state.first_at,
            head: state.head,
            head_at: state.head_at,
            seen_at: state.seen_at,
            digest: state.digest,
            items: state.items,
            streams: state
                .streams
                .iter()
                .map(|(id, sequence)| StreamInfo { id: id.clone(), sequence: *sequence })
                .collect(),
        }
    }
}

impl MetaState {
    pub(crate) fn encode(&self, host: HostNumber) -> Vec<u8> {
        seal(host, 0, &rmp_serde::to_vec(self).expect("plain data always encodes"))
    }

    pub(crate) fn decode(host: HostNumber, bytes: &[u8]) -> Result<Self> {
        let reader = unseal(host, 0, bytes)?;
        rmp_serde::from_slice(reader.rest()).map_err(|_not_meta| Malformed)
    }
}
