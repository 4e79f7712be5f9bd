//! What an ESXi host or a vCenter answers.

use ::vsphere::{Objects, answer, listing, updates};
use inventory::Completeness;
use model::HostId;

/// An answer about changes, and what becomes of the objects and the listing by it.
pub fn vsphere_soap(bytes: &[u8]) {
    let Ok(Some(answer)) = answer(bytes) else { return };
    let node = HostId::new("esx1").expect("a name");
    let mut objects = Objects::default();
    for change in updates(&answer) {
        objects.apply(change);
    }
    let read = listing(&node, &objects);
    assert!(read.seen.len() + read.refused.len() == objects.machines.len());
    assert!(!read.seen.is_empty() || read.completeness != Completeness::Complete);
    for seen in &read.seen {
        assert!(!seen.name.as_str().chars().any(char::is_control));
        assert!(seen.labels.values().all(|value| !value.chars().any(char::is_control)));
    }
}
