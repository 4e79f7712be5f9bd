//! The spool's files: what is written, and what of it is whole when it is read again.
//!
//! The journal begins with [`MAGIC`]; each record has its length and checksum before it.

use super::merging::apply;
use api::wire::{Body, Delta};
use model::{Facts, Time};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

pub(super) const MAGIC: &[u8; 8] = b"twspool1";
/// Bytes one record may have.
const MAX_RECORD: usize = 64 << 20;
/// Beyond it a sequence is damage: no agent counts so far, and what follows it can't be counted.
const LAST_SEQUENCE: u64 = u64::MAX / 2;

#[derive(Serialize, Deserialize)]
pub(super) enum Record {
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
    pub(super) fn of(delta: Delta, of_first: bool) -> Self {
        if of_first { Self::First(delta) } else { Self::Delta(delta) }
    }
}

/// Where a waiting delta is.
#[derive(Debug)]
pub(super) enum Place {
    Journal { offset: u64, length: usize },
    Held(Vec<u8>),
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) sequence: u64,
    pub(super) at: Time,
    /// A whole state, not a step from the one before.
    pub(super) is_whole: bool,
    /// Tells of what was there before it: belongs to the whole state at the beginning.
    pub(super) of_first: bool,
    pub(super) place: Place,
}

pub(super) fn encode(record: &Record) -> Vec<u8> {
    rmp_serde::to_vec_named(record).expect("records are plain data")
}

pub(super) fn framed(payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(payload.len() + 8);
    record.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    record.extend(crc32fast::hash(payload).to_le_bytes());
    record.extend(payload);
    record
}

#[derive(Default)]
pub(super) struct Found {
    pub(super) stream: String,
    pub(super) base_sequence: u64,
    pub(super) next_sequence: u64,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) acknowledged: Facts,
    pub(super) facts: Facts,
    pub(super) end: u64,
    /// Bytes that were not whole.
    pub(super) cut: u64,
}

/// Reads what is whole, and cuts off the rest.
pub(super) fn read_journal(journal: &mut File, acked: u64) -> io::Result<Option<Found>> {
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

pub(super) fn read_acked(path: &Path) -> u64 {
    let read = || {
        let bytes = fs::read(path).ok()?;
        let (number, checksum) = bytes.get(..12)?.split_at(8);
        let checksum = u32::from_le_bytes(checksum.try_into().ok()?);
        (crc32fast::hash(number) == checksum).then_some(u64::from_le_bytes(number.try_into().ok()?))
    };
    read().unwrap_or(0)
}
