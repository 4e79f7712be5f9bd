//! Retention: thins old days, drops older ones, removes contents that nothing names.
//!
//! # Invariants
//! - The head, and the state at the oldest moment that is kept, stay answerable: before a day
//!   is dropped, the last version of each of its hosts goes to `origins` with its state.
//! - Every step is durable before the one that builds on it, and each is repeated by the next
//!   run if it was cut off: killed anywhere, nothing that is kept is lost.
//! - Damage stays with what it hit: a day that can't be thinned stays whole until it is dropped,
//!   and the last state of a host that can't be read goes with its day.
//! - No new version goes into a day that may be thinned: the floor is raised first.

use crate::block::content_in;
use crate::codec::{put_signed, put_varint};
use crate::engine::{Bucket, LoadBucket};
use crate::error::Error;
use crate::history::History;
use crate::keys;
use crate::read::Past;
use crate::record::{HostNumber, Meta, Origin};
use crate::thin::thin;
use crate::types::Report;
use crate::writer::Writer;
use model::{ContentId, Time};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

type KeyValue = (Vec<u8>, Vec<u8>);

/// Hosts written in one step, so that appends are not kept waiting.
const HOSTS: usize = 32;
/// Keys deleted in one step.
const KEYS: usize = 10_000;
/// How long a content must have been unused before it goes.
const UNUSED: Duration = Duration::from_secs(3600);
const SETTLE: Duration = Duration::from_secs(30);

impl History {
    /// Applies the retention as of `now`. Takes its time; run it once a day or so, on a thread
    /// of its own. Only one runs at a time.
    ///
    /// # Errors
    /// When something can't be read or written. What was done stays done.
    pub fn expire(&self, now: Time) -> Result<Report, Error> {
        let maintenance = &self.shared().maintenance;
        let _one = maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report =
            Report { bytes_before: self.shared().db()?.disk_bytes(), ..Report::default() };
        let retention = self.exclusively(|writer| Ok(writer.retention))?;
        let full_from = now.day().saturating_sub(i64::from(retention.full_days));
        let keep_from = now.day().saturating_sub(i64::from(retention.keep_days)).min(full_from);
        self.raise_floor(full_from)?;

        let buckets: Vec<(i64, bool)> = {
            let buckets = self.shared().db()?.buckets();
            buckets.iter().map(|bucket| (bucket.day, bucket.thinned)).collect()
        };
        for (day, thinned) in buckets {
            if day < keep_from {
                self.drop_day(day, &mut report)?;
                report.dropped += 1;
            } else if day < full_from && !thinned {
                let merged = self.thin_day(day);
                if let Some(merged) = report.unless_damaged("a day stays as it is", merged)? {
                    report.merged += merged;
                    report.thinned += 1;
                }
            }
        }
        self.exclusively(move |writer| writer.shared.db()?.drop_eras(keep_from))?;
        let swept = self.sweep_subjects(keep_from, &mut report);
        report.unless_damaged("subjects that went stay listed", swept)?;
        let swept = self.sweep_contents(now, &mut report);
        report.unless_damaged("no contents are removed", swept)?;
        report.load_dropped = self.drop_loads(now)?;
        let db = self.shared().db()?;
        // Only what is in tables is compacted.
        if db.settle(SETTLE)? && report.contents_removed > 0 {
            db.contents.major_compact().map_err(Error::storage("compact the contents"))?;
        }
        report.bytes_after = db.disk_bytes();
        Ok(report)
    }

    fn raise_floor(&self, day: i64) -> Result<(), Error> {
        self.exclusively(move |writer| {
            if day <= writer.floor {
                return Ok(());
            }
            let db = writer.shared.db()?;
            let mut batch = db.batch();
            batch.insert(&db.hosts, keys::FLOOR, day.to_be_bytes());
            db.commit(batch).map_err(|error| writer.full_or(error))?;
            drop(db);
            writer.floor = day;
            Ok(())
        })
    }

    fn metas_by_number(&self) -> HashMap<HostNumber, Arc<Meta>> {
        self.shared().metas().into_iter().map(|meta| (meta.number, meta)).collect()
    }

    fn drop_day(&self, day: i64, report: &mut Report) -> Result<(), Error> {
        let hosts = self.hosts_on(day)?;
        for some in hosts.chunks(HOSTS) {
            let origins = self.last_states(day, some, report)?;
            self.exclusively(move |writer| {
                let db = writer.shared.db()?;
                let mut batch = db.batch();
                for (key, value) in origins {
                    batch.insert(&db.origins, key, value);
                }
                db.commit(batch).map_err(|error| writer.full_or(error))
            })?;
        }
        self.exclusively(move |writer| {
            let db = writer.shared.db()?;
            let mut batch = db.batch();
            for meta in hosts {
                batch.remove(&db.hosts, keys::span(meta.number, day));
            }
            db.drop_bucket(day, batch).map_err(|error| writer.full_or(error))
        })
    }

    /// The hosts that have versions on a day.
    fn hosts_on(&self, day: i64) -> Result<Vec<Arc<Meta>>, Error> {
        let db = self.shared().db()?;
        let mut hosts = self.shared().metas();
        let mut outcome = Ok(());
        hosts.retain(|meta| match db.hosts.contains_key(keys::span(meta.number, day)) {
            Ok(has) => has,
            Err(error) => {
                outcome = Err(Error::storage("list the hosts of a day")(error));
                false
            }
        });
        outcome.map(|()| hosts)
    }

    /// The last version that each of these hosts has on a day, with its state, to be stored.
    fn last_states(
        &self,
        day: i64,
        metas: &[Arc<Meta>],
        report: &mut Report,
    ) -> Result<Vec<KeyValue>, Error> {
        let db = self.shared().db()?;
        let Some(bucket) = db.bucket(day) else { return Ok(Vec::new()) };
        let mut origins = Vec::new();
        for meta in metas {
            let past = Past { db: &db, bases: &self.shared().bases, meta };
            let origin = last_state(&past, &bucket);
            let origin = report.unless_damaged("what a host last was is not kept", origin)?;
            origins.extend(
                origin
                    .flatten()
                    .map(|origin| (keys::host_start(meta.number), origin.encode(meta.number))),
            );
        }
        Ok(origins)
    }

    /// Gives the number of versions that were merged.
    fn thin_day(&self, day: i64) -> Result<u64, Error> {
        let metas = self.metas_by_number();
        let thinned = {
            let db = self.shared().db()?;
            let Some(full) = db.bucket(day) else { return Ok(0) };
            thin(&db, &self.shared().bases, &metas, &full)?
        };
        let merged = thinned.merged;
        self.exclusively(move |writer| {
            let db = writer.shared.db()?;
            let mut batch = db.batch();
            for (number, first, at) in thinned.firsts {
                let mut span = Vec::new();
                put_varint(&mut span, first.0);
                put_signed(&mut span, at.0);
                batch.insert(&db.hosts, keys::span(number, day), span);
            }
            db.replace_bucket(thinned.bucket, batch).map_err(|error| writer.full_or(error))
        })?;
        Ok(merged)
    }

    /// Subjects that went on a day that is not kept any more, and did not come back.
    fn sweep_subjects(&self, keep_from: i64, report: &mut Report) -> Result<(), Error> {
        let mut gone = Vec::new();
        for meta in self.shared().metas() {
            let days =
                keys::gone_until(meta.number, i64::MIN)..keys::gone_until(meta.number, keep_from);
            {
                let db = self.shared().db()?;
                // What is more goes with a later expiry.
                for entry in db.subjects.range(days).take(KEYS) {
                    let key = entry.key().map_err(Error::storage("list what went"))?;
                    gone.push((Arc::clone(&meta), key.to_vec()));
                }
            }
            if gone.len() >= KEYS {
                report.subjects_removed += self.remove_subjects(std::mem::take(&mut gone))?;
            }
        }
        report.subjects_removed += self.remove_subjects(gone)?;
        Ok(())
    }

    /// Of subjects that went, by their keys, removes those that did not come back; how many.
    fn remove_subjects(&self, gone: Vec<(Arc<Meta>, Vec<u8>)>) -> Result<u64, Error> {
        if gone.is_empty() {
            return Ok(0);
        }
        self.exclusively(move |writer| {
            let db = writer.shared.db()?;
            let mut origins: HashMap<HostNumber, HashSet<Vec<u8>>> = HashMap::new();
            let (mut batch, mut removed) = (db.batch(), 0);
            for (meta, entry) in &gone {
                let Some((day, subject)) = keys::gone_of(entry) else { continue };
                let mentions = origins.entry(meta.number).or_insert_with(|| {
                    mentioned_last(&Past { db: &db, bases: &writer.shared.bases, meta })
                });
                if mentions.contains(&subject) {
                    continue;
                }
                let mark =
                    db.subjects.get(&subject).map_err(Error::storage("look up a subject"))?;
                // Another mark: it came back, and may have gone again later.
                if mark.is_some_and(|mark| *mark == *day) {
                    batch.remove(&db.subjects, subject);
                    removed += 1;
                }
                batch.remove(&db.subjects, entry.as_slice());
            }
            db.commit(batch).map_err(|error| writer.full_or(error))?;
            Ok(removed)
        })
    }

    /// A content is named by a head, or by a patch in some bucket: what an older state has, a
    /// later patch takes away, and says so.
    fn used_contents(&self) -> Result<HashSet<ContentId>, Error> {
        let mut used = HashSet::new();
        {
            let db = self.shared().db()?;
            for bucket in db.buckets() {
                used.extend(mentioned(&bucket)?);
            }
        }
        for meta in self.shared().metas() {
            let Some(head) = self.head(&meta.host)? else { continue };
            used.extend(head.facts.iter().filter_map(|(_, item)| content_in(&item.fields())));
        }
        Ok(used)
    }

    fn sweep_contents(&self, now: Time, report: &mut Report) -> Result<(), Error> {
        let read = || Error::storage("list contents");
        let ids: Vec<ContentId> = {
            let db = self.shared().db()?;
            let keys = db.contents.prefix(keys::CONTENTS_PREFIX).map(fjall::Guard::key);
            let keys = keys.collect::<Result<Vec<_>, _>>().map_err(read())?;
            keys.iter().filter_map(|key| keys::content_of(key)).collect()
        };
        // Listed before what is in use, so that what comes in between is not taken for unused.
        let used = self.used_contents()?;
        let unused: Vec<ContentId> = ids.into_iter().filter(|id| !used.contains(id)).collect();
        for some in unused.chunks(KEYS) {
            let some = some.to_vec();
            let (noticed, removed) = self.exclusively(move |writer| {
                let db = writer.shared.db()?;
                let mut batch = db.batch();
                let (mut noticed, mut removed) = (0, 0);
                for id in some {
                    let since = db.contents.get(keys::unused(&id)).map_err(read())?;
                    let since = since.and_then(|bytes| bytes.first_chunk().copied());
                    match since.map(|bytes| Time(i64::from_be_bytes(bytes))) {
                        Some(since) if since.plus(UNUSED) <= now => {
                            batch.remove(&db.contents, keys::content(&id));
                            batch.remove(&db.contents, keys::unused(&id));
                            removed += 1;
                        }
                        Some(_) => {}
                        None => {
                            batch.insert(&db.contents, keys::unused(&id), now.0.to_be_bytes());
                            noticed += 1;
                        }
                    }
                }
                db.commit(batch).map_err(|error| writer.full_or(error))?;
                Ok((noticed, removed))
            })?;
            report.contents_unused += noticed;
            report.contents_removed += removed;
        }
        Ok(())
    }

    fn drop_loads(&self, now: Time) -> Result<u64, Error> {
        self.exclusively(move |writer| {
            let db = writer.shared.db()?;
            let hour_from = now.hour().saturating_sub(i64::from(writer.retention.load_hours));
            let quarter_from = hour_from.div_euclid(6);
            let day_from = now.day().saturating_sub(i64::from(writer.retention.load_days));
            let old = |bucket: &LoadBucket| match bucket {
                LoadBucket::Quarter(quarter) => *quarter < quarter_from,
                LoadBucket::Day(day) => *day < day_from,
            };
            let mut dropped = 0;
            for (bucket, _) in db.load_buckets().into_iter().filter(|(bucket, _)| old(bucket)) {
                db.drop_load_bucket(bucket)?;
                dropped += 1;
            }
            Ok(dropped)
        })
    }
}

/// The keys of subjects that the last version before the days that are kept mentions: it is kept,
/// too. One that can't be read mentions nothing to anybody.
fn mentioned_last(past: &Past<'_>) -> HashSet<Vec<u8>> {
    let origin = past.origin_record().ok().flatten();
    let patch = origin.map(|record| record.entry.patch).unwrap_or_default();
    patch.iter().map(|(subject, _)| keys::subject(past.meta.number, subject)).collect()
}

/// A host's last version in a bucket, with its state.
fn last_state(past: &Past<'_>, bucket: &Bucket) -> Result<Option<Origin>, Error> {
    let all = model::Version(0)..=past.meta.state.head;
    let Some(record) = past.records(bucket, all).next_back().transpose()? else { return Ok(None) };
    let version = record.entry.version;
    let missing = || Error::corrupt("a state is missing").of(&past.meta.host, Some(version));
    let facts = past.state_in(bucket, version)?.ok_or_else(missing)?;
    Ok(Some(Origin { record, facts }))
}

impl Report {
    /// What was done; `None` and a warning when damage was in the way.
    fn unless_damaged<T>(
        &mut self,
        what_then: &'static str,
        outcome: Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is_damage() => {
                self.left += 1;
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "{what_then}, because of damage; restore the history from a backup, or forget \
                     the host"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn mentioned(bucket: &Bucket) -> Result<Vec<ContentId>, Error> {
    let keys = bucket.keyspace.prefix(keys::mentions()).map(fjall::Guard::key);
    let keys = keys.collect::<Result<Vec<_>, _>>().map_err(Error::storage("list contents"))?;
    Ok(keys.iter().filter_map(|key| keys::content_of(key)).collect())
}

/// Deletes everything a host number has, and then the mark that it is to be deleted.
pub(crate) fn forget(history: &History, number: HostNumber) -> Result<(), Error> {
    while !history.exclusively(move |writer| forget_some(writer, number))? {}
    Ok(())
}

/// Deletes some of it; true when nothing is left.
fn forget_some(writer: &mut Writer, number: HostNumber) -> Result<bool, Error> {
    let db = writer.shared.db()?;
    let buckets = db.buckets().into_iter().map(|bucket| bucket.keyspace);
    let loads = db.load_buckets().into_iter().map(|(_, keyspace)| keyspace);
    let others = db.eras().into_iter().chain([db.subjects.clone(), db.origins.clone()]);
    let of_host = |keyspace| (keyspace, keys::host_start(number));
    let places = buckets.chain(loads).chain(others).map(of_host);
    let mut batch = db.batch();
    for (keyspace, prefix) in places.chain([(db.hosts.clone(), keys::spans(number))]) {
        for entry in keyspace.prefix(prefix).take(KEYS - batch.len().min(KEYS)) {
            match entry.key().map_err(Error::storage("list what is deleted")) {
                Ok(key) => batch.remove(&keyspace, key),
                Err(error) if error.is_damage() => {
                    // Nobody reads it any more, and it goes with its bucket.
                    tracing::warn!(%error, "some of a forgotten host is damaged, and goes with its bucket");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    let is_last = batch.len() < KEYS;
    if is_last {
        batch.remove(&db.hosts, keys::forgotten(number));
    }
    db.commit(batch).map_err(|error| writer.full_or(error))?;
    Ok(is_last)
}
