//! Files that are read again and again: processes, sockets, load.

use super::printable;
use crate::machine::Machine;
use crate::redactor;
use ::host::dependencies::dependencies;
use ::host::load::Sampler;
use ::host::process::Scanner;
use ::host::sockets::{Depth, Sockets};
use ::host::workload::Detector;
use ::host::{Now, Rights};
use model::Time;
use model::load::Load;
use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::time::Duration;

const STAT: &str = "42 (app) S 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7 4096 10 0\n";
const INIT: &str = "1 (init) S 0 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1 4096 10 0\n";

/// What is not seen is said for these in as many words as for others.
const RIGHTS: Rights = Rights { is_root: false, may_trace: false };

fn now(seconds: u64) -> Now {
    let clock = Duration::from_secs(seconds);
    Now { at: Time::from_seconds(1_790_100_000).plus(clock), clock }
}

/// One process beside pid 1: what it is called, whose it is, what it runs and maps.
pub fn host_processes(data: &[u8]) {
    const FILES: [&str; 7] = [
        "proc/42/stat",
        "proc/42/status",
        "proc/42/cgroup",
        "proc/42/cmdline",
        "proc/42/maps",
        "proc/stat",
        "etc/passwd",
    ];
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| {
        let machine = Machine::new(&[("proc/1/stat", INIT)]);
        machine.link("proc/42/exe", "/usr/bin/python3");
        machine.link("proc/42/cwd", "/srv");
        machine.link("proc/42/fd/3", "/models/a.gguf");
        machine
    }));
    MACHINE.with(|machine| {
        machine.fill(FILES, data);
        let mut scanner = Scanner::new(&machine.root).expect("there is a /proc");
        let mut detector = Detector::new(&machine.root);
        for seconds in [0, 10] {
            let scan = scanner.scan(now(seconds), &redactor()).expect("there is a /proc");
            let _limits = scan.limits(RIGHTS);
            printable(&detector.observe(&scanner, &[], &BTreeMap::new()));
        }
        scanner.name_containers(BTreeMap::from([("a".repeat(64), "db".to_owned())]));
        scanner.refresh(&[42], now(20), &redactor());
        let groups: Vec<_> = scanner.groups().map(|group| group.process).collect();
        for group in &groups {
            assert!(scanner.group(&group.id).is_some());
        }
        printable(&groups);
    });
}

/// The kernel's messages: of the network, of TCP sockets, of processes.
pub fn host_kernel(data: &[u8]) {
    let [links, addresses, routes] = crate::machine::parts(data);
    let network = ::host::fuzzing::network(links, addresses, routes);
    printable(&network.interfaces);
    printable(&network.routes);
    ::host::fuzzing::messages(data);
}

/// The tables of sockets, all held by one process.
pub fn host_sockets(data: &[u8]) {
    const FILES: [&str; 6] = [
        "proc/net/tcp",
        "proc/net/tcp6",
        "proc/net/udp",
        "proc/net/udp6",
        "proc/net/unix",
        "proc/sys/net/ipv4/ip_local_port_range",
    ];
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| {
        let machine = Machine::new(&[
            ("proc/42/stat", STAT),
            ("proc/42/cmdline", "app\0"),
            ("proc/42/status", "Uid:\t0\t7\t0\t0\n"),
            ("proc/42/cgroup", "0::/system.slice/app.service\n"),
        ]);
        for inode in 1..10 {
            machine.link(&format!("proc/42/fd/{inode}"), &format!("socket:[{inode}]"));
        }
        machine
    }));
    MACHINE.with(|machine| {
        machine.fill(FILES, data);
        let mut scanner = Scanner::new(&machine.root).expect("there is a /proc");
        scanner.scan(now(0), &redactor()).expect("there is a /proc");
        let mut sockets = Sockets::new(&machine.root).expect("there is a /proc");
        for depth in [Depth::Connections, Depth::Listeners] {
            let seen = sockets.observe(&scanner, depth).expect("the tables are there");
            let _limits = seen.limits(RIGHTS);
            printable(&seen.sockets);
            printable(&dependencies(&[], &seen.connections));
        }
    });
}

/// The kernel's counters, twice: the two halves of the input, so that rates go any way.
pub fn host_load(data: &[u8]) {
    const FILES: [&str; 19] = [
        "proc/stat",
        "proc/meminfo",
        "proc/loadavg",
        "proc/uptime",
        "proc/pressure/cpu",
        "proc/pressure/io",
        "proc/net/dev",
        "proc/diskstats",
        "proc/self/mounts",
        "sys/fs/cgroup/app.service/cpu.stat",
        "sys/fs/cgroup/app.service/memory.current",
        "sys/fs/cgroup/app.service/io.stat",
        "sys/fs/cgroup/app.service/cpu.pressure",
        "sys/fs/cgroup/app.service/pids.current",
        "sys/fs/cgroup/microvm@a.service/cpu.stat",
        "sys/fs/cgroup/microvm@a.service/io.stat",
        "sys/fs/cgroup/microvm@a.service/memory.events",
        "sys/fs/cgroup/microvm@a.service/memory.current",
        "proc/42/fdinfo/9",
    ];
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| {
        let machine = Machine::new(&[
            ("proc/1/stat", INIT),
            ("proc/42/stat", STAT),
            ("proc/42/cmdline", "qemu\0"),
            ("proc/42/cgroup", "0::/microvm@a.service\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpu io memory pids\n"),
        ]);
        machine.link("proc/42/fd/9", "/dev/net/tun");
        machine
    }));
    MACHINE.with(|machine| {
        let second = data.windows(3).position(|window| window == b"##\n");
        let (first, second) = match second {
            Some(at) => (&data[..at], &data[at + 3..]),
            None => (data, data),
        };
        let mut sampler = Sampler::new(&machine.root);
        let mut scanner = Scanner::new(&machine.root).expect("there is a /proc");
        let units = [("app.service", "/app.service"), ("microvm@a.service", "/microvm@a.service")];
        for (seconds, data) in [(0, first), (10, second)] {
            machine.fill(FILES, data);
            let measured = sampler.measure(now(seconds), units);
            let scanned = scanner.scan_but(now(seconds), &redactor(), &measured.quiet);
            scanned.expect("there is a /proc");
            let load = sampler.sample(now(seconds), &scanner, measured);
            let packed = rmp_serde::to_vec_named(&load).expect("load is plain data");
            let again: Load = rmp_serde::from_slice(&packed).expect("just written");
            assert_eq!(again, load);
        }
    });
}

/// What `journalctl` says, line by line, at moments that the lines themselves choose.
pub fn host_journal(data: &[u8]) {
    use ::host::journal::{Errors, entry};
    let mut errors = Errors::default();
    let mut counted = 0;
    for line in data.split(|&b| b == b'\n') {
        let Some(entry) = entry(line) else { continue };
        assert!(entry.priority <= 3 && entry.at >= Time(0));
        errors.count(&entry, entry.at);
        counted += 1;
        let Some(told) = errors.of(&entry.unit, entry.at) else {
            assert!(entry.unit.contains('/'), "a unit of the system is known");
            continue;
        };
        let count = told.critical + told.errors;
        assert!((1..=counted).contains(&count), "{count} after {entry:?}");
    }
}
