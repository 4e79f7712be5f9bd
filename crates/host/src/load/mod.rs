//! How busy a machine is: a [`Sampler`] that turns the kernel's counters into rates.
//!
//! Owns the previous counters, and the files it keeps open. What it gives is never part of
//! the facts. Processes come out of the scanner's last scan, so that nothing is read twice;
//! the load of graphics processors is the `gpu` module's.
//!
//! # Invariants
//! - A rate needs two readings: the first sample has none.
//! - What is missing, or started anew, is `None`, and never spoils the rest.

mod devices;
mod filesystems;
mod host;
mod source;
mod taps;
mod units;

use crate::process::Scanner;
use crate::{Now, Root};
use devices::{Disks, Interfaces};
use host::{CpuTimes, MemInfo, Stat};
use model::load::{HostLoad, Load, ProcessLoad};
use source::{Counter, KeptFile};
use std::collections::BTreeSet;
use std::time::Duration;
use taps::Taps;
pub use units::Measured;
use units::Units;

/// How many processes of each order are told: the busiest, and the largest.
const PROCESSES_TOLD: usize = 20;

/// Measures a machine, again and again.
#[derive(Debug)]
pub struct Sampler {
    root: Root,
    files: Files,
    buffer: Vec<u8>,
    processors: Option<CpuTimes>,
    cores: Vec<(u32, CpuTimes)>,
    forks: Counter,
    context_switches: Counter,
    units: Units,
    taps: Taps,
    interfaces: Interfaces,
    disks: Disks,
}

#[derive(Debug)]
struct Files {
    stat: KeptFile,
    memory: KeptFile,
    load_average: KeptFile,
    uptime: KeptFile,
    pressures: [(&'static str, KeptFile); 3],
    interfaces: KeptFile,
    disks: KeptFile,
    mounts: KeptFile,
}

impl Sampler {
    #[must_use]
    pub fn new(root: &Root) -> Self {
        let file = |name: &str| KeptFile::new(root.proc(name));
        Self {
            files: Files {
                stat: file("stat"),
                memory: file("meminfo"),
                load_average: file("loadavg"),
                uptime: file("uptime"),
                pressures: ["cpu", "memory", "io"]
                    .map(|kind| (kind, file(&format!("pressure/{kind}")))),
                interfaces: file("net/dev"),
                disks: file("diskstats"),
                mounts: file("self/mounts"),
            },
            buffer: Vec::new(),
            processors: None,
            cores: Vec::new(),
            forks: Counter::default(),
            context_switches: Counter::default(),
            units: Units::new(root),
            taps: Taps::default(),
            interfaces: Interfaces::default(),
            disks: Disks::default(),
            root: root.clone(),
        }
    }

    /// Measures the units, given by the id and the control group of each that has one. Comes before
    /// a scan of the processes: those of units that did nothing need not be read then.
    pub fn measure<'u>(
        &mut self,
        now: Now,
        units: impl IntoIterator<Item = (&'u str, &'u str)>,
    ) -> Measured {
        self.units.measure_all(now.clock, units)
    }

    /// Measures all else; `scanner` should have scanned just before.
    pub fn sample(&mut self, now: Now, scanner: &Scanner, units: Measured) -> Load {
        let Files { interfaces, disks, mounts, .. } = &mut self.files;
        let buffer = &mut self.buffer;
        let interfaces =
            interfaces.read(buffer).map(|table| self.interfaces.load(now.clock, table));
        let disks = disks.read(buffer).map(|table| self.disks.load(now.clock, table, &self.root));
        let filesystems = mounts.read(buffer).map(|table| filesystems::load(table, &self.root));
        let mut units = units.loads;
        self.taps.tell(&self.root, scanner, &mut units);
        Load {
            at: now.at,
            host: self.host(now.clock, scanner),
            units,
            processes: processes(scanner),
            filesystems: filesystems.unwrap_or_default(),
            interfaces: interfaces.unwrap_or_default(),
            disks: disks.unwrap_or_default(),
            ..Load::default()
        }
    }

    fn host(&mut self, clock: Duration, scanner: &Scanner) -> HostLoad {
        let Self { files, buffer, .. } = self;
        let memory = files.memory.read(buffer).map(MemInfo::parse).unwrap_or_default();
        let stat = files.stat.read(buffer).map(Stat::parse).unwrap_or_default();
        let mut pressure = std::collections::BTreeMap::new();
        for (kind, file) in &mut files.pressures {
            if let Some(seen) = file.read(buffer).and_then(host::pressure) {
                pressure.insert((*kind).to_owned(), seen);
            }
        }
        let load_average = files.load_average.read(buffer).and_then(host::load_average);
        let uptime_seconds = files.uptime.read(buffer).and_then(host::uptime_seconds);
        let shares = match (&stat.all, &self.processors) {
            (Some(times), Some(before)) => times.shares_since(before),
            _ => None,
        };
        let cpu_per_core_percent = self.cores_since(&stat.cores);
        self.processors = stat.all;
        self.cores = stat.cores;
        let processes = scanner.processes().filter(|process| !process.kernel_thread).count();
        HostLoad {
            uptime_seconds,
            cpu_percent: shares.map(|shares| shares.busy),
            cpu_per_core_percent,
            cpu_user_percent: shares.map(|shares| shares.user),
            cpu_system_percent: shares.map(|shares| shares.system),
            cpu_iowait_percent: shares.map(|shares| shares.iowait),
            cpu_steal_percent: shares.map(|shares| shares.steal),
            load_average,
            memory_total_bytes: memory.total,
            memory_available_bytes: memory.available,
            memory_free_bytes: memory.free,
            memory_cached_bytes: memory.cached,
            swap_total_bytes: memory.swap_total,
            swap_free_bytes: memory.swap_free,
            pressure,
            processes: (processes > 0).then_some(processes as u64),
            threads_running: stat.threads_running,
            forks_per_second: self.forks.rate(clock, stat.forks),
            context_switches_per_second: self.context_switches.rate(clock, stat.context_switches),
        }
    }

    /// How busy each processor was; nothing when one came or went, lest they be confused.
    fn cores_since(&self, cores: &[(u32, CpuTimes)]) -> Vec<f64> {
        let same = cores.len() == self.cores.len()
            && cores.iter().zip(&self.cores).all(|(core, before)| core.0 == before.0);
        if !same {
            return Vec::new();
        }
        let busy = |(core, before): (&(u32, CpuTimes), &(u32, CpuTimes))| {
            core.1.shares_since(&before.1).map_or(0.0, |shares| shares.busy)
        };
        cores.iter().zip(&self.cores).map(busy).collect()
    }
}

/// The busiest and the largest processes, busiest first.
fn processes(scanner: &Scanner) -> Vec<ProcessLoad> {
    let mut all: Vec<(f32, u64, u32)> = scanner
        .processes()
        .map(|process| (process.cpu_percent.unwrap_or(0.0), process.memory_bytes, process.pid))
        .collect();
    let mut told = BTreeSet::new();
    all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
    told.extend(all.iter().take(PROCESSES_TOLD).filter(|busy| busy.0 > 0.0).map(|busy| busy.2));
    all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.2.cmp(&b.2)));
    told.extend(all.iter().take(PROCESSES_TOLD).filter(|large| large.1 > 0).map(|large| large.2));
    let mut loads: Vec<ProcessLoad> = told
        .into_iter()
        .filter_map(|pid| scanner.process(pid))
        .map(|process| ProcessLoad {
            pid: i64::from(process.pid),
            name: process.name(),
            unit: process.unit().map(str::to_owned),
            cpu_percent: process.cpu_percent.map(f64::from),
            memory_bytes: Some(process.memory_bytes),
            threads: Some(u64::from(process.threads)),
        })
        .collect();
    let order = |load: &ProcessLoad| (load.cpu_percent.unwrap_or(0.0), load.memory_bytes);
    loads.sort_by(|a, b| {
        let ((busy_a, large_a), (busy_b, large_b)) = (order(a), order(b));
        busy_b.total_cmp(&busy_a).then(large_b.cmp(&large_a))
    });
    loads
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::redact::Redactor;
    use std::time::Instant;

    fn now(clock: Duration) -> Now {
        Now { clock, ..Now::default() }
    }

    #[test]
    fn this_machine() {
        let root = Root::live();
        let mut scanner = Scanner::new(&root).unwrap();
        let mut sampler = Sampler::new(&root);
        let redactor = Redactor::new([7; 32], Vec::new());
        scanner.scan(now(Duration::ZERO), &redactor).unwrap();
        let first = sampler.sample(now(Duration::ZERO), &scanner, Measured::default());
        assert_eq!(first.host.cpu_percent, None);
        assert!(first.host.memory_total_bytes > first.host.memory_free_bytes);
        assert!(first.host.load_average.is_some() && first.host.uptime_seconds.is_some());
        assert!(first.filesystems.contains_key("/") && first.interfaces.contains_key("lo"));

        // Until the kernel's clock of ten milliseconds has moved.
        let begin = Instant::now();
        let second = loop {
            let clock = begin.elapsed() + Duration::from_secs(1);
            scanner.scan(now(clock), &redactor).unwrap();
            let load = sampler.sample(now(clock), &scanner, Measured::default());
            if load.host.cpu_percent.is_some_and(|busy| busy > 0.0) {
                break load;
            }
            assert!(begin.elapsed() < Duration::from_secs(10), "the processor never got busy");
        };
        assert!(second.host.cpu_percent.unwrap() <= 100.0);
        assert!(second.host.context_switches_per_second.is_some());
        assert!((1..=2 * PROCESSES_TOLD).contains(&second.processes.len()));
    }

    #[test]
    fn a_machine_without_anything() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        std::fs::create_dir(root.proc("")).unwrap();
        let scanner = Scanner::new(&root).unwrap();
        let mut sampler = Sampler::new(&root);
        let units = sampler.measure(Now::default(), [("a", "/a")]);
        let load = sampler.sample(Now::default(), &scanner, units);
        assert_eq!(load, Load::default());
    }
}
