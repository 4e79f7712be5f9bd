//! Load samples: all of them for a day, one in five minutes for a month.
//!
//! What is kept long is the first sample of each five minutes as it was measured, not an
//! average: every figure in it was true at one moment, together with the others.

use crate::engine::Db;
use crate::error::Error;
use crate::group::Job;
use crate::history::History;
use crate::keys;
use crate::record::HostNumber;
use fjall::Keyspace;
use model::load::Load;
use model::{HostId, Time};
use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::Duration;

const LEVEL: i32 = 3;
const MAX_LOAD_BYTES: usize = 16 << 20;
/// The form of a stored sample: MessagePack with names, compressed with [`DICTIONARY`].
const FORM: u8 = 1;

/// The names of the fields as they are encoded, so that a sample need not carry them. Part of
/// the stored form: when the model gains fields, this stays; a new form may have a new one.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(dictionary);

impl History {
    /// Queues a load sample. It becomes durable within the persist interval.
    ///
    /// # Errors
    /// [`Error::Busy`] when the queue is full, [`Error::UnknownHost`] before a host's first
    /// version.
    pub fn append_load(&self, host: &HostId, received: Time, load: &Load) -> Result<(), Error> {
        if self.shared().meta(host).is_none() {
            return Err(Error::UnknownHost { host: host.clone() });
        }
        let day = Duration::from_secs(86_400);
        let at = load.at.max(received.minus(day)).min(received.plus(Duration::from_secs(60)));
        let bytes = encode(load)?;
        let job = Job::Load { host: host.clone(), at, bytes };
        self.offer(job).map_err(|refused| refused.1)
    }

    /// At most `max_points` samples of a time, oldest first and about evenly apart. Each is as
    /// it was measured.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn load(
        &self,
        host: &HostId,
        from: Time,
        to: Time,
        max_points: usize,
    ) -> Result<Vec<Load>, Error> {
        let db = self.shared().db()?;
        let Some(meta) = self.shared().meta(host) else { return Ok(Vec::new()) };
        let points = points(&db, meta.number, from, to).map_err(Error::storage("read load"))?;
        let mut loads = Vec::new();
        for (at, keyspace) in spread(points, from, to, max_points) {
            let bytes =
                keyspace.get(keys::load(meta.number, at)).map_err(Error::storage("read load"))?;
            // Gone when its bucket was dropped just now.
            if let Some(bytes) = bytes {
                let mut load =
                    decode(&bytes).ok_or_else(|| Error::corrupt("a load sample").of(host, None))?;
                load.at = at;
                loads.push(load);
            }
        }
        Ok(loads)
    }
}

type Point = (Time, Keyspace);

/// When there are samples. Those that are kept long are also among the others while there are
/// others.
fn points(db: &Db, host: HostNumber, from: Time, to: Time) -> fjall::Result<Vec<Point>> {
    let mut points: Vec<Point> = Vec::new();
    if from > to {
        return Ok(points);
    }
    for (_, keyspace) in db.load_buckets() {
        for entry in keyspace.range(keys::load(host, from)..=keys::load(host, to)) {
            points.push((Time(keys::signed_of(&entry.key()?)), keyspace.clone()));
        }
    }
    points.sort_by_key(|(at, _)| *at);
    points.dedup_by_key(|(at, _)| *at);
    Ok(points)
}

/// The first point of each of `max` equal parts of the time.
fn spread(points: Vec<Point>, from: Time, to: Time, max: usize) -> Vec<Point> {
    if points.len() <= max {
        return points;
    }
    let mut chosen: Vec<Point> = Vec::with_capacity(max);
    for point in points {
        let part = |at| part(at, from, to, max);
        if chosen.last().is_none_or(|(last, _)| part(*last) != part(point.0)) {
            chosen.push(point);
        }
    }
    chosen
}

/// Which of `max` equal parts of the time from `from` to `to` has `at`.
fn part(at: Time, from: Time, to: Time, max: usize) -> i128 {
    let length = i128::from(to.0) - i128::from(from.0) + 1;
    (i128::from(at.0) - i128::from(from.0)) * max as i128 / length
}

thread_local! {
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn encode(load: &Load) -> Result<Vec<u8>, Error> {
    let raw = rmp_serde::to_vec_named(load).expect("a load sample is plain data");
    if raw.len() > MAX_LOAD_BYTES {
        return Err(Error::TooLarge { what: "a load sample", limit: MAX_LOAD_BYTES });
    }
    let packed = COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            None => kept.insert(
                zstd::bulk::Compressor::with_dictionary(LEVEL, &DICTIONARY)
                    .expect("any bytes are a dictionary"),
            ),
        };
        compressor.compress(&raw).expect("the buffer has zstd's own bound")
    });
    Ok([&[FORM], packed.as_slice()].concat())
}

fn decode(bytes: &[u8]) -> Option<Load> {
    let (&FORM, packed) = bytes.split_first()? else { return None };
    let raw = DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(zstd::bulk::Decompressor::with_dictionary(&DICTIONARY).ok()?),
        };
        decompressor.decompress(packed, MAX_LOAD_BYTES).ok()
    })?;
    rmp_serde::from_slice(&raw).ok()
}

fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in NAMES {
        // As MessagePack has it: a short string, then a float of eight bytes.
        bytes.push(u8::try_from(name.len()).map_or(0xd9, |length| 0xa0 | length));
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0xcb);
    }
    bytes
}

const NAMES: [&str; 57] = [
    "gpus",
    "temperature_celsius",
    "memory_used_bytes",
    "disks",
    "reads_per_second",
    "writes_per_second",
    "busy_percent",
    "interfaces",
    "received_bytes_per_second",
    "sent_bytes_per_second",
    "received_packets_per_second",
    "sent_packets_per_second",
    "errors_per_second",
    "drops_per_second",
    "filesystems",
    "size_bytes",
    "available_bytes",
    "inodes",
    "inodes_free",
    "at",
    "host",
    "uptime_seconds",
    "cpu_per_core_percent",
    "cpu_user_percent",
    "cpu_system_percent",
    "cpu_iowait_percent",
    "cpu_steal_percent",
    "load_average",
    "memory_total_bytes",
    "memory_available_bytes",
    "memory_free_bytes",
    "memory_cached_bytes",
    "swap_total_bytes",
    "swap_free_bytes",
    "processes",
    "threads_running",
    "forks_per_second",
    "context_switches_per_second",
    "collector_age_seconds",
    "units",
    "system.slice",
    ".service",
    "tasks",
    "read_bytes_per_second",
    "written_bytes_per_second",
    "pressure",
    "cpu",
    "io",
    "memory",
    "full",
    "some",
    "pid",
    "name",
    "unit",
    "threads",
    "cpu_percent",
    "memory_bytes",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_never_changes() {
        // Samples that are stored could not be read any more.
        assert_eq!(xxhash_rust::xxh3::xxh3_64(&dictionary()), 8_601_589_031_548_003_990);
    }

    #[test]
    fn points_are_thinned_evenly() {
        let parts = |max| {
            let seconds: Vec<i64> =
                (0..100).filter(|s| part(Time(*s), Time(0), Time(99), max) == 0).collect();
            seconds.len()
        };
        assert_eq!(parts(10), 10);
        assert_eq!(parts(3), 34);
    }
}
