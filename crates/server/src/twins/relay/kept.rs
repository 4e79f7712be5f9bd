//! Files that were fetched before, within a number of bytes: what was not asked for longest goes.
//!
//! Kept is what never changes under its name: packages, and indexes that are asked for by their
//! hash. All else is handed on and forgotten.

use crate::clock;
use model::ContentId;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tempfile::TempDir;
use tokio::fs::File;

/// What a fetch that a killed server left begins with.
const HALF: &str = "half-";

#[derive(Debug)]
pub(super) struct Kept {
    directory: PathBuf,
    bytes_max: u64,
}

/// A kept file, as retention sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    bytes: u64,
    used_at: SystemTime,
}

impl Kept {
    pub(super) fn new(directory: PathBuf, bytes_max: u64) -> Self {
        Self { directory, bytes_max }
    }

    fn path(&self, wanted: &str) -> PathBuf {
        self.directory.join(ContentId::of(wanted.as_bytes()).to_string())
    }

    pub(super) async fn open(&self, wanted: &str) -> Option<File> {
        if !is_lasting(wanted) {
            return None;
        }
        let path = self.path(wanted);
        let opened = off_thread(move || {
            let file = fs::File::open(path)?;
            // It was of use just now.
            file.set_modified(clock::file_time())?;
            Ok(file)
        });
        opened.await.ok().map(File::from_std)
    }

    /// Removes what a server that was killed had half fetched. Nothing is being fetched.
    pub(super) async fn sweep(&self) -> io::Result<()> {
        let directory = self.directory.clone();
        off_thread(move || {
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(HALF) {
                    fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }

    /// A directory to fetch into; it goes when it is let go of.
    pub(super) async fn place(&self) -> io::Result<TempDir> {
        let directory = self.directory.clone();
        off_thread(move || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            tempfile::Builder::new().prefix(HALF).tempdir_in(&directory)
        })
        .await
    }

    /// Opens what was fetched, and keeps it if it will be the same next time.
    pub(super) async fn keep(&self, wanted: &str, fetched: &Path) -> io::Result<File> {
        let (fetched, path) = (fetched.to_owned(), self.path(wanted));
        let (directory, bytes_max) = (self.directory.clone(), self.bytes_max);
        let lasts = is_lasting(wanted);
        let opened = off_thread(move || {
            let file = fs::File::open(&fetched)?;
            if lasts {
                fs::rename(&fetched, path)?;
                for path in surplus(entries(&directory)?, bytes_max) {
                    fs::remove_file(path)?;
                }
            }
            Ok(file)
        });
        Ok(File::from_std(opened.await?))
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Whether it is the same whenever it is asked for.
fn is_lasting(wanted: &str) -> bool {
    wanted.ends_with(".deb") || wanted.contains("/by-hash/")
}

fn entries(directory: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_file() {
            let used_at = about.modified()?;
            entries.push(Entry { path: entry.path(), bytes: about.len(), used_at });
        }
    }
    Ok(entries)
}

/// Those that go, so that the others have room.
fn surplus(mut entries: Vec<Entry>, bytes_max: u64) -> Vec<PathBuf> {
    entries.sort_by(|a, b| b.used_at.cmp(&a.used_at).then_with(|| a.path.cmp(&b.path)));
    let mut bytes: u64 = 0;
    let mut gone = Vec::new();
    for entry in entries {
        bytes = bytes.saturating_add(entry.bytes);
        if bytes > bytes_max {
            gone.push(entry.path);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_not_asked_for_longest_goes() {
        let entry = |name: &str, bytes: u64, second: u64| Entry {
            path: name.into(),
            bytes,
            used_at: SystemTime::UNIX_EPOCH + Duration::from_secs(second),
        };
        let entries = vec![entry("old", 5, 1), entry("new", 5, 3), entry("mid", 5, 2)];
        let gone = |bytes_max| surplus(entries.clone(), bytes_max);
        assert!(gone(15).is_empty());
        assert_eq!(gone(14), [PathBuf::from("old")]);
        assert_eq!(gone(5), [PathBuf::from("mid"), PathBuf::from("old")]);
        assert_eq!(gone(0).len(), 3);
    }

    #[tokio::test]
    async fn packages_are_kept_and_lists_are_not() {
        let root = tempfile::tempdir().unwrap();
        let kept = Kept::new(root.path().join("kept"), 10);
        for (wanted, lasts) in [("http://a/b.deb", true), ("http://a/InRelease", false)] {
            assert!(kept.open(wanted).await.is_none());
            let place = kept.place().await.unwrap();
            let fetched = place.path().join("file");
            fs::write(&fetched, "12345678").unwrap();
            let file = kept.keep(wanted, &fetched).await.unwrap();
            assert_eq!(file.metadata().await.unwrap().len(), 8);
            assert_eq!(kept.open(wanted).await.is_some(), lasts, "{wanted}");
        }
        let left = || fs::read_dir(root.path().join("kept")).unwrap().count();
        assert_eq!(left(), 1, "nothing is left of a fetch");
        std::mem::forget(kept.place().await.unwrap());
        assert_eq!(left(), 2);
        kept.sweep().await.unwrap();
        assert_eq!(left(), 1);
    }
}
