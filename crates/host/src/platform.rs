//! The machine and its system: the platform item, the processors, and the memory.
//!
//! # Invariants
//! - Nothing here changes while the machine just runs: how much is used belongs to load.
//! - Every part that can't be read is absent by itself; reading never fails as a whole.

use crate::Root;
use crate::bounded::{self, SMALL};
use crate::text::{decimal, lines, printable, unescape_octal, words};
use model::Time;
use model::entity::{Cpu, Memory, Platform};
use model::redact::Redactor;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Bytes read of `/proc/cpuinfo`: about a thousand processors.
const CPUINFO_MAX: u64 = 4 * 1024 * 1024;

/// How far two answers about the time of one boot lie apart without meaning anything.
const BOOT_TIME_WAVERS: Duration = Duration::from_secs(2);

/// Flags that decide what software runs: instruction sets by level, and virtualization.
const FLAGS: [&str; 38] = [
    "aes",
    "asimd",
    "atomics",
    "avx",
    "avx2",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512f",
    "avx512vl",
    "avx512_vnni",
    "amx_tile",
    "bmi1",
    "bmi2",
    "crc32",
    "cx16",
    "f16c",
    "fma",
    "hypervisor",
    "i8mm",
    "la57",
    "lm",
    "movbe",
    "nx",
    "pclmulqdq",
    "pdpe1gb",
    "popcnt",
    "rdrand",
    "sha1",
    "sha2",
    "sha_ni",
    "sse4_1",
    "sse4_2",
    "ssse3",
    "sve",
    "sve2",
    "svm",
    "vmx",
];

/// Reads the platform. `redactor` sees the kernel's command line.
#[must_use]
pub fn platform(root: &Root, redactor: &Redactor) -> Platform {
    platform_after(root, redactor, None)
}

/// Reads the platform again, after `before` was read. The kernel reckons the time of boot from
/// two clocks whenever it is asked, so that it wavers by a second: within one boot it stays
/// what it was, unless the clock was really set.
#[must_use]
pub fn platform_after(root: &Root, redactor: &Redactor, before: Option<&Platform>) -> Platform {
    let mut platform = read_platform(root, redactor);
    let same_boot = before.filter(|b| b.boot_id.is_some() && b.boot_id == platform.boot_id);
    if let (Some(was), Some(now)) = (same_boot.and_then(|b| b.booted_at), platform.booted_at)
        && was.since(now).max(now.since(was)) <= BOOT_TIME_WAVERS
    {
        platform.booted_at = Some(was);
    }
    platform
}

fn read_platform(root: &Root, redactor: &Redactor) -> Platform {
    let release = os_release(root);
    let field = |name: &str| release.get(name).cloned();
    let (name_servers, search_domains) = resolver(root);
    let dmi = |name: &str| bounded::line(&root.sys("class/dmi/id").join(name));
    Platform {
        id: "host".to_owned(),
        hostname: hostname(root),
        machine_id: bounded::line(&root.path("/etc/machine-id")),
        boot_id: bounded::line(&root.proc("sys/kernel/random/boot_id")),
        booted_at: booted_at(root),
        distribution: field("ID"),
        distribution_version: field("VERSION_ID"),
        distribution_name: field("PRETTY_NAME"),
        kernel: bounded::line(&root.proc("sys/kernel/osrelease")),
        kernel_command_line: command_line(root, redactor),
        architecture: Some(std::env::consts::ARCH.to_owned()),
        virtualization: virtualization(root),
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        time_zone: time_zone(root),
        systemd_version: None,
        name_servers,
        search_domains,
    }
}

/// Reads the processors.
#[must_use]
pub fn cpu(root: &Root) -> Cpu {
    let text = bounded::read(&root.proc("cpuinfo"), CPUINFO_MAX).unwrap_or_default();
    parse_cpu(&text)
}

/// Reads the memory: `ram`, and each swap area by its path.
#[must_use]
pub fn memory(root: &Root) -> Vec<Memory> {
    let meminfo = bounded::read(&root.proc("meminfo"), SMALL).unwrap_or_default();
    let swaps = bounded::read(&root.proc("swaps"), SMALL).unwrap_or_default();
    parse_memory(&meminfo, &swaps)
}

fn hostname(root: &Root) -> String {
    let kernel = || bounded::line(&root.proc("sys/kernel/hostname"));
    let file = || bounded::line(&root.path("/etc/hostname"));
    // The kernel answers with the name of whoever reads: right only on the machine itself.
    let name = if root.is_live() { kernel().or_else(file) } else { file().or_else(kernel) };
    name.unwrap_or_default()
}

fn os_release(root: &Root) -> BTreeMap<String, String> {
    let read = |path: &str| bounded::read(&root.path(path), SMALL).ok();
    let text = read("/etc/os-release").or_else(|| read("/usr/lib/os-release"));
    parse_os_release(&text.unwrap_or_default())
}

/// `NAME=value` in the shell's quoting, as far as os-release uses it.
fn parse_os_release(text: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for line in lines(text) {
        let line = printable(line.trim_ascii());
        let Some((name, value)) = line.split_once('=') else { continue };
        let quoted = ['"', '\'']
            .into_iter()
            .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
        let value = quoted.unwrap_or(value).replace("\\\"", "\"").replace("\\$", "$");
        if !name.starts_with('#') && !value.is_empty() {
            fields.insert(name.to_owned(), value);
        }
    }
    fields
}

fn booted_at(root: &Root) -> Option<Time> {
    // The counters of interrupts come before `btime` and are long on big machines.
    let stat = bounded::read(&root.proc("stat"), CPUINFO_MAX).ok()?;
    let line = lines(&stat).find_map(|line| line.strip_prefix(b"btime "))?;
    decimal(line.trim_ascii()).and_then(|s| i64::try_from(s).ok()).map(Time::from_seconds)
}

fn command_line(root: &Root, redactor: &Redactor) -> Option<String> {
    let line = bounded::line(&root.proc("cmdline"))?;
    // The redactor takes the first word for a program's name.
    let words: Vec<String> =
        std::iter::once("kernel").chain(line.split(' ')).map(str::to_owned).collect();
    let redacted = redactor.arguments(&words);
    redacted.get(1..).map(|words| words.join(" "))
}

/// What the machine runs in, as `systemd-detect-virt` would call it: the innermost first.
fn virtualization(root: &Root) -> Option<String> {
    if let Some(container) = bounded::line(&root.path("/run/systemd/container")) {
        return Some(container);
    }
    if root.path("/.dockerenv").exists() {
        return Some("docker".to_owned());
    }
    if root.path("/run/.containerenv").exists() {
        return Some("podman".to_owned());
    }
    let line = |path: &str| bounded::line(&root.sys(path)).unwrap_or_default();
    if line("hypervisor/type") == "xen" {
        return Some("xen".to_owned());
    }
    let seen = ["sys_vendor", "product_name", "bios_vendor", "board_vendor"]
        .map(|name| line(&format!("class/dmi/id/{name}")))
        .join("\n");
    let known = [
        ("KVM", "kvm"),
        ("OpenStack", "kvm"),
        ("Amazon EC2", "amazon"),
        ("Google Compute Engine", "google"),
        ("QEMU", "qemu"),
        ("VMware", "vmware"),
        ("VirtualBox", "oracle"),
        ("innotek", "oracle"),
        ("Xen", "xen"),
        ("Bochs", "bochs"),
        ("Parallels", "parallels"),
        ("BHYVE", "bhyve"),
        ("Hyper-V", "microsoft"),
        ("Virtual Machine", "microsoft"),
        ("Apple Virtualization", "apple"),
        ("DigitalOcean", "kvm"),
        ("Hetzner", "kvm"),
    ];
    let by_firmware = known.iter().find(|(mark, _)| seen.contains(mark)).map(|(_, name)| *name);
    let flags = cpu(root).flags;
    let hypervisor = flags.iter().any(|flag| flag == "hypervisor");
    let name = match (by_firmware, hypervisor) {
        // QEMU with a processor that says so is accelerated, as far as can be told from here.
        (Some("qemu"), true) => "kvm",
        // Bare-metal instances carry the provider's name, too.
        (Some("amazon" | "google"), false) if !flags.is_empty() => "none",
        (Some(name), _) => name,
        (None, true) => "vm-other",
        (None, false) if flags.is_empty() => return None,
        (None, false) => "none",
    };
    Some(name.to_owned())
}

/// From the target of `/etc/localtime`, or `/etc/timezone` where that is a copy.
fn time_zone(root: &Root) -> Option<String> {
    let link = std::fs::read_link(root.path("/etc/localtime")).ok();
    let linked = link.as_ref().and_then(|target| {
        let (_, zone) = target.to_str()?.rsplit_once("zoneinfo/")?;
        (!zone.is_empty()).then(|| printable(zone.as_bytes()))
    });
    linked.or_else(|| bounded::line(&root.path("/etc/timezone")))
}

fn resolver(root: &Root) -> (Vec<String>, Vec<String>) {
    let text = bounded::read(&root.path("/etc/resolv.conf"), SMALL).unwrap_or_default();
    parse_resolver(&text)
}

/// Name servers in their order, which means something, and search domains.
fn parse_resolver(text: &[u8]) -> (Vec<String>, Vec<String>) {
    let mut servers = Vec::new();
    let mut domains = Vec::new();
    for line in lines(text) {
        let mut parts = words(line);
        match parts.next() {
            Some(b"nameserver") => servers.extend(parts.next().map(printable)),
            // The last of several lines holds.
            Some(b"search" | b"domain") => domains = parts.map(printable).collect(),
            _ => {}
        }
    }
    servers.truncate(16);
    domains.truncate(32);
    (servers, domains)
}

/// One processor's paragraph is like another's, except for what says where it sits.
fn parse_cpu(text: &[u8]) -> Cpu {
    let mut model = None;
    let mut logical = 0;
    let mut sockets = BTreeSet::new();
    let mut cores = BTreeSet::new();
    let mut socket = None;
    let mut flags = BTreeSet::new();
    for line in lines(text) {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        match name.trim_ascii() {
            b"processor" => {
                logical += 1;
                socket = None;
            }
            b"model name" if model.is_none() => model = Some(printable(value)),
            b"physical id" => {
                socket = decimal(value);
                sockets.extend(socket);
            }
            b"core id" => cores.extend(decimal(value).map(|core| (socket, core))),
            b"flags" | b"Features" if flags.is_empty() => {
                let known = |word: &&[u8]| FLAGS.iter().any(|flag| flag.as_bytes() == *word);
                flags.extend(words(value).filter(known).map(printable));
            }
            _ => {}
        }
    }
    let count = |n: usize| i64::try_from(n).ok().filter(|&n| n > 0);
    Cpu {
        id: "cpu".to_owned(),
        model: model.filter(|model| !model.is_empty()),
        logical: count(logical),
        physical: count(cores.len()),
        sockets: count(sockets.len()),
        flags: flags.into_iter().collect(),
    }
}

fn parse_memory(meminfo: &[u8], swaps: &[u8]) -> Vec<Memory> {
    let kib = |text: &[u8]| {
        decimal(text).and_then(|n| i64::try_from(n).ok()).and_then(|n| n.checked_mul(1024))
    };
    let total = lines(meminfo)
        .find_map(|line| line.strip_prefix(b"MemTotal:"))
        .and_then(|rest| words(rest).next().and_then(kib));
    let ram = total.map(|total| Memory {
        id: "ram".to_owned(),
        total_bytes: Some(total),
        kind: Some("ram".to_owned()),
        priority: None,
    });
    let swap = |line: &[u8]| {
        let mut parts = words(line);
        let path = printable(&unescape_octal(parts.next()?));
        let kind = printable(parts.next()?);
        let total_bytes = Some(kib(parts.next()?)?);
        let priority = parts.nth(1).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        path.starts_with('/').then_some(Memory {
            id: path,
            total_bytes,
            kind: Some(kind),
            priority,
        })
    };
    ram.into_iter().chain(lines(swaps).skip(1).filter_map(swap)).collect()
}

#[cfg(test)]
mod tests;
