//! What one change costs, from what a source says to what MongoDB, sessions and endpoints are to be
//! told: the same among ten thousand VMs as among ten.

use super::engine::touched::{Touched, touch};
use super::mirror::Mirror;
use super::sight::tests::node;
use super::sight::{self, Sight};
use super::tell::{self, tests::settings};
use inventory::{Breaker, Completeness, Vm, apply, reconcile};
use model::Time;
use model::vm::VmId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vsphere::{Change, Machine, Objects};

const CHANGES: usize = 50;

fn objects(of: usize, count: usize) -> Objects {
    let machine = |n: usize| Machine {
        uuid: Some(format!("423c1d0e-0000-0000-{of:04}-{n:012}")),
        name: format!("vm{n}"),
        ..Machine::default()
    };
    let machines = (0..count).map(|n| (format!("vm-{n}"), machine(n)));
    Objects { machines: machines.collect(), ..Objects::default() }
}

fn renamed(name: &str) -> Change {
    let name = vsphere::xml::parse(format!("<val>{name}</val>").as_bytes()).unwrap();
    let properties = vec![("name".to_owned(), Some(name))];
    Change { id: "vm-7".into(), properties, ..Change::default() }
}

/// As long as changes take, at best, among so many VMs of two sources.
fn took(count: usize) -> Duration {
    let settings = settings(
        "redis: {host: r}\nendpoints: {vm-group-service-rename-vm: 'http://g/x', auth-service-rename-vm: 'http://a/x'}",
    );
    let (breaker, mirror) = (Some(Breaker::default().of_pieces(Time(1))), Mirror::new(true));
    let mut records: BTreeMap<VmId, Vm> = BTreeMap::new();
    let mut sights: BTreeMap<_, Sight> = BTreeMap::new();
    for (of, name) in ["a", "b"].into_iter().enumerate() {
        let mut sight = Sight::default();
        sight.take_whole(objects(of, count), Time(1));
        let read = vsphere::listing(&node(name), sight.objects());
        sights.insert(node(name), sight);
        assert_eq!(read.completeness, Completeness::Complete);
        let listing = sight::listing(&node(name), read, &sights, &records);
        for decision in reconcile(&records, &listing, breaker).decisions {
            apply(&mut records, &decision, Time(1));
        }
    }
    mirror.mark_in_step(records.keys().cloned());
    let mut once = || {
        let begun = Instant::now();
        for number in 0..CHANGES {
            let (here, mut touched) = (node("a"), Touched::default());
            let sight = sights.get_mut(&here).unwrap();
            touch(&mut touched, sight, renamed(&format!("name-{number}")), Time(2));
            let ids = touched.ids.iter().map(String::as_str);
            let read = vsphere::partly(&here, sight.objects(), ids);
            let listing = sight::listing(&here, read, &sights, &records);
            let outcome = reconcile(&records, &listing, breaker);
            assert_eq!(tell::drafts(&settings, &outcome, &records, Time(2)).len(), 3);
            for decision in &outcome.decisions {
                apply(&mut records, decision, Time(2));
            }
            mirror.mark(outcome.decisions.into_iter().filter_map(|one| one.id));
            assert_eq!(mirror.next(1).0.len(), 1);
            mirror.settle(&[]);
        }
        begun.elapsed()
    };
    (0..9).map(|_| once()).min().unwrap()
}

#[test]
fn a_change_costs_the_same_among_many() {
    let (few, many) = (took(10), took(10_000));
    println!("{few:?} among twenty, {many:?} among twenty thousand, for {CHANGES} changes");
    assert!(many < few * 5, "{few:?} among twenty, {many:?} among twenty thousand");
}
