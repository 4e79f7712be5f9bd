//! The embedded engine, opened: which keyspaces there are and what they hold.
//!
//! # Sequence numbers
//! The engine (fjall 3.1.13) recovers its counter from the keyspaces' data, but not from its own
//! catalogue of keyspaces, which counts with it. After keyspaces were made or deleted it can
//! therefore start below what the catalogue has, and then what is made next is hidden by an
//! older deletion: at the next start a keyspace with synced data is gone. So numbers are
//! reserved here, durably and ahead of use, and the counter starts above all reserved ones.
//!
//! # Invariants
//! - A batch is committed by the writer's thread alone, and is durable when `commit` returns.
//! - A bucket that was replaced or dropped is marked so durably before its keyspace goes; what
//!   a crash leaves in between is cleaned up on opening.

use crate::error::Error;
use crate::{files, journal, keys, making};
use fjall::config::{BlockSizePolicy, CompressionPolicy, FilterPolicy};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Sequence numbers reserved at a time, and how many must be left.
const RESERVED: u64 = 1 << 16;
const LEAST_RESERVED: u64 = 1 << 12;

/// Threads that write and merge tables. Of two, fjall 3.1.13 keeps one for writing, which takes
/// and gives back the job of merging, without pause, for as long as the other merges.
const WORKERS: usize = 1;

/// Days whose buckets share full states. A month or so: a host's full state is stored once in
/// it, and not once a day.
const ERA_DAYS: i64 = 32;

pub(crate) fn era_of(day: i64) -> i64 {
    day.div_euclid(ERA_DAYS)
}

/// Versions of one day.
#[derive(Clone)]
pub(crate) struct Bucket {
    pub(crate) day: i64,
    pub(crate) thinned: bool,
    pub(crate) keyspace: Keyspace,
}

/// Load samples of a quarter of a day in full, or of a day thinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LoadBucket {
    Day(i64),
    Quarter(i64),
}

pub(crate) struct Db {
    path: PathBuf,
    database: Database,
    /// Names, heads, spans and marks: see [`keys`].
    pub(crate) hosts: Keyspace,
    /// Every subject a host had in what is kept.
    pub(crate) subjects: Keyspace,
    /// A host's last version before everything kept.
    pub(crate) origins: Keyspace,
    pub(crate) contents: Keyspace,
    pub(crate) records: Keyspace,
    /// Sequence numbers below this are reserved.
    reserved: AtomicU64,
    buckets: RwLock<BTreeMap<i64, Bucket>>,
    eras: RwLock<BTreeMap<i64, Keyspace>>,
    loads: RwLock<BTreeMap<LoadBucket, Keyspace>>,
}

const THINNED: &[u8] = b"t";
const DROPPED: &[u8] = b"d";

impl Db {
    pub(crate) fn open(path: &Path, block_cache_bytes: u64) -> Result<Self, Error> {
        making::make(path)?;
        files::check(path)?;
        journal::mend(path)?;
        let open_error = |source| Error::open(path, source);
        let database = Database::builder(path)
            .cache_size(block_cache_bytes)
            .max_cached_files(Some(cached_files()))
            .worker_threads(WORKERS)
            .max_journaling_size(128 << 20)
            .journal_compression(CompressionType::None)
            .open()
            .map_err(open_error)?;
        let small = |name| database.keyspace(name, making::small).map_err(open_error);
        let [hosts, subjects, origins, contents, records] = making::NAMES.map(small);
        let hosts = hosts?;
        start_above_reserved(&database, &hosts).map_err(open_error)?;
        let db = Self {
            path: path.to_owned(),
            hosts,
            subjects: subjects?,
            origins: origins?,
            contents: contents?,
            records: records?,
            reserved: AtomicU64::new(0),
            buckets: RwLock::default(),
            eras: RwLock::default(),
            loads: RwLock::default(),
            database,
        };
        db.reserve().map_err(open_error)?;
        db.find_buckets().map_err(open_error)?;
        Ok(db)
    }

    /// Takes up the buckets there are, and removes those that an interrupted expiry left.
    fn find_buckets(&self) -> fjall::Result<()> {
        for name in self.database.list_keyspace_names() {
            let Some((form, number)) = name.rsplit_once('.') else { continue };
            let Ok(number) = number.parse::<i64>() else { continue };
            let keyspace = self.database.keyspace(&name, KeyspaceCreateOptions::default)?;
            let mark = self.hosts.get(keys::bucket_mark(number))?;
            let current = match (form, mark.as_deref()) {
                ("base", _) => {
                    self.put_era(number, keyspace);
                    continue;
                }
                ("load-quarter", _) => {
                    self.put_load(LoadBucket::Quarter(number), keyspace);
                    continue;
                }
                ("load-day", _) => {
                    self.put_load(LoadBucket::Day(number), keyspace);
                    continue;
                }
                ("history", None) | ("thinned", Some(THINNED)) => true,
                ("history" | "thinned", _) => false,
                _ => continue,
            };
            if current {
                self.put_bucket(Bucket { day: number, thinned: form == "thinned", keyspace });
            } else {
                self.database.delete_keyspace(keyspace)?;
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn batch(&self) -> OwnedWriteBatch {
        // Data and the metadata to find it again: all that a journal needs.
        self.database.batch().durability(Some(PersistMode::SyncData))
    }

    /// A batch that becomes durable with a later one, or with [`Self::persist`].
    pub(crate) fn lazy_batch(&self) -> OwnedWriteBatch {
        self.database.batch()
    }

    pub(crate) fn persist(&self) -> Result<(), Error> {
        self.database
            .persist(PersistMode::SyncData)
            .map_err(|source| Error::write(&self.path, "sync the journal", source))
    }

    pub(crate) fn commit(&self, batch: OwnedWriteBatch) -> Result<(), Error> {
        self.reserve().map_err(|source| Error::write(&self.path, "commit", source))?;
        batch.commit().map_err(|source| Error::write(&self.path, "commit", source))
    }

    /// Sees to it that there are enough reserved sequence numbers.
    fn reserve(&self) -> fjall::Result<()> {
        let next = self.database.seqno();
        if next + LEAST_RESERVED < self.reserved.load(Ordering::Relaxed) {
            return Ok(());
        }
        let upto = next + RESERVED;
        let mut batch = self.batch();
        batch.insert(&self.hosts, keys::RESERVED, upto.to_be_bytes());
        batch.commit()?;
        self.reserved.store(upto, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn bucket(&self, day: i64) -> Option<Bucket> {
        self.buckets.read().unwrap_or_else(PoisonError::into_inner).get(&day).cloned()
    }

    pub(crate) fn buckets(&self) -> Vec<Bucket> {
        self.buckets.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn put_bucket(&self, bucket: Bucket) -> Option<Bucket> {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(bucket.day, bucket)
    }

    /// The bucket of a day, made when there is none.
    pub(crate) fn make_bucket(&self, day: i64) -> Result<Bucket, Error> {
        if let Some(bucket) = self.bucket(day) {
            return Ok(bucket);
        }
        let keyspace = self.history_keyspace(&format!("history.{day}"))?;
        let bucket = Bucket { day, thinned: false, keyspace };
        self.put_bucket(bucket.clone());
        Ok(bucket)
    }

    /// An empty keyspace for the thinned form of a day.
    pub(crate) fn make_thinned(&self, day: i64) -> Result<Bucket, Error> {
        let name = format!("thinned.{day}");
        if self.database.keyspace_exists(&name) {
            // What an expiry left that failed before it was done.
            let old = self.history_keyspace(&name)?;
            self.delete(old)?;
        }
        Ok(Bucket { day, thinned: true, keyspace: self.history_keyspace(&name)? })
    }

    /// Puts the thinned bucket in the place of the full one. `batch` has what changes with it.
    pub(crate) fn replace_bucket(
        &self,
        thinned: Bucket,
        mut batch: OwnedWriteBatch,
    ) -> Result<(), Error> {
        batch.insert(&self.hosts, keys::bucket_mark(thinned.day), THINNED);
        self.commit(batch)?;
        let full = self.put_bucket(thinned);
        full.map_or(Ok(()), |full| self.delete(full.keyspace))
    }

    /// Drops a day. `batch` has what changes with it.
    pub(crate) fn drop_bucket(&self, day: i64, mut batch: OwnedWriteBatch) -> Result<(), Error> {
        batch.insert(&self.hosts, keys::bucket_mark(day), DROPPED);
        self.commit(batch)?;
        let bucket = self.buckets.write().unwrap_or_else(PoisonError::into_inner).remove(&day);
        if let Some(bucket) = bucket {
            self.delete(bucket.keyspace)?;
        }
        let mut batch = self.lazy_batch();
        batch.remove(&self.hosts, keys::bucket_mark(day));
        self.commit(batch)
    }

    /// The full states that the keyframes of a day refer to.
    pub(crate) fn era(&self, day: i64) -> Option<Keyspace> {
        let eras = self.eras.read().unwrap_or_else(PoisonError::into_inner);
        eras.get(&era_of(day)).cloned()
    }

    pub(crate) fn eras(&self) -> Vec<Keyspace> {
        let eras = self.eras.read().unwrap_or_else(PoisonError::into_inner);
        eras.values().cloned().collect()
    }

    fn put_era(&self, era: i64, keyspace: Keyspace) {
        self.eras.write().unwrap_or_else(PoisonError::into_inner).insert(era, keyspace);
    }

    pub(crate) fn make_era(&self, day: i64) -> Result<Keyspace, Error> {
        if let Some(keyspace) = self.era(day) {
            return Ok(keyspace);
        }
        let keyspace = self.history_keyspace(&format!("base.{}", era_of(day)))?;
        self.put_era(era_of(day), keyspace.clone());
        Ok(keyspace)
    }

    /// Drops the full states of eras that are over before `day` and have no bucket left.
    pub(crate) fn drop_eras(&self, day: i64) -> Result<(), Error> {
        let used: BTreeSet<i64> = self.buckets().iter().map(|bucket| era_of(bucket.day)).collect();
        let mut eras = self.eras.write().unwrap_or_else(PoisonError::into_inner);
        let over = |era: &i64| *era < era_of(day) && !used.contains(era);
        let gone: Vec<i64> = eras.keys().copied().filter(over).collect();
        gone.iter()
            .filter_map(|era| eras.remove(era))
            .try_for_each(|keyspace| self.delete(keyspace))
    }

    fn history_keyspace(&self, name: &str) -> Result<Keyspace, Error> {
        // Records of neighbouring versions are much alike: large blocks compress them together.
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(16 << 20)
                .data_block_size_policy(BlockSizePolicy::all(16 << 10))
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
                .filter_policy(FilterPolicy::disabled())
        };
        self.database
            .keyspace(name, options)
            .map_err(|source| Error::write(&self.path, "make a bucket of history", source))
    }

    pub(crate) fn load_bucket(&self, bucket: LoadBucket) -> Option<Keyspace> {
        self.loads.read().unwrap_or_else(PoisonError::into_inner).get(&bucket).cloned()
    }

    pub(crate) fn load_buckets(&self) -> Vec<(LoadBucket, Keyspace)> {
        let loads = self.loads.read().unwrap_or_else(PoisonError::into_inner);
        loads.iter().map(|(bucket, keyspace)| (*bucket, keyspace.clone())).collect()
    }

    fn put_load(&self, bucket: LoadBucket, keyspace: Keyspace) {
        self.loads.write().unwrap_or_else(PoisonError::into_inner).insert(bucket, keyspace);
    }

    pub(crate) fn make_load_bucket(&self, bucket: LoadBucket) -> Result<Keyspace, Error> {
        if let Some(keyspace) = self.load_bucket(bucket) {
            return Ok(keyspace);
        }
        let name = match bucket {
            LoadBucket::Quarter(quarter) => format!("load-quarter.{quarter}"),
            LoadBucket::Day(day) => format!("load-day.{day}"),
        };
        // Samples are compressed already.
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(16 << 20)
                .data_block_size_policy(BlockSizePolicy::all(16 << 10))
                .data_block_compression_policy(CompressionPolicy::disabled())
                .filter_policy(FilterPolicy::disabled())
        };
        let keyspace = self
            .database
            .keyspace(&name, options)
            .map_err(|source| Error::write(&self.path, "make a bucket of load", source))?;
        self.put_load(bucket, keyspace.clone());
        Ok(keyspace)
    }

    pub(crate) fn drop_load_bucket(&self, bucket: LoadBucket) -> Result<(), Error> {
        let keyspace = self.loads.write().unwrap_or_else(PoisonError::into_inner).remove(&bucket);
        keyspace.map_or(Ok(()), |keyspace| self.delete(keyspace))
    }

    fn delete(&self, keyspace: Keyspace) -> Result<(), Error> {
        self.database
            .delete_keyspace(keyspace)
            .map_err(|source| Error::write(&self.path, "delete a keyspace", source))
    }

    /// What the directory takes of the disk. The engine's own figure counts what it has set
    /// aside for its journal and not written.
    pub(crate) fn disk_bytes(&self) -> u64 {
        fn blocks(dir: &Path) -> u64 {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let sizes = entries.filter_map(|entry| {
                let meta = entry.metadata().ok()?;
                let below = if meta.is_dir() { blocks(&entry.path()) } else { 0 };
                Some(meta.blocks() * 512 + below)
            });
            sizes.sum()
        }
        blocks(&self.path)
    }

    /// Writes everything that is in memory to tables, so that the journals can go; false when
    /// that was not done within `patience`. The engine's own waiting has no end when its
    /// workers have failed.
    pub(crate) fn settle(&self, patience: Duration) -> Result<bool, Error> {
        let failed = |source| Error::write(&self.path, "write tables", source);
        let mut keyspaces = Vec::new();
        for name in self.database.list_keyspace_names() {
            let keyspace =
                self.database.keyspace(&name, KeyspaceCreateOptions::default).map_err(failed)?;
            keyspace.rotate_memtable().map_err(failed)?;
            keyspaces.push(keyspace);
        }
        let deadline = Instant::now() + patience;
        while keyspaces.iter().any(|keyspace| keyspace.sealed_memtable_count() > 0) {
            if Instant::now() > deadline {
                return Ok(false);
            }
            // Fails when a worker did.
            self.database.persist(PersistMode::Buffer).map_err(failed)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }
}

/// Files of tables that are kept open: a part of those that the process may have, since the others
/// are for connections.
fn cached_files() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let part = files.map_or(900, |files| (files / 8).clamp(64, 900));
    usize::try_from(part).unwrap_or(900)
}

/// Raises the engine's counter above all that may have been used.
fn start_above_reserved(database: &Database, hosts: &Keyspace) -> fjall::Result<()> {
    let reserved = hosts.get(keys::RESERVED)?.and_then(|bytes| bytes.first_chunk().copied());
    let is_new = hosts.is_empty()?;
    let least = match reserved {
        Some(bytes) => u64::from_be_bytes(bytes),
        None if is_new => return Ok(()),
        // Written before numbers were reserved.
        None => database.seqno() + RESERVED,
    };
    database.supervisor.seqno.fetch_max(least);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails without reserved numbers: see the opening.
    #[test]
    fn a_keyspace_made_after_many_deletions_survives_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Db::open(directory.path(), 1 << 20).unwrap();
        let db = open();
        for quarter in 0..20 {
            db.make_load_bucket(LoadBucket::Quarter(quarter)).unwrap();
            db.drop_load_bucket(LoadBucket::Quarter(quarter)).unwrap();
        }
        drop(db);
        for round in 0..3 {
            let db = open();
            for quarter in 0..round * 5 {
                let keyspace = db.load_bucket(LoadBucket::Quarter(100 + quarter));
                let value = keyspace.expect("it was made").get(b"key").unwrap();
                assert_eq!(value.as_deref(), Some(&b"value"[..]));
            }
            for quarter in round * 5..(round + 1) * 5 {
                let keyspace = db.make_load_bucket(LoadBucket::Quarter(100 + quarter)).unwrap();
                let mut batch = db.batch();
                batch.insert(&keyspace, "key", "value");
                db.commit(batch).unwrap();
            }
        }
    }
}
