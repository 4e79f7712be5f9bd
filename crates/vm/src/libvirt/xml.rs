//! Descriptions that libvirt reads. Built as elements; text and attributes are escaped in one
//! place, so that a path or a name can't end one and begin another.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::str::FromStr;

/// A machine's or a snapshot's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineName(String);

impl FromStr for MachineName {
    type Err = crate::image::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<crate::image::ImageName>().map(|name| Self(name.to_string()))
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    Kvm,
    /// QEMU's own translator: slow, and works everywhere.
    Tcg,
}

/// What libvirt is told of a machine.
#[derive(Debug, Clone)]
pub struct Machine {
    pub name: MachineName,
    pub memory_bytes: u64,
    pub processors: u32,
    pub acceleration: Acceleration,
    /// Kernel and initial RAM disk that the hypervisor loads; else the disk's boot loader.
    pub direct: Option<Direct>,
    /// A qcow2 file of the machine's own.
    pub disk: PathBuf,
    /// The ISO of cloud-init's seed.
    pub seed: Option<PathBuf>,
    pub mac: crate::image::MacAddress,
    /// Ports of this machine's loopback that lead into the guest.
    pub forwards: Vec<Forward>,
    pub serial_log: PathBuf,
    /// Channels of virtio-serial beside the guest agent's, as names and sockets.
    pub channels: Vec<Channel>,
}

#[derive(Debug, Clone)]
pub struct Direct {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub command_line: String,
}

/// A port on 127.0.0.1 that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub host_port: u16,
    pub guest_port: u16,
}

/// A channel's name in the guest, and its socket here.
#[derive(Debug, Clone)]
pub struct Channel {
    pub name: String,
    pub socket: PathBuf,
}

impl Machine {
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
        if let Some(direct) = &self.direct {
            boot.push(Element::new("kernel").text(direct.kernel.to_string_lossy()));
            boot.push(Element::new("initrd").text(direct.initrd.to_string_lossy()));
            boot.push(Element::new("cmdline").text(&direct.command_line));
        }
        Element::new("domain")
            .attribute("type", kind)
            .child(Element::new("name").text(&self.name.0))
            .child(
                Element::new("memory").attribute("unit", "b").text(self.memory_bytes.to_string()),
            )
            .child(Element::new("vcpu").text(self.processors.to_string()))
            .child(Element::new("os").children(boot))
            .child(Element::new("features").child(Element::new("acpi")))
            .child(Element::new("cpu").attribute("mode", processor))
            .child(Element::new("devices").children(self.devices()))
            .to_string()
    }

    fn devices(&self) -> Vec<Element> {
        let mut devices = vec![disk("disk", "qcow2", &self.disk, ("vda", "virtio"))];
        if let Some(seed) = &self.seed {
            let seed = disk("cdrom", "raw", seed, ("hda", "ide"));
            devices.push(seed.child(Element::new("readonly")));
        }
        devices.push(self.interface());
        let agent = Element::new("target").attribute("type", "virtio");
        let agent = agent.attribute("name", "org.qemu.guest_agent.0");
        devices.push(Element::new("channel").attribute("type", "unix").child(agent));
        for channel in &self.channels {
            let source = Element::new("source").attribute("mode", "bind");
            let source = source.attribute("path", channel.socket.to_string_lossy());
            let target = Element::new("target").attribute("type", "virtio");
            let target = target.attribute("name", &channel.name);
            devices.push(
                Element::new("channel").attribute("type", "unix").child(source).child(target),
            );
        }
        let log = Element::new("source").attribute("path", self.serial_log.to_string_lossy());
        devices.push(Element::new("serial").attribute("type", "file").child(log));
        devices
    }

    fn interface(&self) -> Element {
        let mut interface = Element::new("interface")
            .attribute("type", "user")
            .child(Element::new("backend").attribute("type", "passt"))
            .child(Element::new("mac").attribute("address", self.mac.as_str()))
            .child(Element::new("model").attribute("type", "virtio"));
        for forward in &self.forwards {
            let here = SocketAddrV4::new(Ipv4Addr::LOCALHOST, forward.host_port);
            let range = Element::new("range").attribute("start", here.port().to_string());
            let range = range.attribute("to", forward.guest_port.to_string());
            let forward = Element::new("portForward").attribute("proto", "tcp");
            interface =
                interface.child(forward.attribute("address", here.ip().to_string()).child(range));
        }
        interface
    }
}

fn disk(device: &str, format: &str, path: &std::path::Path, target: (&str, &str)) -> Element {
    let driver = Element::new("driver").attribute("name", "qemu").attribute("type", format);
    Element::new("disk")
        .attribute("type", "file")
        .attribute("device", device)
        .child(driver)
        .child(Element::new("source").attribute("file", path.to_string_lossy()))
        .child(Element::new("target").attribute("dev", target.0).attribute("bus", target.1))
}

pub(super) fn snapshot(name: &MachineName) -> String {
    Element::new("domainsnapshot").child(Element::new("name").text(&name.0)).to_string()
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
    fn nothing_that_is_given_becomes_markup() {
        let evil = "</name><emulator>/bin/sh</emulator>\"'&\n\0";
        let element = Element::new("a").attribute("b", evil).text(evil).to_string();
        assert_eq!(element.matches('<').count(), 2);
        assert_eq!(element.matches('"').count(), 2);
        assert!(!element.contains(['\n', '\0', '\'']));
        assert!(evil.parse::<MachineName>().is_err());
    }
}
