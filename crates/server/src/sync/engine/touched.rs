//! What sources told that is not decided yet. Pure.

use crate::sync::sight::Sight;
use model::vm::VmId;
use std::collections::BTreeSet;
use vsphere::{Change, Thing};

/// What a source told and was not decided yet.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) ids: BTreeSet<String>,
    pub(super) all: bool,
    pub(super) whole: bool,
    pub(super) left: bool,
}

/// Takes one change into what is seen; the VM that left, if one did.
pub(super) fn touch(touched: &mut Touched, sight: &mut Sight, change: Change) -> Option<VmId> {
    let mut left = None;
    match (change.thing, change.leaves) {
        // What a place is called is part of what all VMs there are.
        (Thing::Place, _) => touched.all = true,
        (Thing::Machine, true) => {
            touched.left = true;
            let machine = sight.objects.machines.get(&change.id);
            let uuid = machine.and_then(|machine| machine.uuid.as_deref());
            left = uuid.and_then(|uuid| uuid.to_ascii_lowercase().parse().ok());
        }
        (Thing::Machine, false) => drop(touched.ids.insert(change.id.clone())),
    }
    sight.objects.apply(change);
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::sight::tests::{ONE, named};

    #[test]
    fn changes_are_noted() {
        let (mut sight, mut touched) = (named(), Touched::default());
        let change = |id: &str| Change { id: id.into(), ..Change::default() };
        assert_eq!(touch(&mut touched, &mut sight, change("vm-3")), None);
        assert!(touched.ids.contains("vm-3") && !touched.left && !touched.all);
        let gone = Change { leaves: true, ..change("vm-1") };
        let left = touch(&mut touched, &mut sight, gone.clone());
        assert_eq!(left.unwrap().as_str(), ONE);
        assert!(touched.left && !sight.objects.machines.contains_key("vm-1"));
        assert_eq!(touch(&mut touched, &mut sight, gone), None, "told twice");
        touch(&mut touched, &mut sight, Change { thing: Thing::Place, ..change("group-1") });
        assert!(touched.all);
    }
}
