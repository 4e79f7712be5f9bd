//! Checks of VMs as they are written, and as they are made.

use api::vm::{VmCheckSpec, VmChecks};
use inventory::Vm;
use inventory::health::{Check, Probe, Rule};
use model::vm::CheckName;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const MAX_PATH: usize = 512;
/// Bytes of the name of a process, and of a text on a console.
const MAX_TEXT: usize = 200;

/// The checks of a VM that were asked for.
pub(super) fn declared(one: &Vm) -> VmChecks {
    let checks = one.record.checks.iter().map(|(name, check)| (name.clone(), spec(check)));
    VmChecks { checks: checks.collect() }
}

fn spec(check: &Check) -> VmCheckSpec {
    let seconds = |time: Duration| Some(u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let mut spec = VmCheckSpec {
        interval_seconds: seconds(check.interval),
        timeout_seconds: seconds(check.timeout),
        initial_delay_seconds: seconds(check.initial_delay),
        failure_threshold: Some(check.rule.failure_threshold),
        success_threshold: Some(check.rule.success_threshold),
        weight: Some(check.rule.weight),
        critical: check.rule.critical,
        ..VmCheckSpec::default()
    };
    match &check.probe {
        Probe::Tcp { address, from_node } => {
            spec.address = Some(address.to_string());
            spec.from_node = from_node.then_some(true);
        }
        Probe::Http { address, path, status, from_node } => {
            spec.address = Some(address.to_string());
            spec.from_node = from_node.then_some(true);
            spec.path = Some(path.clone());
            spec.status = Some(*status);
        }
        Probe::Process { name } => spec.process = Some(name.clone()),
        Probe::Script { name } => spec.script = Some(name.to_string()),
        Probe::Console { text, absent } => {
            spec.console = Some(text.clone());
            spec.absent = Some(*absent);
        }
        Probe::Guest { port } => {
            spec.guest_agent = Some(true);
            spec.vsock_port = *port;
        }
        Probe::Icmp { address } => spec.icmp = Some(address.to_string()),
        Probe::Arp { address } => spec.arp = Some(address.to_string()),
    }
    spec
}

/// A number of a request, or what is usual.
pub(super) fn number(
    what: &str,
    asked: Option<u32>,
    usual: u32,
    range: (u32, u32),
) -> Result<u32, String> {
    let number = asked.unwrap_or(usual);
    let fits = (range.0..=range.1).contains(&number);
    fits.then_some(number).ok_or_else(|| format!("{what} is between {} and {}", range.0, range.1))
}

/// A check that can be made.
pub(super) fn checked(spec: &VmCheckSpec) -> Result<Check, String> {
    let probe = probe(spec)?;
    let seconds = |number: u32| Duration::from_secs(number.into());
    let thresholds = (1, 100);
    Ok(Check {
        probe,
        rule: Rule {
            failure_threshold: number("failure_threshold", spec.failure_threshold, 3, thresholds)?,
            success_threshold: number("success_threshold", spec.success_threshold, 2, thresholds)?,
            weight: number("weight", spec.weight, 1, thresholds)?,
            critical: spec.critical,
        },
        interval: seconds(number("interval_seconds", spec.interval_seconds, 30, (1, 3600))?),
        timeout: seconds(number("timeout_seconds", spec.timeout_seconds, 5, (1, 30))?),
        initial_delay: seconds(number(
            "initial_delay_seconds",
            spec.initial_delay_seconds,
            60,
            (0, 3600),
        )?),
    })
}

/// What a check does to find out.
fn probe(spec: &VmCheckSpec) -> Result<Probe, String> {
    let VmCheckSpec { address, path, status, process, script, console, absent, .. } = spec;
    let VmCheckSpec { guest_agent, vsock_port, icmp, arp, from_node, .. } = spec;
    let asks_guest = guest_agent.unwrap_or(false);
    for (what, is_there, of) in [
        ("from_node", from_node.is_some() && address.is_none(), "an address"),
        ("path", path.is_some() && address.is_none(), "an address"),
        ("status", status.is_some() && path.is_none(), "a path"),
        ("absent", absent.is_some() && console.is_none(), "a console"),
        ("vsock_port", vsock_port.is_some() && !asks_guest, "guest_agent: true"),
    ] {
        if is_there {
            return Err(format!("{what} needs {of}"));
        }
    }
    let mut probes = Vec::new();
    if let Some(address) = address {
        let from_node = from_node.unwrap_or(false);
        probes.push(address_probe((address, from_node), path.as_deref(), *status)?);
    }
    if let Some(name) = process {
        if name.contains('/') {
            return Err("process is a name, without a path".to_owned());
        }
        probes.push(Probe::Process { name: plain("process", name)? });
    }
    if let Some(name) = script {
        let name: CheckName = name.parse().map_err(|_name| {
            "script is the name of a file: 1 to 63 of a-z 0-9 _ - , beginning with a letter"
                .to_owned()
        })?;
        probes.push(Probe::Script { name });
    }
    if let Some(text) = console {
        let text = plain("console", text)?;
        probes.push(Probe::Console { text, absent: absent.unwrap_or(false) });
    }
    if asks_guest {
        probes.push(Probe::Guest { port: *vsock_port });
    }
    if let Some(address) = icmp {
        probes.push(Probe::Icmp { address: one_host(address)? });
    }
    if let Some(address) = arp {
        let address: Ipv4Addr = address
            .parse()
            .map_err(|_address| "arp is an address of IP version 4, as 10.0.0.5".to_owned())?;
        one_host(&address.to_string())?;
        probes.push(Probe::Arp { address });
    }
    let only = probes.pop().filter(|_| probes.is_empty());
    only.ok_or_else(|| {
        "a check has one of address, process, script, console, guest_agent, icmp and arp".to_owned()
    })
}

fn plain(what: &str, text: &str) -> Result<String, String> {
    let fits = (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("{what} has 1 to {MAX_TEXT} bytes, all of them printable"))
}

/// An address of one machine, that says by itself which one.
fn one_host(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr =
        text.parse().map_err(|_address| "icmp is an address, as 10.0.0.5 or fd00::5".to_owned())?;
    let is_many = match address {
        IpAddr::V4(address) => address.is_broadcast() || address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    };
    if is_many || address.is_unspecified() {
        return Err(format!("{address} is not the address of one machine"));
    }
    Ok(address)
}

fn address_probe(
    (address, from_node): (&str, bool),
    path: Option<&str>,
    status: Option<u16>,
) -> Result<Probe, String> {
    let address = address
        .parse()
        .map_err(|_address| "address is IP:PORT, as 10.0.0.5:80 or [fd00::5]:80".to_owned())?;
    let Some(path) = path else { return Ok(Probe::Tcp { address, from_node }) };
    let plain = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
    if !plain || path.contains('#') || path.len() > MAX_PATH {
        return Err(format!("path begins with /, and has at most {MAX_PATH} of ASCII"));
    }
    let status = status.unwrap_or(200);
    if !(100..=599).contains(&status) {
        return Err("status is between 100 and 599".to_owned());
    }
    Ok(Probe::Http { address, path: path.to_owned(), status, from_node })
}
