//! Makes the engine's files aside and moves them into place when they are whole: a beginning
//! that was cut off, by whatever, is begun anew and never looks like a loss.
//!
//! ```text
//! (nothing) ─► .making/… ─► the files, `version` last ─► no .making: it is made
//! ```
//!
//! # Invariants
//! - Where [`ASIDE`] is, nothing was ever acknowledged: what else is there was made just now.
//! - Keyspaces that are made here have the numbers 1, 2, … in the order of [`NAMES`].

use crate::error::Error;
use fjall::{Database, KeyspaceCreateOptions};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

const ASIDE: &str = ".making";
/// The engine's; locked while it has the directory open.
const LOCK: &str = "lock";
/// The engine reads it first, and makes all anew where it is not.
pub(crate) const VERSION: &str = "version";
pub(crate) const KEYSPACES: &str = "keyspaces";
/// What is made with a history and never deleted.
pub(crate) const NAMES: [&str; 5] = ["hosts", "subjects", "origins", "contents", "records"];

/// How such a keyspace is made.
pub(crate) fn small() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(8 << 20)
}

/// Makes an empty history where there is none yet.
///
/// # Errors
/// When another process makes one there, or it can't be written.
pub(crate) fn make(directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::Prepare { path: directory.to_owned(), source: Arc::new(source) };
    std::fs::create_dir_all(directory).map_err(failed)?;
    if !is_to_be_made(directory).map_err(failed)? {
        return Ok(());
    }
    let lock = File::options().create(true).append(true).open(directory.join(LOCK));
    let lock = lock.map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(Error::InUse { path: directory.to_owned() });
        }
    }
    // It may have been made before the lock was ours.
    if is_to_be_made(directory).map_err(failed)? {
        clear(directory).map_err(failed)?;
        make_aside(&directory.join(ASIDE)).map_err(|source| Error::open(directory, source))?;
        move_in(directory).map_err(failed)?;
    }
    Ok(())
}

fn is_to_be_made(directory: &Path) -> io::Result<bool> {
    Ok(directory.join(ASIDE).try_exists()? || files(directory)?.is_empty())
}

/// The engine's files, but for the lock.
fn files(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let name = file?.file_name();
        let is_journal = Path::new(&name).extension().is_some_and(|ending| ending == "jnl");
        if is_journal || name == KEYSPACES || name == VERSION {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes what a beginning left that was cut off; what says that it was goes last.
fn clear(directory: &Path) -> io::Result<()> {
    let mut names = files(directory)?;
    names.push(ASIDE.into());
    for path in names.iter().map(|name| directory.join(name)) {
        let removed = match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn make_aside(aside: &Path) -> fjall::Result<()> {
    std::fs::create_dir(aside)?;
    let database = Database::builder(aside).worker_threads(1).open()?;
    NAMES.iter().try_for_each(|name| database.keyspace(name, small).map(drop))
}

fn move_in(directory: &Path) -> io::Result<()> {
    let aside = directory.join(ASIDE);
    let mut names = files(&aside)?;
    names.sort_by_key(|name| name == VERSION);
    for name in &names {
        std::fs::rename(aside.join(name), directory.join(name))?;
    }
    let synced = || File::open(directory)?.sync_all();
    synced()?;
    std::fs::remove_dir_all(&aside)?;
    synced()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Db;

    fn open(directory: &Path) -> Result<(), Error> {
        Db::open(directory, 1 << 20).map(drop)
    }

    fn keyspaces(directory: &Path) -> Vec<String> {
        let names = std::fs::read_dir(directory.join(KEYSPACES)).unwrap();
        let mut names: Vec<String> =
            names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn wherever_a_beginning_was_cut_off_it_is_begun_anew() {
        let whole = tempfile::tempdir().unwrap();
        make(whole.path()).unwrap();
        let expected = ["0", "1", "2", "3", "4", "5"];
        assert_eq!(keyspaces(whole.path()), expected);
        let mut names = files(whole.path()).unwrap();
        names.sort_by_key(|name| name == VERSION);
        for moved in 0..=names.len() {
            let cut_off = tempfile::tempdir().unwrap();
            let aside = cut_off.path().join(ASIDE);
            std::fs::create_dir(&aside).unwrap();
            for (at, name) in names.iter().enumerate() {
                // What is in them does not matter.
                let home = if at < moved { cut_off.path() } else { &aside };
                std::fs::create_dir(home.join(name)).unwrap();
            }
            open(cut_off.path()).unwrap();
            assert_eq!(keyspaces(cut_off.path()), expected);
            assert!(!aside.exists());
            open(cut_off.path()).unwrap();
        }
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let notes = directory.path().join("notes");
        std::fs::write(&notes, "mine").unwrap();
        std::fs::create_dir(directory.path().join(ASIDE)).unwrap();
        open(directory.path()).unwrap();
        assert_eq!(std::fs::read(notes).unwrap(), b"mine");
        // Something of a history is no beginning.
        std::fs::remove_file(directory.path().join(VERSION)).unwrap();
        assert!(matches!(open(directory.path()), Err(Error::Lost { .. })));
    }

    #[test]
    fn two_do_not_make_it_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let lock = File::create(directory.path().join(LOCK)).unwrap();
        lock.lock().unwrap();
        assert!(matches!(open(directory.path()), Err(Error::InUse { .. })));
        drop(lock);
        open(directory.path()).unwrap();
    }
}
