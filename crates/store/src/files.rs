//! Looks whether the engine's files are there before it opens them.
//!
//! For some that are lost the engine makes up empty ones without a word, and then what they held
//! is gone while everything seems in order.

use crate::error::Error;
use crate::making;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// # Errors
/// [`Error::Lost`] with the file that is not there.
pub(crate) fn check(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::Prepare { path: directory.to_owned(), source: Arc::new(source) };
    let version = directory.join(making::VERSION);
    let lost = match version.try_exists().map_err(failed)? {
        false => Some(version),
        true => lost_journal(directory)
            .and_then(|lost| match lost {
                Some(lost) => Ok(Some(lost)),
                None => lost_catalogue(&directory.join(making::KEYSPACES)),
            })
            .map_err(failed)?,
    };
    lost.map_or(Ok(()), |path| Err(Error::Lost { path, directory: directory.to_owned() }))
}

/// Journals are numbered, and the oldest goes first: there is always one, and none is left out.
fn lost_journal(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut numbers = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let name = file?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jnl")?.parse::<u64>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let journal = |number: u64| Some(directory.join(format!("{number}.jnl")));
    if numbers.is_empty() {
        return Ok(journal(0));
    }
    let gap = numbers.windows(2).find_map(|two| match two {
        [one, next] if one + 1 < *next => Some(one + 1),
        _ => None,
    });
    Ok(gap.and_then(journal))
}

/// The engine's own keyspace, and those that are made with the history and never deleted. Of the
/// others, one may be half deleted.
const PERMANENT: std::ops::RangeInclusive<usize> = 0..=making::NAMES.len();

/// Each keyspace has a file that names its catalogue of tables.
fn lost_catalogue(keyspaces: &Path) -> io::Result<Option<PathBuf>> {
    for keyspace in PERMANENT {
        let keyspace = keyspaces.join(keyspace.to_string());
        if !keyspace.try_exists()? {
            return Ok(Some(keyspace));
        }
        let current = keyspace.join("current");
        match std::fs::read(&current) {
            Ok(bytes) if bytes.iter().any(|byte| *byte != 0) => {}
            Ok(_) => return Ok(Some(current)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(current)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
