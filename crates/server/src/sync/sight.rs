//! What one source sees at this moment, and what that means beside what the others see. Pure but
//! for the records that are read.
//!
//! What a source shows is kept by UUID, too: a change costs no look at all its VMs.
//!
//! # Invariants
//! - While the source on which a VM was known lists it still, the same UUID elsewhere is a copy.
//! - What a guest told of itself stays known while it tells nothing.

use super::file::Source;
use super::source::Ask;
use inventory::{Completeness, Listing, Refused, Seen, Unidentified, Vm};
use model::vm::{VmId, VmSource, VmState};
use model::{HostId, Time};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use vsphere::{About, Change, Machine, Objects, Read, Thing};

/// One source, as it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    /// Where it is, if that is said. VMs do not move between sites.
    pub(super) site: Option<String>,
    objects: Objects,
    /// Its ids of VMs, by UUID.
    references: HashMap<VmId, BTreeSet<String>>,
    /// VMs of which nobody can tell which they are, by their ids there, and when they were seen so
    /// first.
    unidentified: BTreeMap<String, Time>,
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
    /// It was listed as a whole, and that was not decided about yet.
    pub(super) is_listed_anew: bool,
}

impl Sight {
    pub(super) fn of(source: &Source) -> Self {
        Self { site: source.site.clone(), ..Self::default() }
    }

    /// What it has.
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Takes a listing of all it has; which VMs it had until then, and has no more.
    pub(super) fn take_whole(&mut self, objects: Objects, now: Time) -> BTreeSet<VmId> {
        let before = std::mem::take(&mut self.unidentified);
        let had = std::mem::take(&mut self.references);
        for (reference, machine) in &objects.machines {
            if let Some(id) = vm_of(machine) {
                self.references.entry(id).or_default().insert(reference.clone());
            } else if machine.is_unidentified() {
                let since = before.get(reference).copied().unwrap_or(now);
                self.unidentified.insert(reference.clone(), since);
            }
        }
        self.objects = objects;
        self.whole_at = Some(now);
        self.heard = Some(now);
        self.fault = None;
        self.is_listed_anew = true;
        had.into_keys().filter(|id| !self.has(id)).collect()
    }

    /// Takes what became of one object; which VM it was until then, and is no more.
    pub(super) fn take(&mut self, change: Change, now: Time) -> Option<VmId> {
        let (reference, is_machine) = (change.id.clone(), change.thing == Thing::Machine);
        let before = self.objects.machines.get(&reference).and_then(vm_of);
        self.objects.apply(change);
        if !is_machine {
            return None;
        }
        let machine = self.objects.machines.get(&reference);
        let id = machine.and_then(vm_of);
        if machine.is_some_and(Machine::is_unidentified) {
            self.unidentified.entry(reference.clone()).or_insert(now);
        } else {
            self.unidentified.remove(&reference);
        }
        if before == id {
            return None;
        }
        if let Some(references) = before.as_ref().and_then(|id| self.references.get_mut(id)) {
            references.remove(&reference);
        }
        if let Some(before) = &before
            && self.reference(before).is_none()
        {
            self.references.remove(before);
        }
        if let Some(id) = id {
            self.references.entry(id).or_default().insert(reference);
        }
        before
    }

    /// Whether it lists a VM.
    pub(super) fn has(&self, id: &VmId) -> bool {
        self.references.contains_key(id)
    }

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
        self.references.get(id)?.first().map(String::as_str)
    }
}

/// Which VM it is, if it is one that can be told.
fn vm_of(machine: &Machine) -> Option<VmId> {
    machine.id().filter(|_| !machine.is_template)
}

/// Whether VMs of one source may come to the other, by what is said of where they are.
fn may_move(from: &Sight, to: &Sight) -> bool {
    !matches!((&from.site, &to.site), (Some(here), Some(there)) if here != there)
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
    let (mut elsewhere, mut unidentified) = (BTreeMap::new(), Vec::new());
    if let (Completeness::Complete, Some(here)) = (&completeness, sights.get(node)) {
        for (other, sight) in sights.iter().filter(|(_, sight)| may_move(here, sight)) {
            if let Some(doubt) = sight.doubt().filter(|_| other != node) {
                elsewhere.insert(other.clone(), doubt);
            }
            unidentified.extend(sight.unidentified.iter().map(|(reference, since)| Unidentified {
                node: other.clone(),
                reference: vsphere::shown(reference),
                since: *since,
            }));
        }
    }
    Listing {
        source: VmSource::Vsphere,
        nodes: [(node.clone(), completeness)].into(),
        elsewhere,
        seen: kept,
        refused,
        unidentified,
        gone: VmState::Unknown,
    }
}

/// Leaves those their names that would take one of these; their ids at the source.
pub(super) fn keep_names(
    listing: &mut Listing,
    taken: &BTreeSet<String>,
    records: &BTreeMap<VmId, Vm>,
) -> BTreeSet<String> {
    let mut kept = BTreeSet::new();
    for seen in listing.seen.iter_mut().filter(|seen| taken.contains(seen.name.as_str())) {
        if let Some(known) = records.get(&seen.id)
            && known.record.name != seen.name
        {
            seen.name.clone_from(&known.record.name);
            kept.insert(seen.reference.clone());
        }
    }
    kept
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
    let has = other.fault.is_none() && other.has(&seen.id);
    has.then(|| {
        format!("{} has the UUID {} of {} on {}", seen.name, seen.id, record.name, record.node)
    })
}

/// Why VMs of a source that the configuration does not name are not known to be there, and what
/// to do.
pub(super) fn unconfigured(node: &HostId) -> String {
    format!(
        "sync.yaml does not name {node} any more; once its VMs are gone: twin inventory confirm {node}"
    )
}

/// The ids of a source's VMs that are meant: by UUID, and what is none by name.
pub(super) fn matching<'s>(sight: &'s Sight, wanted: &[String]) -> BTreeSet<&'s str> {
    let (mut found, mut names) = (BTreeSet::new(), BTreeSet::new());
    for text in wanted {
        let id = text.to_ascii_lowercase().parse::<VmId>().ok();
        let by_uuid = id.and_then(|id| sight.references.get(&id));
        if let Some(references) = by_uuid {
            found.extend(references.iter().map(String::as_str));
        } else {
            names.insert(text.as_str());
        }
    }
    let all = sight.objects.machines.iter();
    let named = all.filter(|(_, machine)| names.contains(machine.name.as_str()));
    found.extend(named.map(|(reference, _)| reference.as_str()));
    found
}

fn keep_what_was_told(seen: &mut Seen, known: &Vm) {
    // It told no name, and is called as its object is.
    if seen.name.as_str() == seen.reference {
        seen.name.clone_from(&known.record.name);
    }
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

    pub(in crate::sync) const ONE: &str = "423c1d0e-0000-0000-0000-000000000001";
    pub(in crate::sync) const TWO: &str = "423c1d0e-0000-0000-0000-000000000002";

    /// Two VMs, one of which is called as the other's UUID is.
    pub(in crate::sync) fn named() -> Sight {
        let machine = |uuid: &str, name: &str| Machine {
            uuid: Some(uuid.to_uppercase()),
            name: name.into(),
            ..Machine::default()
        };
        let machines = [("vm-1".into(), machine(ONE, "web")), ("vm-2".into(), machine(TWO, ONE))];
        let mut sight = Sight::default();
        sight.take_whole(Objects { machines: machines.into(), ..Objects::default() }, Time(1));
        sight
    }

    pub(in crate::sync) fn node(name: &str) -> HostId {
        HostId::new(name).unwrap()
    }

    pub(in crate::sync) fn sight(uuids: &[&str]) -> Sight {
        let machine =
            |uuid: &&str| Machine { uuid: Some((*uuid).to_owned()), ..Machine::default() };
        let machines = (1..).map(|n| format!("vm-{n}")).zip(uuids.iter().map(machine)).collect();
        let mut sight = Sight::default();
        sight.take_whole(Objects { machines, ..Objects::default() }, Time(1));
        sight
    }

    pub(in crate::sync) fn away() -> Sight {
        Sight { fault: Some((Time(1), "it is off".into())), ..Sight::default() }
    }

    fn read(seen: Vec<Seen>) -> Read {
        Read { seen, refused: Vec::new(), completeness: Completeness::Complete }
    }

    fn known() -> BTreeMap<VmId, Vm> {
        let mut records = BTreeMap::new();
        let mut one = seen(ONE, "web", "esx1");
        one.labels.insert("hostname".into(), "web.example".into());
        let sights = [(node("esx1"), sight(&[ONE]))].into();
        let first = listing(&node("esx1"), read(vec![one]), &sights, &records);
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
        // Also its name, where none is told.
        for name in ["web", "vm-1"] {
            let seen = vec![seen(ONE, name, "esx1")];
            let listed = listing(&node("esx1"), read(seen), &sights, &records);
            assert_eq!(listed.seen[0].labels["hostname"], "web.example");
            let outcome = reconcile(&records, &listed, None);
            assert!(outcome.decisions.is_empty(), "{:?}", outcome.decisions);
        }
    }

    #[test]
    fn who_is_not_seen_may_have_it() {
        let sights = [(node("esx1"), sight(&[])), (node("esx2"), away())].into();
        let records = known();
        let listed = listing(&node("esx1"), read(vec![]), &sights, &records);
        let outcome = reconcile(&records, &listed, None);
        assert_eq!(outcome.decisions[0].act, Act::Stale);
        assert_eq!(outcome.decisions[0].reason, "it may have moved to esx2: it is off");
    }

    #[test]
    fn vms_move_within_a_site() {
        let check = |here: &str, there: &str, holds: bool| {
            let site = |name: &str| Some(name.to_owned()).filter(|name| !name.is_empty());
            let one = Sight { site: site(here), ..sight(&[]) };
            for other in [away(), sight(&["odd"])] {
                let other = Sight { site: site(there), ..other };
                let sights = [(node("esx1"), one.clone()), (node("esx2"), other)].into();
                let listed = listing(&node("esx1"), read(vec![]), &sights, &known());
                let outcome = reconcile(&known(), &listed, None);
                assert_eq!(outcome.decisions[0].act == Act::Stale, holds, "{here} {there}");
            }
        };
        check("", "", true);
        check("berlin", "", true);
        check("berlin", "berlin", true);
        check("berlin", "bonn", false);
    }

    #[test]
    fn who_can_not_be_identified_is_told_since_when() {
        let mut esx1 = sight(&[ONE, TWO]);
        let objects = |uuid: &str| {
            let machine =
                |uuid: &str| Machine { uuid: Some(uuid.to_owned()), ..Machine::default() };
            let machines = [("vm-1".to_owned(), machine(ONE)), ("vm-2".to_owned(), machine(uuid))];
            Objects { machines: machines.into(), ..Objects::default() }
        };
        esx1.take_whole(objects("odd"), Time(5));
        esx1.take_whole(objects("odd"), Time(9));
        esx1.take(Change { id: "vm-9".into(), ..Change::default() }, Time(10));
        let told = |esx1: &Sight| -> Vec<(String, Time)> {
            let sights = [(node("esx1"), esx1.clone())].into();
            let listed = listing(&node("esx1"), read(vec![]), &sights, &BTreeMap::new());
            listed.unidentified.into_iter().map(|one| (one.reference, one.since)).collect()
        };
        assert_eq!(told(&esx1), [("vm-2".to_owned(), Time(5)), ("vm-9".to_owned(), Time(10))]);
        esx1.take(Change { id: "vm-9".into(), leaves: true, ..Change::default() }, Time(11));
        esx1.take_whole(objects(TWO), Time(12));
        assert_eq!(told(&esx1), []);
        assert_eq!(esx1.reference(&TWO.parse().unwrap()), Some("vm-2"));
        let gone = Change { id: "vm-2".into(), leaves: true, ..Change::default() };
        assert_eq!(esx1.take(gone.clone(), Time(13)).unwrap().as_str(), TWO);
        assert_eq!(
            (esx1.take(gone, Time(13)), esx1.reference(&TWO.parse().unwrap())),
            (None, None)
        );
    }

    #[test]
    fn a_name_in_doubt_is_not_taken() {
        let taken = ["db".to_owned()].into();
        let mut listed = listing(
            &node("esx1"),
            read(vec![seen(ONE, "db", "esx1"), seen(TWO, "db", "esx1")]),
            &BTreeMap::new(),
            &known(),
        );
        assert_eq!(keep_names(&mut listed, &taken, &known()), ["vm-1".to_owned()].into());
        let names: Vec<&str> = listed.seen.iter().map(|seen| seen.name.as_str()).collect();
        assert_eq!(names, ["web", "db"], "one that is new has no other");
        assert_eq!(keep_names(&mut listed, &BTreeSet::new(), &known()), BTreeSet::new());
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
