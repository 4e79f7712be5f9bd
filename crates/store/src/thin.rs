//! Rewrites a day of history with the versions that matter.
//!
//! Kept are versions with a major change, a label or a gap, a host's first ever, and each host's
//! last of the day; what the others changed is part of the next one that is kept. Numbers stay,
//! so a version that is kept is found under the number it always had.

use crate::block::{Block, Since, contents_of};
use crate::engine::{Bucket, Db};
use crate::error::Error;
use crate::keys;
use crate::read::{Bases, Past};
use crate::record::{Base, Difference, HostNumber, Keyframe, Meta, Record};
use model::{ContentId, Facts, Patch, Significance, Time, Version, significance_of};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What was rewritten, and is not yet in place.
pub(crate) struct Thinned {
    pub(crate) bucket: Bucket,
    /// Each host's first version in it.
    pub(crate) firsts: Vec<(HostNumber, Version, Time)>,
    pub(crate) merged: u64,
}

/// Writes the thinned form of a bucket beside it. Durable on return.
pub(crate) fn thin(
    db: &Db,
    bases: &Bases,
    metas: &HashMap<HostNumber, Arc<Meta>>,
    full: &Bucket,
) -> Result<Thinned, Error> {
    let bucket = db.make_thinned(full.day)?;
    let mut thinned = Thinned { bucket, firsts: Vec::new(), merged: 0 };
    let failed = |source| Error::write(db.path(), "write a thinned bucket", source);
    let mut mentioned = BTreeSet::new();
    let target = thinned.bucket.keyspace.clone();
    let mut ingestion = target.start_ingestion().map_err(failed)?;
    // Hosts that were forgotten are left behind.
    for meta in hosts_in(full)?.into_iter().filter_map(|number| metas.get(&number)) {
        let past = Past { db, bases, meta };
        let mut host = ThinnedHost::new(meta.number, full.day);
        host.take_all(&past, full)?;
        let Some((first, at)) = host.first else { continue };
        thinned.firsts.push((meta.number, first, at));
        thinned.merged += host.merged;
        mentioned.append(&mut host.mentioned);
        for (key, value) in host.entries {
            ingestion.write(key, value).map_err(failed)?;
        }
    }
    for content in mentioned {
        ingestion.write(keys::mention(&content), Vec::new()).map_err(failed)?;
    }
    ingestion.finish().map_err(failed)?;
    Ok(thinned)
}

/// The hosts that have something in a bucket, in order.
fn hosts_in(bucket: &Bucket) -> Result<Vec<HostNumber>, Error> {
    let mut hosts = Vec::new();
    let mut from = 0;
    loop {
        let next = bucket.keyspace.range(keys::host_start(from)..).next();
        let key = next.map(fjall::Guard::key).transpose();
        let Some(key) = key.map_err(Error::storage("list the hosts of a bucket"))? else { break };
        let Some(host) = keys::host_of(&key) else { break };
        hosts.push(host);
        let Some(after) = host.checked_add(1) else { break };
        from = after;
    }
    Ok(hosts)
}

struct ThinnedHost {
    number: HostNumber,
    day: i64,
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    mentioned: BTreeSet<ContentId>,
    first: Option<(Version, Time)>,
    /// The full state that all keyframes refer to: one that the full bucket refers to.
    base: Option<Arc<Base>>,
    block: Option<Block>,
    /// What the versions since the last kept one changed, and their number.
    pending: (Patch, u64),
    merged: u64,
}

impl ThinnedHost {
    fn new(number: HostNumber, day: i64) -> Self {
        Self {
            number,
            day,
            entries: BTreeMap::new(),
            mentioned: BTreeSet::new(),
            first: None,
            base: None,
            block: None,
            pending: (Patch::default(), 0),
            merged: 0,
        }
    }

    fn take_all(&mut self, past: &Past<'_>, full: &Bucket) -> Result<(), Error> {
        let all = Version(0)..=past.meta.state.head;
        let mut facts: Option<Facts> = None;
        let mut records = past.records(full, all).peekable();
        while let Some(record) = records.next() {
            let record = record?;
            let version = record.entry.version;
            let corrupt = |what: String| Error::corrupt(what).of(&past.meta.host, Some(version));
            let facts = match &mut facts {
                Some(facts) => {
                    let applied = record.entry.patch.apply(facts);
                    applied.map_err(|error| corrupt(error.to_string()))?;
                    facts
                }
                None => {
                    let first = past.state_in(full, version)?;
                    facts.insert(first.ok_or_else(|| corrupt("a keyframe is missing".to_owned()))?)
                }
            };
            if self.base.is_none() {
                let keyframe = past.keyframe(full, version)?;
                let missing = || corrupt("a keyframe is missing".to_owned());
                self.base = Some(keyframe.ok_or_else(missing)?.2);
            }
            self.take(record, facts, records.peek().is_none());
        }
        if let Some(block) = &mut self.block {
            block.close(|key, value| drop(self.entries.insert(key, value)));
        }
        Ok(())
    }

    fn take(&mut self, mut record: Record, facts: &Facts, is_last: bool) {
        let entry = &mut record.entry;
        let (patch, merged) = std::mem::take(&mut self.pending);
        let patch = patch.then(std::mem::take(&mut entry.patch));
        let merged = merged + entry.merged;
        let is_kept = entry.version == Version(1)
            || entry.significance == Significance::Major
            || entry.label.is_some()
            || entry.gap.is_some()
            || is_last;
        if !is_kept {
            self.pending = (patch, merged + 1);
            self.merged += 1;
            return;
        }
        entry.significance = significance_of(&patch);
        entry.patch = patch;
        entry.merged = merged;
        self.keep(&record, facts);
    }

    fn keep(&mut self, record: &Record, facts: &Facts) {
        let (number, day, version) = (self.number, self.day, record.entry.version);
        let bytes = record.encode(number, day);
        let stored = bytes.len();
        self.entries.insert(keys::version(number, version), bytes);
        self.mentioned.extend(contents_of(&record.entry.patch));
        self.first.get_or_insert((version, record.entry.at));
        let Some(base) = &self.base else { return };
        let entries = &mut self.entries;
        let is_new = self.block.is_none();
        let new = || Block::after(number, day, Since::new(base.version), version);
        let block = self.block.get_or_insert_with(new);
        block.note(record, stored);
        if block.is_full() {
            block.close_after(version, |key, value| drop(entries.insert(key, value)));
        } else if !is_new {
            return;
        }
        let difference = (Difference::between(base, facts), &*base.plain);
        let keyframe = Keyframe::encode_partial(number, version, facts.digest(), difference);
        entries.insert(keys::keyframe(number, version), keyframe);
    }
}
