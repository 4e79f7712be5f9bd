//! Looks over the engine's journals before the engine opens them, and cuts off what a power
//! loss left unfinished.
//!
//! The engine cuts an incomplete tail by itself, but refuses to open when the tail is whole and
//! wrong (pages that were never written), and would cut silently when damage is followed by
//! intact batches. So: a tail that nothing intact follows was never acknowledged, because what
//! is acknowledged is synced, and is cut. Damage with intact batches behind it is reported, and
//! nothing is touched.
//!
//! A journal is a row of batches, each a start (1, count, sequence), items (2, …) or clears
//! (4, …), and an end (3, checksum of the items, magic); after them, zeros up to its allocated
//! length.

use crate::codec::{Malformed, Reader};
use crate::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: [u8; 4] = *b"FJL\x03";

/// Cuts unfinished tails off the journals in `directory`.
///
/// # Errors
/// [`Error::Damaged`] when intact batches follow the damage.
pub(crate) fn mend(directory: &Path) -> Result<(), Error> {
    for path in journals(directory).map_err(prepare(directory))? {
        let bytes = std::fs::read(&path).map_err(prepare(&path))?;
        let intact = intact_length(&bytes);
        let tail = bytes.get(intact..).unwrap_or_default();
        if tail.iter().all(|byte| *byte == 0) {
            continue;
        }
        if batch_follows(tail) {
            return Err(Error::Damaged { path, offset: intact as u64 });
        }
        tracing::warn!(
            path = %path.display(), offset = intact, bytes = tail.len(),
            "cut an unfinished write off the journal; it was never acknowledged"
        );
        truncate(&path, intact as u64).map_err(prepare(&path))?;
    }
    Ok(())
}

/// Empties the journals in `directory`, all of whose content is in tables.
pub(crate) fn empty(directory: &Path) -> io::Result<()> {
    journals(directory)?.iter().try_for_each(|path| truncate(path, 0))
}

fn journals(directory: &Path) -> io::Result<Vec<PathBuf>> {
    if !directory.try_exists()? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            found.push(path);
        }
    }
    Ok(found)
}

fn truncate(path: &Path, length: u64) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).open(path)?;
    file.set_len(length)?;
    file.sync_all()
}

fn prepare(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Prepare { path: path.clone(), source: Arc::new(source) }
}

fn intact_length(bytes: &[u8]) -> usize {
    let mut reader = Reader::new(bytes);
    loop {
        let before = reader.rest().len();
        if batch(&mut reader).is_err() {
            return bytes.len() - before;
        }
    }
}

/// Whether a batch begins where another one ended within these bytes.
fn batch_follows(tail: &[u8]) -> bool {
    let ends = tail.windows(MAGIC.len()).enumerate().filter(|(_, bytes)| *bytes == MAGIC);
    ends.into_iter().any(|(at, _)| {
        let after = tail.get(at + MAGIC.len()..).unwrap_or_default();
        batch(&mut Reader::new(after)).is_ok()
    })
}

/// Goes past one batch.
fn batch(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    if reader.byte()? != START {
        return Err(Malformed);
    }
    let count = u32::from_le_bytes(reader.array()?);
    reader.array::<8>()?;
    let mut hasher = Xxh3::new();
    for _ in 0..count {
        let before = reader.rest();
        item(reader)?;
        let length = before.len() - reader.rest().len();
        hasher.update(before.get(..length).unwrap_or_default());
    }
    if reader.byte()? != END {
        return Err(Malformed);
    }
    let sum = u64::from_le_bytes(reader.array()?);
    if reader.array::<4>()? == MAGIC && sum == hasher.digest() { Ok(()) } else { Err(Malformed) }
}

fn item(reader: &mut Reader<'_>) -> Result<(), Malformed> {
    match reader.byte()? {
        CLEAR => reader.array::<8>().map(drop),
        ITEM => {
            // Type of value, compression, keyspace.
            reader.array::<10>()?;
            let key = u16::from_le_bytes(reader.array()?);
            reader.array::<4>()?;
            let value = u32::from_le_bytes(reader.array()?);
            reader.bytes(usize::from(key))?;
            reader.bytes(usize::try_from(value).map_err(|_beyond_memory| Malformed)?)?;
            Ok(())
        }
        _ => Err(Malformed),
    }
}
