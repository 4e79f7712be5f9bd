//! The figures of a node's microVMs. Their names are those of the server's, `vm_…`, behind
//! `node_`: a Prometheus that asks both has each once.

use super::page::Page;
use crate::clock;
use inventory::microvm;
use inventory::{Condition, Limits, Seen};
use model::HostId;
use model::entity::Unit;
use model::load::{Load, UnitLoad, VmLoad, VmmLoad};
use model::vm::{VmId, VmState, may_be_microvm};
use std::collections::BTreeMap;
use std::time::Duration;

/// What is remembered from one scrape to the next: a crash loop shows over time.
#[derive(Debug, Default)]
pub(super) struct Vms {
    conditions: BTreeMap<VmId, Condition>,
}

impl Vms {
    /// Tells what is known. `load` comes with its age.
    pub(super) fn tell<'u>(
        &mut self,
        page: &mut Page,
        node: &HostId,
        units: impl Iterator<Item = &'u Unit>,
        load: Option<(&Load, Duration)>,
    ) {
        let now = clock::now();
        let before = std::mem::take(&mut self.conditions);
        for unit in units.filter(|unit| may_be_microvm(&unit.id)) {
            // What has no name that can be one is told by the server.
            let known = |id: &VmId| before.get(id);
            let Ok(Some(mut seen)) = microvm::seen(node, unit, None, known, now) else { continue };
            // Of two units with one name, the first is the VM.
            if self.conditions.contains_key(&seen.id) {
                continue;
            }
            let used = load.and_then(|(load, _)| load.units.get(&seen.reference));
            let vmm = used.and_then(|used| used.vm.as_deref()?.vmm.as_ref());
            seen.limits = seen.limits.or(vmm.map(Limits::of_guest).unwrap_or_default());
            state(page, &seen);
            if let (Some((load, age)), Some(used)) = (load, used) {
                usage(page, &seen, used, age);
                if let Some(vm) = used.vm.as_deref() {
                    machine(page, &seen, vm, load, age);
                }
            }
            self.conditions.insert(seen.id, seen.condition);
        }
    }
}

fn state(page: &mut Page, seen: &Seen) {
    let Seen { id, condition, .. } = seen;
    let label = |name: &str| seen.labels.get(name).map(String::as_str).unwrap_or_default();
    let info = [
        ("vm", id.as_str()),
        ("node", seen.node.as_str()),
        ("name", seen.name.as_str()),
        ("unit", seen.reference.as_str()),
        ("vmm", label("vmm")),
        ("owner", label("owner")),
    ];
    page.gauge("node_vm_info", "1 for what a VM is").put(&info, 1);
    let help = "0 unknown, 1 creating, 2 starting, 3 running, 4 stopping, 5 stopped, 6 failed";
    let vm = [("vm", id.as_str())];
    page.gauge("node_vm_state", help).put(&vm, condition.state.number());
    let loops = condition.looping.is_some() && condition.state == VmState::Failed;
    page.gauge("node_vm_looping", "1 for a VM in a crash loop").put(&vm, loops);
    let help = "Restarts since it was last started on purpose";
    page.gauge("node_vm_restarts", help).put(&vm, condition.restarts);
    let help = "1 for a VM whose VMM was killed because memory ran out, until it runs again";
    page.gauge("node_vm_oom_killed", help).put(&vm, microvm::ran_out_of_memory(condition));
    let help = "Memory that it may use";
    page.gauge("node_vm_memory_limit_bytes", help).put_some(&vm, seen.limits.memory_bytes);
    let help = "Of one processor";
    page.gauge("node_vm_cpu_limit_percent", help).put_some(&vm, seen.limits.cpu_percent);
}

fn usage(page: &mut Page, seen: &Seen, used: &UnitLoad, age: Duration) {
    let vm = [("vm", seen.id.as_str())];
    let help = "Since use was measured";
    page.gauge("node_vm_usage_age_seconds", help).put(&vm, age.as_secs_f64());
    let help = "Of one processor, when last measured";
    page.gauge("node_vm_cpu_percent", help).put_some(&vm, used.cpu_percent);
    let help = "Memory when last measured";
    page.gauge("node_vm_memory_bytes", help).put_some(&vm, used.memory_bytes);
    page.gauge("node_vm_tasks", "Threads of its unit").put_some(&vm, used.tasks);
    let pressure = used.pressure.get("memory").and_then(|pressure| pressure.some);
    let help = "Of 10 s, in which some of it waited for memory";
    let pressure = pressure.map(|[of_10_s, _, _]| of_10_s);
    page.gauge("node_vm_memory_pressure_percent", help).put_some(&vm, pressure);
}

fn machine(page: &mut Page, seen: &Seen, known: &VmLoad, load: &Load, age: Duration) {
    let vm = ("vm", seen.id.as_str());
    let help = "By block device of the node";
    for (device, disk) in &known.disks {
        let labels = [vm, ("device", device.as_str())];
        page.gauge("node_vm_disk_read_bytes_per_second", help)
            .put_some(&labels, disk.read_bytes_per_second);
        page.gauge("node_vm_disk_written_bytes_per_second", help)
            .put_some(&labels, disk.written_bytes_per_second);
    }
    let help = "By tap interface of the node";
    for tap in known.taps.iter().flatten() {
        let Some(seen) = load.interfaces.get(tap) else { continue };
        let labels = [vm, ("device", tap.as_str())];
        // What a tap receives is what the VM sends.
        page.gauge("node_vm_interface_received_bytes_per_second", help)
            .put_some(&labels, seen.sent_bytes_per_second);
        page.gauge("node_vm_interface_sent_bytes_per_second", help)
            .put_some(&labels, seen.received_bytes_per_second);
    }
    let help = "From the start of its VMM until its unit was active";
    let boot = known.boot_ms.map(|ms| Duration::from_millis(ms).as_secs_f64());
    page.gauge("node_vm_boot_seconds", help).put_some(&[vm], boot);
    let help = "The most memory that it had since it was started";
    page.gauge("node_vm_memory_peak_bytes", help).put_some(&[vm], known.memory_peak_bytes);
    let help = "Processes that were killed because memory ran out, since it was started";
    page.gauge("node_vm_oom_kills", help).put_some(&[vm], known.oom_kills);
    let help = "Errors in the journal of its node within the last hour";
    if let Some(journal) = known.journal {
        for (priority, count) in [("critical", journal.critical), ("error", journal.errors)] {
            page.gauge("node_vm_journal_entries", help).put(&[vm, ("priority", priority)], count);
        }
    }
    if let Some(vmm) = &known.vmm {
        monitor(page, &[vm], vmm, load, age);
    }
}

fn monitor(page: &mut Page, vm: &[(&str, &str)], vmm: &VmmLoad, load: &Load, age: Duration) {
    page.gauge("node_vm_vmm_answers", "1 for a VMM that answers").put(vm, vmm.fault.is_none());
    let since = vmm.at.map(|at| (load.at.since(at) + age).as_secs_f64());
    page.gauge("node_vm_vmm_age_seconds", "Since its VMM answered").put_some(vm, since);
    for (name, help, known) in [
        ("node_vm_vcpus", "Processors of the guest", vmm.vcpus),
        ("node_vm_guest_memory_bytes", "Memory that the guest was given", vmm.memory_bytes),
        (
            "node_vm_balloon_memory_bytes",
            "The same, less what its balloon took back",
            vmm.balloon_memory_bytes,
        ),
    ] {
        page.gauge(name, help).put_some(vm, known);
    }
    let help = "1 where the guest's agent has its channel open";
    page.gauge("node_vm_guest_agent", help).put_some(vm, vmm.guest_agent);
}
