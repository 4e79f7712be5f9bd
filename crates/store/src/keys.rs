//! Where things are within a keyspace. All numbers are big-endian, so that order of keys is
//! order of numbers.

use crate::record::HostNumber;
use model::{ContentId, Kind, Subject, Time, Version};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

const KEYFRAME: u8 = 0;
const VERSION: u8 = 1;
const POSTING: u8 = 2;
/// No kind begins with it.
const GONE: u8 = 0;
/// No host has this number: what begins with it sorts behind all of theirs.
const BEHIND_HOSTS: HostNumber = HostNumber::MAX;

/// What a posting is about: a subject, a kind, or all major versions.
pub(crate) type Term = u64;

pub(crate) const MAJOR: Term = u64::MAX;

pub(crate) fn subject_term(subject: &Subject) -> Term {
    xxh3_64(&subject_bytes(Vec::new(), subject))
}

pub(crate) fn kind_term(kind: Kind) -> Term {
    // No subject has this form.
    xxh3_64(kind.as_str().as_bytes())
}

fn in_bucket(host: HostNumber, tag: u8, number: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.extend_from_slice(&host.to_be_bytes());
    key.push(tag);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(crate) fn keyframe(host: HostNumber, version: Version) -> Vec<u8> {
    in_bucket(host, KEYFRAME, version.0)
}

pub(crate) fn version(host: HostNumber, version: Version) -> Vec<u8> {
    in_bucket(host, VERSION, version.0)
}

pub(crate) fn posting(host: HostNumber, term: Term, first: Version) -> Vec<u8> {
    let mut key = in_bucket(host, POSTING, term);
    key.extend_from_slice(&first.0.to_be_bytes());
    key
}

/// The first key a host can have in a bucket.
pub(crate) fn host_start(host: HostNumber) -> Vec<u8> {
    host.to_be_bytes().to_vec()
}

pub(crate) fn host_of(key: &[u8]) -> Option<HostNumber> {
    let host = HostNumber::from_be_bytes(*key.first_chunk()?);
    (host != BEHIND_HOSTS).then_some(host)
}

/// The number a key ends in: the version, of versions, keyframes and postings.
pub(crate) fn version_of(key: &[u8]) -> Version {
    Version(key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
}

/// A bucket's mention of some content.
pub(crate) fn mention(content: &ContentId) -> Vec<u8> {
    let mut key = BEHIND_HOSTS.to_be_bytes().to_vec();
    key.extend_from_slice(content.as_bytes());
    key
}

pub(crate) fn mentions() -> [u8; 4] {
    BEHIND_HOSTS.to_be_bytes()
}

/// In `hosts`: a host's name.
pub(crate) fn host_name(host: HostNumber) -> Vec<u8> {
    tagged(b'h', host)
}

/// In `hosts`: its [`crate::record::MetaState`].
pub(crate) fn host_state(host: HostNumber) -> Vec<u8> {
    tagged(b'm', host)
}

/// In `hosts`: marks a host whose data is being deleted.
pub(crate) fn forgotten(host: HostNumber) -> Vec<u8> {
    tagged(b'f', host)
}

/// In `hosts`: a bucket the host has versions in.
pub(crate) fn span(host: HostNumber, day: i64) -> Vec<u8> {
    let mut key = tagged(b'd', host);
    key.extend_from_slice(&ordered(day));
    key
}

pub(crate) fn spans(host: HostNumber) -> Vec<u8> {
    tagged(b'd', host)
}

/// In `hosts`: the next host number.
pub(crate) const NEXT_HOST: &[u8] = b"n";
/// In `hosts`: no version goes into a bucket before this day.
pub(crate) const FLOOR: &[u8] = b"o";
/// In `hosts`: the engine's sequence numbers below this may have been used.
pub(crate) const RESERVED: &[u8] = b"q";

/// In `hosts`: how a bucket was replaced or dropped.
pub(crate) fn bucket_mark(day: i64) -> Vec<u8> {
    let mut key = vec![b'b'];
    key.extend_from_slice(&ordered(day));
    key
}

fn tagged(tag: u8, host: HostNumber) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.push(tag);
    key.extend_from_slice(&host.to_be_bytes());
    key
}

/// Signed numbers in their order.
fn ordered(number: i64) -> [u8; 8] {
    (number.cast_unsigned() ^ 1 << 63).to_be_bytes()
}

fn unordered(bytes: [u8; 8]) -> i64 {
    (u64::from_be_bytes(bytes) ^ 1 << 63).cast_signed()
}

/// The signed number a key ends in.
pub(crate) fn signed_of(key: &[u8]) -> i64 {
    key.last_chunk().map_or(0, |bytes| unordered(*bytes))
}

/// In `subjects`.
pub(crate) fn subject(host: HostNumber, subject: &Subject) -> Vec<u8> {
    subject_bytes(host_start(host), subject)
}

/// What [`subject`] of one that went leads to: the day it went.
pub(crate) fn gone_on(day: i64) -> Vec<u8> {
    ordered(day).to_vec()
}

/// In `subjects`: that one went on a day.
pub(crate) fn gone(host: HostNumber, day: i64, subject: &Subject) -> Vec<u8> {
    subject_bytes(gone_until(host, day), subject)
}

/// The end of all [`gone`] before a day.
pub(crate) fn gone_until(host: HostNumber, day: i64) -> Vec<u8> {
    let mut key = host_start(host);
    key.push(GONE);
    key.extend_from_slice(&ordered(day));
    key
}

/// The day of such a key, as [`gone_on`] has it, and the key of the subject.
pub(crate) fn gone_of(key: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let (host, rest) = key.split_first_chunk::<{ size_of::<HostNumber>() }>()?;
    let (day, subject) = rest.strip_prefix(&[GONE])?.split_at_checked(size_of::<i64>())?;
    Some((day, [host.as_slice(), subject].concat()))
}

/// All keys of a host in `subjects` that are those of subjects.
pub(crate) fn subjects(host: HostNumber) -> Range<Vec<u8>> {
    let mut first = host_start(host);
    first.push(GONE + 1);
    first..host_start(host.saturating_add(1))
}

/// A subject as it is written, behind what is there already.
fn subject_bytes(mut bytes: Vec<u8>, subject: &Subject) -> Vec<u8> {
    let (kind, id) = (subject.kind(), subject.id().as_bytes());
    bytes.reserve(kind.as_str().len() + 1 + id.len());
    bytes.extend_from_slice(kind.as_str().as_bytes());
    bytes.push(b':');
    bytes.extend_from_slice(id);
    bytes
}

/// In a bucket of load.
pub(crate) fn load(host: HostNumber, at: Time) -> Vec<u8> {
    let mut key = host_start(host);
    key.extend_from_slice(&ordered(at.0));
    key
}

/// In `contents`: the content.
pub(crate) fn content(id: &ContentId) -> Vec<u8> {
    content_tagged(b'c', id)
}

/// In `contents`: since when nothing names it.
pub(crate) fn unused(id: &ContentId) -> Vec<u8> {
    content_tagged(b'x', id)
}

pub(crate) const CONTENTS_PREFIX: &[u8] = b"c";

fn content_tagged(tag: u8, id: &ContentId) -> Vec<u8> {
    let mut key = Vec::with_capacity(33);
    key.push(tag);
    key.extend_from_slice(id.as_bytes());
    key
}

pub(crate) fn content_of(key: &[u8]) -> Option<ContentId> {
    key.last_chunk().copied().map(ContentId::from_bytes)
}

/// In `records`.
pub(crate) fn record(collection: &str, key: &str) -> Vec<u8> {
    let mut bytes = collection.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend_from_slice(key.as_bytes());
    bytes
}
