//! What a node measured of one VM, out of the node's load.

use inventory::{Traffic, Usage};
use model::load::Load;
use std::collections::BTreeMap;

/// Disks, and interfaces, of one VM that are kept.
const DEVICES: usize = 64;

/// What a unit used.
pub(super) fn usage(load: &Load, unit: &str) -> Option<Usage> {
    let used = load.units.get(unit)?;
    let pressure = used.pressure.get("memory").and_then(|pressure| pressure.some);
    let vm = used.vm.as_deref();
    let disk = |(name, disk): (&String, &model::load::VmDiskLoad)| {
        let traffic = Traffic {
            in_bytes_per_second: disk.read_bytes_per_second,
            out_bytes_per_second: disk.written_bytes_per_second,
        };
        (name.clone(), traffic)
    };
    Some(Usage {
        at: load.at,
        cpu_percent: used.cpu_percent,
        memory_bytes: used.memory_bytes,
        boot_ms: vm.and_then(|vm| vm.boot_ms),
        memory_peak_bytes: vm.and_then(|vm| vm.memory_peak_bytes),
        tasks: used.tasks,
        read_bytes_per_second: used.read_bytes_per_second,
        written_bytes_per_second: used.written_bytes_per_second,
        memory_pressure_percent: pressure.map(|[of_10_s, _, _]| of_10_s),
        disks: vm.map(|vm| vm.disks.iter().take(DEVICES).map(disk).collect()).unwrap_or_default(),
        interfaces: vm.and_then(|vm| vm.taps.as_deref()).map(|taps| interfaces(load, taps)),
        oom_kills: vm.and_then(|vm| vm.oom_kills),
        journal: vm.and_then(|vm| vm.journal),
        vmm: vm.and_then(|vm| vm.vmm.clone()),
        ..Usage::default()
    })
}

/// What a tap receives is what the VM sends.
fn interfaces(load: &Load, taps: &[String]) -> BTreeMap<String, Traffic> {
    let one = |tap: &String| {
        let seen = load.interfaces.get(tap);
        let traffic = Traffic {
            in_bytes_per_second: seen.and_then(|seen| seen.sent_bytes_per_second),
            out_bytes_per_second: seen.and_then(|seen| seen.received_bytes_per_second),
        };
        (tap.clone(), traffic)
    };
    taps.iter().take(DEVICES).map(one).collect()
}
