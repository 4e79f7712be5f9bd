//! What readers and the writer share: the engine, what is known of each host, the caches.
//!
//! # Invariants
//! - `hosts` and `heads` have only what is durable. The writer takes a head out while it works
//!   on it; a reader then reads the store.
//! - The lock on `db` is held by readers while they read, and exclusively only to open the
//!   engine anew.

use crate::cache::Cache;
use crate::codec::Malformed;
use crate::engine::Db;
use crate::error::Error;
use crate::keys;
use crate::read::{Bases, HeadState, Past};
use crate::record::{HostNumber, Meta, MetaState};
use crate::stats::Counters;
use crate::types::Options;
use model::{HostId, Version};
use std::collections::BTreeMap;
use std::fs::File;
use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    block_cache_bytes: u64,
    db: RwLock<Option<Db>>,
    hosts: RwLock<BTreeMap<HostId, Arc<Meta>>>,
    heads: Mutex<Cache<HostNumber, CachedHead>>,
    pub(crate) bases: Bases,
    pub(crate) counters: Counters,
    /// Held by what rewrites buckets, so that only one does.
    pub(crate) maintenance: Mutex<()>,
    /// Keeps others out for as long as this lives, also while the engine is opened anew.
    _lock: File,
}

pub(crate) struct CachedHead {
    pub(crate) state: HeadState,
    /// Of the facts, in bytes.
    pub(crate) weight: usize,
}

/// The engine, held open.
pub(crate) struct OpenDb<'a>(RwLockReadGuard<'a, Option<Db>>);

impl std::ops::Deref for OpenDb<'_> {
    type Target = Db;

    fn deref(&self) -> &Db {
        self.0.as_ref().expect("Shared::db checks it")
    }
}

impl Shared {
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Self, Error> {
        let lock = lock(path)?;
        let shared = Self {
            path: path.to_owned(),
            block_cache_bytes: options.block_cache_bytes,
            db: RwLock::default(),
            hosts: RwLock::default(),
            heads: Mutex::new(Cache::new(options.head_cache_bytes)),
            bases: Mutex::new(Cache::new(options.keyframe_cache_bytes)),
            counters: Counters::default(),
            maintenance: Mutex::default(),
            _lock: lock,
        };
        shared.reopen()?;
        Ok(shared)
    }

    /// Opens the engine, closing it first if it is open. What is known of the hosts is read
    /// again, since a commit that failed may have become durable all the same.
    pub(crate) fn reopen(&self) -> Result<(), Error> {
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        let db = Db::open(&self.path, self.block_cache_bytes)?;
        let hosts = read_hosts(&db, &self.path)?;
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = hosts;
        self.heads().clear();
        self.bases.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *slot = Some(db);
        Ok(())
    }

    /// Closes the engine for good.
    pub(crate) fn close(&self) {
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn db(&self) -> Result<OpenDb<'_>, Error> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_some() { Ok(OpenDb(guard)) } else { Err(Error::Closed) }
    }

    pub(crate) fn heads(&self) -> MutexGuard<'_, Cache<HostNumber, CachedHead>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn meta(&self, host: &HostId) -> Option<Arc<Meta>> {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    pub(crate) fn metas(&self) -> Vec<Arc<Meta>> {
        self.hosts.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn hosts_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<HostId, Arc<Meta>>> {
        self.hosts.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn remove_meta(&self, host: &HostId) {
        self.hosts.write().unwrap_or_else(PoisonError::into_inner).remove(host);
    }

    /// Reads a host's history; `None` when there is none.
    pub(crate) fn with_past<T>(
        &self,
        host: &HostId,
        read: impl FnOnce(&Past<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        // The lock first: what the hosts map says is then in the engine that is open.
        let db = self.db()?;
        let Some(meta) = self.meta(host).filter(|meta| meta.state.head > Version(0)) else {
            return Ok(None);
        };
        read(&Past { db: &db, bases: &self.bases, meta: &meta }).map(Some)
    }
}

/// Takes the lock that says whose directory this is.
fn lock(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Prepare { path: path.to_owned(), source: Arc::new(source) };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    // The directory above may be open to others, and one of an older version was.
    let closed = made.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o700)));
    closed.map_err(failed)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join("in-use"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn read_hosts(db: &Db, path: &Path) -> Result<BTreeMap<HostId, Arc<Meta>>, Error> {
    // Without the hosts nothing can be read: it says what helps, as when opening itself fails.
    let failed = |source| Error::unreadable(path, source);
    let mut hosts = BTreeMap::new();
    for entry in db.hosts.prefix(b"h") {
        let (key, name) = entry.into_inner().map_err(failed)?;
        let number = key.last_chunk().map(|bytes| HostNumber::from_be_bytes(*bytes));
        let host = std::str::from_utf8(&name).ok().and_then(|name| HostId::new(name).ok());
        let (Some(number), Some(host)) = (number, host) else {
            return Err(Error::corrupt("the name of a host"));
        };
        let Some(bytes) = db.hosts.get(keys::host_state(number)).map_err(failed)? else { continue };
        let state = MetaState::decode(number, &bytes)
            .map_err(|Malformed| Error::corrupt("what is known of a host").of(&host, None))?;
        hosts.insert(host.clone(), Arc::new(Meta { number, host, state }));
    }
    Ok(hosts)
}
