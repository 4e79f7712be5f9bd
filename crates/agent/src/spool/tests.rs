use super::*;
use model::{Fields, Item, Kind, Subject, Value};
use std::collections::BTreeSet;

fn facts(number: i64) -> Facts {
    let fields: Fields =
        [("n".to_owned(), Value::Int(number)), ("pad".to_owned(), "x".repeat(200).into())].into();
    [(Subject::escaped(Kind::UNIT, "a.service"), Item::new(&fields))].into_iter().collect()
}

fn push(spool: &mut Spool, from: i64, to: i64) {
    let (before, after) = (facts(from), facts(to));
    let body = patch_body(before.digest(), after.digest(), model::diff(&before, &after));
    assert!(spool.push(Time(to), body, None).is_none());
}

fn open(dir: &Path, limit: u64) -> Opened {
    Spool::open(dir, limit, || "stream".into()).unwrap()
}

fn begin(dir: &Path, limit: u64, last: i64) -> Spool {
    let mut spool = open(dir, limit).spool;
    assert!(spool.push(Time(0), Body::Keyframe(facts(0)), None).is_none());
    for number in 1..=last {
        push(&mut spool, number - 1, number);
    }
    spool
}

/// Applies all that the spool gives to a state, as a server would.
fn drain(spool: &mut Spool) -> (Facts, u64) {
    let (mut state, mut merged) = (spool.acknowledged.clone(), 0);
    while !spool.is_empty() {
        let batch = spool.batch().unwrap();
        for delta in &batch {
            if let Body::Patch { base, .. } = &delta.body {
                assert_eq!(*base, state.digest());
            }
            merged += delta.gap.map_or(0, |gap| gap.merged);
            apply(&mut state, delta.body.clone());
        }
        spool.acknowledged(batch.last().unwrap().sequence).unwrap();
    }
    (state, merged)
}

#[test]
fn what_waits_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = begin(dir.path(), 1 << 20, 5);
    spool.acknowledged(3).unwrap();
    drop(spool);
    let Opened { mut spool, facts: state } = open(dir.path(), 1 << 20);
    assert_eq!(state, facts(5));
    assert_eq!(spool.batch().unwrap().iter().map(|d| d.sequence).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(drain(&mut spool).0, facts(5));
}

#[test]
fn a_torn_tail_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    drop(begin(dir.path(), 1 << 20, 5));
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len()).step_by(7) {
        fs::write(&path, whole.get(..cut).unwrap()).unwrap();
        let mut spool = open(dir.path(), 1 << 20).spool;
        drain(&mut spool);
    }
    let mut garbage = whole.clone();
    garbage.extend([0xff; 100]);
    fs::write(&path, garbage).unwrap();
    let _unread = fs::remove_file(dir.path().join("acked"));
    assert_eq!(open(dir.path(), 1 << 20).facts, facts(5));
}

/// Numbers that may have been given out already are not given out again for something else.
#[test]
fn a_spool_that_lost_its_end_begins_a_new_stream() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let reopened = || {
        // Killed before it began anew, it is known all the same.
        drop(open(dir.path(), 1 << 20));
        let Opened { mut spool, facts } = open(dir.path(), 1 << 20);
        assert!(spool.is_stale() && spool.begins_whole());
        spool.collapse("fresh".into(), Time(9)).unwrap();
        let batch = spool.batch().unwrap();
        let is_whole = matches!(&batch[0].body, Body::Keyframe(whole) if *whole == facts);
        let told = (spool.stream() == "fresh", batch.len(), is_whole && batch[0].gap.is_some());
        drop(spool);
        assert!(!open(dir.path(), 1 << 20).spool.is_stale());
        told
    };
    drop(begin(dir.path(), 1 << 20, 5));
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(reopened(), (true, 1, true), "half a record at the end");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&path, damaged).unwrap();
    assert_eq!(reopened(), (true, 1, true), "damage in the middle");
    // Put back from a copy, and what was acknowledged is known still.
    fs::write(&path, &whole).unwrap();
    let mut spool = Spool::open(dir.path(), 1 << 20, || "fresh".into()).unwrap().spool;
    assert_eq!((spool.stream(), spool.newest()), ("stream", 6));
    push(&mut spool, 5, 6);
    spool.acknowledged(7).unwrap();
    drop(spool);
    fs::write(&path, &whole).unwrap();
    assert_eq!(reopened(), (true, 1, true), "acknowledged beyond its end");
}

/// Adds what leads from one state to another.
fn lead(spool: &mut Spool, from: &Facts, to: &Facts, at: i64, of_first: bool) {
    let subjects: BTreeSet<Subject> =
        from.iter().chain(to.iter()).map(|(subject, _)| subject.clone()).collect();
    let patch = Patch::of(from, to, &subjects);
    let body = patch_body(from.digest(), to.digest(), patch);
    let trouble =
        if of_first { spool.push_first(Time(at), body) } else { spool.push(Time(at), body, None) };
    assert!(trouble.is_none());
}

fn with(facts: &Facts, id: &str, number: i64) -> Facts {
    let mut facts = facts.clone();
    let fields: Fields = [("n".to_owned(), Value::Int(number))].into();
    facts.put(Subject::escaped(Kind::UNIT, id), Item::new(&fields));
    facts
}

#[test]
fn what_was_there_is_one_state_and_what_happened_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = open(dir.path(), 1 << 20).spool;
    let found = with(&facts(0), "late", 1);
    let busy = with(&found, "busy", 1);
    let over = found.clone();
    let recalled = with(&with(&over, "recalled", 1), "busy", 2);
    assert!(spool.push_first(Time(1), Body::Keyframe(facts(0))).is_none());
    lead(&mut spool, &facts(0), &found, 2, true);
    lead(&mut spool, &found, &busy, 3, false);
    lead(&mut spool, &busy, &over, 4, false);
    lead(&mut spool, &over, &recalled, 5, true);
    drop(spool);
    let mut spool = open(dir.path(), 1 << 20).spool;
    spool.condense().unwrap();
    let batch = spool.batch().unwrap();
    let told: Vec<_> = batch.iter().map(|delta| (delta.at, delta.gap)).collect();
    assert_eq!(told, [1, 3, 4, 5].map(|at| (Time(at), None)));
    let Body::Keyframe(whole) = &batch[0].body else { panic!("not whole") };
    for id in ["a.service", "late", "recalled"] {
        assert!(whole.get(&Subject::escaped(Kind::UNIT, id)).is_some(), "{id}");
    }
    assert_eq!(drain(&mut spool).0, recalled);
}

#[test]
fn what_happened_is_never_condensed() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = begin(dir.path(), 1 << 20, 5);
    let waiting = spool.len();
    spool.condense().unwrap();
    assert_eq!(spool.len(), waiting);
}

#[test]
fn a_full_spool_merges_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 64 << 10;
    let mut spool = begin(dir.path(), limit, 1000);
    assert!(spool.size() <= limit + 1024, "{}", spool.size());
    let (state, merged) = drain(&mut spool);
    assert_eq!(state, facts(1000));
    assert!(merged > 500, "{merged}");
}

#[test]
fn a_resync_begins_with_the_whole_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = begin(dir.path(), 1 << 20, 5);
    spool.acknowledged(3).unwrap();
    spool.resync("another".into(), Time(9)).unwrap();
    drop(spool);
    let mut spool = open(dir.path(), 1 << 20).spool;
    assert_eq!(spool.stream(), "another");
    let first = spool.batch().unwrap().remove(0);
    assert_eq!(first.body, Body::Keyframe(facts(2)));
    assert_eq!(drain(&mut spool).0, facts(5));
}

#[test]
fn what_is_refused_becomes_one_whole_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = begin(dir.path(), 1 << 20, 5);
    spool.acknowledged(3).unwrap();
    spool.collapse("another".into(), Time(9)).unwrap();
    let batch = spool.batch().unwrap();
    assert_eq!((batch.len(), &batch[0].body), (1, &Body::Keyframe(facts(5))));
    assert_eq!(batch[0].gap.unwrap().merged, 4);
    assert_eq!(drain(&mut spool).0, facts(5));
}

#[test]
fn what_can_not_be_read_back_is_given_up_for_the_whole_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = begin(dir.path(), 1 << 20, 5);
    spool.acknowledged(2).unwrap();
    let journal = OpenOptions::new().write(true).open(dir.path().join("journal")).unwrap();
    journal.set_len(100).unwrap();
    assert!(spool.batch().unwrap_err().is_unreadable());
    assert!(spool.collapse("fresh".into(), Time(9)).unwrap_err().is_unreadable());
    spool.give_up().unwrap();
    push(&mut spool, 5, 6);
    spool.resync("another".into(), Time(9)).unwrap();
    assert!(spool.is_lost() && spool.is_empty());
    assert!(spool.push(Time(7), Body::Keyframe(facts(7)), None).is_none());
    push(&mut spool, 7, 8);
    assert!(!spool.is_lost() && spool.is_stale());
    spool.collapse("fresh".into(), Time(9)).unwrap();
    drop(spool);
    let mut spool = open(dir.path(), 1 << 20).spool;
    assert_eq!((spool.stream(), spool.is_stale()), ("fresh", false));
    let batch = spool.batch().unwrap();
    assert_eq!((batch.len(), &batch[0].body), (1, &Body::Keyframe(facts(8))));
    assert_eq!(batch[0].gap.map(|gap| (gap.since, gap.merged)), Some((Time(2), 7)));
}

#[test]
fn a_disk_that_takes_nothing_holds_up_no_new_stream() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = begin(dir.path(), 1 << 20, 5);
    spool.mark_stale().unwrap();
    // No file can have this name any more.
    let in_the_way = dir.path().join("journal.new");
    fs::create_dir(&in_the_way).unwrap();
    let failed = spool.collapse("fresh".into(), Time(9)).unwrap_err();
    assert!(matches!(failed, Error::Write { .. }));
    assert!(!spool.is_stale() && dir.path().join(STALE).exists());
    assert_eq!(spool.batch().unwrap().len(), 1);
    assert_eq!(spool.stream(), "fresh");
    fs::remove_dir(&in_the_way).unwrap();
    push(&mut spool, 5, 6);
    drop(spool);
    let mut spool = open(dir.path(), 1 << 20).spool;
    assert_eq!((spool.stream(), spool.is_stale()), ("fresh", false));
    assert_eq!(drain(&mut spool).0, facts(6));
}

#[test]
fn two_agents_can_not_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let _first = begin(dir.path(), 1 << 20, 1);
    let second = Spool::open(dir.path(), 1 << 20, String::new);
    assert!(matches!(second, Err(Error::InUse { .. })));
}
