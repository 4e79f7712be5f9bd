//! Power losses and damaged files: what was synced is read, and what can't be read is named.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "helpers of a test"
)]

mod common;

use common::{
    Dice, NOON, append, disk_usage, host, large, must_work, options, patch, record, restarted,
    seconds, small,
};
use model::{HostId, Version};
use std::path::{Path, PathBuf};
use store::{Body, Error, Filter, History};

/// A copy of the files as they are, as a power loss leaves what was synced.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            std::fs::copy(file.path(), target).unwrap();
        }
    }
}

fn journal(directory: &Path) -> PathBuf {
    let files = std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "jnl")).max().unwrap()
}

/// An image of a history of forty versions that lost power, and the bytes of its journal up to
/// the unwritten rest.
fn image() -> (tempfile::TempDir, Vec<u8>) {
    let live = common::directory_in_memory();
    let history = History::open(live.path(), options()).unwrap();
    for n in 1..=40 {
        record(&history, &host("web01"), NOON.plus(seconds(n)), &small(n as i64)).unwrap();
    }
    let image = common::directory_in_memory();
    copy(live.path(), image.path());
    drop(history);
    let mut bytes = std::fs::read(journal(image.path())).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end);
    (image, bytes)
}

/// Opens the image with these bytes as its journal.
fn open_with(image: &Path, bytes: &[u8]) -> (tempfile::TempDir, Result<History, Error>) {
    let directory = common::directory_in_memory();
    copy(image, directory.path());
    std::fs::write(journal(directory.path()), bytes).unwrap();
    let history = History::open(directory.path(), options());
    (directory, history)
}

fn head(history: &History) -> u64 {
    let web = host("web01");
    let Some(head) = history.head(&web).unwrap() else { return 0 };
    assert_eq!(head.facts, small(head.version.0 as i64));
    for n in 1..=head.version.0 {
        assert_eq!(history.state(&web, Version(n)).unwrap(), Some(small(n as i64)));
    }
    head.version.0
}

#[test]
fn a_journal_cut_anywhere_opens_with_what_came_before() {
    let (image, bytes) = image();
    let mut dice = Dice(3);
    let mut last = 40;
    for cut in [0, 1, 2, 7].into_iter().chain((0..25).map(|_| dice.roll(bytes.len() as u64 / 2))) {
        let kept = &bytes[..bytes.len() - cut as usize];
        let (_directory, history) = open_with(image.path(), kept);
        let history = history.unwrap();
        let found = head(&history);
        if cut == 0 {
            assert_eq!(found, 40);
        }
        last = last.min(found);
        record(&history, &host("web01"), NOON.plus(seconds(100)), &small(-1)).unwrap();
    }
    assert!(last < 40);
}

#[test]
fn garbage_behind_the_journal_is_cut_off() {
    let (image, bytes) = image();
    let mut dice = Dice(4);
    let noise: Vec<u8> = (0..5000).map(|_| dice.roll(256) as u8).collect();
    let half = &bytes[bytes.len() - 200..bytes.len() - 60];
    // An item with a length of gigabytes, a start without more, and what was half written.
    let item = [2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 255, 255, 255, 240, 255, 255, 255, 240, 9];
    let start = [1, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    let torn = [&start[..], &item[..]].concat();
    for tail in [&noise[..], half, &item, &start, &torn, &[3; 50], &[255; 9000]] {
        let behind = [&bytes[..], tail, &[0; 4096]].concat();
        let (_directory, history) = open_with(image.path(), &behind);
        assert_eq!(head(&history.unwrap()), 40);
    }
}

#[test]
fn a_last_write_with_holes_is_not_taken_for_whole() {
    let (image, bytes) = image();
    for back in [20, 40, 80, 120] {
        let mut holed = bytes.clone();
        let at = holed.len() - back;
        holed[at..at + 8].fill(0);
        let (_directory, history) = open_with(image.path(), &holed);
        assert!(head(&history.unwrap()) >= 38);
    }
}

#[test]
fn damage_before_what_was_acknowledged_is_not_silently_cut() {
    let (image, mut bytes) = image();
    // In the first value of a batch: behind a trailer, a start and the head of an item.
    let half = bytes.len() / 2;
    let batch = bytes[half..].windows(4).position(|four| four == b"FJL\x03").unwrap() + half + 4;
    let middle = batch + 13 + 22 + 30;
    bytes[middle] ^= 0x55;
    let (directory, history) = open_with(image.path(), &bytes);
    let Err(Error::Damaged { path, offset }) = history else { panic!("{history:?}") };
    assert_eq!(path, journal(directory.path()));
    assert!(offset <= middle as u64);
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was touched");
    // What it says to do helps.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(offset).unwrap();
    let found = head(&History::open(directory.path(), options()).unwrap());
    assert!((10..40).contains(&found), "{found}");
}

fn tables(directory: &Path, found: &mut Vec<PathBuf>) {
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            tables(&path, found);
        } else if path.parent().is_some_and(|parent| parent.ends_with("tables")) {
            found.push(path);
        }
    }
}

/// Reads all of a host; the number of versions that are damaged.
fn damaged_versions(history: &History, host: &HostId, states: &[model::Facts]) -> usize {
    let mut damaged = 0;
    for (index, expected) in states.iter().enumerate().step_by(9) {
        match history.state(host, Version(index as u64 + 1)) {
            Ok(found) => assert_eq!(found.as_ref(), Some(expected)),
            Err(Error::Corrupt { host: Some(named), .. }) => {
                assert_eq!(&named, host);
                damaged += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    damaged
}

#[test]
fn damage_is_named_and_stays_with_whom_it_hit() {
    let directory = common::directory_in_memory();
    let hosts: Vec<HostId> = (0..8).map(|n| host(&format!("host-{n}"))).collect();
    let mut states: Vec<Vec<model::Facts>> = Vec::new();
    let mut dice = Dice(11);
    {
        let history = History::open(directory.path(), options()).unwrap();
        for (n, host) in hosts.iter().enumerate() {
            let mut all = vec![large(n as u64 + 1)];
            record(&history, host, NOON, &all[0]).unwrap();
            for n in 1..160 {
                let next = restarted(&all[n - 1], dice.roll(60), &mut dice);
                let at = NOON.plus(seconds(n as u64));
                history.append(append(host, at, patch(&all[n - 1], &next)), must_work);
                all.push(next);
            }
            states.push(all);
        }
    }
    let mut files = Vec::new();
    tables(&directory.path().join("keyspaces"), &mut files);
    let bucket = files.into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let intact = std::fs::read(&bucket).unwrap();
    let mut hit = 0;
    for _ in 0..10 {
        let mut bytes = intact.clone();
        // In the first half: the other holds the engine's own index.
        let at = dice.roll(bytes.len() as u64 / 2) as usize;
        bytes[at] ^= 1 << dice.roll(8);
        std::fs::write(&bucket, bytes).unwrap();
        let history = History::open(directory.path(), options()).unwrap();
        let damaged: Vec<usize> = hosts
            .iter()
            .zip(&states)
            .map(|(host, states)| damaged_versions(&history, host, states))
            .collect();
        assert!(damaged.iter().filter(|damaged| **damaged > 0).count() <= 2, "{damaged:?}");
        hit += damaged.iter().sum::<usize>();
        // The log may miss it, but must not break.
        for host in &hosts {
            drop(history.log(host, &Filter::default(), None, 1000));
        }
        drop(history);
        std::fs::write(&bucket, &intact).unwrap();
    }
    assert!(hit > 0);
}

/// A history of two hosts whose files are all in tables, and the files of `web01`'s versions.
fn two_hosts() -> (tempfile::TempDir, HostId, HostId, PathBuf) {
    let directory = common::directory_in_memory();
    let (web, other) = (host("web01"), host("web02"));
    {
        let history = History::open(directory.path(), options()).unwrap();
        for n in 1..=40 {
            record(&history, &web, NOON.plus(seconds(n)), &small(n as i64)).unwrap();
        }
        for n in 1..=40 {
            let day = NOON.plus(common::days(1)).plus(seconds(n));
            record(&history, &other, day, &small(n as i64)).unwrap();
        }
    }
    let mut files = Vec::new();
    tables(&directory.path().join("keyspaces"), &mut files);
    // The first bucket that was made: of the first day, with one host.
    let bucket = files.into_iter().find(|path| path.ends_with("6/tables/0")).unwrap();
    (directory, web, other, bucket)
}

#[test]
fn a_host_goes_on_after_damage_and_the_others_do_not_notice() {
    let (directory, web, other, bucket) = two_hosts();
    let mut bytes = std::fs::read(&bucket).unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 0x55;
    std::fs::write(&bucket, bytes).unwrap();
    let history = History::open(directory.path(), options()).unwrap();
    assert!(history.head(&web).unwrap_err().is_damage());
    // A patch can't follow; a whole state can.
    let follows = append(&web, NOON.plus(seconds(50)), patch(&small(40), &small(41)));
    let refused = history.append_and_wait(follows);
    assert!(matches!(refused, Err(Error::BaseMismatch { .. })), "{refused:?}");
    record(&history, &web, NOON.plus(seconds(51)), &small(50)).unwrap();
    record(&history, &web, NOON.plus(seconds(52)), &small(51)).unwrap();
    drop(history);
    let history = History::open(directory.path(), options()).unwrap();
    let head = history.head(&web).unwrap().unwrap();
    assert_eq!((head.version, &head.facts), (Version(42), &small(51)));
    assert_eq!(history.state(&web, Version(41)).unwrap(), Some(small(50)));
    assert!(history.entry(&web, Version(41)).unwrap().unwrap().gap.is_some());
    assert_eq!(history.between(&web, Version(40), Version(42)).unwrap(), None);
    let subject = small(51).iter().next().unwrap().0.clone();
    let filter = Filter { subjects: vec![subject], ..Filter::default() };
    let found = history.log(&web, &filter, None, 2).unwrap();
    assert_eq!(found.iter().map(|entry| entry.version.0).collect::<Vec<_>>(), [42, 41]);
    let found = history.log(&web, &Filter::default(), None, 100).unwrap();
    let versions: Vec<u64> = found.iter().map(|entry| entry.version.0).collect();
    assert_eq!(versions, [42, 41, 40]);
    assert!(found[2].patch.is_empty() && found[2].label.is_some(), "{:?}", found[2]);
    let after = history.after(&web, Version(3), 100).unwrap();
    let versions: Vec<u64> = after.iter().map(|entry| entry.version.0).collect();
    assert_eq!(versions, [40, 41, 42]);
    // Expiry goes round it, and in the end takes it along.
    let thinned = history.expire(NOON.plus(common::days(40))).unwrap();
    assert_eq!((thinned.thinned, thinned.left), (1, 1), "{thinned:?}");
    assert_eq!(history.head(&other).unwrap().unwrap().facts, small(40));
    let dropped = history.expire(NOON.plus(common::days(600))).unwrap();
    assert_eq!(dropped.dropped, 2, "{dropped:?}");
    assert_eq!(history.head(&web).unwrap().unwrap().facts, small(51));
    assert_eq!(history.head(&other).unwrap().unwrap().facts, small(40));
}

#[test]
fn a_damaged_host_can_be_forgotten() {
    let (directory, web, other, bucket) = two_hosts();
    let mut bytes = std::fs::read(&bucket).unwrap();
    let most = bytes.len() / 2;
    for at in (0..most).step_by(97) {
        bytes[at] ^= 0x55;
    }
    std::fs::write(&bucket, bytes).unwrap();
    let history = History::open(directory.path(), options()).unwrap();
    assert!(history.head(&web).unwrap_err().is_damage());
    // Nothing of it can be kept, and nothing else is kept for it.
    let dropped = history.expire(NOON.plus(common::days(600))).unwrap();
    assert_eq!((dropped.dropped, dropped.left > 0), (2, true), "{dropped:?}");
    history.forget(&web).unwrap();
    drop(history);
    let history = History::open(directory.path(), options()).unwrap();
    assert!(history.host(&web).is_none());
    assert_eq!(history.head(&other).unwrap().unwrap().facts, small(40));

    let (directory, web, other, bucket) = two_hosts();
    let mut bytes = std::fs::read(&bucket).unwrap();
    bytes[most / 2] ^= 0x55;
    std::fs::write(&bucket, bytes).unwrap();
    let history = History::open(directory.path(), options()).unwrap();
    history.forget(&web).unwrap();
    drop(history);
    let history = History::open(directory.path(), options()).unwrap();
    assert_eq!(history.hosts().len(), 1);
    record(&history, &web, NOON.plus(common::days(1)), &small(7)).unwrap();
    assert_eq!(history.head(&web).unwrap().unwrap().version, Version(1));
    assert_eq!(history.head(&other).unwrap().unwrap().facts, small(40));
}

/// What is gone is noticed when the history is opened, and the error says what helps.
#[test]
fn a_lost_file_is_no_empty_history() {
    let (image, _) = image();
    let restarted = common::directory_in_memory();
    copy(image.path(), restarted.path());
    drop(History::open(restarted.path(), options()).unwrap());
    let lost = |file: &str| {
        let directory = common::directory_in_memory();
        copy(restarted.path(), directory.path());
        let path = directory.path().join(file);
        assert!(path.exists(), "{file}");
        if path.is_dir() {
            std::fs::remove_dir_all(&path).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let error = History::open(directory.path(), options()).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(&format!("mv {} ", directory.path().display())), "{said}");
        match error {
            Error::Lost { path: named, .. } => assert_eq!(named, path),
            Error::Unreadable { .. } => {}
            other => panic!("{file}: {other:?}"),
        }
        let said_again = History::open(directory.path(), options()).unwrap_err();
        assert_eq!(said_again.to_string(), said, "trying changes nothing");
    };
    let mut journals: Vec<String> = Vec::new();
    for file in std::fs::read_dir(restarted.path()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        journals.extend(name.ends_with(".jnl").then_some(name));
    }
    assert_eq!(journals.len(), 1, "{journals:?}");
    lost(&journals[0]);
    lost("version");
    lost("keyspaces/0/current");
    lost("keyspaces/1/current");
    assert!(restarted.path().join("keyspaces/1/tables").read_dir().unwrap().next().is_some());
    for keyspace in 2..=5 {
        lost(&format!("keyspaces/{keyspace}/current"));
    }
    for keyspace in 2..=5 {
        lost(&format!("keyspaces/{keyspace}"));
    }
    let mut all = Vec::new();
    tables(&restarted.path().join("keyspaces"), &mut all);
    lost(all[0].strip_prefix(restarted.path()).unwrap().to_str().unwrap());
}

#[test]
fn hosts_that_cannot_be_read_say_what_helps() {
    let (directory, ..) = two_hosts();
    let mut files = Vec::new();
    tables(&directory.path().join("keyspaces/1"), &mut files);
    let mut said = 0;
    for file in files {
        let intact = std::fs::read(&file).unwrap();
        for at in (0..intact.len()).step_by(intact.len() / 16 + 1) {
            let mut bytes = intact.clone();
            bytes[at] ^= 0x55;
            std::fs::write(&file, bytes).unwrap();
            match History::open(directory.path(), options()) {
                // In a part that opening has no need of.
                Ok(_) => {}
                Err(error @ Error::Unreadable { .. }) => {
                    let advice = format!("mv {} ", directory.path().display());
                    assert!(error.to_string().contains(&advice), "{error}");
                    said += 1;
                }
                Err(other) => panic!("{at}: {other:?}"),
            }
        }
        std::fs::write(&file, intact).unwrap();
    }
    assert!(said > 0);
    History::open(directory.path(), options()).unwrap();
}

#[test]
fn expiry_returns_the_disk_space() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), options()).unwrap();
    let web = host("web01");
    let mut dice = Dice(8);
    let mut state = large(1);
    record(&history, &web, NOON, &state).unwrap();
    let content = dice.hex(400_000).into_bytes();
    let unused = history.put_content(&content).unwrap();
    for day in 0..5u64 {
        for n in 0..2000 {
            let at = NOON.plus(common::days(day)).plus(seconds(n * 40));
            let next = restarted(&state, dice.roll(60), &mut dice);
            history.append(append(&web, at, patch(&state, &next)), must_work);
            state = next;
        }
    }
    record(&history, &web, NOON.plus(common::days(5)), &state).unwrap();
    drop(history);
    // Without the engine's own catalogue, which goes up and down.
    let tables = |directory: &Path| {
        disk_usage(&directory.join("keyspaces")) - disk_usage(&directory.join("keyspaces/0"))
    };
    let before = tables(directory.path());
    let history = History::open(directory.path(), options()).unwrap();
    let thinned = history.expire(NOON.plus(common::days(34))).unwrap();
    assert_eq!((thinned.thinned, thinned.dropped, thinned.contents_unused), (4, 0, 1));
    assert!(thinned.merged > 7000, "{thinned:?}");
    let after = tables(directory.path());
    assert!(after < before * 2 / 3, "{before} {after}");
    let dropped = history.expire(NOON.plus(common::days(600))).unwrap();
    assert_eq!((dropped.dropped, dropped.contents_removed), (6, 1), "{dropped:?}");
    let end = tables(directory.path());
    assert!(end < before / 3, "{before} {end}");
    assert_eq!(history.content(&unused).unwrap(), None);
    assert_eq!(history.head(&web).unwrap().unwrap().facts, state);
    let next = Body::State(large(2));
    history.append_and_wait(append(&web, NOON.plus(common::days(600)), next)).unwrap();
    let log = history.log(&web, &Filter::default(), None, 10).unwrap();
    assert_eq!(log.len(), 2, "the new one, and the last of before");
}
