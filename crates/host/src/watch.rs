//! Says that something in a directory changed, within milliseconds. Reads no file.
//!
//! Directories are watched by inotify. What can't be (it does not exist yet, or the limit of
//! watches is reached) is looked at every [`POLL`] instead, and watched once it can be.
//!
//! # Invariants
//! - A change may be reported more than once or for nothing, but a name that appears, vanishes
//!   or is replaced, and a writer that closes, are reported.
//! - A file written to by someone who keeps it open is not reported: a periodic scan finds it.
//! - At most [`WATCHES_MAX`] watches, however many directories are wanted.

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Watches one instance takes; the kernel's limit is shared by all of a user's programs.
pub const WATCHES_MAX: usize = 1024;

/// How often what is not watched is looked at.
pub const POLL: Duration = Duration::from_secs(2);

/// Directories of interest, and in each the names of interest; none means all of them.
pub type Wanted = BTreeMap<PathBuf, BTreeSet<OsString>>;

/// Watches a changing set of directories.
#[derive(Debug, Default)]
pub struct Watch {
    inotify: Option<Arc<OwnedFd>>,
    ready: Option<AsyncFd<Arc<OwnedFd>>>,
    wanted: Wanted,
    /// Two paths may lead to one directory, and then share its watch.
    paths: HashMap<i32, Vec<PathBuf>>,
    /// How the directories looked that are not watched.
    polled: BTreeMap<PathBuf, u64>,
}

impl Watch {
    /// Watches nothing yet. Where inotify is not to be had, everything will be polled.
    #[must_use]
    pub fn new() -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        if let Err(error) = &inotify {
            tracing::warn!(%error, "no inotify: looking at directories every {POLL:?} instead");
        }
        Self { inotify: inotify.ok().map(Arc::new), ..Self::default() }
    }

    /// Replaces what is watched. What stays, stays watched without a gap.
    pub fn set(&mut self, wanted: Wanted) {
        let gone: Vec<PathBuf> =
            self.wanted.keys().filter(|path| !wanted.contains_key(*path)).cloned().collect();
        for path in gone {
            self.polled.remove(&path);
            self.forget(&path);
        }
        let new: Vec<PathBuf> =
            wanted.keys().filter(|path| !self.wanted.contains_key(*path)).cloned().collect();
        self.wanted = wanted;
        for path in new {
            self.add(path);
        }
    }

    /// How many directories are looked at only every [`POLL`].
    #[must_use]
    pub fn polled(&self) -> usize {
        self.polled.len()
    }

    /// Waits for a change, and names the paths (of files, or of directories as a whole) that
    /// may have changed. Cancel-safe. Waits forever while nothing is wanted.
    pub async fn next_change(&mut self) -> BTreeSet<PathBuf> {
        loop {
            let polls = !self.polled.is_empty();
            tokio::select! {
                () = readable(&mut self.ready, self.inotify.as_ref()) => {}
                () = tokio::time::sleep(POLL), if polls => {}
            }
            let mut changed = self.read_events();
            self.poll(&mut changed);
            if !changed.is_empty() {
                return changed;
            }
        }
    }

    fn add(&mut self, path: PathBuf) {
        if !self.try_watch(&path) {
            let stamp = self.stamp(&path);
            self.polled.insert(path, stamp);
        }
    }

    fn try_watch(&mut self, path: &Path) -> bool {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let Some(fd) = &self.inotify else { return false };
        if self.paths.len() >= WATCHES_MAX {
            return false;
        }
        match inotify::add_watch(fd, path, flags) {
            Ok(watch) => {
                let paths = self.paths.entry(watch).or_default();
                if !paths.iter().any(|known| known == path) {
                    paths.push(path.to_owned());
                }
                true
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "not watched, polled instead");
                false
            }
        }
    }

    fn forget(&mut self, path: &Path) {
        let mut unused = None;
        for (&watch, paths) in &mut self.paths {
            paths.retain(|known| known != path);
            if paths.is_empty() {
                unused = Some(watch);
            }
        }
        if let Some(watch) = unused {
            self.paths.remove(&watch);
            self.remove_watch(watch);
        }
    }

    fn remove_watch(&self, watch: i32) {
        if let Some(fd) = &self.inotify {
            // It fails when the directory is gone, and the watch with it.
            inotify::remove_watch(fd, watch).ok();
        }
    }

    /// Takes all events that are there.
    fn read_events(&mut self) -> BTreeSet<PathBuf> {
        let mut changed = BTreeSet::new();
        let Some(fd) = self.inotify.clone() else { return changed };
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&*fd, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                tracing::debug!("inotify lost events: everything may have changed");
                changed.extend(self.wanted.keys().cloned());
            } else if flags
                .intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF)
            {
                self.lose(event.wd(), &mut changed);
            } else {
                self.note(event.wd(), name, &mut changed);
            }
        }
        changed
    }

    fn note(&self, watch: i32, name: Option<&OsStr>, changed: &mut BTreeSet<PathBuf>) {
        for path in self.paths.get(&watch).into_iter().flatten() {
            let Some(names) = self.wanted.get(path) else { continue };
            match name {
                Some(name) if names.is_empty() || names.contains(name) => {
                    changed.insert(path.join(name));
                }
                Some(_) => {}
                None => {
                    changed.insert(path.clone());
                }
            }
        }
    }

    /// The directory of a watch is no longer at its path.
    fn lose(&mut self, watch: i32, changed: &mut BTreeSet<PathBuf>) {
        let Some(paths) = self.paths.remove(&watch) else { return };
        self.remove_watch(watch);
        for path in paths {
            changed.insert(path.clone());
            self.add(path);
        }
    }

    /// Looks at what is not watched, and watches what now can be.
    fn poll(&mut self, changed: &mut BTreeSet<PathBuf>) {
        let paths: Vec<PathBuf> = self.polled.keys().cloned().collect();
        for path in paths {
            let stamp = self.stamp(&path);
            if self.try_watch(&path) {
                self.polled.remove(&path);
                changed.insert(path);
            } else if self.polled.insert(path.clone(), stamp) != Some(stamp) {
                changed.insert(path);
            }
        }
    }

    /// A number that differs when the directory, or a file of interest in it, does.
    fn stamp(&self, path: &Path) -> u64 {
        let mut hasher = DefaultHasher::new();
        let names = self.wanted.get(path);
        let files = names.into_iter().flatten().map(|name| path.join(name));
        for path in std::iter::once(path.to_owned()).chain(files) {
            let seen = std::fs::symlink_metadata(&path).ok();
            seen.map(|m| (m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec())).hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Waits until there are events; forever without inotify.
async fn readable(ready: &mut Option<AsyncFd<Arc<OwnedFd>>>, inotify: Option<&Arc<OwnedFd>>) {
    if ready.is_none() {
        // Registered on first use: a `Watch` may be made before the runtime is.
        *ready = inotify.and_then(|fd| crate::readiness::register(Arc::clone(fd)).ok());
    }
    match ready {
        Some(fd) => match fd.readable().await {
            // The reader reads until there is nothing more, so readiness is always used up.
            Ok(mut guard) => guard.clear_ready(),
            Err(_shutdown) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn changed(watch: &mut Watch) -> BTreeSet<PathBuf> {
        tokio::time::timeout(Duration::from_secs(10), watch.next_change())
            .await
            .expect("a change is reported in time")
    }

    #[tokio::test]
    async fn only_names_of_interest_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let mut watch = Watch::new();
        watch.set([(path.clone(), ["a".into()].into())].into());
        std::fs::write(path.join("b"), "1").unwrap();
        std::fs::write(path.join("a"), "1").unwrap();
        assert_eq!(changed(&mut watch).await, [path.join("a")].into());
        std::fs::remove_file(path.join("a")).unwrap();
        assert_eq!(changed(&mut watch).await, [path.join("a")].into());
        watch.set([(path.clone(), BTreeSet::new())].into());
        std::fs::rename(path.join("b"), path.join("c")).unwrap();
        assert_eq!(changed(&mut watch).await, [path.join("b"), path.join("c")].into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_comes_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("later");
        let mut watch = Watch::new();
        watch.set([(path.clone(), BTreeSet::new())].into());
        assert_eq!(watch.polled(), 1);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(changed(&mut watch).await, [path.clone()].into());
        assert_eq!(watch.polled(), 0);
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        assert_eq!(changed(&mut watch).await, [path.clone()].into());
        assert_eq!(watch.polled(), 1);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(changed(&mut watch).await, [path.clone()].into());
        watch.set(Wanted::new());
        assert!(watch.paths.is_empty() && watch.polled.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn without_inotify_everything_is_polled() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        std::fs::write(&file, "1").unwrap();
        let mut watch = Watch::default();
        watch.set([(directory.path().to_owned(), ["a".into()].into())].into());
        std::fs::write(&file, "longer").unwrap();
        assert_eq!(changed(&mut watch).await, [directory.path().to_owned()].into());
    }
}
