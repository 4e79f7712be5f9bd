//! A run's log as a file: what is written, what is believed when it is read again.
//!
//! ```text
//! UUID.log   CRC32 {"format":1,"id":…,"kind":…,"subject":…,"cause":…,"created_at":…}
//!            CRC32 {"offset":0,"at":…,"record":"line",…}
//!            …
//!            CRC32 {"offset":N,"at":…,"record":"end",…}
//! ```
//!
//! One line of JSON for each record, before it the checksum of its bytes. The header is line 0
//! and record N is line N + 1, so that a place in the log is found by counting line ends. A
//! line that is torn, or whose checksum is not its own, ends what is believed.
//!
//! # Invariants
//! - What is believed is a header and records numbered from 0 without gaps, at most the last
//!   of them an end.
//! - Memory is bounded by [`MAX_LINE`] and [`PAGE`], whatever the file holds.

use super::Subject;
use super::chunk::{Chunk, Chunks};
use api::run::{RunCause, RunEvent, RunId, RunKind, RunRecord};
use model::Time;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Raised when a log means something else than before.
pub(super) const FORMAT: u32 = 1;

/// Bytes a line may have: the longest text, every character of it escaped, and what is around.
pub(super) const MAX_LINE: u64 = 64 << 10;

/// Bytes read of a log at once.
const PAGE: u64 = 256 << 10;

/// `CRC32 `, before the JSON of a line.
pub(super) const SEAL: usize = 9;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) format: u32,
    pub(super) id: RunId,
    pub(super) kind: RunKind,
    pub(super) subject: String,
    pub(super) cause: RunCause,
    pub(super) created_at: Time,
}

/// What a log file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) subject: Subject,
    /// How many, the end included.
    pub(super) records: u64,
    pub(super) end: Option<RunRecord>,
    /// Up to here it is believed.
    pub(super) bytes: u64,
}

/// What a file is when it is no log.
#[derive(Debug)]
pub(super) enum Unusable {
    /// Its run had not begun: there is not even a whole first line.
    Unbegun,
    Damaged(&'static str),
    Read(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Adds a line to what will be written.
pub(super) fn seal(json: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{:08x} ", crc32fast::hash(json)).as_bytes());
    out.extend_from_slice(json);
    out.push(b'\n');
}

/// The JSON of a whole line; `None` when it is not what was written.
fn unseal(line: &[u8]) -> Option<&[u8]> {
    let (sum, rest) = line.strip_suffix(b"\n")?.split_at_checked(SEAL - 1)?;
    let json = rest.strip_prefix(b" ")?;
    let sum = std::str::from_utf8(sum).ok()?;
    // Digits in the one form they are written in; a sign is none.
    let same = format!("{:08x}", crc32fast::hash(json)) == sum;
    same.then_some(json)
}

/// Looks at a log. One that has its end is not read as a whole.
pub(super) fn inspect(file: &mut (impl Read + Seek)) -> Result<Found, Unusable> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    let mut reader = BufReader::new(&mut *file);
    let mut line = Vec::new();
    if read_line(&mut reader, &mut line)? == 0 || !line.ends_with(b"\n") {
        let unbegun = length < MAX_LINE;
        return Err(if unbegun { Unusable::Unbegun } else { Unusable::Damaged("no first line") });
    }
    let json = unseal(&line).ok_or(Unusable::Damaged("its first line is not what was written"))?;
    let header: Header = serde_json::from_slice(json)
        .map_err(|_form| Unusable::Damaged("its first line is of another form"))?;
    if header.format != FORMAT {
        return Err(Unusable::Damaged("it is of a newer version"));
    }
    let subject =
        header.subject.parse().map_err(|_form| Unusable::Damaged("its subject is no name"))?;
    let found = Found { header, subject, records: 0, end: None, bytes: line.len() as u64 };
    drop(reader);
    if let Some(end) = last_line(file, length, found.bytes)?
        && let Some(records) = end.offset.checked_add(1)
    {
        return Ok(Found { records, end: Some(end), bytes: length, ..found });
    }
    file.seek(SeekFrom::Start(found.bytes))?;
    Ok(scan(&mut BufReader::new(file), found)?)
}

/// The end, where it is the last line.
fn last_line(
    file: &mut (impl Read + Seek),
    length: u64,
    header: u64,
) -> io::Result<Option<RunRecord>> {
    let from = length.saturating_sub(MAX_LINE).max(header);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(MAX_LINE).read_to_end(&mut tail)?;
    let before = tail.strip_suffix(b"\n").unwrap_or_default();
    let begin = before.iter().rposition(|&byte| byte == b'\n').map(|at| at + 1);
    // Without a line end before it, the line is whole only if it follows the header.
    let Some(begin) = begin.or((from == header).then_some(0)) else { return Ok(None) };
    let record = tail.get(begin..).and_then(record);
    Ok(record.filter(|record| matches!(record.event, RunEvent::End { .. })))
}

fn record(line: &[u8]) -> Option<RunRecord> {
    serde_json::from_slice(unseal(line)?).ok()
}

/// Reads records up to an end, or to what can't be believed.
fn scan(reader: &mut impl BufRead, mut found: Found) -> io::Result<Found> {
    let mut line = Vec::new();
    while found.end.is_none() && read_line(reader, &mut line)? > 0 {
        let Some(record) = record(&line).filter(|record| record.offset == found.records) else {
            break;
        };
        found.bytes += line.len() as u64;
        found.records += 1;
        found.end = matches!(record.event, RunEvent::End { .. }).then_some(record);
    }
    Ok(found)
}

/// A line with its end, or as much of it as a line may have.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    reader.take(MAX_LINE).read_until(b'\n', line)
}

/// Places in a log that are known, so that others near them are found soon.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<(u64, u64)>);

/// Bytes between two of them.
const APART: u64 = 64 << 10;

impl Marks {
    /// Record `offset` begins at byte `position`.
    pub(super) fn add(&mut self, offset: u64, position: u64) {
        if self.0.last().is_none_or(|&(_, last)| position >= last + APART) {
            self.0.push((offset, position));
        }
    }

    /// The last known place that is not behind a record.
    fn before(&self, offset: u64) -> Option<(u64, u64)> {
        let after = self.0.partition_point(|&(known, _)| known <= offset);
        self.0.get(after.checked_sub(1)?).copied()
    }
}

/// Where a record begins.
pub(super) fn locate(path: &Path, offset: u64, marks: &Marks) -> io::Result<u64> {
    let (known, position) = marks.before(offset).map_or((None, 0), |(o, p)| (Some(o), p));
    // From the beginning, the header is one line more.
    let lines = known.map_or(offset + 1, |known| offset - known);
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(position))?;
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut at = position;
    for _ in 0..lines {
        at += reader.skip_until(b'\n')? as u64;
    }
    Ok(at)
}

/// Reads records from a place on: as many as a page has, none at or after `until`. Nothing
/// where the first of them can't be believed.
pub(super) fn page(
    path: &Path,
    first: u64,
    position: u64,
    until: u64,
) -> io::Result<Option<Chunk>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(position))?;
    let mut bytes = Vec::new();
    file.take(PAGE).read_to_end(&mut bytes)?;
    let mut chunks = Chunks::new(first, position);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if chunks.next() >= until {
            break;
        }
        let Some(json) = unseal(line) else { break };
        chunks.push(json);
    }
    Ok(chunks.finish())
}

#[cfg(test)]
mod tests;
