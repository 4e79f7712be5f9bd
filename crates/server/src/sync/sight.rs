//! What one source sees at this moment, and what that means beside what the others see. Pure but
//! for the records that are read.
//!
//! # Invariants
//! - While the source on which a VM was known lists it still, the same UUID elsewhere is a copy.
//! - What a guest told of itself stays known while it tells nothing.

use super::source::Ask;
use inventory::{Completeness, Listing, Refused, Seen, Vm};
use model::vm::{VmId, VmSource, VmState};
use model::{HostId, Time};
use std::collections::{BTreeMap, BTreeSet};
use vsphere::{About, Objects, Read};

/// One source, as it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    pub(super) objects: Objects,
    pub(super) about: Option<About>,
    /// When it was listed as a whole last. What it told since is part of the objects.
    pub(super) whole_at: Option<Time>,
    /// Which time it was asked for that.
    pub(super) answered: Ask,
    /// Since when, and why, it is not to be asked.
    pub(super) fault: Option<(Time, String)>,
    /// Only a person mends the fault.
    pub(super) needs_somebody: bool,
    /// When it answered last.
    pub(super) heard: Option<Time>,
    /// It is about to tell more of what it is telling.
    pub(super) midway: bool,
}

impl Sight {
    /// Why it does not say what it has at this moment, if so.
    pub(super) fn doubt(&self) -> Option<String> {
        match (&self.fault, self.whole_at) {
            (Some((_, fault)), _) => Some(fault.clone()),
            (None, None) => Some("it has not been listed yet".to_owned()),
            (None, Some(_)) => None,
        }
    }

    /// Its id of a VM that it lists.
    pub(super) fn reference(&self, id: &VmId) -> Option<&str> {
        let found = self.objects.machines.iter().find(|(_, machine)| {
            let uuid = machine.uuid.as_deref();
            uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case(id.as_str()))
        });
        found.map(|(reference, _)| reference.as_str())
    }
}

/// What a reading of one source is as a listing.
pub(super) fn listing(
    node: &HostId,
    read: Read,
    sights: &BTreeMap<HostId, Sight>,
    records: &BTreeMap<VmId, Vm>,
) -> Listing {
    let Read { seen, mut refused, completeness } = read;
    let mut kept = Vec::with_capacity(seen.len());
    for mut one in seen {
        let Some(known) = records.get(&one.id) else {
            kept.push(one);
            continue;
        };
        if let Some(reason) = copied(&one, known, sights) {
            refused.push(Refused { reference: one.reference, reason });
            continue;
        }
        keep_what_was_told(&mut one, known);
        kept.push(one);
    }
    let elsewhere = if completeness == Completeness::Complete {
        let others = sights.iter().filter(|(other, _)| *other != node);
        others.filter_map(|(other, sight)| Some((other.clone(), sight.doubt()?))).collect()
    } else {
        BTreeMap::new()
    };
    Listing {
        source: VmSource::Vsphere,
        nodes: [(node.clone(), completeness)].into(),
        elsewhere,
        seen: kept,
        refused,
        gone: VmState::Unknown,
    }
}

/// Why a VM is taken for a copy of one that is elsewhere.
fn copied(seen: &Seen, known: &Vm, sights: &BTreeMap<HostId, Sight>) -> Option<String> {
    let record = &known.record;
    if record.node == seen.node {
        return None;
    }
    let other = sights.get(&record.node)?;
    if other.whole_at.is_none() && other.fault.is_none() {
        return Some(format!("whether it moved there from {} is not known yet", record.node));
    }
    let has = other.fault.is_none() && other.reference(&seen.id).is_some();
    has.then(|| {
        format!("{} has the UUID {} of {} on {}", seen.name, seen.id, record.name, record.node)
    })
}

/// The ids of a source's VMs that are meant: by UUID, and what is none by name.
pub(super) fn matching<'s>(sight: &'s Sight, wanted: &[String]) -> BTreeSet<&'s str> {
    let mut found = BTreeSet::new();
    for text in wanted {
        let by = |is_it: &dyn Fn(&vsphere::Machine) -> bool| -> Vec<&'s str> {
            let all = sight.objects.machines.iter();
            all.filter(|(_, machine)| is_it(machine)).map(|(id, _)| id.as_str()).collect()
        };
        let is_uuid = |machine: &vsphere::Machine| {
            machine.uuid.as_deref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(text))
        };
        let by_uuid = by(&is_uuid);
        found.extend(if by_uuid.is_empty() { by(&|one| one.name == *text) } else { by_uuid });
    }
    found
}

fn keep_what_was_told(seen: &mut Seen, known: &Vm) {
    for label in ["hostname", "address", "addresses", "tools"] {
        if let Some(value) = known.record.labels.get(label)
            && !seen.labels.contains_key(label)
        {
            seen.labels.insert(label.to_owned(), value.clone());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tell::tests::seen;
    use super::*;
    use inventory::{Act, apply, reconcile};
    use vsphere::Machine;

    pub(in crate::sync) const ONE: &str = "423c1d0e-0000-0000-0000-000000000001";
    pub(in crate::sync) const TWO: &str = "423c1d0e-0000-0000-0000-000000000002";

    /// Two VMs, one of which is called as the other's UUID is.
    pub(in crate::sync) fn named() -> Sight {
        let machine = |uuid: &str, name: &str| Machine {
            uuid: Some(uuid.to_uppercase()),
            name: name.into(),
            ..Machine::default()
        };
        let mut sight = Sight::default();
        sight.objects.machines.insert("vm-1".into(), machine(ONE, "web"));
        sight.objects.machines.insert("vm-2".into(), machine(TWO, ONE));
        sight
    }

    pub(in crate::sync) fn node(name: &str) -> HostId {
        HostId::new(name).unwrap()
    }

    pub(in crate::sync) fn sight(uuids: &[&str]) -> Sight {
        let machine =
            |uuid: &&str| Machine { uuid: Some((*uuid).to_owned()), ..Machine::default() };
        let machines = (1..).map(|n| format!("vm-{n}")).zip(uuids.iter().map(machine)).collect();
        Sight {
            objects: Objects { machines, places: BTreeMap::new() },
            whole_at: Some(Time(1)),
            ..Sight::default()
        }
    }

    fn read(seen: Vec<Seen>) -> Read {
        Read { seen, refused: Vec::new(), completeness: Completeness::Complete }
    }

    fn known() -> BTreeMap<VmId, Vm> {
        let mut records = BTreeMap::new();
        let mut one = seen(ONE, "web", "esx1");
        one.labels.insert("hostname".into(), "web.example".into());
        let first = listing(&node("esx1"), read(vec![one]), &BTreeMap::new(), &records);
        for decision in &reconcile(&records, &first, None).decisions {
            apply(&mut records, decision, Time(1));
        }
        records
    }

    /// What becomes of the VM that was on esx1 and is seen on esx2.
    fn check(esx1: Sight, expected: &str) {
        let sights = [(node("esx1"), esx1), (node("esx2"), sight(&[ONE]))].into();
        let records = known();
        let listed =
            listing(&node("esx2"), read(vec![seen(ONE, "web", "esx2")]), &sights, &records);
        let outcome = reconcile(&records, &listed, None);
        let shown: Vec<String> = outcome
            .decisions
            .iter()
            .map(|one| format!("{}: {}", one.act.kind(), one.reason))
            .collect();
        assert_eq!(shown.join("; "), expected);
    }

    #[test]
    fn what_moved_and_what_was_copied() {
        let moved = "move: it was on esx1 and is on esx2";
        check(sight(&["423c1d0e-0000-0000-0000-000000000002"]), moved);
        check(sight(&[ONE]), &format!("ignore: vm-1: web has the UUID {ONE} of web on esx1"));
        let upper = ONE.to_uppercase();
        check(sight(&[&upper]), &format!("ignore: vm-1: web has the UUID {ONE} of web on esx1"));
        check(Sight::default(), "ignore: vm-1: whether it moved there from esx1 is not known yet");
        let away = Sight { fault: Some((Time(1), "it is off".into())), ..sight(&[ONE]) };
        check(away, moved);
    }

    #[test]
    fn what_a_guest_told_stays_known() {
        let (records, sights) = (known(), BTreeMap::new());
        let listed =
            listing(&node("esx1"), read(vec![seen(ONE, "web", "esx1")]), &sights, &records);
        assert_eq!(listed.seen[0].labels["hostname"], "web.example");
        let outcome = reconcile(&records, &listed, None);
        assert!(outcome.decisions.is_empty(), "{:?}", outcome.decisions);
    }

    #[test]
    fn who_is_not_seen_may_have_it() {
        let away = Sight { fault: Some((Time(1), "it is off".into())), ..Sight::default() };
        let sights = [(node("esx1"), sight(&[])), (node("esx2"), away)].into();
        let records = known();
        let listed = listing(&node("esx1"), read(vec![]), &sights, &records);
        let outcome = reconcile(&records, &listed, None);
        assert_eq!(outcome.decisions[0].act, Act::Stale);
        assert_eq!(outcome.decisions[0].reason, "it may have moved to esx2: it is off");
    }

    #[test]
    fn the_uuid_goes_before_the_name() {
        let sight = named();
        let check = |wanted: &[&str], expected: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(matching(&sight, &wanted).into_iter().collect::<Vec<_>>(), expected);
        };
        check(&[ONE], &["vm-1"]);
        check(&["web", TWO], &["vm-1", "vm-2"]);
        check(&["", "we", "vm-1"], &[]);
    }
}
