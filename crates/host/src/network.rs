//! Interfaces, their addresses, and the routes of the main table.
//!
//! Asks the kernel by rtnetlink, which answers for the network namespace the program is in;
//! speed and driver come from `/sys/class/net`.
//!
//! # Invariants
//! - Nothing that ages by itself: no lifetimes, no temporary IPv6 addresses, no cached routes.
//! - Counters belong to load.

use crate::Root;
use crate::bounded;
use crate::netlink::{self, Attributes, Dump};
use crate::text::printable;
use model::entity::{Interface, Route};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not ask the kernel for {what} by netlink")]
    Dump {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The network as one machine sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// In order of name.
    pub interfaces: Vec<Interface>,
    /// In order of id.
    pub routes: Vec<Route>,
}

/// Reads the network of the namespace we are in.
///
/// # Errors
/// When the kernel does not answer.
pub fn read(root: &Root) -> Result<Network, Error> {
    let dump = |what, dump| netlink::dump(dump).map_err(|source| Error::Dump { what, source });
    let links = dump("interfaces", Dump::Links)?;
    let addresses = dump("addresses", Dump::Addresses)?;
    let routes = dump("routes", Dump::Routes)?;
    let mut network = parse(&links, &addresses, &routes);
    for interface in &mut network.interfaces {
        add_hardware(root, interface);
    }
    Ok(network)
}

/// How this machine reaches an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The kernel's number of the interface.
    pub interface: u32,
    /// Its hardware address; absent where it is of another kind than Ethernet.
    pub hardware: Option<[u8; 6]>,
    /// What the machine calls itself on the way.
    pub source: Ipv4Addr,
    /// Behind a router.
    pub is_far: bool,
}

/// How this machine reaches an address. Blocks.
///
/// # Errors
/// When there is no way, or the kernel does not answer.
pub fn way_to(root: &Root, address: Ipv4Addr) -> Result<Way, Error> {
    let failed = |source| Error::Dump { what: "the way to an address", source };
    let answer = netlink::route(address).map_err(failed)?;
    let mut way = parse_way(&answer).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    way.hardware = names(root).find_map(|name| {
        let directory = root.sys("class/net").join(name);
        let index = bounded::number(&directory.join("ifindex"))?;
        let is_ethernet = bounded::number(&directory.join("type")) == Some(1);
        (index == i64::from(way.interface) && is_ethernet)
            .then(|| hardware(&bounded::line(&directory.join("address"))?))?
    });
    Ok(way)
}

fn names(root: &Root) -> impl Iterator<Item = std::ffi::OsString> {
    let entries = std::fs::read_dir(root.sys("class/net")).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.file_name()))
}

/// `02:00:00:00:00:01`.
fn hardware(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

pub(crate) fn parse_way(answer: &[u8]) -> Option<Way> {
    const INTERFACE: u16 = 4;
    const GATEWAY: u16 = 5;
    const SOURCE: u16 = 7;
    let (_, body) = netlink::messages(answer).find(|(kind, _)| *kind == netlink::NEW_ROUTE)?;
    let attributes = Attributes::after(body, 12);
    let source: [u8; 4] = attributes.get(SOURCE)?.try_into().ok()?;
    Some(Way {
        interface: netlink::u32_at(attributes.get(INTERFACE)?, 0)?,
        hardware: None,
        source: source.into(),
        is_far: attributes.get(GATEWAY).is_some(),
    })
}

fn add_hardware(root: &Root, interface: &mut Interface) {
    // The kernel forbids slashes in names, and what it calls printable is one word.
    if interface.name.contains(['/', '\\']) || interface.name.starts_with('.') {
        return;
    }
    let directory = root.sys("class/net").join(&interface.name);
    interface.speed_mbit = bounded::number(&directory.join("speed")).filter(|&speed| speed > 0);
    let driver = std::fs::read_link(directory.join("device/driver")).ok();
    interface.driver =
        driver.as_deref().and_then(|path| path.file_name()).map(|name| printable(name.as_bytes()));
}

pub(crate) fn parse(links: &[u8], addresses: &[u8], routes: &[u8]) -> Network {
    let mut interfaces = BTreeMap::new();
    for (kind, body) in netlink::messages(links) {
        if kind == netlink::NEW_LINK {
            interfaces.extend(link(body));
        }
    }
    for (kind, body) in netlink::messages(addresses) {
        if let (netlink::NEW_ADDRESS, Some((index, address))) = (kind, address(body))
            && let Some(link) = interfaces.get_mut(&index)
        {
            link.interface.addresses.push(address);
        }
    }
    let names: BTreeMap<u32, String> =
        interfaces.iter().map(|(index, link)| (*index, link.interface.name.clone())).collect();
    let mut found = BTreeMap::new();
    for (kind, body) in netlink::messages(routes) {
        if kind == netlink::NEW_ROUTE {
            found.extend(hops(body, &names).into_iter().map(|route| (route.id.clone(), route)));
        }
    }
    let mut interfaces: Vec<Interface> = interfaces
        .into_values()
        .map(|Link { mut interface, master }| {
            interface.master = master.and_then(|index| names.get(&index).cloned());
            interface.addresses.sort();
            interface.addresses.dedup();
            interface
        })
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    Network { interfaces, routes: found.into_values().collect() }
}

struct Link {
    interface: Interface,
    master: Option<u32>,
}

const FLAGS: [(u32, &str); 11] = [
    (0x1, "up"),
    (0x2, "broadcast"),
    (0x8, "loopback"),
    (0x10, "point-to-point"),
    (0x80, "no-arp"),
    (0x100, "promiscuous"),
    (0x200, "all-multicast"),
    (0x400, "master"),
    (0x800, "slave"),
    (0x1000, "multicast"),
    (0x1_0000, "lower-up"),
];

const STATES: [&str; 7] =
    ["unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"];

/// `struct ifinfomsg` and its attributes: the index of the interface, and what it is.
fn link(body: &[u8]) -> Option<(u32, Link)> {
    let index = netlink::u32_at(body, 4)?;
    let flags = netlink::u32_at(body, 8)?;
    let attributes = Attributes::after(body, 16);
    let name = printable(netlink::c_string(attributes.get(3)?));
    let mac = attributes.get(1).filter(|mac| mac.len() == 6 && mac.iter().any(|&b| b != 0));
    let state = attributes.get(16).and_then(|state| STATES.get(usize::from(*state.first()?)));
    let info = attributes.get(18).map(|nested| Attributes::after(nested, 0));
    let kind = info.as_ref().and_then(|info| info.get(1)).map(netlink::c_string);
    let interface = Interface {
        name,
        mac: mac.map(|mac| {
            let octets: Vec<String> = mac.iter().map(|octet| format!("{octet:02x}")).collect();
            octets.join(":")
        }),
        mtu: attributes.get(4).and_then(|mtu| netlink::u32_at(mtu, 0)).map(i64::from),
        state: state.map(|state| (*state).to_owned()),
        flags: FLAGS
            .iter()
            .filter(|(bit, _)| flags & bit != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect(),
        link_kind: kind.map(printable),
        ..Interface::default()
    };
    let master = attributes.get(10).and_then(|master| netlink::u32_at(master, 0));
    Some((index, Link { interface, master }))
}

/// `struct ifaddrmsg` and its attributes: the index of the interface, and `ADDRESS/LENGTH`.
fn address(body: &[u8]) -> Option<(u32, String)> {
    const TEMPORARY: u32 = 1;
    let family = *body.first()?;
    let length = *body.get(1)?;
    let index = netlink::u32_at(body, 4)?;
    let attributes = Attributes::after(body, 8);
    // Of a point-to-point link the local address, not the peer's.
    let ip = attributes.get(2).or_else(|| attributes.get(1)).and_then(|bytes| ip(family, bytes))?;
    let flags = attributes.get(8).and_then(|flags| netlink::u32_at(flags, 0)).unwrap_or(0);
    let temporary = ip.is_ipv6() && flags & TEMPORARY != 0;
    (!temporary).then(|| (index, format!("{ip}/{length}")))
}

/// `struct rtmsg` and its attributes: one route per next hop.
fn hops(body: &[u8], names: &BTreeMap<u32, String>) -> Vec<Route> {
    const MAIN: u32 = 254;
    const UNICAST_OR_REFUSED: [u8; 4] = [1, 6, 7, 8];
    const CACHED: u32 = 0x200;
    let (Some(&family), Some(&length)) = (body.first(), body.get(1)) else { return Vec::new() };
    let (Some(&table), Some(&kind)) = (body.get(4), body.get(7)) else { return Vec::new() };
    let Some(flags) = netlink::u32_at(body, 8) else { return Vec::new() };
    let attributes = Attributes::after(body, 12);
    let number = |code| attributes.get(code).and_then(|bytes| netlink::u32_at(bytes, 0));
    let in_main = number(15).unwrap_or(u32::from(table)) == MAIN;
    if !in_main || !UNICAST_OR_REFUSED.contains(&kind) || flags & CACHED != 0 {
        return Vec::new();
    }
    let destination = match attributes.get(1).map(|bytes| ip(family, bytes)) {
        Some(None) => return Vec::new(),
        Some(Some(ip)) => format!("{ip}/{length}"),
        None if family == 10 => "::/0".to_owned(),
        None => "default".to_owned(),
    };
    let metric = number(6).filter(|&metric| metric != 0);
    let interface = |index: u32| names.get(&index).cloned();
    let gateway = |attributes: &Attributes<'_>| match attributes.get(5) {
        Some(bytes) => ip(family, bytes),
        // RTA_VIA: a gateway of another family, its number in two bytes.
        None => attributes.get(18).and_then(|via| ip(*via.first()?, via.get(2..)?)),
    };
    match attributes.get(9) {
        Some(multipath) => netlink::next_hops(multipath)
            .map(|(index, attributes)| {
                route(&destination, gateway(&attributes), interface(index), metric)
            })
            .collect(),
        None => {
            vec![route(&destination, gateway(&attributes), number(4).and_then(interface), metric)]
        }
    }
}

fn route(
    destination: &str,
    gateway: Option<IpAddr>,
    interface: Option<String>,
    metric: Option<u32>,
) -> Route {
    // The metrics that the kernel gives to IPv6 routes by itself say nothing.
    let told = metric.filter(|metric| ![256, 1024].contains(metric));
    let mut id = destination.to_owned();
    if let Some(interface) = &interface {
        id.push_str(&format!(" dev {interface}"));
    }
    if let Some(metric) = told {
        id.push_str(&format!(" metric {metric}"));
    }
    Route {
        id,
        destination: destination.to_owned(),
        gateway: gateway.map(|ip| ip.to_string()),
        interface,
        metric: metric.map(i64::from),
    }
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        2 => <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into()),
        10 => <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
