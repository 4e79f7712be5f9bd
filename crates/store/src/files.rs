//! Looks whether the engine's files are there before it opens them.
//!
//! For some that are lost the engine makes up empty ones without a word, and then what they held
//! is gone while everything seems in order.

use crate::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// # Errors
/// [`Error::Lost`] with the file that is not there.
pub(crate) fn check(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::Prepare { path: directory.to_owned(), source: Arc::new(source) };
    // Written last when a history is made: without it there was never anything in it.
    let is_made = directory.join("version").try_exists().map_err(failed)?;
    let keyspaces = directory.join("keyspaces");
    let lost = match (is_made, is_filled(&keyspaces).map_err(failed)?) {
        (false, false) => return Ok(()),
        (false, true) => Some(directory.join("version")),
        (true, _) => lost_journal(directory)
            .and_then(|lost| lost.map_or_else(|| lost_catalogue(&keyspaces), |lost| Ok(Some(lost))))
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
const PERMANENT: std::ops::RangeInclusive<u32> = 0..=5;

/// Each keyspace has a file that names its catalogue of tables.
fn lost_catalogue(keyspaces: &Path) -> io::Result<Option<PathBuf>> {
    // All were there before the first of them had a table.
    let all_are_made = is_filled(&keyspaces.join("1/tables"))?;
    for keyspace in PERMANENT {
        let keyspace = keyspaces.join(keyspace.to_string());
        // One without a table was made just now, and has nothing to lose.
        if !all_are_made && !is_filled(&keyspace.join("tables"))? {
            continue;
        }
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

fn is_filled(directory: &Path) -> io::Result<bool> {
    match std::fs::read_dir(directory) {
        Ok(mut files) => Ok(files.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
