//! What there is on a source: its VMs, and the places they are in. Follows changes; pure.

use crate::xml::Element;
use model::vm::VmId;
use std::collections::{BTreeMap, BTreeSet};

/// What is asked of each VM.
pub(crate) const OF_MACHINES: &[&str] = &[
    "name",
    "parent",
    "snapshot",
    "config.uuid",
    "config.instanceUuid",
    "config.template",
    "guest.hostName",
    "guest.ipAddress",
    "guest.net",
    "guest.toolsStatus",
    "runtime.connectionState",
    "runtime.host",
    "runtime.powerState",
    "summary.config.memorySizeMB",
    "summary.config.numCpu",
    "summary.config.numVirtualDisks",
];
pub(crate) const OF_PLACES: &[&str] = &["name", "parent"];

/// Addresses of one VM that are kept.
const ADDRESSES: usize = 32;
/// Snapshots of one VM that are counted.
const SNAPSHOTS: usize = 1000;
/// Bytes of a text that is kept.
const MAX_TEXT: usize = 512;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thing {
    #[default]
    Machine,
    /// A host, a folder, a datacenter.
    Place,
}

impl Thing {
    pub(crate) fn of(kind: &str) -> Option<Self> {
        match kind {
            "VirtualMachine" => Some(Self::Machine),
            "HostSystem" | "Folder" | "Datacenter" => Some(Self::Place),
            _ => None,
        }
    }
}

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    pub id: String,
    pub thing: Thing,
    /// It is not there any more, or not to be seen.
    pub leaves: bool,
    /// It was there before: of one that is not known, too little is told to know it.
    pub modifies: bool,
    /// By path. Without a value it has none now.
    pub properties: Vec<(String, Option<Element>)>,
    /// Paths that we may not read.
    pub denied: Vec<String>,
}

impl Change {
    /// A VM is there, and nothing of it is to be seen.
    #[must_use]
    pub fn hides(id: String) -> Self {
        Self { id, denied: vec!["the name".to_owned()], ..Self::default() }
    }
}

/// One VM as it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    pub name: String,
    /// `config.uuid`; what there is of it stays known, also when it can't be read for a time.
    pub uuid: Option<String>,
    pub instance_uuid: Option<String>,
    pub is_template: bool,
    /// `poweredOn`.
    pub power: Option<String>,
    /// `connected`.
    pub connection: Option<String>,
    /// `toolsOk`.
    pub tools: Option<String>,
    pub hostname: Option<String>,
    pub address: Option<String>,
    pub addresses: BTreeSet<String>,
    pub cpus: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub disks: Option<u64>,
    pub snapshots: usize,
    /// The id of the place that runs it.
    pub host: Option<String>,
    /// The id of its folder.
    pub parent: Option<String>,
    /// Paths that we may not read.
    pub denied: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    pub name: String,
    pub parent: Option<String>,
}

/// All objects of a source, by their ids there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objects {
    pub machines: BTreeMap<String, Machine>,
    pub places: BTreeMap<String, Place>,
}

impl Objects {
    /// Takes what became of an object.
    pub fn apply(&mut self, change: Change) {
        let Change { id, thing, leaves, modifies, properties, denied } = change;
        let is_known = match thing {
            Thing::Machine => self.machines.contains_key(&id),
            Thing::Place => self.places.contains_key(&id),
        };
        if modifies && !is_known {
            return;
        }
        match (thing, leaves) {
            (Thing::Machine, true) => {
                self.machines.remove(&id);
            }
            (Thing::Place, true) => {
                self.places.remove(&id);
            }
            (Thing::Machine, false) => {
                let machine = self.machines.entry(id).or_default();
                for (path, value) in properties {
                    machine.denied.remove(&path);
                    machine.set(&path, value.as_ref());
                }
                machine.denied.extend(denied);
            }
            (Thing::Place, false) => {
                let place = self.places.entry(id).or_default();
                for (path, value) in properties {
                    match path.as_str() {
                        "name" => place.name = text(value.as_ref()).unwrap_or_default(),
                        "parent" => place.parent = text(value.as_ref()),
                        _ => {}
                    }
                }
            }
        }
    }

    /// The folders a VM is in, the outermost first, without those that only hold all others:
    /// `DC0/vm/web`.
    #[must_use]
    pub fn folder_of(&self, machine: &Machine) -> Option<String> {
        let mut names = Vec::new();
        let mut at = machine.parent.as_ref();
        // A path that goes in a circle is none.
        for _ in 0..self.places.len() {
            let Some(place) = at.and_then(|id| self.places.get(id)) else { break };
            at = place.parent.as_ref();
            names.push(place.name.as_str());
        }
        names.reverse();
        if names.is_empty() { None } else { Some(names.join("/")) }
    }
}

impl Machine {
    /// Which VM it is, if it says so.
    #[must_use]
    pub fn id(&self) -> Option<VmId> {
        let uuid = self.uuid.as_deref()?.to_ascii_lowercase();
        let is_uuid = uuid.len() == 36 && uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        uuid.parse().ok().filter(|_| is_uuid)
    }

    /// It is a VM, and does not say which.
    #[must_use]
    pub fn is_unidentified(&self) -> bool {
        !self.is_template && self.id().is_none()
    }

    fn set(&mut self, path: &str, value: Option<&Element>) {
        match path {
            "name" => self.name = text(value).unwrap_or_default(),
            "parent" => self.parent = text(value),
            "snapshot" => self.snapshots = value.map_or(0, snapshots),
            "config.uuid" => self.uuid = text(value).or(self.uuid.take()),
            "config.instanceUuid" => {
                self.instance_uuid = text(value).or(self.instance_uuid.take());
            }
            "config.template" => self.is_template = text(value).as_deref() == Some("true"),
            "guest.hostName" => self.hostname = text(value),
            "guest.ipAddress" => self.address = text(value),
            "guest.net" => self.addresses = value.map(addresses).unwrap_or_default(),
            "guest.toolsStatus" => self.tools = text(value),
            "runtime.connectionState" => self.connection = text(value),
            "runtime.host" => self.host = text(value),
            "runtime.powerState" => self.power = text(value),
            "summary.config.memorySizeMB" => {
                self.memory_bytes = number(value).map(|mb| mb.saturating_mul(1 << 20));
            }
            "summary.config.numCpu" => self.cpus = number(value),
            "summary.config.numVirtualDisks" => self.disks = number(value),
            _ => {}
        }
    }
}

fn text(value: Option<&Element>) -> Option<String> {
    let text = value?.text.trim();
    let fits = !text.is_empty() && text.len() <= MAX_TEXT && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

fn number(value: Option<&Element>) -> Option<u64> {
    value?.text.trim().parse().ok()
}

fn addresses(nics: &Element) -> BTreeSet<String> {
    let all = nics.children.iter().flat_map(|nic| nic.all("ipAddress"));
    all.filter_map(|address| text(Some(address))).take(ADDRESSES).collect()
}

/// How many there are in the tree of them.
fn snapshots(info: &Element) -> usize {
    let mut waiting: Vec<&Element> = info.all("rootSnapshotList").collect();
    let mut count = 0;
    while let Some(snapshot) = waiting.pop() {
        count += 1;
        if count >= SNAPSHOTS {
            break;
        }
        waiting.extend(snapshot.all("childSnapshotList"));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(inner: &str) -> Option<Element> {
        Some(crate::xml::parse(format!("<val>{inner}</val>").as_bytes()).unwrap())
    }

    fn machine(properties: &[(&str, &str)]) -> Machine {
        let mut objects = Objects::default();
        let properties =
            properties.iter().map(|(path, inner)| ((*path).to_owned(), value(inner))).collect();
        objects.apply(Change { id: "vm-1".into(), properties, ..Change::default() });
        objects.machines.remove("vm-1").unwrap()
    }

    #[test]
    fn properties_are_read() {
        let machine = machine(&[
            ("name", " web "),
            ("summary.config.memorySizeMB", "2048"),
            ("summary.config.numCpu", "many"),
            (
                "guest.net",
                "<GuestNicInfo><ipAddress>10.0.0.1</ipAddress><ipAddress>fe80::1</ipAddress></GuestNicInfo><GuestNicInfo/>",
            ),
            (
                "snapshot",
                "<rootSnapshotList><name>a</name><childSnapshotList/><childSnapshotList/></rootSnapshotList>",
            ),
            ("guest.hostName", "a&#7;b"),
        ]);
        assert_eq!(machine.name, "web");
        assert_eq!(machine.memory_bytes, Some(2 << 30));
        assert_eq!(machine.cpus, None);
        assert_eq!(machine.addresses.len(), 2);
        assert_eq!(machine.snapshots, 3);
        assert_eq!(machine.hostname, None);
    }

    #[test]
    fn who_says_which_vm_it_is() {
        let uuid = "423C1D0E-aaaa-bbbb-cccc-0123456789ab";
        let check = |uuid: Option<&str>, is_template: bool, id: Option<&str>, is_odd: bool| {
            let uuid = uuid.map(str::to_owned);
            let machine = Machine { uuid, is_template, ..Machine::default() };
            assert_eq!(machine.id().as_ref().map(VmId::as_str), id);
            assert_eq!(machine.is_unidentified(), is_odd);
        };
        check(Some(uuid), false, Some(&uuid.to_lowercase()), false);
        check(None, false, None, true);
        check(Some("../x"), false, None, true);
        check(None, true, None, false);
    }

    #[test]
    fn changes_are_followed() {
        let mut objects = Objects::default();
        let change = |path: &str, new: Option<Element>| Change {
            id: "vm-1".into(),
            properties: vec![(path.into(), new)],
            ..Change::default()
        };
        objects.apply(change("config.uuid", value("u1")));
        objects.apply(change("guest.hostName", value("a.example")));
        objects.apply(Change { denied: vec!["name".into()], ..change("parent", value("f2")) });
        // What can't be read for a time is the same VM all the same.
        objects.apply(change("config.uuid", None));
        objects.apply(change("guest.hostName", None));
        let machine = &objects.machines["vm-1"];
        assert_eq!((machine.uuid.as_deref(), machine.hostname.as_deref()), (Some("u1"), None));
        assert!(machine.denied.contains("name"));
        objects.apply(change("name", value("web")));
        assert!(objects.machines["vm-1"].denied.is_empty());
        for (id, name, parent) in [("f1", "DC0", None), ("f2", "vm", Some("f1"))] {
            let mut properties = vec![("name".to_owned(), value(name))];
            properties.extend(parent.map(|parent| ("parent".to_owned(), value(parent))));
            objects.apply(Change {
                id: id.into(),
                thing: Thing::Place,
                properties,
                ..Change::default()
            });
        }
        assert_eq!(objects.folder_of(&objects.machines["vm-1"]).unwrap(), "DC0/vm");
        // It left before, and this was told late.
        objects.apply(Change {
            id: "vm-9".into(),
            modifies: true,
            ..change("name", value("late"))
        });
        assert!(!objects.machines.contains_key("vm-9"));
        // In a circle.
        objects.places.get_mut("f1").unwrap().parent = Some("f2".into());
        assert!(objects.folder_of(&objects.machines["vm-1"]).is_some());
        objects.apply(Change { id: "vm-1".into(), leaves: true, ..Change::default() });
        assert!(objects.machines.is_empty());
    }
}
