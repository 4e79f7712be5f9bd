//! A disk that fills up: a clear error, nothing lost, and work goes on once there is space.

#![expect(clippy::unwrap_used, reason = "helpers of a test")]

mod common;

use common::{Dice, NOON, append, host, seconds};
use model::entity::Package;
use model::{Facts, Version};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use store::{Body, Error, History, Options};

/// A small filesystem of its own, in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(megabytes: u32) -> Self {
        let path = tempfile::tempdir().unwrap().keep();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .status()
            .is_ok_and(|status| status.success());
        assert!(mounted, "MISSING: the right to mount a small tmpfs; run this as root");
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
        drop(std::fs::remove_dir(&self.0));
    }
}

/// A state that does not compress.
fn state(version: u64) -> Facts {
    let mut dice = Dice(version * 2 + 1);
    let mut facts = Facts::default();
    for n in 0..20 {
        let version = dice.hex(4000);
        facts.put_entity(&Package { name: format!("noise-{n}"), version, ..Package::default() });
    }
    facts
}

/// Appends until it is refused; the number of the last that was stored.
fn fill(history: &History, from: u64) -> (u64, Error) {
    let web = host("web01");
    for n in from + 1.. {
        let at = NOON.plus(seconds(n));
        match history.append_and_wait(append(&web, at, Body::State(state(n)))) {
            Ok(appended) => assert_eq!(appended.head, Version(n)),
            Err(error) => return (n - 1, error),
        }
    }
    unreachable!()
}

fn check(history: &History, upto: u64) {
    let web = host("web01");
    assert_eq!(history.host(&web).unwrap().head, Version(upto));
    for n in 1..=upto {
        assert_eq!(history.state(&web, Version(n)).unwrap(), Some(state(n)), "{n} of {upto}");
    }
}

fn run(reserve_bytes: u64) {
    let disk = SmallDisk::new(32);
    let directory = disk.0.join("history");
    let open = || History::open(&directory, Options { reserve_bytes, ..Options::default() });
    let ballast =
        |name: &str, bytes: usize| std::fs::write(disk.0.join(name), vec![1; bytes]).unwrap();
    ballast("one", 8 << 20);
    ballast("two", 8 << 20);
    let history = open().unwrap();
    let (mut stored, error) = fill(&history, 0);
    let is_full = |error: &Error| matches!(error, Error::Full { path } if path == &directory);
    assert!(is_full(&error), "{error:?}");
    assert!(stored > 10, "{stored}");
    for again in 0..3 {
        let (still, error) = fill(&history, stored);
        assert!(is_full(&error), "{again}: {error:?}");
        stored = still;
    }
    check(&history, stored);

    std::fs::remove_file(disk.0.join("one")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut more = stored;
    while more < stored + 30 {
        let (upto, error) = fill(&history, more);
        // What is in memory needs space, too, so that it may take a few attempts.
        assert!(is_full(&error), "{error:?}");
        assert!(Instant::now() < deadline, "{more} after {stored}, no more is taken: {error:?}");
        more = upto;
    }
    check(&history, more);
    let put = history.put_content(&[7; 100]);
    assert!(put.is_ok() || is_full(put.as_ref().unwrap_err()), "{put:?}");
    drop(history);

    std::fs::remove_file(disk.0.join("two")).unwrap();
    let history = open().unwrap();
    check(&history, more);
    let (end, _) = fill(&history, more);
    assert!(end > more);
    check(&history, end);
}

#[test]
fn a_full_disk_loses_nothing() {
    run(0);
}

#[test]
fn a_reserve_keeps_the_disk_from_filling() {
    run(4 << 20);
}

/// As root any file may be made, so that only a directory in the way stops the opening.
#[test]
fn a_place_that_can_not_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let refused = History::open(Path::new(&file), Options::default());
    assert!(matches!(refused, Err(Error::Prepare { path, .. }) if path == file));
}
