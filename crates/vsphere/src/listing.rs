//! What the objects of a source are as VMs of the inventory. Pure.
//!
//! # Invariants
//! - A VM is its `config.uuid`. One whose UUID can't be read is no VM of the listing; which others
//!   it may be is for who reads it. What we may not read makes a listing incomplete.
//! - A listing without a single VM says nothing: it is as likely to be a lack of rights.

use crate::objects::{Machine, Objects};
use inventory::{Completeness, Condition, Limits, Refused, Seen};
use model::HostId;
use model::vm::{Layer, VmState, VmTitle};
use std::collections::BTreeMap;

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    pub seen: Vec<Seen>,
    pub refused: Vec<Refused>,
    pub completeness: Completeness,
}

/// All VMs of a source.
#[must_use]
pub fn listing(node: &HostId, objects: &Objects) -> Read {
    let mut read = partly(node, objects, objects.machines.keys().map(String::as_str));
    let denied = objects.machines.values().flat_map(|machine| &machine.denied).next();
    let doubt = if let Some(path) = denied {
        Some(format!("the user may not read {path} of each VM; give it the role Read-only"))
    } else if read.seen.is_empty() {
        let reason = "it lists no VM at all, which is believed of nobody; see the user's rights";
        Some(reason.to_owned())
    } else {
        None
    };
    read.completeness = doubt.map_or(Completeness::Complete, Completeness::Incomplete);
    read
}

/// Some VMs of a source, by their ids there. It says nothing of the others.
#[must_use]
pub fn partly<'i>(
    node: &HostId,
    objects: &Objects,
    ids: impl IntoIterator<Item = &'i str>,
) -> Read {
    let (mut seen, mut refused) = (Vec::new(), Vec::new());
    for id in ids {
        let Some(machine) = objects.machines.get(id) else { continue };
        match one(node, id, machine, objects) {
            Ok(one) => seen.push(one),
            Err(reason) => refused.push(Refused { reference: shown(id), reason }),
        }
    }
    Read { seen, refused, completeness: Completeness::Partial }
}

fn one(node: &HostId, id: &str, machine: &Machine, objects: &Objects) -> Result<Seen, String> {
    let called = title(&machine.name).or_else(|| title(id));
    let called = called.ok_or_else(|| "it has neither a name nor an id".to_owned())?;
    if machine.is_template {
        return Err(format!("{called} is a template"));
    }
    let vm = machine.id().ok_or_else(|| match &machine.uuid {
        None => format!("{called} tells no UUID"),
        Some(uuid) => format!("{called} has the UUID {:?}, which is none", shown(uuid)),
    })?;
    Ok(Seen {
        id: vm,
        node: node.clone(),
        name: called,
        reference: shown(id),
        labels: labels(machine, objects),
        limits: Limits {
            memory_bytes: machine.memory_bytes,
            cpu_percent: machine.cpus.map(|cpus| cpus.saturating_mul(100)),
        },
        condition: condition(machine),
    })
}

/// What a VM is called, as far as names go here; nothing where nothing is left of it.
fn title(text: &str) -> Option<VmTitle> {
    let shown = shown(text);
    let mut rest = shown.trim();
    while rest.len() > VmTitle::MAX_BYTES {
        let last = rest.char_indices().next_back().map_or(0, |(at, _)| at);
        rest = rest.get(..last).unwrap_or_default().trim_end();
    }
    rest.parse().ok()
}

fn labels(machine: &Machine, objects: &Objects) -> BTreeMap<String, String> {
    let addresses: Vec<&str> = machine.addresses.iter().map(String::as_str).collect();
    let host = machine.host.as_ref().and_then(|id| objects.places.get(id));
    let is_odd = |connection: &&String| connection.as_str() != "connected";
    let all = [
        ("address", machine.address.clone()),
        ("addresses", Some(addresses.join(" ")).filter(|all| !all.is_empty())),
        ("connection", machine.connection.as_ref().filter(is_odd).cloned()),
        ("cpus", machine.cpus.map(|cpus| cpus.to_string())),
        ("disks", machine.disks.map(|disks| disks.to_string())),
        ("folder", objects.folder_of(machine)),
        ("host", host.map(|host| host.name.clone())),
        ("hostname", machine.hostname.clone()),
        ("instance_uuid", machine.instance_uuid.clone()),
        // Also what it was, of one that is gone.
        ("power", machine.power.clone()),
        ("snapshots", Some(machine.snapshots.to_string())),
        ("tools", machine.tools.clone()),
    ];
    let known = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    known.collect()
}

fn condition(machine: &Machine) -> Condition {
    let power = machine.power.as_deref().unwrap_or("unknown");
    let state = match power {
        "poweredOn" => VmState::Running,
        "poweredOff" | "suspended" => VmState::Stopped,
        _ => VmState::Unknown,
    };
    let fault = match machine.connection.as_deref() {
        Some(connection @ ("disconnected" | "inaccessible" | "invalid" | "orphaned")) => {
            Some((Layer::Node, format!("vSphere says that it is {connection}")))
        }
        _ => None,
    };
    Condition { state, detail: shown(power), since: None, fault, restarts: 0, looping: None }
}

/// A text as it may be shown, and an object's id as records have it.
#[must_use]
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Place;

    const UUID: &str = "423C1D0E-aaaa-bbbb-cccc-0123456789ab";

    fn node() -> HostId {
        HostId::new("esx1").unwrap()
    }

    fn machine(name: &str, uuid: Option<&str>) -> Machine {
        Machine {
            name: name.into(),
            uuid: uuid.map(str::to_owned),
            power: Some("poweredOn".into()),
            host: Some("host-1".into()),
            cpus: Some(2),
            ..Machine::default()
        }
    }

    fn objects(machines: Vec<Machine>) -> Objects {
        let ids = (1..).map(|n| format!("vm-{n}"));
        let place = Place { name: "esx1.example".into(), ..Place::default() };
        Objects {
            machines: ids.zip(machines).collect(),
            places: [("host-1".to_owned(), place)].into(),
        }
    }

    #[test]
    fn a_vm() {
        let read = listing(&node(), &objects(vec![machine("Web 01 (neu)", Some(UUID))]));
        assert_eq!(read.completeness, Completeness::Complete);
        let seen = &read.seen[0];
        assert_eq!(seen.id.as_str(), UUID.to_lowercase());
        assert_eq!((seen.name.as_str(), seen.reference.as_str()), ("Web 01 (neu)", "vm-1"));
        assert_eq!(seen.labels["host"], "esx1.example");
        assert_eq!((seen.condition.state, seen.limits.cpu_percent), (VmState::Running, Some(200)));
    }

    #[test]
    fn whatever_it_is_called_it_is_there() {
        let called = |name: &str| {
            let read = listing(&node(), &objects(vec![machine(name, Some(UUID))]));
            assert_eq!((read.seen.len(), read.refused.len()), (1, 0), "{name:?}");
            read.seen[0].name.to_string()
        };
        assert_eq!(called(" web "), "web");
        assert_eq!(called(""), "vm-1");
        assert_eq!(called(" \u{7} "), "vm-1");
        assert_eq!(called(&"ü".repeat(150)), "ü".repeat(127), "255 bytes at most");
        assert_eq!(called(&format!("{} {}", "a".repeat(254), "b".repeat(9))), "a".repeat(200));
    }

    #[test]
    fn what_can_not_be_told_is_not_complete() {
        let check = |machines: Vec<Machine>, expected: &str, refused: &str| {
            let read = listing(&node(), &objects(machines));
            let shown = format!("{:?}", read.completeness);
            assert!(shown.contains(expected), "{shown}");
            let reasons: Vec<String> = read.refused.into_iter().map(|one| one.reason).collect();
            assert_eq!(reasons.join("; "), refused);
        };
        let good = || machine("a", Some(UUID));
        let template = Machine { is_template: true, ..machine("t", None) };
        check(vec![good(), template.clone()], "Complete", "t is a template");
        check(vec![good(), machine("b", None)], "Complete", "b tells no UUID");
        check(vec![template], "lists no VM at all", "t is a template");
        check(vec![], "lists no VM at all", "");
        let denied = Machine { denied: ["guest.net".to_owned()].into(), ..good() };
        check(vec![denied], "may not read guest.net", "");
        check(
            vec![good(), machine("c", Some("../x"))],
            "Complete",
            "c has the UUID \"../x\", which is none",
        );
    }
}
