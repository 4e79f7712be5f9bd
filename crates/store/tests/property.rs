//! Any course of events, stored and read back at each version, through reopening, small
//! caches, borders of buckets and retention.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of a test"
)]

mod common;

use common::{Dice, NOON, append, host, options, patch};
use model::entity::{File, Package, Process, Unit};
use model::{ContentId, Facts, HostId, Significance, Time, Version, diff};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;
use store::{Body, Filter, History, Options, Retention};

/// What happens next.
#[derive(Debug, Clone)]
enum Event {
    /// A host changes, so much later.
    Change {
        host: usize,
        seed: u64,
        minutes: u64,
        full: bool,
    },
    Reopen,
    /// Retention as of so many days after the newest change.
    Expire {
        days: u64,
    },
    Forget {
        host: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let change = |minutes: std::ops::Range<u64>| {
        (0..3usize, any::<u64>(), minutes, any::<bool>())
            .prop_map(|(host, seed, minutes, full)| Event::Change { host, seed, minutes, full })
    };
    prop_oneof![
        30 => change(0..5),
        10 => change(0..2000),
        2 => Just(Event::Reopen),
        2 => (0..4u64).prop_map(|days| Event::Expire { days }),
        1 => (0..3usize).prop_map(|host| Event::Forget { host }),
    ]
}

/// Some of a few things changed.
fn changed(facts: &Facts, seed: u64) -> Facts {
    let mut dice = Dice(seed | 1);
    let mut next = facts.clone();
    for _ in 0..=dice.roll(3) {
        let name = format!("thing-{}", dice.roll(6));
        match dice.roll(6) {
            0 => drop(next.put_entity(&Unit {
                id: format!("{name}.service"),
                active_state: ["active", "inactive"][dice.roll(2) as usize].into(),
                main_pid: Some(dice.roll(5) as i64),
                ..Unit::default()
            })),
            1 => drop(next.put_entity(&Package {
                name,
                version: dice.roll(3).to_string(),
                state: (dice.roll(2) == 0).then(|| "half-configured".into()),
                ..Package::default()
            })),
            2 => drop(next.put_entity(&Process {
                id: name,
                pids: (0..dice.roll(4)).map(|n| n as i64).collect(),
                started_at: Some(Time(dice.roll(10) as i64)),
                ..Process::default()
            })),
            3 => drop(next.put_entity(&File {
                path: format!("/etc/{name}"),
                content: Some(ContentId::of(&[dice.roll(4) as u8]).to_string()),
                ..File::default()
            })),
            _ => {
                let index = dice.roll(next.len().max(1) as u64) as usize;
                let gone = next.iter().nth(index).map(|(subject, _)| subject.clone());
                gone.map(|subject| next.remove(&subject));
            }
        }
    }
    next
}

/// What a host's history should be.
#[derive(Default)]
struct Expected {
    /// All versions, with times and states.
    versions: Vec<(Time, Facts)>,
    /// Days before this one are thinned, and before that dropped.
    thinned_before: i64,
    dropped_before: i64,
}

const RETENTION: Retention = Retention { full_days: 2, keep_days: 5, load_hours: 1, load_days: 1 };

struct World {
    /// Closed before the directory goes.
    history: Option<History>,
    directory: tempfile::TempDir,
    small: bool,
    now: Time,
    expected: BTreeMap<HostId, Expected>,
}

impl World {
    fn new(small: bool) -> Self {
        let directory = common::directory_in_memory();
        let mut world =
            Self { directory, history: None, small, now: NOON, expected: BTreeMap::new() };
        world.reopen();
        world
    }

    fn reopen(&mut self) {
        drop(self.history.take());
        let caches = if self.small { 1 } else { 1 << 20 };
        let options = Options {
            retention: RETENTION,
            head_cache_bytes: caches,
            keyframe_cache_bytes: caches,
            ..options()
        };
        self.history = Some(History::open(self.directory.path(), options).unwrap());
    }

    fn history(&self) -> &History {
        self.history.as_ref().unwrap()
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Reopen => self.reopen(),
            Event::Change { host: number, seed, minutes, full } => {
                self.now = self.now.plus(Duration::from_secs(minutes * 60));
                let name = host(&format!("host-{number}"));
                let expected = self.expected.entry(name.clone()).or_default();
                let before =
                    expected.versions.last().map(|(_, facts)| facts.clone()).unwrap_or_default();
                let after = changed(&before, seed);
                if before != after {
                    expected.versions.push((self.now, after.clone()));
                }
                let body = if full { Body::State(after) } else { patch(&before, &after) };
                self.history().append_and_wait(append(&name, self.now, body)).unwrap();
            }
            Event::Expire { days } => {
                let now = self.now.plus(common::days(days));
                self.history().expire(now).unwrap();
                for expected in self.expected.values_mut() {
                    let full = now.day() - i64::from(RETENTION.full_days);
                    let keep = now.day() - i64::from(RETENTION.keep_days);
                    expected.thinned_before = expected.thinned_before.max(full);
                    expected.dropped_before = expected.dropped_before.max(keep);
                }
                // Later events are after what was looked at.
                self.now = now;
            }
            Event::Forget { host: number } => {
                let name = host(&format!("host-{number}"));
                let known = self.expected.remove(&name).is_some();
                assert_eq!(self.history().forget(&name).is_ok(), known);
            }
        }
    }

    fn check(&self) {
        for (host, expected) in &self.expected {
            if !expected.versions.is_empty() {
                self.check_host(host, expected);
            }
        }
    }

    fn check_host(&self, host: &HostId, expected: &Expected) {
        let history = self.history();
        let head = history.head(host).unwrap().unwrap();
        let last = expected.versions.last().unwrap();
        assert_eq!(head.version.0, expected.versions.len() as u64);
        assert_eq!(head.facts, last.1);
        let mut log = history.log(host, &Filter::default(), None, usize::MAX).unwrap();
        log.reverse();
        assert_eq!(history.after(host, Version(0), usize::MAX).unwrap(), log);

        // Every entry leads from the entry before it to its own state.
        let state = |version: Version| &expected.versions[version.0 as usize - 1].1;
        let mut before: Option<&Facts> = None;
        for entry in &log {
            let after = state(entry.version);
            assert_eq!(history.state(host, entry.version).unwrap().as_ref(), Some(after));
            assert_eq!(entry.at, expected.versions[entry.version.0 as usize - 1].0);
            assert_eq!(history.entry(host, entry.version).unwrap().as_ref(), Some(entry));
            if let Some(before) = before {
                assert_eq!(entry.patch, diff(before, after));
            }
            before = Some(after);
        }
        // Patches put together are the difference of the states.
        for (entry, later) in log.iter().zip(log.iter().skip(1).step_by(3)) {
            let (from, to) = (entry.version.min(later.version), entry.version.max(later.version));
            let whole = history.between(host, from, to).unwrap();
            let all_kept = to.0 - from.0
                == log.iter().filter(|e| e.version > from && e.version <= to).count() as u64;
            assert_eq!(whole.is_some(), all_kept);
            if let Some(patch) = whole {
                assert_eq!(patch, diff(state(from), state(to)));
            }
        }
        self.check_kept(host, expected, &log);
        self.check_filters(host, &log);
    }

    /// All is kept that retention keeps.
    fn check_kept(&self, host: &HostId, expected: &Expected, log: &[store::Entry]) {
        let kept: Vec<u64> = log.iter().map(|entry| entry.version.0).collect();
        for (index, (at, facts)) in expected.versions.iter().enumerate() {
            let version = index as u64 + 1;
            let is_last_of_day =
                expected.versions.get(index + 1).is_none_or(|(next, _)| next.day() != at.day());
            let before = index.checked_sub(1).map(|before| expected.versions[before].1.clone());
            let patch = diff(&before.unwrap_or_default(), facts);
            let is_major = model::significance_of(&patch) == Significance::Major;
            let is_kept = at.day() >= expected.thinned_before
                || at.day() >= expected.dropped_before && (is_major || is_last_of_day);
            if is_kept {
                assert!(kept.contains(&version), "{host} {version} {kept:?}");
            }
        }
        // Each time that is kept has its answer.
        for time in expected
            .versions
            .iter()
            .map(|(at, _)| *at)
            .filter(|at| at.day() >= expected.dropped_before)
        {
            let found = self.history().version_at(host, time).unwrap();
            let newest = log.iter().rev().find(|entry| entry.at <= time).map(|entry| entry.version);
            assert_eq!(found, newest);
            assert!(found.is_some());
        }
        // The last moment before what is kept: a day's last version is never thinned out.
        let oldest = Time(expected.dropped_before * 86_400_000_000 - 1);
        if expected.versions[0].0 <= oldest {
            let found = self.history().version_at(host, oldest).unwrap().unwrap();
            let (_, state) = expected.versions.iter().rev().find(|(at, _)| *at <= oldest).unwrap();
            assert_eq!(self.history().state(host, found).unwrap().as_ref(), Some(state));
        }
    }

    fn check_filters(&self, host: &HostId, log: &[store::Entry]) {
        let history = self.history();
        for subject in history.subjects(host).unwrap() {
            let filter = Filter { subjects: vec![subject.clone()], ..Filter::default() };
            let found = history.log(host, &filter, None, usize::MAX).unwrap();
            let found: Vec<Version> = found.iter().rev().map(|entry| entry.version).collect();
            let touching = log.iter().filter(|entry| entry.patch.0.contains_key(&subject));
            assert_eq!(found, touching.map(|entry| entry.version).collect::<Vec<_>>(), "{subject}");
        }
        let filter = Filter { significance: Some(Significance::Major), ..Filter::default() };
        let found = history.log(host, &filter, None, usize::MAX).unwrap();
        let major = log.iter().rev().filter(|entry| entry.significance == Significance::Major);
        assert_eq!(found, major.cloned().collect::<Vec<_>>());
    }
}

fn run(events: Vec<Event>, small: bool) {
    let mut world = World::new(small);
    for event in events {
        let looks = !matches!(event, Event::Change { .. });
        world.happen(&event);
        if looks {
            world.check();
        }
    }
    world.check();
    world.reopen();
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn what_was_stored_is_what_is_read(
        events in prop::collection::vec(event(), 1..120), small in any::<bool>(),
    ) {
        run(events, small);
    }
}

/// Long enough for several blocks and bases in one bucket.
#[test]
fn long_histories_too() {
    let mut dice = Dice(99);
    let mut events: Vec<Event> = Vec::new();
    for n in 0..1500u64 {
        events.push(Event::Change {
            host: 0,
            seed: dice.roll(u64::MAX >> 12),
            minutes: 1,
            full: n % 7 == 0,
        });
    }
    events.push(Event::Reopen);
    events.push(Event::Expire { days: 3 });
    for _ in 0..300 {
        events.push(Event::Change {
            host: 0,
            seed: dice.roll(u64::MAX >> 12),
            minutes: 1,
            full: false,
        });
    }
    events.push(Event::Expire { days: 4 });
    run(events, false);
}
