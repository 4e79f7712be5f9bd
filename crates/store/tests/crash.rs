//! Killed at any moment, also while it expires: what was acknowledged is there.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

mod common;

use common::{NOON, append, host, options, patch};
use model::entity::Unit;
use model::{Facts, HostId, Time, Version, diff};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use store::{Body, Error, Filter, History, Options, Retention};

const RETENTION: Retention = Retention { full_days: 2, keep_days: 6, load_hours: 1, load_days: 1 };
const HOSTS: usize = 4;
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";

fn hosts() -> Vec<HostId> {
    (0..HOSTS).map(|n| host(&format!("host-{n}"))).collect()
}

/// The state of every host at a version; every tenth change is a major one.
fn state(version: u64) -> Facts {
    let mut facts = Facts::default();
    for n in 1..6 {
        facts.put_entity(&Unit {
            id: format!("{n}.service"),
            main_pid: Some((version / n) as i64),
            active_state: if (version / 10).is_multiple_of(2) { "active" } else { "failed" }.into(),
            ..Unit::default()
        });
    }
    facts
}

/// Eight versions a day.
fn time(version: u64) -> Time {
    NOON.plus(Duration::from_secs(version * 3 * 3600))
}

fn open(directory: &Path) -> History {
    History::open(directory, Options { retention: RETENTION, ..options() }).unwrap()
}

/// Not a test of its own: what the tests below run and kill.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let history = open(Path::new(&directory));
    let newest = Arc::new(AtomicI64::new(0));
    let expiring = {
        let (history, newest) = (history.clone(), newest.clone());
        std::thread::spawn(move || {
            loop {
                history.expire(Time(newest.load(Ordering::Relaxed))).unwrap();
                history.put_content(b"some content").unwrap();
            }
        })
    };
    for (index, host) in hosts().into_iter().enumerate() {
        let (history, newest) = (history.clone(), newest.clone());
        std::thread::spawn(move || appending(&history, &host, index, &newest));
    }
    expiring.join().unwrap();
}

fn appending(history: &History, host: &HostId, index: usize, newest: &AtomicI64) {
    let mut version = history.host(host).map_or(0, |info| info.head.0);
    loop {
        version += 1;
        let body = match version {
            1 => Body::State(state(1)),
            _ => patch(&state(version - 1), &state(version)),
        };
        match history.append_and_wait(append(host, time(version), body)) {
            Ok(appended) => {
                assert_eq!(appended.head, Version(version));
                newest.fetch_max(time(version).0, Ordering::Relaxed);
                // One write, so that lines stay whole.
                let line = format!("stored {index} {version}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
            Err(Error::Busy) => version -= 1,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Runs the child for a while and kills it. Gives what it acknowledged, by host.
fn run_and_kill(directory: &Path, after: Duration) -> BTreeMap<usize, u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let mut stored = BTreeMap::new();
    for line in lines.map_while(Result::ok) {
        // The test harness writes to the same output.
        let Some((_, line)) = line.split_once("stored ") else { continue };
        if let [host, version] = line.split(' ').collect::<Vec<_>>()[..] {
            stored.insert(host.parse().unwrap(), version.parse().unwrap());
        }
    }
    killer.join().unwrap();
    stored
}

fn check(directory: &Path, stored: &BTreeMap<usize, u64>) {
    let history = open(directory);
    for (index, host) in hosts().iter().enumerate() {
        let least = stored.get(&index).copied().unwrap_or(0);
        let Some(head) = history.head(host).unwrap() else {
            assert_eq!(least, 0, "{host} is gone");
            continue;
        };
        assert!(
            head.version.0 >= least,
            "{host}: {} is stored, {least} was said to be",
            head.version
        );
        assert_eq!(head.facts, state(head.version.0));
        let log = history.log(host, &Filter::default(), None, usize::MAX).unwrap();
        let mut later: Option<Version> = None;
        for entry in &log {
            let version = entry.version.0;
            assert_eq!(history.state(host, entry.version).unwrap(), Some(state(version)));
            if let Some(later) = later.replace(entry.version) {
                let next = history.entry(host, later).unwrap().unwrap();
                assert_eq!(next.patch, diff(&state(version), &state(later.0)));
            }
        }
        // What is young enough is there without exception.
        let newest = time(stored.values().copied().max().unwrap_or(0).max(head.version.0));
        let full = (1..=head.version.0).filter(|n| time(*n).day() > newest.day() - 2);
        let kept: Vec<u64> = log.iter().map(|entry| entry.version.0).collect();
        for version in full {
            assert!(kept.contains(&version), "{host}: {version} is not in {kept:?}");
        }
    }
}

#[test]
fn killed_again_and_again_nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let rounds = std::env::var("STORE_KILLS").map_or(12, |rounds| rounds.parse().unwrap());
    let mut dice = common::Dice(std::process::id().into());
    let mut stored = BTreeMap::new();
    for round in 0..rounds {
        let after = Duration::from_millis(60 + dice.roll(600));
        stored.extend(run_and_kill(directory.path(), after));
        check(directory.path(), &stored);
        eprintln!("round {round}: {stored:?}");
    }
    assert!(stored.values().sum::<u64>() > 50, "{stored:?}");
}

/// At its first start, again and again at other moments of it.
#[test]
fn killed_while_it_is_made_it_is_made_again() {
    for after in (0..48).step_by(3) {
        let directory = tempfile::tempdir().unwrap();
        let mut stored = run_and_kill(directory.path(), Duration::from_millis(after));
        check(directory.path(), &stored);
        stored.extend(run_and_kill(directory.path(), Duration::from_millis(after)));
        check(directory.path(), &stored);
    }
}
