use super::*;
use crate::record::Condition;
use expect_test::{Expect, expect};
use proptest::prelude::*;

const BREAKER: Breaker = Breaker { share: 50, count: 3, since: None };

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

/// `ID on NODE`, optionally `as NAME`, `is STATE`, `ref REFERENCE`, `detail DETAIL`.
fn seen(text: &str) -> Seen {
    let words: Vec<&str> = text.split(' ').collect();
    let after = |key: &str| {
        let place = words.iter().position(|word| *word == key);
        place.and_then(|place| words.get(place + 1)).copied()
    };
    let name = after("as").unwrap_or(words[0]);
    let state = after("is").unwrap_or("running").parse::<VmState>().unwrap();
    Seen {
        id: words[0].parse().unwrap(),
        node: host(after("on").unwrap()),
        name: name.parse().unwrap(),
        reference: after("ref").map_or_else(|| format!("{}.service", words[0]), str::to_owned),
        labels: BTreeMap::new(),
        limits: crate::Limits::default(),
        condition: Condition {
            state,
            detail: after("detail").map_or_else(|| state.to_string(), str::to_owned),
            since: None,
            fault: None,
            restarts: 0,
            looping: None,
        },
    }
}

/// `NODE`, `NODE: why it is not complete`, or `NODE…` of which only a part is told.
fn listing(nodes: &[&str], entries: &[&str]) -> Listing {
    let node = |text: &&str| match text.split_once(": ") {
        Some((node, reason)) => (host(node), Completeness::Incomplete(reason.to_owned())),
        None => match text.strip_suffix('…') {
            Some(node) => (host(node), Completeness::Partial),
            None => (host(text), Completeness::Complete),
        },
    };
    Listing {
        source: VmSource::Microvm,
        nodes: nodes.iter().map(node).collect(),
        elsewhere: BTreeMap::new(),
        seen: entries.iter().map(|text| seen(text)).collect(),
        refused: Vec::new(),
        unidentified: Vec::new(),
        gone: VmState::Stopped,
    }
}

fn shown(outcome: &Outcome) -> String {
    let mut text = String::new();
    for decision in &outcome.decisions {
        let id = decision.id.as_ref().map_or("-", |id| id.as_str());
        text.push_str(&format!("{} {id}: {}\n", decision.act.kind(), decision.reason));
    }
    text
}

/// Takes listings one after the other, a second apart, and tells what the last one led to.
fn after(listings: &[Listing]) -> (BTreeMap<VmId, Vm>, Outcome) {
    let mut records = BTreeMap::new();
    let mut last = Outcome::default();
    for (second, listing) in (0..).zip(listings) {
        last = reconcile(&records, listing, Some(BREAKER));
        for decision in &last.decisions {
            apply(&mut records, decision, Time::from_seconds(second));
        }
    }
    (records, last)
}

fn check(listings: &[Listing], expected: &Expect) {
    expected.assert_eq(&shown(&after(listings).1));
}

#[test]
fn what_is_listed() {
    let known = listing(&["n1"], &["web on n1", "db on n1"]);
    check(
        std::slice::from_ref(&known),
        &expect![[r#"
            register db: db.service on n1 was not known
            register web: web.service on n1 was not known
        "#]],
    );
    check(&[known.clone(), known.clone()], &expect![""]);
    check(
        &[known.clone(), listing(&["n1"], &["web on n1 is stopped", "db on n1 ref x.service"])],
        &expect![[r#"
            refresh db: differs in reference
            refresh web: it was running and is stopped
        "#]],
    );
    check(
        &[known, listing(&["n1"], &["web on n1 as web2", "db on n1"])],
        &expect![[r#"
            rename web: it was called web and is called web2
        "#]],
    );
}

#[test]
fn what_leaves_piece_by_piece_is_held_as_if_it_left_at_once() {
    let mut records = BTreeMap::new();
    let mut left = |count: usize, seconds: i64| {
        let there: Vec<String> = (count..10).map(|n| format!("vm{n} on n1")).collect();
        let there: Vec<&str> = there.iter().map(String::as_str).collect();
        let now = Time::from_seconds(seconds);
        let outcome = reconcile(&records, &listing(&["n1"], &there), Some(BREAKER.of_pieces(now)));
        for decision in &outcome.decisions {
            apply(&mut records, decision, now);
        }
        (outcome.orphans().len(), outcome.held.map(|held| (held.vms.len(), held.of)))
    };
    assert_eq!(left(0, 1000), (0, None));
    assert_eq!(left(2, 1010), (2, None));
    assert_eq!(left(4, 1020), (2, None));
    assert_eq!(left(6, 1030), (0, Some((2, 10))), "six of ten within half a minute");
    // It stays held until somebody says so, however long ago the others went.
    assert_eq!(left(6, 1400), (0, Some((2, 6))));
    assert_eq!(left(5, 1410), (0, Some((1, 6))), "one is back");
    assert_eq!(left(6, 1420), (1, Some((1, 6))), "it goes by itself, which is another matter");
}

#[test]
fn what_is_held_is_not_let_go_by_what_comes_nor_by_a_doubt() {
    let mut records = BTreeMap::new();
    let mut look = |listing: &Listing, breaker: Option<Breaker>| {
        let outcome = reconcile(&records, listing, breaker);
        for decision in &outcome.decisions {
            apply(&mut records, decision, Time(1));
        }
        (outcome.orphans().len(), outcome.held.map(|held| held.vms.len()))
    };
    let names = |prefix: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("{prefix}{n} on n1")).collect()
    };
    let listed =
        |names: &[String]| listing(&["n1"], &names.iter().map(String::as_str).collect::<Vec<_>>());
    let (few, many) = (names("old", 6), names("new", 100));
    assert_eq!(look(&listed(&few), Some(BREAKER)), (0, None));
    assert_eq!(look(&listed(&few[..1]), Some(BREAKER)), (0, Some(5)));
    let grown = [&few[..1], &many].concat();
    assert_eq!(look(&listed(&grown), Some(BREAKER)), (0, Some(5)), "5 of 106");
    let mut doubtful = listed(&grown);
    doubtful.nodes.insert(host("n1"), Completeness::Incomplete("half of it".to_owned()));
    assert_eq!(look(&doubtful, Some(BREAKER)), (0, None));
    assert_eq!(look(&listed(&grown), Some(BREAKER)), (0, Some(5)), "as before the doubt");
    assert_eq!(look(&listed(&grown), None), (5, None), "somebody said so");
}

#[test]
fn what_was_stopped_one_by_one_is_not_held() {
    let all =
        |state: &str| -> Vec<String> { (0..10).map(|n| format!("vm{n} on n1 {state}")).collect() };
    let check = |state: &str, orphans: usize, held: Option<usize>| {
        let known = all("is running");
        let stopped = all(state);
        let lists = [&known, &stopped, &Vec::new()]
            .map(|list| listing(&["n1"], &list.iter().map(String::as_str).collect::<Vec<_>>()));
        let (_, last) = after(&lists);
        let seen = (last.orphans().len(), last.held.map(|held| held.vms.len()));
        assert_eq!(seen, (orphans, held), "{state}");
    };
    check("is stopped detail let-go", 10, None);
    check("is failed detail failed/let-go", 10, None);
    // Their units' files were there, and vanished at once.
    check("is stopped detail not-loaded", 0, Some(10));
    // What systemd still had is missing without a word.
    check("is stopped detail inactive/dead", 0, Some(10));
    check("is running", 0, Some(10));
}

#[test]
fn what_was_let_go_is_nothing_the_rest_is_measured_by() {
    let stopped: Vec<String> =
        (0..10).map(|n| format!("old{n} on n1 is stopped detail let-go")).collect();
    let mut known: Vec<&str> = stopped.iter().map(String::as_str).collect();
    known.extend(["a on n1", "b on n1", "c on n1"]);
    let (records, last) = after(&[listing(&["n1"], &known), listing(&["n1"], &[])]);
    assert_eq!(last.held.map(|held| (held.vms.len(), held.of)), Some((3, 3)));
    assert_eq!(records.values().filter(|vm| vm.record.presence == Presence::Present).count(), 0);
    assert_eq!(last.decisions.iter().filter(|one| matches!(one.act, Act::Orphan(_))).count(), 10);
}

#[test]
fn what_is_not_listed() {
    let known = listing(&["n1"], &["web on n1", "db on n1"]);
    check(
        &[known.clone(), listing(&["n1"], &["db on n1"])],
        &expect![[r#"
            orphan web: a complete listing of n1 lacks web.service
        "#]],
    );
    check(
        &[known.clone(), listing(&["n1: D-Bus hangs"], &["db on n1"])],
        &expect![[r#"
            stale web: D-Bus hangs
        "#]],
    );
    check(&[known.clone(), listing(&["n2"], &[])], &expect![""]);
    let gone = listing(&["n1"], &["db on n1"]);
    let (records, _) = after(&[known.clone(), gone.clone()]);
    let web = &records[&"web".parse().unwrap()];
    assert_eq!(web.record.presence, Presence::Orphan { since: Time::from_seconds(1) });
    assert_eq!(web.condition.state, VmState::Stopped);
    // It stays the orphan that it is.
    let (records, outcome) = after(&[known.clone(), gone.clone(), gone.clone()]);
    assert_eq!(outcome.decisions, []);
    let web = &records[&"web".parse().unwrap()];
    assert_eq!(web.record.presence, Presence::Orphan { since: Time::from_seconds(1) });
    check(
        &[known.clone(), gone, known],
        &expect![[r#"
            reactivate web: seen again; it was an orphan since 1970-01-01T00:00:01.000Z
            refresh web: it was gone and is running
        "#]],
    );
}

#[test]
fn what_a_part_says_nothing_of() {
    let known = listing(&["n1", "n2"], &["web on n1", "db on n1", "x on n2"]);
    check(
        &[known.clone(), listing(&["n1…"], &["db on n1 is stopped", "new on n1"])],
        &expect![[r#"
            refresh db: it was running and is stopped
            register new: new.service on n1 was not known
        "#]],
    );
    // It may be where nobody looks.
    let unseen = Listing {
        elsewhere: [(host("n3"), "it does not answer".to_owned())].into(),
        ..listing(&["n1"], &["db on n1"])
    };
    check(
        &[known.clone(), unseen],
        &expect![[r#"
            stale web: it may have moved to n3: it does not answer
        "#]],
    );
    // Those of a node that can't be listed do not count among which so many are gone.
    let few = listing(&["n1"], &["a on n1", "b on n1", "c on n1"]);
    let many = listing(&["n2"], &["d on n2", "e on n2", "f on n2", "g on n2", "h on n2"]);
    check(
        &[few, many, listing(&["n1", "n2: no answer"], &[])],
        &expect![[r#"
            stale a: it may have moved to n2, which was not listed whole
            stale b: it may have moved to n2, which was not listed whole
            stale c: it may have moved to n2, which was not listed whole
            stale d: no answer
            stale e: no answer
            stale f: no answer
            stale g: no answer
            stale h: no answer
        "#]],
    );
}

#[test]
fn what_moves() {
    let known = listing(&["n1", "n2"], &["web on n1", "db on n2"]);
    check(
        &[known.clone(), listing(&["n1", "n2"], &["web on n2 ref obj-7", "db on n2"])],
        &expect![[r#"
            move web: it was on n1 and is on n2
        "#]],
    );
    // It may be where nobody could look.
    check(
        &[known.clone(), listing(&["n1", "n2: no answer"], &[])],
        &expect![[r#"
            stale db: no answer
            stale web: it may have moved to n2, which was not listed whole
        "#]],
    );
    check(
        &[known.clone(), listing(&["n1"], &["web on n2"])],
        &expect![[r#"
            ignore web: web.service on n2: the listing does not speak for this node
        "#]],
    );
}

#[test]
fn what_is_ignored() {
    let mut odd = listing(&["n1"], &["web on n1 ref b", "web on n1 ref a"]);
    odd.refused.push(Refused { reference: "microvm@..".into(), reason: "no name".into() });
    check(
        &[odd],
        &expect![[r#"
            register web: a on n1 was not known
            ignore web: b on n1: web is a on n1 already
            ignore -: microvm@..: no name
        "#]],
    );
    // The one that was there first stays.
    let copied = listing(&["n1"], &["web on n1 ref a", "web on n1 ref b"]);
    check(
        &[listing(&["n1"], &["web on n1 ref b"]), copied],
        &expect![[r#"
            ignore web: a on n1: web is b on n1 already
        "#]],
    );
}

#[test]
fn what_can_not_be_identified_keeps_what_it_may_be() {
    let known = || listing(&["n1"], &["web on n1", "db on n1", "mail on n1"]);
    let lacks = |reference: &str, second: i64| {
        let (node, since) = (host("n1"), Time::from_seconds(second));
        let mut listing = listing(&["n1"], &["mail on n1"]);
        listing.unidentified = vec![Unidentified { node, reference: reference.to_owned(), since }];
        listing
    };
    // One that has the reference of a missing one is that, and no other.
    check(
        &[known(), lacks("db.service", 1)],
        &expect![[r#"
            stale db: it may be db.service, which can't be identified
            orphan web: a complete listing of n1 lacks web.service
        "#]],
    );
    // Another was there when these were seen, or came since.
    check(
        &[known(), lacks("new.service", 0)],
        &expect![[r#"
            orphan db: a complete listing of n1 lacks db.service
            orphan web: a complete listing of n1 lacks web.service
        "#]],
    );
    check(
        &[known(), lacks("new.service", 1)],
        &expect![[r#"
            stale db: it may be new.service, which can't be identified
            stale web: it may be new.service, which can't be identified
        "#]],
    );
    // Nothing is decided again; and that of an orphan is that orphan.
    check(&[known(), lacks("new.service", 1), lacks("new.service", 1)], &expect![""]);
    let gone = listing(&["n1"], &["mail on n1", "web on n1"]);
    check(
        &[known(), gone, lacks("db.service", 2)],
        &expect![[r#"
            orphan web: a complete listing of n1 lacks web.service
        "#]],
    );
}

#[test]
fn a_part_costs_the_same_among_many() {
    let records = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| format!("vm{n} on n1")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        after(&[listing(&["n1"], &all)]).0
    };
    let took = |records: &BTreeMap<VmId, Vm>| {
        let part = listing(&["n1…"], &["vm7 on n1 as other"]);
        let once = || {
            let begun = std::time::Instant::now();
            for _ in 0..100 {
                assert_eq!(reconcile(records, &part, Some(BREAKER)).decisions.len(), 1);
            }
            begun.elapsed()
        };
        (0..9).map(|_| once()).min().unwrap()
    };
    let (few, many) = (took(&records(10)), took(&records(10_000)));
    assert!(many < few * 8, "{few:?} among ten, {many:?} among ten thousand");
}

#[test]
fn the_breaker() {
    let known = listing(&["n1"], &["a on n1", "b on n1", "c on n1", "d on n1"]);
    let few = listing(&["n1"], &["a on n1"]);
    let (mut records, outcome) = after(&[known.clone(), few.clone()]);
    expect![[r#"
        hold b: held: 3 of 4 would be orphans at once, which somebody has to confirm
        hold c: held: 3 of 4 would be orphans at once, which somebody has to confirm
        hold d: held: 3 of 4 would be orphans at once, which somebody has to confirm
    "#]]
    .assert_eq(&shown(&outcome));
    assert_eq!(outcome.held.map(|held| (held.vms.len(), held.of)), Some((3, 4)));
    // Somebody says that it is so.
    let confirmed = reconcile(&records, &few, None);
    for decision in &confirmed.decisions {
        apply(&mut records, decision, Time::from_seconds(9));
    }
    assert!(confirmed.decisions.iter().all(|decision| matches!(decision.act, Act::Orphan(_))));
    assert_eq!(reconcile(&records, &few, Some(BREAKER)).decisions, []);
    // Two of four are a half, and too few to be held.
    check(
        &[known, listing(&["n1"], &["a on n1", "b on n1"])],
        &expect![[r#"
            orphan c: a complete listing of n1 lacks c.service
            orphan d: a complete listing of n1 lacks d.service
        "#]],
    );
}

fn any_seen() -> impl Strategy<Value = Seen> {
    ("[a-e]", "n[1-3]", "[a-c]", "(running|stopped|failed)", "[xy]").prop_map(
        |(id, node, name, state, reference)| {
            seen(&format!("{id} on {node} as {name} is {state} ref {reference}"))
        },
    )
}

fn any_listing() -> impl Strategy<Value = Listing> {
    let completeness = prop_oneof![
        3 => Just(Completeness::Complete),
        1 => "(no answer|no right)".prop_map(Completeness::Incomplete),
        1 => Just(Completeness::Partial),
    ];
    let nodes =
        prop::collection::btree_map("n[1-3]".prop_map(|name| host(&name)), completeness, 1..4);
    (nodes, prop::collection::vec(any_seen(), 0..7)).prop_map(|(nodes, seen)| Listing {
        nodes,
        seen,
        ..listing(&[], &[])
    })
}

proptest! {
    #[test]
    fn what_was_decided_is_not_decided_again(listings in prop::collection::vec(any_listing(), 1..6)) {
        let (records, _) = after(&listings);
        let again = reconcile(&records, listings.last().unwrap(), Some(BREAKER));
        let acts: Vec<_> = again.decisions.iter().filter(|d| d.act != Act::Ignore).collect();
        prop_assert!(acts.is_empty(), "{acts:?}");
    }

    #[test]
    fn an_incomplete_listing_orphans_nothing(
        listings in prop::collection::vec(any_listing(), 1..6),
        last in any_listing(),
    ) {
        let (records, _) = after(&listings);
        for breaker in [None, Some(BREAKER)] {
            for decision in reconcile(&records, &last, breaker).decisions {
                if let (Act::Orphan(_), Some(id)) = (decision.act, decision.id) {
                    let node = &records[&id].record.node;
                    prop_assert_eq!(last.nodes.get(node), Some(&Completeness::Complete));
                    prop_assert!(!last.nodes.values().any(|c| *c != Completeness::Complete));
                    prop_assert!(!last.seen.iter().any(|seen| seen.id == id));
                }
            }
        }
    }

    #[test]
    fn the_breaker_bounds_what_one_listing_orphans(
        listings in prop::collection::vec(any_listing(), 1..6),
        last in any_listing(),
    ) {
        let (records, _) = after(&listings);
        let outcome = reconcile(&records, &last, Some(BREAKER));
        let orphans = outcome.decisions.iter().filter(|d| matches!(d.act, Act::Orphan(_))).count();
        let of = records.values().filter(|vm| last.nodes.contains_key(&vm.record.node)).count();
        prop_assert!(orphans < BREAKER.count || orphans * 100 < BREAKER.share * (of + last.seen.len()));
        prop_assert!(outcome.held.is_none() || orphans == 0);
    }

    #[test]
    fn the_order_does_not_matter(
        listings in prop::collection::vec(any_listing(), 1..5),
        last in any_listing(),
        order in any::<prop::sample::Index>(),
    ) {
        let (records, _) = after(&listings);
        let mut turned = last.clone();
        turned.seen.reverse();
        if !turned.seen.is_empty() {
            let by = order.index(turned.seen.len());
            turned.seen.rotate_left(by);
        }
        // Those that are wholly alike but for their state are told apart by nothing.
        let distinct: BTreeSet<_> =
            last.seen.iter().map(|seen| (&seen.id, &seen.node, &seen.reference)).collect();
        prop_assume!(distinct.len() == last.seen.len());
        let (one, other) = (
            reconcile(&records, &last, Some(BREAKER)),
            reconcile(&records, &turned, Some(BREAKER)),
        );
        prop_assert_eq!(one, other);
    }
}
