//! What a history promises, seen from outside.

#![expect(clippy::unwrap_used, clippy::cast_sign_loss, reason = "helpers of a test")]

mod common;

use common::{
    NOON, append, days, delta, host, large, must_work, options, patch, record, restarted, seconds,
    small, streamed, version,
};
use model::load::Load;
use model::{Facts, Item, Kind, Significance, Subject, Time, Version, diff};
use std::sync::{Arc, Mutex, mpsc};
use store::{Body, Error, Filter, Gap, History, Options, StreamInfo};

fn open() -> (tempfile::TempDir, History) {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), options()).unwrap();
    (directory, history)
}

fn reopen(directory: &tempfile::TempDir, history: History) -> History {
    drop(history);
    History::open(directory.path(), options()).unwrap()
}

#[test]
fn a_history_has_one_opener() {
    let (directory, history) = open();
    let second = History::open(directory.path(), options());
    assert!(matches!(second, Err(Error::InUse { path }) if path == directory.path()));
    reopen(&directory, history);
}

#[test]
fn states_are_found_by_version_and_time() {
    let (directory, history) = open();
    let web = host("web01");
    for n in 1..=300 {
        let at = NOON.plus(seconds(n * 10));
        let appended = record(&history, &web, at, &small(n as i64)).unwrap();
        assert_eq!(appended.recorded, [version(n)]);
    }
    let check = |history: &History| {
        for n in [1, 2, 127, 128, 129, 130, 255, 299, 300] {
            let state = history.state(&web, version(n)).unwrap();
            assert_eq!(state, Some(small(n as i64)), "{n}");
            let at = NOON.plus(seconds(n * 10));
            assert_eq!(history.version_at(&web, at).unwrap(), Some(version(n)));
            assert_eq!(history.version_at(&web, at.plus(seconds(9))).unwrap(), Some(version(n)));
        }
        assert_eq!(history.version_at(&web, NOON).unwrap(), None);
        assert_eq!(history.state(&web, version(0)).unwrap(), None);
        assert_eq!(history.state(&web, version(301)).unwrap(), None);
        assert_eq!(history.state(&host("other"), version(1)).unwrap(), None);
        let head = history.head(&web).unwrap().unwrap();
        assert_eq!((head.version, head.facts), (version(300), small(300)));
        let info = history.host(&web).unwrap();
        assert_eq!((info.head, info.items), (version(300), 2));
        assert_eq!(info.digest, small(300).digest());
        assert_eq!(info.first_at, NOON.plus(seconds(10)));
    };
    check(&history);
    check(&reopen(&directory, history));
}

#[test]
fn an_equal_state_makes_no_version() {
    let (_directory, history) = open();
    let web = host("web01");
    record(&history, &web, NOON, &small(1)).unwrap();
    let again = record(&history, &web, NOON.plus(seconds(60)), &small(1)).unwrap();
    assert_eq!((again.head, again.recorded.len()), (version(1), 0));
    assert_eq!(history.host(&web).unwrap().seen_at, NOON.plus(seconds(60)));
}

#[test]
fn what_is_sent_again_is_acknowledged_and_not_stored_again() {
    let (directory, history) = open();
    let web = host("web01");
    let states: Vec<Facts> = (0..6).map(small).collect();
    let mut deltas = vec![delta(Some(7), NOON, Body::State(states[0].clone()))];
    for n in 1..6 {
        let at = NOON.plus(seconds(n as u64));
        deltas.push(delta(Some(7 + n as u64), at, patch(&states[n - 1], &states[n])));
    }
    let first = history.append_and_wait(streamed(&web, NOON, deltas[..4].to_vec())).unwrap();
    assert_eq!((first.head, first.acknowledged), (version(4), Some(10)));
    let again = history.append_and_wait(streamed(&web, NOON, deltas.clone())).unwrap();
    assert_eq!(again.recorded, [version(5), version(6)]);
    assert_eq!(again.acknowledged, Some(12));
    let history = reopen(&directory, history);
    let again = history.append_and_wait(streamed(&web, NOON, deltas)).unwrap();
    assert_eq!((again.head, again.recorded.len()), (version(6), 0));
    assert_eq!(again.digest, states[5].digest());
    let streams = history.host(&web).unwrap().streams;
    assert_eq!(streams, [StreamInfo { id: "spool".into(), sequence: 12 }]);
}

#[test]
fn nothing_changed_still_counts_as_received() {
    let (_directory, history) = open();
    let web = host("web01");
    let state = small(1);
    let deltas = vec![
        delta(Some(1), NOON, Body::State(state.clone())),
        delta(Some(2), NOON, patch(&state, &state)),
    ];
    let appended = history.append_and_wait(streamed(&web, NOON, deltas)).unwrap();
    assert_eq!((appended.head, appended.acknowledged), (version(1), Some(2)));
}

#[test]
fn a_delta_that_does_not_follow_is_refused_and_what_came_before_is_kept() {
    let (_directory, history) = open();
    let web = host("web01");
    let (one, two, three) = (small(1), small(2), small(3));
    let deltas = vec![
        delta(Some(1), NOON, Body::State(one.clone())),
        delta(Some(2), NOON, patch(&one, &two)),
        delta(Some(3), NOON, patch(&one, &three)),
    ];
    match history.append_and_wait(streamed(&web, NOON, deltas)) {
        Err(Error::BaseMismatch { digest, version, sequence }) => {
            assert_eq!((digest, version, sequence), (two.digest(), Version(2), Some(2)));
        }
        other => panic!("{other:?}"),
    }
    let wrong = Body::Patch { base: two.digest(), next: one.digest(), patch: diff(&two, &three) };
    let refused = history.append_and_wait(streamed(&web, NOON, vec![delta(Some(3), NOON, wrong)]));
    assert!(matches!(refused, Err(Error::DigestMismatch { .. })), "{refused:?}");
    assert_eq!(history.head(&web).unwrap().unwrap().facts, two);
    let fine = vec![delta(Some(3), NOON, patch(&two, &three))];
    let appended = history.append_and_wait(streamed(&web, NOON, fine)).unwrap();
    assert_eq!(appended.recorded, [version(3)]);
}

#[test]
fn the_last_eight_streams_are_remembered() {
    let (_directory, history) = open();
    let web = host("web01");
    for n in 0..10i64 {
        let mut one = streamed(&web, NOON, vec![delta(Some(1), NOON, Body::State(small(n)))]);
        one.stream = Some(format!("install-{n}"));
        history.append_and_wait(one).unwrap();
    }
    let streams = history.host(&web).unwrap().streams;
    let ids: Vec<&str> = streams.iter().map(|stream| stream.id.as_str()).collect();
    assert_eq!(ids.len(), 8);
    assert_eq!((ids[0], ids[7]), ("install-2", "install-9"));
}

#[test]
fn time_never_runs_backwards() {
    let (_directory, history) = open();
    let web = host("web01");
    let send = |n: i64, at: Time, received: Time| {
        let mut one = append(&web, at, Body::State(small(n)));
        one.received = received;
        history.append_and_wait(one).unwrap();
        let entry = history.entry(&web, Version(n as u64)).unwrap().unwrap();
        assert_eq!(entry.received, received);
        (entry.at, entry.host_time)
    };
    let minute = |n: u64| NOON.plus(seconds(n * 60));
    assert_eq!(send(1, minute(5), minute(5)), (minute(5), None));
    assert_eq!(send(2, minute(3), minute(6)), (minute(5), Some(minute(3))));
    assert_eq!(send(3, minute(99), minute(7)), (minute(8), Some(minute(99))));
    assert_eq!(send(4, minute(8), minute(8)), (minute(8), None));
    assert_eq!(history.version_at(&web, minute(5)).unwrap(), Some(version(2)));
    assert_eq!(history.version_at(&web, minute(8)).unwrap(), Some(version(4)));
}

/// The clock that server and host share leaps ahead, and is set back.
#[test]
fn after_a_leap_the_order_is_right_and_a_forgotten_host_begins_with_right_times() {
    let (_directory, history) = open();
    let web = host("web01");
    let leapt = NOON.plus(days(3650));
    let send = |n: i64, now: Time| {
        let mut one = append(&web, now, Body::State(small(n)));
        one.received = now;
        let head = history.append_and_wait(one).unwrap().head;
        let info = history.host(&web).unwrap();
        assert_eq!((info.head, info.seen_at), (head, now));
        (head, info.head_at)
    };
    let minute = |n: u64| NOON.plus(seconds(n * 60));
    assert_eq!(send(1, minute(1)), (version(1), minute(1)));
    assert_eq!(send(2, leapt), (version(2), leapt));
    assert_eq!(send(3, minute(2)), (version(3), leapt));
    assert_eq!(history.state(&web, version(3)).unwrap(), Some(small(3)));
    assert_eq!(history.version_at(&web, minute(3)).unwrap(), Some(version(1)));
    let order: Vec<u64> = history
        .log(&web, &Filter::default(), None, 10)
        .unwrap()
        .iter()
        .map(|e| e.version.0)
        .collect();
    assert_eq!(order, [3, 2, 1]);
    history.forget(&web).unwrap();
    assert_eq!(send(4, minute(4)), (version(1), minute(4)));
    assert_eq!(history.version_at(&web, minute(4)).unwrap(), Some(version(1)));
}

#[test]
fn entries_carry_what_was_said_about_them() {
    let (directory, history) = open();
    let web = host("web01");
    record(&history, &web, NOON, &small(1)).unwrap();
    let mut one = append(&web, NOON.plus(seconds(5)), patch(&small(1), &small(2)));
    one.deltas[0].gap = Some(Gap { since: NOON, merged: 17 });
    one.deltas[0].label = Some("before the upgrade".into());
    history.append_and_wait(one).unwrap();
    let history = reopen(&directory, history);
    let entry = history.entry(&web, version(2)).unwrap().unwrap();
    assert_eq!(entry.gap, Some(Gap { since: NOON, merged: 17 }));
    assert_eq!(entry.label.as_deref(), Some("before the upgrade"));
    assert_eq!(entry.patch, diff(&small(1), &small(2)));
    assert_eq!(entry.significance, Significance::Minor);
    assert_eq!(history.entry(&web, version(3)).unwrap(), None);
}

/// Sixty units, of which 7 changes at versions 100, 2000 and 2900.
fn busy_history(history: &History) -> Vec<u64> {
    let web = host("web01");
    let mut dice = common::Dice(5);
    let mut state = large(1);
    record(history, &web, NOON, &state).unwrap();
    let rare = [100, 2000, 2900];
    for n in 2..=3000u64 {
        let unit = if rare.contains(&n) { 7 } else { 10 + dice.roll(5) };
        let next = restarted(&state, unit, &mut dice);
        // A new day every thousand versions.
        let at = NOON.plus(days(n / 1000)).plus(seconds(n));
        history.append(append(&web, at, patch(&state, &next)), must_work);
        state = next;
    }
    common::eventually("all is stored", || history.host(&web).unwrap().head == version(3000));
    rare.into_iter().rev().collect()
}

#[test]
fn the_log_finds_a_rare_change_without_reading_all() {
    let (directory, history) = open();
    let web = host("web01");
    let rare = busy_history(&history);
    let seven =
        Filter { subjects: vec!["unit:service-007.service".parse().unwrap()], ..Filter::default() };
    let check = |history: &History| {
        let versions = |filter: &Filter, before, limit| -> Vec<u64> {
            let entries = history.log(&web, filter, before, limit).unwrap();
            assert!(entries.iter().all(|entry| !entry.patch.is_empty()));
            entries.iter().map(|entry| entry.version.0).collect()
        };
        let mut all = rare.clone();
        all.push(1);
        assert_eq!(versions(&seven, None, 10), all);
        assert_eq!(versions(&seven, None, 2), all[..2]);
        assert_eq!(versions(&seven, Some(version(2900)), 10), all[1..]);
        assert_eq!(versions(&Filter::default(), Some(version(4)), 10), [3, 2, 1]);
        let first = history.log(&web, &seven, Some(version(2)), 1).unwrap().remove(0);
        assert!(first.narrowed && first.patch.len() == 1);

        let kinds = Filter { kinds: vec![Kind::PACKAGE], ..Filter::default() };
        assert_eq!(versions(&kinds, None, 10), [1]);
        let major = Filter { significance: Some(Significance::Major), ..Filter::default() };
        assert_eq!(versions(&major, None, 10), [1]);
        let major = Filter { significance: Some(Significance::Major), ..seven.clone() };
        assert_eq!(versions(&major, None, 10), [1]);
        let since = NOON.plus(days(2)).plus(seconds(2000));
        let since = Filter { since: Some(since), ..seven.clone() };
        assert_eq!(versions(&since, None, 10), [2900, 2000]);
        let until = Filter { until: Some(NOON.plus(days(2)).plus(seconds(2000))), ..seven.clone() };
        assert_eq!(versions(&until, None, 10), [2000, 100, 1]);
        let never = Filter { until: Some(Time(0)), ..Filter::default() };
        assert_eq!(versions(&never, None, 10), Vec::<u64>::new());
    };
    check(&history);
    check(&reopen(&directory, history));
}

#[test]
fn a_stream_of_events_resumes_where_it_broke() {
    let (_directory, history) = open();
    let web = host("web01");
    busy_history(&history);
    let mut seen = 0;
    loop {
        let entries = history.after(&web, version(seen), 700).unwrap();
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            seen += 1;
            assert_eq!(entry.version, version(seen));
        }
    }
    assert_eq!(seen, 3000);
}

#[test]
fn subjects_are_remembered_after_they_are_gone() {
    let (directory, history) = open();
    let web = host("web01");
    record(&history, &web, NOON, &small(1)).unwrap();
    record(&history, &web, NOON, &Facts::default()).unwrap();
    let history = reopen(&directory, history);
    let subjects: Vec<String> =
        history.subjects(&web).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(subjects, ["unit:a.service", "unit:b.service"]);
    assert_eq!(history.head(&web).unwrap().unwrap().facts, Facts::default());
}

#[test]
fn a_forgotten_host_is_gone_and_begins_anew() {
    let (directory, history) = open();
    let (web, db) = (host("web01"), host("db01"));
    busy_history(&history);
    record(&history, &db, NOON, &small(5)).unwrap();
    history.append_load(&web, NOON, &Load { at: NOON, ..Load::default() }).unwrap();
    history.forget(&web).unwrap();
    assert!(matches!(history.forget(&web), Err(Error::UnknownHost { .. })));
    let history = reopen(&directory, history);
    assert_eq!(history.host(&web), None);
    assert_eq!(history.log(&web, &Filter::default(), None, 10).unwrap(), []);
    assert_eq!(history.hosts().len(), 1);
    assert_eq!(record(&history, &web, NOON, &small(9)).unwrap().recorded, [version(1)]);
    assert_eq!(history.state(&web, version(1)).unwrap(), Some(small(9)));
    assert_eq!(history.state(&db, version(1)).unwrap(), Some(small(5)));
    assert_eq!(history.subjects(&web).unwrap().len(), 2);
    assert_eq!(history.load(&web, Time(0), NOON, 10).unwrap(), []);
}

#[test]
fn commits_are_announced_in_order_and_before_the_reply() {
    let directory = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let on_commit = move |committed: &store::Committed| {
        sink.lock().unwrap().push((
            committed.host.clone(),
            committed.entry.version,
            committed.digest,
        ));
        assert!(committed.entry.version != Version(2), "a panic here must not end the writer");
    };
    let options = Options { on_commit: Some(Box::new(on_commit)), ..options() };
    let history = History::open(directory.path(), options).unwrap();
    let web = host("web01");
    for n in 1..=3 {
        record(&history, &web, NOON, &small(n)).unwrap();
        let last = seen.lock().unwrap().last().cloned();
        assert_eq!(last, Some((web.clone(), Version(n as u64), small(n).digest())));
    }
}

#[test]
fn a_full_queue_refuses_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), Options { queue: 4, ..options() }).unwrap();
    let web = host("web01");
    let (hold, held) = mpsc::channel::<()>();
    let (begun, begin) = mpsc::channel();
    history.append(append(&web, NOON, Body::State(small(0))), move |_| {
        begun.send(()).unwrap();
        held.recv().unwrap_err();
    });
    begin.recv().unwrap();
    let (send, outcomes) = mpsc::channel();
    for n in 1..=6 {
        let send = send.clone();
        history.append(append(&web, NOON, Body::State(small(n))), move |outcome| {
            send.send(outcome).unwrap();
        });
    }
    for _ in 0..2 {
        assert!(matches!(outcomes.recv().unwrap(), Err(Error::Busy)));
    }
    assert_eq!(history.stats().queue, 4);
    drop(hold);
    let stored: Vec<Version> = (0..4).map(|_| outcomes.recv().unwrap().unwrap().head).collect();
    assert_eq!(stored, [version(2), version(3), version(4), version(5)]);
}

#[test]
fn a_callback_that_would_wait_for_itself_is_told() {
    let (_directory, history) = open();
    let (send, receive) = mpsc::channel();
    let inner = history.clone();
    history.append(append(&host("web01"), NOON, Body::State(small(0))), move |_| {
        send.send(inner.put_content(b"x").map(|_| ())).unwrap();
    });
    assert!(matches!(receive.recv().unwrap(), Err(Error::InCallback)));
}

#[test]
fn what_is_queued_is_stored_when_the_last_handle_goes() {
    let (directory, history) = open();
    let web = host("web01");
    for n in 0..50 {
        history.append(append(&web, NOON, Body::State(small(n))), must_work);
    }
    let history = reopen(&directory, history);
    assert_eq!(history.host(&web).unwrap().head, version(50));
}

#[test]
fn contents_are_kept_by_their_hash() {
    let (directory, history) = open();
    let (one, two) = (b"listen 80;\n".repeat(100), b"".to_vec());
    let ids = history.put_contents(&[&one, &two, &one]).unwrap();
    assert_eq!(ids[0], ids[2]);
    assert_eq!(history.put_content(&one).unwrap(), ids[0]);
    let history = reopen(&directory, history);
    assert_eq!(history.content(&ids[0]).unwrap(), Some(one));
    assert_eq!(history.content(&ids[1]).unwrap(), Some(two));
    let other = model::ContentId::of(b"other");
    assert_eq!(history.content(&other).unwrap(), None);
    assert_eq!(history.missing(&[ids[0], other, ids[1]]).unwrap(), [other]);
}

#[test]
fn records_are_kept_by_collection_and_key() {
    let (directory, history) = open();
    let records = history.records();
    records.put("users", "bob", &("Bob".to_owned(), 7)).unwrap();
    records.put("users", "al", &("Al".to_owned(), 8)).unwrap();
    records.put("users2", "x", &("X".to_owned(), 9)).unwrap();
    records.put("users", "bob", &("Bob".to_owned(), 10)).unwrap();
    drop(records);
    let records = reopen(&directory, history).records();
    assert_eq!(records.get("users", "bob").unwrap(), Some(("Bob".to_owned(), 10)));
    let all: Vec<(String, (String, i32))> = records.list("users").unwrap();
    let keys: Vec<&str> = all.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["al", "bob"]);
    records.delete("users", "bob").unwrap();
    assert_eq!(records.get::<(String, i32)>("users", "bob").unwrap(), None);
    assert!(matches!(records.get::<String>("users", "al"), Err(Error::Corrupt { .. })));
    assert!(matches!(records.put("a\0b", "c", &1), Err(Error::Name(_))));
}

#[test]
fn load_is_kept_in_full_and_then_thinned() {
    let (directory, history) = open();
    let web = host("web01");
    let early = Load { at: NOON, ..Load::default() };
    let refused = history.append_load(&web, NOON, &early);
    assert!(matches!(refused, Err(Error::UnknownHost { .. })));
    record(&history, &web, NOON, &small(1)).unwrap();
    let sample = |n: u64| {
        let mut load = Load { at: NOON.plus(seconds(n * 10)), ..Load::default() };
        load.host.cpu_percent = Some(n as f64);
        load.units.insert("a.service".into(), Default::default());
        load
    };
    for n in 0..720 {
        history.append_load(&web, sample(n).at, &sample(n)).unwrap();
    }
    let end = NOON.plus(seconds(7200));
    common::eventually("all samples are there", || {
        history.load(&web, NOON, end, 1000).unwrap().len() == 720
    });
    let history = reopen(&directory, history);
    assert_eq!(
        history.load(&web, NOON, end, 1000).unwrap(),
        (0..720).map(sample).collect::<Vec<_>>()
    );
    let few = history.load(&web, NOON, end, 10).unwrap();
    assert_eq!(few.len(), 10);
    assert!(few.iter().all(|load| load.units.contains_key("a.service")));
    assert_eq!(
        history.load(&web, NOON.plus(seconds(15)), NOON.plus(seconds(25)), 10).unwrap(),
        [sample(2)]
    );

    let report = history.expire(NOON.plus(seconds(29 * 3600))).unwrap();
    assert_eq!(report.load_dropped, 0, "the quarter of a day is not over by a day");
    let report = history.expire(NOON.plus(seconds(30 * 3600))).unwrap();
    assert_eq!(report.load_dropped, 1);
    let kept = history.load(&web, NOON, end, 1000).unwrap();
    assert_eq!(kept, (0..24).map(|n| sample(n * 30)).collect::<Vec<_>>());
    let report = history.expire(NOON.plus(days(40))).unwrap();
    assert_eq!(report.load_dropped, 1);
    assert_eq!(history.load(&web, NOON, end, 1000).unwrap(), []);
}

#[test]
fn subjects_stay_as_long_as_a_kept_version_mentions_them() {
    let (directory, history) = open();
    let web = host("web01");
    let units = |names: &[&str]| -> Facts {
        let unit = |name: &&str| {
            let fields = [("n".to_owned(), model::Value::Int(1))].into();
            (Subject::escaped(Kind::UNIT, name), Item::new(&fields))
        };
        names.iter().map(unit).collect()
    };
    let names = |history: &History| -> Vec<String> {
        let subjects = history.subjects(&web).unwrap();
        subjects.iter().map(|subject| subject.id().to_owned()).collect()
    };
    let on = |day: u64, states: &[&[&str]]| {
        for (n, state) in states.iter().enumerate() {
            let at = NOON.plus(days(day)).plus(seconds(n as u64));
            record(&history, &web, at, &units(state)).unwrap();
        }
    };
    // `back` goes and comes back, `twice` goes again later, `last` is in the last change of its day.
    on(
        0,
        &[
            &["on", "gone", "back", "twice", "last"],
            &["on", "last"],
            &["on", "last", "back", "twice"],
        ],
    );
    on(0, &[&["on", "back", "twice"]]);
    on(1, &[&["on", "back"]]);
    on(2, &[&["on", "back", "new"]]);
    let all = ["back", "gone", "last", "new", "on", "twice"];
    assert_eq!(names(&history), all);
    let report = history.expire(NOON.plus(days(400))).unwrap();
    assert_eq!((report.dropped, names(&history)), (0, all.map(str::to_owned).to_vec()));
    // The first day is not kept, but its last version.
    let report = history.expire(NOON.plus(days(401))).unwrap();
    assert_eq!((report.dropped, report.subjects_removed), (1, 1));
    assert_eq!(names(&history), ["back", "last", "new", "on", "twice"]);
    history.expire(NOON.plus(days(402))).unwrap();
    assert_eq!(names(&history), ["back", "new", "on", "twice"]);
    history.expire(NOON.plus(days(403))).unwrap();
    let history = reopen(&directory, history);
    assert_eq!(names(&history), ["back", "new", "on"]);
    assert_eq!(history.expire(NOON.plus(days(404))).unwrap().subjects_removed, 0);
    // What goes and comes back within one commit is there.
    let (before, none) = (units(&["back", "new", "on"]), units(&["on"]));
    let deltas = [patch(&before, &none), patch(&none, &before)];
    let mut appended = append(&web, NOON.plus(days(404)), deltas[0].clone());
    appended.deltas.extend(append(&web, NOON.plus(days(404)), deltas[1].clone()).deltas);
    history.append_and_wait(appended).unwrap();
    history.expire(NOON.plus(days(900))).unwrap();
    assert_eq!(names(&history), ["back", "new", "on"]);
}
