//! The tap interfaces of microVMs, by the descriptors that their processes hold: a tap's name is
//! what the kernel says of the descriptor, whatever the VMM's command line called it.
//!
//! # Invariants
//! - An interface of another network namespace is not told: here it may be another of that name.
//! - Descriptors are looked at when a process is new, and then every sixth time, since an
//!   interface may be renamed.

use crate::Root;
use crate::bounded;
use crate::process::Scanner;
use crate::text::{lines, printable};
use model::load::UnitLoad;
use model::vm::may_be_microvm;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

/// Descriptors of one process that are looked at.
const DESCRIPTORS_MAX: usize = 4096;
/// Samples for which what was seen of a process is believed.
const BELIEVED: u8 = 6;
const TUN: &str = "/dev/net/tun";

/// What a process held open, and how many samples ago that was.
#[derive(Debug)]
struct Held {
    /// Absent where it could not be looked at.
    taps: Option<BTreeSet<String>>,
    age: u8,
}

/// Finds taps, and remembers them.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// By pid and start.
    held: HashMap<(u32, u64), Held>,
}

impl Taps {
    /// Says of each microVM which taps are its own.
    pub(super) fn tell(
        &mut self,
        root: &Root,
        scanner: &Scanner,
        units: &mut BTreeMap<String, UnitLoad>,
    ) {
        let mut before = std::mem::take(&mut self.held);
        if !units.values().any(|unit| unit.vm.is_some()) {
            return;
        }
        let mut of_units: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for process in scanner.processes() {
            let Some(unit) = process.unit().filter(|unit| may_be_microvm(unit)) else { continue };
            let key = (process.pid, process.start_ticks);
            let held = match before.remove(&key) {
                Some(held) if held.age < BELIEVED => Held { age: held.age + 1, ..held },
                _ => Held { taps: look(root, process.pid), age: 0 },
            };
            if let Some(taps) = &held.taps {
                of_units.entry(unit).or_default().extend(taps.iter().cloned());
            }
            self.held.insert(key, held);
        }
        for (unit, load) in units {
            if let Some(vm) = &mut load.vm {
                let taps = of_units.remove(unit.as_str());
                vm.taps = taps.map(|taps| taps.into_iter().collect());
            }
        }
    }
}

/// The taps that a process holds open in this network namespace.
fn look(root: &Root, pid: u32) -> Option<BTreeSet<String>> {
    let namespace = |pid: &str| fs::read_link(root.proc(format!("{pid}/ns/net"))).ok();
    if namespace(&pid.to_string()) != namespace("self") {
        return None;
    }
    let mut taps = BTreeSet::new();
    for entry in fs::read_dir(root.proc(format!("{pid}/fd"))).ok()?.take(DESCRIPTORS_MAX) {
        // It may be closed by now.
        let Ok(entry) = entry else { continue };
        if fs::read_link(entry.path()).is_ok_and(|to| to == Path::new(TUN)) {
            let info = root.proc(format!("{pid}/fdinfo")).join(entry.file_name());
            let info = bounded::read(&info, bounded::SMALL).unwrap_or_default();
            taps.extend(interface(&info));
        }
    }
    Some(taps)
}

/// `iff: <tab> NAME`; a descriptor that is no interface's yet has no name.
fn interface(info: &[u8]) -> Option<String> {
    let name = lines(info).find_map(|line| line.strip_prefix(b"iff:"))?.trim_ascii();
    // The kernel takes 15 bytes, and neither spaces nor slashes.
    let fits = (1..16).contains(&name.len()) && !name.contains(&b'/');
    fits.then(|| printable(name)).filter(|name| !name.contains('%'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Now;
    use crate::load::Sampler;
    use model::redact::Redactor;
    use std::os::unix::fs::symlink;

    #[test]
    fn names() {
        assert_eq!(interface(b"pos:\t0\nflags:\t02\niff:\tvm-web\n").as_deref(), Some("vm-web"));
        for nothing in [&b""[..], b"iff:\t\n", b"iff:\ta/b\n", b"iff:\ttap%d\n", b"pos:\t0\n"] {
            assert_eq!(interface(nothing), None);
        }
        assert_eq!(interface(b"iff:\tnamethatistoolong\n"), None);
    }

    #[test]
    fn a_microvm_and_its_taps() {
        const UNIT: &str = "microvm@web.service";
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let put = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let group = format!("system.slice/{UNIT}");
        put("sys/fs/cgroup/cgroup.controllers", "");
        put(&format!("sys/fs/cgroup/{group}/memory.current"), "4096\n");
        let stat = "(qemu) S 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7 4096 10 0\n";
        put("proc/42/stat", &format!("42 {stat}"));
        put("proc/42/cgroup", &format!("0::/{group}\n"));
        put("proc/42/cmdline", "qemu\0");
        put("proc/42/fdinfo/9", "pos:\t0\niff:\tvm-web\n");
        put("proc/42/fdinfo/10", "pos:\t0\niff:\tno-tap\n");
        fs::create_dir_all(root.proc("42/fd")).unwrap();
        symlink(TUN, root.proc("42/fd/9")).unwrap();
        symlink("/dev/null", root.proc("42/fd/10")).unwrap();
        let mut scanner = Scanner::new(&root).unwrap();
        let redactor = Redactor::new([7; 32], Vec::new());
        scanner.scan(Now::default(), &redactor).unwrap();
        let mut sampler = Sampler::new(&root);
        let mut taps = || {
            let units = sampler.measure(Now::default(), [(UNIT, group.as_str())]);
            let load = sampler.sample(Now::default(), &scanner, units);
            load.units[UNIT].vm.clone().unwrap().taps
        };
        assert_eq!(taps(), Some(vec!["vm-web".to_owned()]));
        put("proc/42/fdinfo/9", "pos:\t0\niff:\trenamed\n");
        let begin = taps();
        let after: Vec<_> = (0..BELIEVED).map(|_| taps()).collect();
        assert_eq!(begin, Some(vec!["vm-web".to_owned()]));
        assert_eq!(after.last().unwrap(), &Some(vec!["renamed".to_owned()]));
        // One of another network namespace says nothing here.
        fs::create_dir_all(root.proc("42/ns")).unwrap();
        symlink("net:[1]", root.proc("42/ns/net")).unwrap();
        let after: Vec<_> = (0..=BELIEVED).map(|_| taps()).collect();
        assert_eq!(after.last().unwrap(), &None);
    }
}
