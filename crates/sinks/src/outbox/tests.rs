use super::*;
use proptest::prelude::*;
use store::{History, Options};

fn rename(vm: &str, target: Target) -> Draft {
    let change = SessionChange::Rename { old: format!("{vm}-a"), new: format!("{vm}-b") };
    Draft { vm: vm.to_owned(), target, change }
}

fn put(outbox: &Outbox, drafts: &[Draft], now: Time) -> Vec<Entry> {
    let mut changes = Changes::default();
    let entries = outbox.enqueue(&mut changes, drafts, now).unwrap();
    outbox.0.records.write(changes).unwrap();
    outbox.added(entries.clone());
    entries
}

fn ids(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.id.as_str()).collect()
}

const NOW: Time = Time(1_800_000_000_000_000);

fn later(seconds: u64) -> Time {
    NOW.plus(Duration::from_secs(seconds))
}

#[test]
fn what_waits_outlives_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let outbox = Outbox::open(history.records(), NOW).unwrap();
    let drafts =
        [rename("1", Target::Group), rename("2", Target::Group), rename("1", Target::Auth)];
    let entries = put(&outbox, &drafts, NOW);
    assert_eq!(outbox.list(), entries);
    // One arrived, one failed.
    for (target, fails) in [(Target::Auth, false), (Target::Group, true)] {
        let (turn, taken) = outbox.queue().take(target, NOW, |_| true).unwrap();
        let entry = taken[0].clone();
        let outcome = if fails {
            Outcome::Failed(Policy::default().failed(entry.clone(), "no".to_owned(), NOW))
        } else {
            Outcome::Arrived
        };
        outbox.settle(&turn, &[(entry.id, outcome)]).unwrap();
    }
    drop(outbox);
    drop(history);

    let history = History::open(directory.path(), Options::default()).unwrap();
    // The clock went back by a day.
    let outbox = Outbox::open(history.records(), NOW.minus(Duration::from_secs(86_400))).unwrap();
    let list = outbox.list();
    assert_eq!(ids(&list), [&entries[0].id, &entries[1].id]);
    assert_eq!((list[0].attempts, list[0].last_error.as_deref()), (1, Some("no")));
    assert!(list[0].next_at < NOW, "it is not waited for until the clock is where it was");
    // And what comes now is behind it all the same.
    let newer = put(&outbox, &[rename("1", Target::Group)], Time(0));
    assert!(newer[0].id > entries[2].id);
    assert!(newer[0].id.ends_with(&entries[0].id[16..]), "it is the same outbox");
}

#[test]
fn a_change_that_was_not_written_is_not_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let outbox = Outbox::open(history.records(), NOW).unwrap();
    let mut changes = Changes::default();
    outbox.enqueue(&mut changes, &[rename("1", Target::Group)], NOW).unwrap();
    assert!(outbox.queue().take(Target::Group, later(9), |_| true).is_none());
    let orphan = SessionChange::Orphan { name: "a".to_owned(), since: NOW };
    let draft = Draft { vm: "1".to_owned(), target: Target::Auth, change: orphan };
    assert!(matches!(outbox.enqueue(&mut changes, &[draft], NOW), Err(Error::NoCall)));
}

#[test]
fn a_dead_one_holds_what_is_behind_it() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let outbox = Outbox::open(history.records(), NOW).unwrap();
    let drafts =
        [rename("1", Target::Group), rename("1", Target::Group), rename("2", Target::Group)];
    let entries = put(&outbox, &drafts, NOW);
    let policy = Policy { max_attempts: 2, ..Policy::default() };
    for second in [0, 10] {
        let (turn, taken) = outbox.queue().take(Target::Group, later(second), |_| true).unwrap();
        assert_eq!(ids(&taken), [&entries[0].id]);
        let failed = policy.failed(taken[0].clone(), "no".to_owned(), later(second));
        outbox.settle(&turn, &[(taken[0].id.clone(), Outcome::Failed(failed))]).unwrap();
        if second == 0 {
            // The other VM's.
            let (turn, taken) = outbox.queue().take(Target::Group, NOW, |_| true).unwrap();
            assert_eq!(ids(&taken), [&entries[2].id]);
            outbox.settle(&turn, &[(taken[0].id.clone(), Outcome::Arrived)]).unwrap();
            assert!(
                outbox.queue().take(Target::Group, NOW, |_| true).is_none(),
                "not before its time"
            );
        }
    }
    assert_eq!(outbox.depth(), (1, 1));
    assert!(outbox.list()[0].dead);
    assert!(outbox.queue().take(Target::Group, later(1_000_000), |_| true).is_none());

    assert!(!outbox.retry("other", NOW).unwrap());
    assert!(outbox.retry(&entries[0].id, later(20)).unwrap());
    assert_eq!((outbox.depth(), outbox.list()[0].attempts), ((2, 0), 0));
    let (turn, taken) = outbox.queue().take(Target::Group, later(20), |_| true).unwrap();
    assert_eq!(ids(&taken), [&entries[0].id]);
    // Discarded while it is under way, and fails: it does not come back.
    assert!(outbox.discard(&entries[0].id).unwrap());
    assert!(!outbox.discard(&entries[0].id).unwrap());
    assert!(outbox.queue().take(Target::Group, later(20), |_| true).is_none());
    let failed = policy.failed(taken[0].clone(), "no".to_owned(), later(20));
    outbox.settle(&turn, &[(taken[0].id.clone(), Outcome::Failed(failed))]).unwrap();
    let (_, taken) = outbox.queue().take(Target::Group, later(20), |_| true).unwrap();
    assert_eq!(ids(&taken), [&entries[1].id]);
    drop(outbox);
    let outbox = Outbox::open(history.records(), NOW).unwrap();
    assert_eq!(ids(&outbox.list()), [&entries[1].id]);
}

#[test]
fn sessions_are_told_at_once_of_what_was_decided_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let outbox = Outbox::open(history.records(), NOW).unwrap();
    put(&outbox, &[rename("1", Target::Sessions), rename("2", Target::Sessions)], NOW);
    put(&outbox, &[rename("3", Target::Sessions)], later(1));
    let check = |vm_behind: &str, expected: usize| {
        let may_tell = |vm: &str| vm != vm_behind;
        let next = outbox.queue().next_at(Target::Sessions, may_tell);
        assert_eq!(next, (expected > 0).then_some(NOW), "{vm_behind}");
        let mut queue = outbox.queue();
        let taken = queue.take(Target::Sessions, later(2), may_tell);
        assert_eq!(taken.as_ref().map_or(0, |(_, taken)| taken.len()), expected, "{vm_behind}");
        if let Some((turn, _)) = taken {
            queue.settled(&turn);
        }
    };
    check("1", 0);
    check("2", 0);
    check("3", 2);
    check("4", 3);
}

#[test]
fn what_is_for_the_sessions_goes_together_and_never_dies() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let outbox = Outbox::open(history.records(), NOW).unwrap();
    let first = put(&outbox, &[rename("1", Target::Sessions), rename("2", Target::Sessions)], NOW);
    let policy = Policy { max_attempts: 1, ..Policy::default() };
    let (turn, taken) = outbox.queue().take(Target::Sessions, NOW, |_| true).unwrap();
    assert_eq!(taken, first);
    assert!(outbox.queue().take(Target::Sessions, NOW, |_| true).is_none(), "one pass at a time");
    let mut failed = taken[0].clone();
    for _ in 0..1000 {
        failed = policy.failed(failed, "no".to_owned(), NOW);
    }
    assert_eq!((failed.dead, failed.next_at), (false, later(30)));
    outbox.settle(&turn, &[(failed.id.clone(), Outcome::Failed(failed))]).unwrap();
    let third = put(&outbox, &[rename("3", Target::Sessions)], later(1));
    // It does not overtake.
    assert!(outbox.queue().take(Target::Sessions, later(29), |_| true).is_none());
    let (_, taken) = outbox.queue().take(Target::Sessions, later(30), |_| true).unwrap();
    assert_eq!(ids(&taken), [&first[0].id, &first[1].id, &third[0].id]);
}

#[test]
fn attempts_become_rarer() {
    let directory = tempfile::tempdir().unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let outbox = Outbox::open(history.records(), NOW).unwrap();
    let mut entry = put(&outbox, &[rename("1", Target::Group)], NOW).remove(0);
    let mut pauses = Vec::new();
    let mut at = NOW;
    while !entry.dead {
        entry = Policy::default().failed(entry, "no".to_owned(), at);
        pauses.push(entry.next_at.since(at).as_secs());
        at = entry.next_at;
    }
    assert_eq!(pauses[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    assert_eq!(pauses.len(), 100);
    assert_eq!(at.since(NOW).as_secs() / 3600, 7);
}

/// What happens to a queue.
#[derive(Debug, Clone)]
enum Step {
    /// Of this VM, from one name to another.
    Put(u8, bool, u8, u8),
    Take,
    Settle(usize, u8),
    Wait(u8),
    Revive,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u8..3, any::<bool>(), 0u8..5, 0u8..5)
            .prop_map(|(vm, is_auth, old, new)| Step::Put(vm, is_auth, old, new)),
        Just(Step::Take),
        (0usize..4, 0u8..3).prop_map(|(at, outcome)| Step::Settle(at, outcome)),
        (0u8..9).prop_map(Step::Wait),
        Just(Step::Revive),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// Entries that have a VM or a name in common arrive in order, each once, whatever fails
    /// meanwhile.
    #[test]
    fn the_order_of_vms_and_names_is_kept(steps in steps()) {
        let policy = Policy { max_attempts: 3, ..Policy::default() };
        let mut queue = Queue::default();
        let (mut at, mut made, mut under_way) = (NOW, 0u64, Vec::new());
        let mut arrived: Vec<Entry> = Vec::new();
        let mut all: Vec<Entry> = Vec::new();
        for step in steps {
            match step {
                Step::Put(vm, is_auth, old, new) => {
                    made += 1;
                    let target = if is_auth { Target::Auth } else { Target::Group };
                    let (old, new) = (old.to_string(), new.to_string());
                    let change = SessionChange::Rename { old, new };
                    let entry = Entry {
                        id: format!("{made:016x}"), vm: vm.to_string(), target, change, created_at: at,
                        attempts: 0, next_at: at, last_error: None, dead: false,
                    };
                    all.push(entry.clone());
                    queue.put(entry);
                }
                Step::Take => for target in Target::ALL {
                    while let Some((turn, entries)) = queue.take(target, at, |_| true) {
                        prop_assert_eq!(entries.len(), 1);
                        prop_assert!(!entries[0].dead && entries[0].next_at <= at);
                        under_way.push((turn, entries[0].clone()));
                    }
                },
                Step::Settle(index, outcome) if index < under_way.len() => {
                    let (turn, entry) = under_way.remove(index);
                    if outcome == 0 {
                        queue.remove(&entry.id);
                        arrived.push(entry);
                    } else {
                        queue.put(policy.failed(entry, String::new(), at));
                    }
                    queue.settled(&turn);
                }
                Step::Settle(..) => {}
                Step::Wait(seconds) => at = at.plus(Duration::from_secs(seconds.into())),
                Step::Revive => for entry in queue.list() {
                    queue.put(Entry { dead: false, attempts: 0, next_at: at, ..entry });
                },
            }
            let (waiting, dead) = queue.depth();
            prop_assert_eq!(dead, queue.list().iter().filter(|entry| entry.dead).count());
            prop_assert_eq!(waiting + dead + arrived.len(), all.len());
        }
        // Everything arrives in the end.
        for (turn, entry) in under_way {
            queue.remove(&entry.id);
            arrived.push(entry);
            queue.settled(&turn);
        }
        for entry in queue.list() {
            queue.put(Entry { dead: false, next_at: at, ..entry });
        }
        for target in Target::ALL {
            while let Some((turn, entries)) = queue.take(target, at, |_| true) {
                for entry in entries {
                    queue.remove(&entry.id);
                    arrived.push(entry);
                }
                queue.settled(&turn);
            }
        }
        prop_assert_eq!((queue.len(), queue.depth(), arrived.len()), (0, (0, 0), all.len()));
        let names = |entry: &Entry| match &entry.change {
            SessionChange::Rename { old, new } => [old.clone(), new.clone()],
            _ => unreachable!("all are renames"),
        };
        for one in &all {
            let of_line = |list: &[Entry]| -> Vec<String> {
                let touches = |entry: &&Entry| {
                    let shares = names(entry).iter().any(|name| names(one).contains(name));
                    entry.target == one.target && (entry.vm == one.vm || shares)
                };
                list.iter().filter(touches).map(|entry| entry.id.clone()).collect()
            };
            let place = |ids: &[String]| ids.iter().position(|id| *id == one.id);
            let (arrived, all) = (of_line(&arrived), of_line(&all));
            let (before, behind) = (place(&arrived), place(&all));
            prop_assert_eq!(before, behind, "{:?} of {:?}", arrived, all);
        }
    }
}
