//! Files that are read now and then: accounts, packages, mounts, the platform, configuration.

use super::printable;
use crate::machine::Machine;
use crate::redactor;
use ::host::disks::{disks, filesystems};
use ::host::files::{Pattern, TrackedSet, Tracker};
use ::host::packages::Packages;
use ::host::platform::{cpu, memory, platform};
use ::host::users::Accounts;
use model::entity::Unit;
use std::cell::LazyCell;

/// `/etc/passwd` and `/etc/group`.
pub fn host_accounts(data: &[u8]) {
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| Machine::new(&[])));
    MACHINE.with(|machine| {
        machine.fill(["etc/passwd", "etc/group"], data);
        let accounts = Accounts::read(&machine.root).expect("files that are there are read");
        let _names = (accounts.user_name(0), accounts.group_name(u32::MAX));
        printable(&accounts.users);
        printable(&accounts.groups);
    });
}

fn packages(machine: &Machine) {
    let mut packages = Packages::new(machine.root.clone());
    packages.refresh().expect("a database that is there is read");
    let all: Vec<_> = packages.list().cloned().collect();
    printable(&all);
    for package in &all {
        assert_eq!(packages.get(&package.name), Some(package));
        for path in packages.configuration(&package.name) {
            assert!(path.starts_with('/') && !path.contains('\n'));
        }
    }
    let _owners = packages.owners(["/etc/app.conf", "/usr/bin/app"]);
}

/// dpkg's status, and the list of files of one package.
pub fn host_dpkg(data: &[u8]) {
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| Machine::new(&[])));
    MACHINE.with(|machine| {
        machine.fill(["var/lib/dpkg/status", "var/lib/dpkg/info/app.list"], data);
        packages(machine);
    });
}

/// apk's database.
pub fn host_apk(data: &[u8]) {
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| Machine::new(&[])));
    MACHINE.with(|machine| {
        machine.fill(["lib/apk/db/installed"], data);
        packages(machine);
    });
}

/// `rpm`'s answers.
pub fn host_rpm(data: &[u8]) {
    let [packages, files] = crate::machine::parts(data);
    printable(&::host::fuzzing::rpm(packages, files));
}

/// `/proc/1/mountinfo`, and a block device.
pub fn host_mounts(data: &[u8]) {
    const FILES: [&str; 4] = [
        "proc/1/mountinfo",
        "sys/block/vda/size",
        "sys/block/vda/device/model",
        "sys/block/vda/vda1/partition",
    ];
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| Machine::new(&[])));
    MACHINE.with(|machine| {
        machine.fill(FILES, data);
        printable(&filesystems(&machine.root).expect("files that are there are read"));
        printable(&disks(&machine.root).expect("files that are there are read"));
    });
}

/// What says which system, processor and memory this is.
pub fn host_platform(data: &[u8]) {
    const FILES: [&str; 9] = [
        "usr/lib/os-release",
        "proc/cmdline",
        "etc/resolv.conf",
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/swaps",
        "proc/stat",
        "etc/hostname",
        "etc/timezone",
    ];
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| Machine::new(&[])));
    MACHINE.with(|machine| {
        machine.fill(FILES, data);
        printable(&[platform(&machine.root, &redactor())]);
        printable(&[cpu(&machine.root)]);
        printable(&memory(&machine.root));
    });
}

/// A tracked file's content, and the pattern that chooses it.
pub fn host_files(data: &[u8]) {
    thread_local!(static MACHINE: LazyCell<Machine> = LazyCell::new(|| Machine::new(&[])));
    MACHINE.with(|machine| {
        let [pattern, content] = crate::machine::parts(data);
        machine.write("etc/app/app.conf", content);
        let mut chosen: Vec<Pattern> = vec!["/etc/app".parse().expect("a path is a pattern")];
        chosen.extend(String::from_utf8_lossy(pattern).parse::<Pattern>());
        let mut packages = Packages::new(machine.root.clone());
        let set = TrackedSet::build(&machine.root, &[] as &[Unit], &mut packages, &chosen);
        let mut tracker = Tracker::new(machine.root.clone(), redactor());
        let scan = tracker.scan(&set, &Accounts::default());
        printable(&scan.files);
        assert!(scan.files.iter().any(|file| file.path == "/etc/app/app.conf"));
        for (id, content) in scan.contents {
            assert_eq!(model::ContentId::of(&content), id);
            assert_eq!(tracker.content(id), Some(content));
        }
    });
}
