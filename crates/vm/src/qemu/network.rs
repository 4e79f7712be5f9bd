//! What leads into a guest and out of it.
//!
//! `isolated` is QEMU's own network with everything out of it refused; `nat` and `open` are
//! passt, which carries connections as an ordinary program of this machine would make them;
//! with `nat` one that is bound to the interface of the default route, so that this machine's
//! loopback and its other networks are out of its reach. Either way SSH comes in at a port of
//! 127.0.0.1.

use super::command::{NET, NET_PID};
use super::process;
use super::qmp::Qmp;
use crate::image::MachineName;
use crate::job::{Job, Tool};
use crate::machine::{Error, Network};
use serde_json::json;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Between finding a free port and taking it another program may have it.
const TRIES: usize = 8;
const SSH: u16 = 22;
/// How addresses begin that QEMU gives out.
const OWN: [u8; 3] = [10, 0, 2];

/// The routes of IPv4 and of IPv6, as the kernel lists them.
const ROUTES: [&str; 2] = ["/proc/net/route", "/proc/net/ipv6_route"];
/// A route that is in force, and one that leads nowhere.
const UP: u32 = 1;
const REJECT: u32 = 0x200;

/// Starts what is the network of a machine, before the machine. It ends with the machine.
/// Returns the port that leads to SSH, if it is known by now.
pub(super) async fn before(
    network: Network,
    run: &Path,
    wanted: Option<u16>,
    job: &Job,
) -> Result<Option<u16>, Error> {
    if network == Network::Isolated {
        return Ok(None);
    }
    let bound = if network == Network::Nat { bound_to_default_route()? } else { Vec::new() };
    let mut failure = None;
    for port in ports(wanted) {
        let port = port?;
        let forward = format!("127.0.0.1/{port}:{SSH}");
        let mut tool = Tool::new("passt", "passt")
            .args(["--quiet", "--one-off", "--socket", NET, "--pid", NET_PID])
            .args(["--tcp-ports", &forward])
            .args(&bound)
            .within_directory(run);
        // Of root it would become nobody, who can't make the socket in a directory of root's
        // alone. It gives up all rights and the file system by itself.
        if rustix::process::geteuid().is_root() {
            tool = tool.args(["--runas", "0:0"]);
        }
        match job.run(tool).await {
            Ok(()) => {
                process::write_down_network(run)?;
                return Ok(Some(port));
            }
            Err(error @ crate::job::Error::Failed { .. }) => failure = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(failure.map_or_else(|| no_port(run), Error::from))
}

/// Opens the way in of an isolated machine that is there already.
pub(super) async fn after(
    qmp: &mut Qmp,
    name: &MachineName,
    wanted: Option<u16>,
    guest: Option<Ipv4Addr>,
) -> Result<u16, Error> {
    let guest = guest.map(|address| address.to_string()).unwrap_or_default();
    let mut what = String::new();
    for port in ports(wanted) {
        let port = port?;
        let line = format!("hostfwd_add net tcp:127.0.0.1:{port}-{guest}:{SSH}");
        let answer = qmp.call::<String>("human-monitor-command", json!({ "command-line": line }));
        match answer.await {
            Ok(said) if said.trim().is_empty() => return Ok(port),
            Ok(said) => what = said,
            Err(error) => what = error.to_string(),
        }
    }
    Err(Error::Refused { name: name.clone(), doing: "open a port to its SSH", what })
}

/// Leads the port to where the guest is now, and tells where that is. QEMU gives each network
/// card that asks it another address, and remembers those of the machine that a clone was.
pub(super) async fn move_to(
    qmp: &mut Qmp,
    name: &MachineName,
    port: u16,
    addresses: &[Ipv4Addr],
) -> Result<Ipv4Addr, Error> {
    let refused = |what: String| Error::Refused {
        name: name.clone(),
        doing: "lead SSH to where its guest is",
        what,
    };
    let Some(address) = addresses.iter().find(|address| address.octets().starts_with(&OWN)) else {
        return Err(refused("the guest has no address of QEMU's network".to_owned()));
    };
    let old = format!("hostfwd_remove net tcp:127.0.0.1:{port}");
    let new = format!("hostfwd_add net tcp:127.0.0.1:{port}-{address}:{SSH}");
    for (line, good) in [(old, "host forwarding rule for"), (new, "")] {
        let answer = qmp.call::<String>("human-monitor-command", json!({ "command-line": line }));
        let said = answer.await.map_err(|error| refused(error.to_string()))?;
        // Of the first it says what it did, of the second nothing.
        if !(said.trim().is_empty() || !good.is_empty() && said.starts_with(good)) {
            return Err(refused(said));
        }
    }
    Ok(*address)
}

/// What tells passt to stay off this machine: nothing stands for its loopback, and connections
/// leave by the interface of the default route alone.
fn bound_to_default_route() -> Result<Vec<String>, Error> {
    let [four, six] = ROUTES.map(fs::read_to_string);
    // Without IPv6 in the kernel there is no such file.
    let four = default_of_four(&four.unwrap_or_default());
    let six = default_of_six(&six.unwrap_or_default());
    if four.is_none() && six.is_none() {
        let what = "there is none; set one up, or choose the network isolated";
        let source = io::Error::new(io::ErrorKind::NotFound, what);
        return Err(Error::file("find a default route, along which nat leads", ROUTES[0])(source));
    }
    let four = four.map(|name| format!("--outbound-if4={name}"));
    let six = six.map(|name| format!("--outbound-if6={name}"));
    Ok(["--no-map-gw".to_owned()].into_iter().chain(four).chain(six).collect())
}

/// The interface of the default route that the kernel prefers.
/// Of lines `interface destination gateway flags references uses metric mask …`.
fn default_of_four(routes: &str) -> Option<String> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, "00000000", _, flags, _, _, metric, "00000000", ..] = words.as_slice() else {
            return None;
        };
        leads_out(flags).then_some((metric.parse().ok()?, (*name).to_owned()))
    };
    preferred(routes.lines().filter_map(route))
}

/// Of lines `destination length source length next-hop metric references uses flags interface`.
fn default_of_six(routes: &str) -> Option<String> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, "00", _, _, _, metric, _, _, flags, name] = words.as_slice() else {
            return None;
        };
        let is_default = destination.bytes().all(|digit| digit == b'0') && leads_out(flags);
        is_default.then_some((u32::from_str_radix(metric, 16).ok()?, (*name).to_owned()))
    };
    preferred(routes.lines().filter_map(route))
}

fn leads_out(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (UP | REJECT) == UP)
}

/// The first of those with the smallest metric.
fn preferred(routes: impl Iterator<Item = (u32, String)>) -> Option<String> {
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

/// The one it had, then free ones.
fn ports(wanted: Option<u16>) -> impl Iterator<Item = Result<u16, Error>> {
    let free = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let port = listener.and_then(|listener| Ok(listener.local_addr()?.port()));
        port.map_err(Error::file("find a free port on", "127.0.0.1"))
    };
    wanted.into_iter().map(Ok).chain(std::iter::repeat_with(free).take(TRIES))
}

fn no_port(run: &Path) -> Error {
    Error::file("find a free port for", run)(io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_of_ipv4() {
        let check = |lines: &str, expected: Option<&str>| {
            let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
            assert_eq!(default_of_four(&format!("{head}{lines}")).as_deref(), expected, "{lines}");
        };
        check("", None);
        check("eth0\t000A0A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", None);
        check("wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n", None);
        let wlan = "wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n";
        let eth = "eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n";
        let dead = "*\t00000000\t00000000\t0201\t0\t0\t50\t00000000\t0\t0\t0\n";
        check(wlan, Some("wlan0"));
        check(&format!("{wlan}{eth}{dead}"), Some("eth0"));
        check("eth0\t00000000\n", None);
    }

    #[test]
    fn the_default_route_of_ipv6() {
        let zero = "00000000000000000000000000000000";
        let line = |length: &str, metric: &str, flags: &str, name: &str| {
            format!("{zero} {length} {zero} 00 {zero} {metric} 00000001 00000000 {flags} {name}\n")
        };
        let nowhere = line("00", "ffffffff", "00200200", "      lo");
        assert_eq!(default_of_six(&nowhere), None);
        assert_eq!(default_of_six(&line("40", "00000100", "00000001", "eth0")), None);
        let ways = [
            nowhere,
            line("00", "00000400", "00450003", "wlan0"),
            line("00", "00000064", "00450003", "eth0"),
        ];
        assert_eq!(default_of_six(&ways.concat()).as_deref(), Some("eth0"));
    }
}
