//! What each unit uses, by its control group: the unified hierarchy, version 1, or both side
//! by side, as systemd's "hybrid" layout has them.
//!
//! # Invariants
//! - A controller that is missing reads as `None`.
//! - A unit that used no processor time since the last sample did nothing: its memory and
//!   tasks are not read again, but for every sixth time.
//! - More is read of a unit that runs a microVM, and of no other.
//! - What a microVM's disks leave in the page cache unused is not its memory.

use super::devices::Devices;
use super::host::pressure;
use super::source::Counter;
use crate::Root;
use crate::process::Quiet;
use crate::text::{decimal, lines, printable, words};
use model::load::{Pressure, UnitLoad, VmDiskLoad, VmLoad};
use model::vm::may_be_microvm;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::read;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Units that are measured.
const UNITS_MAX: usize = 4096;
/// Samples after which an idle unit is looked at in full.
const IDLE_SAMPLES: u8 = 6;
/// Block devices of one microVM that are told.
const DISKS_MAX: usize = 64;
const OLD_BLOCKS: &str = "blkio.throttle.io_service_bytes";
const PRESSURES: [&str; 3] = ["cpu", "memory", "io"];

/// The hierarchies of this machine, each kept open.
#[derive(Debug, Default)]
struct Hierarchies {
    unified: Option<OwnedFd>,
    processor: Option<OwnedFd>,
    memory: Option<OwnedFd>,
    tasks: Option<OwnedFd>,
    blocks: Option<OwnedFd>,
}

impl Hierarchies {
    fn open(root: &Root) -> Self {
        let base = root.sys("fs/cgroup");
        if base.join("cgroup.controllers").exists() {
            return Self { unified: directory(&base), ..Self::default() };
        }
        let any = |names: &[&str]| names.iter().find_map(|name| directory(&base.join(name)));
        Self {
            unified: any(&["unified"]),
            processor: any(&["cpuacct", "cpu,cpuacct"]),
            memory: any(&["memory"]),
            tasks: any(&["pids"]),
            blocks: any(&["blkio"]),
        }
    }
}

fn directory(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).ok()
}

/// What units use, and which did nothing since they were measured before.
#[derive(Debug, Default)]
pub struct Measured {
    pub(super) loads: BTreeMap<String, UnitLoad>,
    pub quiet: Quiet,
}

#[derive(Debug, Default)]
struct State {
    round: u32,
    processor: Counter,
    read: Counter,
    written: Counter,
    idle_samples: u8,
    disks: Devices<2>,
    last: UnitLoad,
}

/// Measures units, and remembers their counters.
#[derive(Debug)]
pub(super) struct Units {
    root: Root,
    hierarchies: Hierarchies,
    states: HashMap<String, State>,
    round: u32,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Units {
    pub(super) fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            hierarchies: Hierarchies::open(root),
            states: HashMap::new(),
            round: 0,
            path: PathBuf::new(),
            buffer: vec![0; 8192],
        }
    }

    /// Measures each unit given by its id and control group.
    pub(super) fn measure_all<'u>(
        &mut self,
        clock: Duration,
        units: impl IntoIterator<Item = (&'u str, &'u str)>,
    ) -> Measured {
        self.round = self.round.wrapping_add(1);
        let Measured { mut loads, mut quiet } = Measured::default();
        for (id, cgroup) in units.into_iter().take(UNITS_MAX) {
            let group = cgroup.trim_matches('/');
            let outside = group.is_empty() || group.split('/').any(|part| part == "..");
            if outside || group.contains('\0') {
                continue;
            }
            if !self.states.contains_key(id) {
                self.states.insert(id.to_owned(), State::default());
            }
            let Some(mut state) = self.states.get_mut(id).map(std::mem::take) else { continue };
            state.round = self.round;
            if self.measure(&mut state, clock, group, &mut quiet) {
                if may_be_microvm(id) {
                    self.measure_vm(&mut state, clock, group);
                }
                loads.insert(id.to_owned(), state.last.clone());
            }
            if let Some(place) = self.states.get_mut(id) {
                *place = state;
            }
        }
        let round = self.round;
        self.states.retain(|_, state| state.round == round);
        Measured { loads, quiet }
    }

    /// `false` when the unit has no control group now.
    fn measure(
        &mut self,
        state: &mut State,
        clock: Duration,
        group: &str,
        quiet: &mut Quiet,
    ) -> bool {
        let before = state.processor.last();
        let unified = self.unified_micros(group);
        let used = unified.or_else(|| self.old_micros(group));
        let cpu = state.processor.rate(clock, used);
        state.last.cpu_percent = cpu.map(|micros| micros / 10_000.0);
        let idle = used.is_some() && used == before;
        if idle && unified.is_some() {
            quiet.insert(group);
        }
        let calm = state.last.pressure.values().all(is_calm);
        if idle && calm && state.idle_samples < IDLE_SAMPLES {
            state.idle_samples += 1;
            let still = |rate: Option<f64>| rate.map(|_| 0.0);
            state.last.read_bytes_per_second = still(state.last.read_bytes_per_second);
            state.last.written_bytes_per_second = still(state.last.written_bytes_per_second);
            return true;
        }
        state.idle_samples = 0;
        state.last.memory_bytes = self.memory_bytes(group);
        state.last.tasks = self.tasks(group);
        let (read, written) = self.block_bytes(group).unzip();
        state.last.read_bytes_per_second = state.read.rate(clock, read);
        state.last.written_bytes_per_second = state.written.rate(clock, written);
        state.last.pressure = self.pressures(group);
        used.is_some() || state.last.memory_bytes.is_some() || state.last.tasks.is_some()
    }

    /// What is told of microVMs alone. One that did nothing did nothing to its disks.
    fn measure_vm(&mut self, state: &mut State, clock: Duration, group: &str) {
        let vm = state.last.vm.get_or_insert_with(Box::<VmLoad>::default);
        if state.idle_samples > 0 {
            for disk in vm.disks.values_mut() {
                disk.read_bytes_per_second = disk.read_bytes_per_second.map(|_| 0.0);
                disk.written_bytes_per_second = disk.written_bytes_per_second.map(|_| 0.0);
            }
            return;
        }
        let readings = self.disk_bytes(group);
        let told = |[read, written]: [Option<f64>; 2]| VmDiskLoad {
            read_bytes_per_second: read,
            written_bytes_per_second: written,
        };
        let rates = state.disks.rates(clock, readings);
        vm.disks = rates.into_iter().map(|(name, rates)| (name, told(rates))).collect();
        vm.oom_kills = self.oom_kills(group);
        vm.memory_peak_bytes = self.memory_peak_bytes(group);
        let unused = self.unused_file_bytes(group).unwrap_or(0);
        let memory = &mut state.last.memory_bytes;
        *memory = memory.map(|bytes| bytes.saturating_sub(unused));
    }

    /// Bytes read from and written to each device, by its name.
    fn disk_bytes(&mut self, group: &str) -> BTreeMap<String, [u64; 2]> {
        let Self { root, hierarchies, path, buffer, .. } = self;
        let mut sums: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        let mut add = |Moved { device, read, written }: Moved<'_>| {
            let Some(name) = device_name(root, device) else { return };
            if sums.len() < DISKS_MAX || sums.contains_key(&name) {
                let sum = sums.entry(name).or_default();
                *sum = [sum[0].saturating_add(read), sum[1].saturating_add(written)];
            }
        };
        if let Some(text) = file(&hierarchies.blocks, path, buffer, [group, OLD_BLOCKS]) {
            old_moved(text).for_each(&mut add);
        } else if let Some(text) = file(&hierarchies.unified, path, buffer, [group, "io.stat"]) {
            moved(text).for_each(&mut add);
        }
        sums
    }

    /// A number that a controller's own hierarchy tells, else the unified one: in which file of
    /// each, and how it stands there.
    fn number(
        &mut self,
        group: &str,
        controller: fn(&Hierarchies) -> &Option<OwnedFd>,
        [older, unified]: [(&str, Reading); 2],
    ) -> Option<u64> {
        let Self { hierarchies, path, buffer, .. } = self;
        let told = file(controller(hierarchies), path, buffer, [group, older.0]).and_then(older.1);
        told.or_else(|| {
            file(&hierarchies.unified, path, buffer, [group, unified.0]).and_then(unified.1)
        })
    }

    /// Processes of the group that the kernel killed for lack of memory.
    fn oom_kills(&mut self, group: &str) -> Option<u64> {
        self.number(
            group,
            |of| &of.memory,
            [
                ("memory.oom_control", |text| value_of(text, b"oom_kill")),
                ("memory.events", |text| value_of(text, b"oom_kill")),
            ],
        )
    }

    /// The most memory that the group ever had. The kernel keeps it for both hierarchies, for the
    /// unified one since 5.19.
    fn memory_peak_bytes(&mut self, group: &str) -> Option<u64> {
        self.number(
            group,
            |of| &of.memory,
            [("memory.max_usage_in_bytes", alone), ("memory.peak", alone)],
        )
    }

    /// Files in memory that nobody used for a while.
    fn unused_file_bytes(&mut self, group: &str) -> Option<u64> {
        self.number(
            group,
            |of| &of.memory,
            [
                ("memory.stat", |text| value_of(text, b"total_inactive_file")),
                ("memory.stat", |text| value_of(text, b"inactive_file")),
            ],
        )
    }

    fn unified_micros(&mut self, group: &str) -> Option<u64> {
        let Self { hierarchies, path, buffer, .. } = self;
        let text = file(&hierarchies.unified, path, buffer, [group, "cpu.stat"])?;
        value_of(text, b"usage_usec")
    }

    fn old_micros(&mut self, group: &str) -> Option<u64> {
        let Self { hierarchies, path, buffer, .. } = self;
        let text = file(&hierarchies.processor, path, buffer, [group, "cpuacct.usage"])?;
        Some(decimal(text.trim_ascii())? / 1000)
    }

    fn memory_bytes(&mut self, group: &str) -> Option<u64> {
        self.number(
            group,
            |of| &of.memory,
            [("memory.usage_in_bytes", alone), ("memory.current", alone)],
        )
    }

    fn tasks(&mut self, group: &str) -> Option<u64> {
        self.number(group, |of| &of.tasks, [("pids.current", alone), ("pids.current", alone)])
    }

    /// Bytes read and written, of all devices together.
    fn block_bytes(&mut self, group: &str) -> Option<(u64, u64)> {
        let Self { hierarchies, path, buffer, .. } = self;
        file(&hierarchies.blocks, path, buffer, [group, OLD_BLOCKS])
            .map(|text| sum(old_moved(text)))
            .or_else(|| {
                let text = file(&hierarchies.unified, path, buffer, [group, "io.stat"])?;
                Some(sum(moved(text)))
            })
    }

    fn pressures(&mut self, group: &str) -> BTreeMap<String, Pressure> {
        let Self { hierarchies, path, buffer, .. } = self;
        let mut pressures = BTreeMap::new();
        for name in PRESSURES {
            let file_name = match name {
                "cpu" => "cpu.pressure",
                "memory" => "memory.pressure",
                _ => "io.pressure",
            };
            let text = file(&hierarchies.unified, path, buffer, [group, file_name]);
            if let Some(pressure) = text.and_then(pressure) {
                pressures.insert(name.to_owned(), pressure);
            }
        }
        pressures
    }
}

/// How a number stands in a file.
type Reading = fn(&[u8]) -> Option<u64>;

/// Nothing but the number.
fn alone(text: &[u8]) -> Option<u64> {
    decimal(text.trim_ascii())
}

/// What one file of a group says now.
fn file<'b>(
    hierarchy: &Option<OwnedFd>,
    path: &mut PathBuf,
    buffer: &'b mut [u8],
    [group, name]: [&str; 2],
) -> Option<&'b [u8]> {
    let hierarchy = hierarchy.as_ref()?;
    path.clear();
    path.push(group);
    path.push(name);
    let file = openat(hierarchy, &*path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = read(&file, &mut *buffer).ok()?;
    buffer.get(..length)
}

fn is_calm(pressure: &Pressure) -> bool {
    let calm = |averages: Option<[f64; 3]>| averages.is_none_or(|a| a == [0.0; 3]);
    calm(pressure.some) && calm(pressure.full)
}

/// The number after a name at the start of a line.
fn value_of(text: &[u8], name: &[u8]) -> Option<u64> {
    lines(text).find_map(|line| {
        let mut fields = words(line);
        (fields.next() == Some(name)).then(|| fields.next().and_then(decimal)).flatten()
    })
}

/// What a line says was read from and written to a device.
struct Moved<'t> {
    device: &'t [u8],
    read: u64,
    written: u64,
}

fn sum<'t>(moved: impl Iterator<Item = Moved<'t>>) -> (u64, u64) {
    moved.fold((0_u64, 0_u64), |(read, written), line| {
        (read.saturating_add(line.read), written.saturating_add(line.written))
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 …` for each device.
fn moved(text: &[u8]) -> impl Iterator<Item = Moved<'_>> {
    lines(text).filter_map(|line| {
        let mut moved = Moved { device: words(line).next()?, read: 0, written: 0 };
        for field in words(line) {
            let number = |prefix: &[u8]| field.strip_prefix(prefix).and_then(decimal).unwrap_or(0);
            moved.read = moved.read.saturating_add(number(b"rbytes="));
            moved.written = moved.written.saturating_add(number(b"wbytes="));
        }
        Some(moved)
    })
}

/// `8:0 Read 1`, `8:0 Write 2`, … for each device.
fn old_moved(text: &[u8]) -> impl Iterator<Item = Moved<'_>> {
    lines(text).filter_map(|line| {
        let mut fields = words(line);
        let device = fields.next()?;
        let (kind, bytes) = (fields.next()?, fields.next().and_then(decimal)?);
        match kind {
            b"Read" => Some(Moved { device, read: bytes, written: 0 }),
            b"Write" => Some(Moved { device, read: 0, written: bytes }),
            _ => None,
        }
    })
}

/// The name of a device that is given by its numbers, or these where it has none.
fn device_name(root: &Root, numbers: &[u8]) -> Option<String> {
    let numbers = std::str::from_utf8(numbers).ok()?;
    let (major, minor) = numbers.split_once(':')?;
    if decimal(major.as_bytes()).is_none() || decimal(minor.as_bytes()).is_none() {
        return None;
    }
    let device = std::fs::read_link(root.sys(format!("dev/block/{major}:{minor}"))).ok();
    let name = device.as_deref().and_then(Path::file_name);
    Some(name.map_or_else(|| numbers.to_owned(), |name| printable(name.as_encoded_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    const GROUP: &str = "/system.slice/web.service";

    fn put(root: &Root, hierarchy: &str, file: &str, text: &str) {
        let group = root.sys("fs/cgroup").join(hierarchy).join(GROUP.trim_matches('/'));
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join(file), text).unwrap();
    }

    fn unified_machine() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.sys("fs/cgroup")).unwrap();
        fs::write(root.sys("fs/cgroup/cgroup.controllers"), "cpu io memory pids\n").unwrap();
        (directory, root)
    }

    fn load(units: &mut Units, seconds: u64) -> Option<UnitLoad> {
        units
            .measure_all(Duration::from_secs(seconds), [("web.service", GROUP)])
            .loads
            .remove("web.service")
    }

    #[test]
    fn what_did_nothing_is_quiet() {
        let (_directory, root) = unified_machine();
        let mut units = Units::new(&root);
        let mut check = |usage: &str, expected: &[&str]| {
            put(&root, "", "cpu.stat", usage);
            let both = [("web.service", GROUP), ("gone.service", "/gone.service")];
            let mut quiet = Quiet::default();
            expected.iter().for_each(|group| quiet.insert(group));
            assert_eq!(units.measure_all(Duration::ZERO, both).quiet, quiet, "{usage}");
        };
        check("usage_usec 1000000\n", &[]);
        check("usage_usec 1000000\n", &[GROUP]);
        check("usage_usec 1000001\n", &[]);
        check("usage_usec 1000001\n", &[GROUP]);
        // It was stopped and started: what it used begins anew.
        check("usage_usec 3\n", &[]);
        check("", &[]);
        check("", &[]);
    }

    #[test]
    fn unified() {
        let (_directory, root) = unified_machine();
        put(&root, "", "cpu.stat", "usage_usec 1000000\nuser_usec 1\n");
        put(&root, "", "memory.current", "4096\n");
        put(&root, "", "pids.current", "3\n");
        put(&root, "", "io.stat", "8:0 rbytes=100 wbytes=0 rios=1\n8:16 rbytes=0 wbytes=50\n");
        put(&root, "", "memory.pressure", "some avg10=1.00 avg60=0.00 avg300=0.00 total=1\n");
        let mut units = Units::new(&root);
        let first = load(&mut units, 10).unwrap();
        assert_eq!(
            (first.cpu_percent, first.memory_bytes, first.tasks),
            (None, Some(4096), Some(3))
        );
        assert_eq!(first.pressure["memory"].some, Some([1.0, 0.0, 0.0]));
        put(&root, "", "cpu.stat", "usage_usec 6000000\n");
        put(&root, "", "io.stat", "8:0 rbytes=300 wbytes=0\n8:16 rbytes=0 wbytes=60\n");
        let second = load(&mut units, 20).unwrap();
        assert_eq!(second.cpu_percent, Some(50.0));
        assert_eq!(
            (second.read_bytes_per_second, second.written_bytes_per_second),
            (Some(20.0), Some(1.0))
        );
    }

    #[test]
    fn idle_units_are_looked_at_seldom() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.sys("fs/cgroup")).unwrap();
        fs::write(root.sys("fs/cgroup/cgroup.controllers"), "").unwrap();
        put(&root, "", "cpu.stat", "usage_usec 1000000\n");
        put(&root, "", "memory.current", "1\n");
        let mut units = Units::new(&root);
        load(&mut units, 1);
        put(&root, "", "memory.current", "2\n");
        let seen: Vec<_> =
            (2..10).map(|at| load(&mut units, at).unwrap().memory_bytes.unwrap()).collect();
        assert_eq!(seen, [1, 1, 1, 1, 1, 1, 2, 2]);
        assert_eq!(load(&mut units, 10).unwrap().cpu_percent, Some(0.0));
        fs::remove_dir_all(root.sys("fs/cgroup/system.slice")).unwrap();
        assert_eq!(load(&mut units, 11), None);
    }

    #[test]
    fn version_one_and_hybrid() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        put(&root, "cpu,cpuacct", "cpuacct.usage", "1000000000\n");
        put(&root, "memory", "memory.usage_in_bytes", "8192\n");
        put(
            &root,
            "blkio",
            "blkio.throttle.io_service_bytes",
            "8:0 Read 5\n8:0 Write 6\n8:0 Total 11\nTotal 11\n",
        );
        let mut units = Units::new(&root);
        load(&mut units, 10).unwrap();
        put(&root, "cpu,cpuacct", "cpuacct.usage", "1500000000\n");
        put(&root, "blkio", "blkio.throttle.io_service_bytes", "8:0 Read 105\n8:0 Write 6\n");
        let one = load(&mut units, 11).unwrap();
        assert_eq!((one.cpu_percent, one.memory_bytes, one.tasks), (Some(50.0), Some(8192), None));
        assert_eq!(
            (one.read_bytes_per_second, one.written_bytes_per_second),
            (Some(100.0), Some(0.0))
        );
        put(&root, "unified", "cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n");
        let mut units = Units::new(&root);
        assert!(load(&mut units, 10).unwrap().pressure.contains_key("cpu"));
    }

    #[test]
    fn a_microvm_in_full() {
        const VM: (&str, &str) = ("microvm@web.service", GROUP);
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        fs::create_dir_all(root.sys("fs/cgroup")).unwrap();
        fs::write(root.sys("fs/cgroup/cgroup.controllers"), "cpu io memory pids\n").unwrap();
        fs::create_dir_all(root.sys("dev/block")).unwrap();
        let link = "../../devices/pci0000:00/block/vda";
        std::os::unix::fs::symlink(link, root.sys("dev/block/254:0")).unwrap();
        let mut units = Units::new(&root);
        let mut vm = |seconds, usec: u32, stat: &str, events: &str| {
            put(&root, "", "cpu.stat", &format!("usage_usec {usec}\n"));
            put(&root, "", "io.stat", stat);
            put(&root, "", "memory.events", events);
            *units
                .measure_all(Duration::from_secs(seconds), [VM])
                .loads
                .remove(VM.0)
                .unwrap()
                .vm
                .unwrap()
        };
        let first =
            vm(10, 1, "254:0 rbytes=0 wbytes=0\n8:16 rbytes=9 wbytes=9\nx:y rbytes=1\n", "");
        assert_eq!((first.disks.len(), first.oom_kills), (2, None));
        let second =
            vm(11, 2, "254:0 rbytes=100 wbytes=7\n8:16 rbytes=9 wbytes=9\n", "oom 3\noom_kill 2\n");
        let disk = |read, written| VmDiskLoad {
            read_bytes_per_second: Some(read),
            written_bytes_per_second: Some(written),
        };
        assert_eq!((second.disks["vda"], second.disks["8:16"]), (disk(100.0, 7.0), disk(0.0, 0.0)));
        assert_eq!(second.oom_kills, Some(2));
        // It rests; and then its counters begin anew.
        assert_eq!(vm(12, 2, "254:0 rbytes=500 wbytes=7\n", "").disks["vda"], disk(0.0, 0.0));
        assert_eq!(vm(13, 3, "254:0 rbytes=1 wbytes=1\n", "").disks["vda"], VmDiskLoad::default());
    }

    #[test]
    fn memory_of_a_microvm() {
        let check = |root: &Root, id: &str, memory: u64, peak: Option<u64>| {
            let mut loads =
                Units::new(root).measure_all(Duration::from_secs(1), [(id, GROUP)]).loads;
            let UnitLoad { memory_bytes, vm, .. } = loads.remove(id).unwrap();
            assert_eq!(
                (memory_bytes, vm.and_then(|vm| vm.memory_peak_bytes)),
                (Some(memory), peak)
            );
        };
        let (_directory, root) = unified_machine();
        put(&root, "", "cpu.stat", "usage_usec 1\n");
        put(&root, "", "memory.current", "4096\n");
        check(&root, "microvm@web.service", 4096, None);
        put(&root, "", "memory.peak", "8192\n");
        put(&root, "", "memory.stat", "anon 1\nfile 3200\nactive_file 200\ninactive_file 3000\n");
        check(&root, "microvm@web.service", 1096, Some(8192));
        check(&root, "alice/microvm-web.service", 1096, Some(8192));
        // Of others no more is read.
        check(&root, "web.service", 4096, None);
        put(&root, "", "memory.stat", "inactive_file 5000\n");
        check(&root, "microvm@web.service", 0, Some(8192));
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        put(&root, "memory", "memory.usage_in_bytes", "4096\n");
        put(&root, "memory", "memory.max_usage_in_bytes", "9000\n");
        put(&root, "memory", "memory.stat", "inactive_file 1\ntotal_inactive_file 96\n");
        check(&root, "microvm@web.service", 4000, Some(9000));
    }

    #[test]
    fn groups_that_lead_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let mut units = Units::new(&Root::at(directory.path()));
        let odd = [("a", ""), ("b", "/"), ("c", "/../../etc"), ("d", "x\0y"), ("e", "/absent")];
        assert!(units.measure_all(Duration::from_secs(1), odd).loads.is_empty());
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, text in "([0-9]:[0-9]|rbytes=|wbytes=|Read|Write|usage_usec|[0-9]{1,22}|[ \n]){0,40}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                value_of(bytes, b"usage_usec");
                sum(moved(bytes));
                sum(old_moved(bytes));
            }
        }
    }
}
