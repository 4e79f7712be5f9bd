//! Descriptions that libvirt reads. Built as elements; text and attributes are escaped in one
//! place, so that a path or a name can't end one and begin another.

use crate::image::{DirectBoot, MacAddress, MachineName, SnapshotName};
use crate::machine::{Acceleration, Network};
use std::fmt;
use std::path::Path;

/// Where isolated machines' network card is, behind those that libvirt places itself.
const SLOT: &str = "0x1d";
/// What snapshots of ours are described as; libvirt keeps it.
const OWN: &str = "Taken by SafetyTwin";
const SNAPSHOT: &str = "domainsnapshot";

/// What libvirt is told of a machine.
#[derive(Debug)]
pub(super) struct Domain<'a> {
    pub(super) name: &'a MachineName,
    pub(super) uuid: &'a str,
    pub(super) memory_bytes: u64,
    pub(super) processors: u32,
    pub(super) acceleration: Acceleration,
    /// Kernel and initial RAM disk that the hypervisor loads; else the disk's boot loader.
    pub(super) direct: Option<&'a DirectBoot>,
    /// A qcow2 file of the machine's own.
    pub(super) disk: &'a Path,
    /// The ISO of cloud-init's seed.
    pub(super) seed: &'a Path,
    pub(super) mac: &'a MacAddress,
    pub(super) network: Network,
    /// The port of this machine's loopback that leads to the guest's SSH.
    pub(super) ssh_port: u16,
    pub(super) console: &'a Path,
    pub(super) console_log: &'a Path,
    /// The socket of `twin-guest`'s channel.
    pub(super) agent: &'a Path,
}

impl Domain<'_> {
    pub(super) fn xml(&self) -> String {
        let kind = match self.acceleration {
            Acceleration::Kvm => "kvm",
            Acceleration::Tcg => "qemu",
        };
        let processor = match self.acceleration {
            Acceleration::Kvm => "host-passthrough",
            Acceleration::Tcg => "maximum",
        };
        let mut boot = vec![Element::new("type").attribute("machine", "pc").text("hvm")];
        if let Some(direct) = self.direct {
            boot.push(Element::new("kernel").text(direct.kernel.to_string_lossy()));
            boot.push(Element::new("initrd").text(direct.initrd.to_string_lossy()));
            boot.push(Element::new("cmdline").text(&direct.command_line));
        }
        Element::new("domain")
            .attribute("type", kind)
            .attribute("xmlns:qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
            .child(Element::new("name").text(self.name.as_str()))
            .child(Element::new("uuid").text(self.uuid))
            .child(
                Element::new("memory").attribute("unit", "b").text(self.memory_bytes.to_string()),
            )
            .child(Element::new("vcpu").text(self.processors.to_string()))
            .child(Element::new("os").children(boot))
            .child(Element::new("features").child(Element::new("acpi")))
            .child(Element::new("cpu").attribute("mode", processor))
            .child(Element::new("devices").children(self.devices()))
            .children(self.passed_on())
            .to_string()
    }

    fn devices(&self) -> Vec<Element> {
        let mut devices = vec![disk("disk", "qcow2", self.disk, ("vda", "virtio"))];
        let seed = disk("cdrom", "raw", self.seed, ("hda", "ide"));
        devices.push(seed.child(Element::new("readonly")));
        devices.extend(self.interface());
        let agent = Element::new("target").attribute("type", "virtio");
        let agent = agent.attribute("name", "org.qemu.guest_agent.0");
        devices.push(Element::new("channel").attribute("type", "unix").child(agent));
        let bind = |socket: &Path| {
            let source = Element::new("source").attribute("mode", "bind");
            source.attribute("path", socket.to_string_lossy())
        };
        let target = Element::new("target").attribute("type", "virtio");
        let target = target.attribute("name", "org.safetytwin.agent.0");
        let channel = Element::new("channel").attribute("type", "unix");
        devices.push(channel.child(bind(self.agent)).child(target));
        let log = Element::new("log").attribute("file", self.console_log.to_string_lossy());
        let serial = Element::new("serial").attribute("type", "unix").child(bind(self.console));
        devices.push(serial.child(log.attribute("append", "on")));
        let random = Element::new("backend").attribute("model", "random").text("/dev/urandom");
        devices.push(Element::new("rng").attribute("model", "virtio").child(random));
        devices.push(Element::new("memballoon").attribute("model", "none"));
        devices
    }

    /// libvirt has no way to shut a guest in; an isolated one has no interface of libvirt's.
    fn interface(&self) -> Option<Element> {
        if self.network == Network::Isolated {
            return None;
        }
        let range = Element::new("range").attribute("start", self.ssh_port.to_string());
        let forward = Element::new("portForward").attribute("proto", "tcp");
        let forward = forward.attribute("address", "127.0.0.1").child(range.attribute("to", "22"));
        let interface = Element::new("interface")
            .attribute("type", "user")
            .child(Element::new("backend").attribute("type", "passt"))
            .child(Element::new("mac").attribute("address", self.mac.as_str()))
            .child(Element::new("model").attribute("type", "virtio"));
        Some(interface.child(forward))
    }

    /// The network of an isolated machine: QEMU's own, with everything out of it refused.
    fn passed_on(&self) -> Vec<Element> {
        if self.network != Network::Isolated {
            return Vec::new();
        }
        let network =
            format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{}-:22", self.ssh_port);
        let card = format!(
            "virtio-net-pci,id=card,netdev=net,mac={},romfile=,addr={SLOT}",
            self.mac.as_str()
        );
        let arguments = ["-netdev".to_owned(), network, "-device".to_owned(), card];
        let argument = |value: String| Element::new("qemu:arg").attribute("value", value);
        vec![Element::new("qemu:commandline").children(arguments.map(argument).into())]
    }
}

/// The port that leads to the guest's SSH, in a description that libvirt gave back.
pub(super) fn ssh_port(description: &str) -> Option<u16> {
    let after = |mark: &str| description.split_once(mark).map(|(_, rest)| rest);
    let rest = after("hostfwd=tcp:127.0.0.1:").or_else(|| after("<range start='"))?;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest.get(..end)?.parse().ok()
}

fn disk(device: &str, format: &str, path: &Path, target: (&str, &str)) -> Element {
    let driver = Element::new("driver").attribute("name", "qemu").attribute("type", format);
    Element::new("disk")
        .attribute("type", "file")
        .attribute("device", device)
        .child(driver)
        .child(Element::new("source").attribute("file", path.to_string_lossy()))
        .child(Element::new("target").attribute("dev", target.0).attribute("bus", target.1))
}

/// As which user machines run, of what a daemon says that it can do.
pub(super) fn runs_as(capabilities: &str) -> Option<u32> {
    let (_, dac) = capabilities.split_once("<model>dac</model>")?;
    let (label, _) = dac.split_once("</baselabel>")?;
    let (_, label) = label.split_once("<baselabel type='")?.1.split_once("'>")?;
    label.trim_start_matches('+').split_once(':')?.0.parse().ok()
}

/// The files that a description names, as they are called there.
pub(super) fn files(description: &str) -> impl Iterator<Item = String> {
    let files = description.split("<source file='").skip(1);
    files.filter_map(|rest| Some(unescaped(rest.split_once('\'')?.0)))
}

fn unescaped(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">");
    plain.replace("&quot;", "\"").replace("&apos;", "'").replace("&amp;", "&")
}

pub(super) fn snapshot(name: &SnapshotName) -> String {
    described(name).to_string()
}

fn described(name: &SnapshotName) -> Element {
    Element::new(SNAPSHOT)
        .child(Element::new("name").text(name.as_str()))
        .child(Element::new("description").text(OWN))
}

/// One that is within the disk already, of a domain by its description that libvirt gave back.
pub(super) fn snapshot_within(name: &SnapshotName, domain: &str) -> String {
    let snapshot = described(name)
        .child(Element::new("creationTime").text("1"))
        .child(Element::new("state").text("running"))
        .child(Element::new("memory").attribute("snapshot", "internal"))
        .to_string();
    let end = format!("</{SNAPSHOT}>");
    let open = snapshot.strip_suffix(&end).unwrap_or(&snapshot);
    format!("{open}{domain}{end}")
}

/// Whether a snapshot, by its description that libvirt gave back, was made by [`snapshot`].
pub(super) fn is_own_snapshot(description: &str) -> bool {
    // Behind it is the domain's, which may have a description of its own.
    let head = description.split_once("<domain ").map_or(description, |(head, _)| head);
    head.contains(&format!("<description>{OWN}</description>"))
}

#[derive(Debug)]
struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), text: String::new(), children: Vec::new() }
    }

    fn attribute(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    fn children(mut self, children: Vec<Self>) -> Self {
        self.children.extend(children);
        self
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"{}\"", Escaped(value))?;
        }
        write!(f, ">{}", Escaped(&self.text))?;
        self.children.iter().try_for_each(|child| child.fmt(f))?;
        write!(f, "</{}>", self.name)
    }
}

/// Text in which nothing is markup. Control characters, which XML can't hold, are left out.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().filter(|c| !c.is_control()).try_for_each(|c| match c {
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '&' => f.write_str("&amp;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&apos;"),
            c => write!(f, "{c}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_ours_are_told_from_others() {
        assert!(is_own_snapshot(&snapshot(&"a".parse().unwrap())));
        let mine = "<domainsnapshot>\n  <name>a</name>\n  <description>Mine</description>\n";
        let domain = format!("<domain type='kvm'><description>{OWN}</description></domain>");
        for others in ["", mine, &format!("{mine}{domain}"), &domain] {
            assert!(!is_own_snapshot(others), "{others}");
        }
    }

    #[test]
    fn whom_machines_run_as_is_read() {
        let other = "<secmodel><model>selinux</model><baselabel type='kvm'>a:b:c</baselabel>";
        let told = format!(
            "{other}</secmodel><secmodel>\n<model>dac</model>\n<doi>0</doi>\n\
             <baselabel type='kvm'>+64055:+994</baselabel><baselabel type='qemu'>+1:+1</baselabel>"
        );
        assert_eq!(runs_as(&told), Some(64055));
        assert_eq!(runs_as(other), None);
    }

    #[test]
    fn files_are_called_as_they_are() {
        let description = "<disk><source file='/a &amp;&apos;b&lt;/disk.qcow2' index='1'/></disk>\
                           <disk><source file='/seed'/></disk><source mode='bind' path='/c'/>";
        assert_eq!(files(description).collect::<Vec<_>>(), ["/a &'b</disk.qcow2", "/seed"]);
    }

    #[test]
    fn nothing_that_is_given_becomes_markup() {
        let evil = "</name><emulator>/bin/sh</emulator>\"'&\n\0";
        let element = Element::new("a").attribute("b", evil).text(evil).to_string();
        assert_eq!(element.matches('<').count(), 2);
        assert_eq!(element.matches('"').count(), 2);
        assert!(!element.contains(['\n', '\0', '\'']));
        assert!(evil.parse::<MachineName>().is_err());
    }
}
