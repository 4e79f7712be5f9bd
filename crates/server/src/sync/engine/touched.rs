//! What sources told that is not decided yet. Pure.

use crate::sync::sight::Sight;
use model::Time;
use model::vm::VmId;
use std::collections::BTreeSet;
use vsphere::{Change, Thing};

/// What a source told and was not decided yet.
#[derive(Debug, Default)]
pub(in crate::sync) struct Touched {
    pub(in crate::sync) ids: BTreeSet<String>,
    pub(super) all: bool,
    pub(super) whole: bool,
    pub(super) left: bool,
}

/// Takes one change into what is seen; the VM that left, if one did: also one that is a template
/// from now on, or another VM.
pub(in crate::sync) fn touch(
    touched: &mut Touched,
    sight: &mut Sight,
    change: Change,
    now: Time,
) -> Option<VmId> {
    let reference = (change.thing == Thing::Machine).then(|| change.id.clone());
    // What a place is called is part of what all VMs there are.
    touched.all |= reference.is_none();
    let left = sight.take(change, now);
    touched.left |= left.is_some();
    touched.ids.extend(reference.filter(|id| sight.objects().machines.contains_key(id)));
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::sight::tests::{ONE, TWO, named, sight};

    #[test]
    fn changes_are_noted() {
        let (mut sight, mut touched) = (named(), Touched::default());
        let change = |id: &str| Change { id: id.into(), ..Change::default() };
        assert_eq!(touch(&mut touched, &mut sight, change("vm-3"), Time(2)), None);
        assert!(touched.ids.contains("vm-3") && !touched.left && !touched.all);
        let gone = Change { leaves: true, ..change("vm-1") };
        let left = touch(&mut touched, &mut sight, gone.clone(), Time(2));
        assert_eq!(left.unwrap().as_str(), ONE);
        assert!(touched.left && !sight.objects().machines.contains_key("vm-1"));
        assert_eq!(touch(&mut touched, &mut sight, gone, Time(2)), None, "told twice");
        let place = Change { thing: Thing::Place, ..change("group-1") };
        touch(&mut touched, &mut sight, place, Time(2));
        assert!(touched.all);
    }

    #[test]
    fn a_template_and_another_uuid_are_a_vm_that_left() {
        for (path, value) in [("config.template", "true"), ("config.uuid", TWO)] {
            let (mut sight, mut touched) = (sight(&[ONE]), Touched::default());
            let value = vsphere::xml::parse(format!("<val>{value}</val>").as_bytes()).unwrap();
            let properties = vec![(path.to_owned(), Some(value))];
            let change = Change { id: "vm-1".into(), properties, ..Change::default() };
            let left = touch(&mut touched, &mut sight, change, Time(2));
            assert_eq!(left.unwrap().as_str(), ONE, "{path}");
            assert!(touched.left && sight.reference(&ONE.parse().unwrap()).is_none());
        }
    }
}
